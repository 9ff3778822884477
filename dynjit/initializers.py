"""What parameters hold before training, and the seed of all random numbers."""

from __future__ import annotations

import math
import secrets
from pathlib import Path
from typing import Any

import numpy as np

from dynjit.arena import random_state
from dynjit.errors import ShapeError, located
from dynjit.ops.leaf import as_numbers
from dynjit.ops.noise import STREAM_BITS
from dynjit.shape import as_finite, as_integer, as_number

SEED_BITS = 31  # of a seed that streams of random numbers begin with; those above are folded into them
generator = np.random.default_rng()


def reset_random_seed(seed: int) -> None:
    """Starts all random numbers anew: initial values, dropout, noise, samples.  0: a seed from the system.

    Dropout and noise that are part of a graph already keep their numbers.
    """
    seed = as_integer("reset_random_seed", seed) or secrets.randbits(31)
    folded = (seed ^ seed >> SEED_BITS ^ seed >> 2 * SEED_BITS) & ((1 << SEED_BITS) - 1)
    random_state[:] = seed, folded << STREAM_BITS
    generator.bit_generator.state = np.random.default_rng(seed).bit_generator.state


reset_random_seed(0)


class PyInitializer:
    """Base of all initialisers: `values(dims, is_lookup)` gives an array; a table's rows are its last axis."""

    def values(self, dims: tuple[int, ...], is_lookup: bool) -> np.ndarray | float:
        raise TypeError(located("PyInitializer: needs one of its subclasses"))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in vars(self).items())})"


class NormalInitializer(PyInitializer):
    """Normal distribution with a mean and a variance (not a standard deviation)."""

    def __init__(self, mean: float = 0.0, var: float = 1.0) -> None:
        mean, var = as_finite("NormalInitializer", mean), as_number("NormalInitializer", var)
        if not 0 <= var < math.inf:
            raise ValueError(located(f"NormalInitializer: needs a variance of 0 or more, got {var}"))
        self.mean, self.deviation = mean, math.sqrt(var)

    def values(self, dims: tuple[int, ...], is_lookup: bool) -> np.ndarray:
        return generator.normal(self.mean, self.deviation, dims)


class UniformInitializer(PyInitializer):
    """Uniform distribution between -scale and scale."""

    def __init__(self, scale: float) -> None:
        scale = as_number("UniformInitializer", scale)
        if not 0 < scale < math.inf:
            raise ValueError(located(f"UniformInitializer: needs a scale above 0, got {scale}"))
        self.scale = scale

    def values(self, dims: tuple[int, ...], is_lookup: bool) -> np.ndarray:
        return generator.uniform(-self.scale, self.scale, dims)


class ConstInitializer(PyInitializer):
    """One number everywhere."""

    def __init__(self, c: float) -> None:
        self.c = as_number("ConstInitializer", c)

    def values(self, dims: tuple[int, ...], is_lookup: bool) -> float:
        return self.c


class IdentityInitializer(PyInitializer):
    """The identity matrix; raises RuntimeError for other shapes than square matrices."""

    def values(self, dims: tuple[int, ...], is_lookup: bool) -> np.ndarray:
        if len(dims) != 2 or dims[0] != dims[1]:
            raise RuntimeError(located(f"IdentityInitializer: needs a square matrix, got {dims}"))
        return np.eye(dims[0])


class GlorotInitializer(PyInitializer):
    """Uniform between -a and a, a = gain sqrt(3 rank / sum of dims): sqrt(6 / (rows + cols)) for a matrix.

    is_lookup: leave the number of rows of a table out.  A tensor of rank 4 counts as a convolution (h, w, in, out):
    a = gain sqrt(6 / ((in + out) h w)).  Source: Glorot and Bengio 2010, equation 16.
    """

    def __init__(self, is_lookup: bool = False, gain: float = 1.0) -> None:
        self.is_lookup, self.gain = is_lookup, as_finite("GlorotInitializer", gain)

    def values(self, dims: tuple[int, ...], is_lookup: bool) -> np.ndarray:
        used = dims[:-1] if self.is_lookup else dims
        if len(used) == 4:
            total, factor = (used[2] + used[3]) * used[0] * used[1], 6.0
        else:
            total, factor = sum(used), 3.0 * len(used)
        scale = self.gain * math.sqrt(factor / total) if total else 0.0
        return generator.uniform(-scale, scale, dims)


class SaxeInitializer(PyInitializer):
    """A random orthogonal matrix times `scale`; raises RuntimeError for other shapes than square matrices.

    Source: Saxe, McClelland and Ganguli 2014, section 3.
    """

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = as_finite("SaxeInitializer", scale)

    def values(self, dims: tuple[int, ...], is_lookup: bool) -> np.ndarray:
        if len(dims) != 2 or dims[0] != dims[1]:
            raise RuntimeError(located(f"SaxeInitializer: needs a square matrix, got {dims}"))
        q, r = np.linalg.qr(generator.standard_normal(dims))
        return self.scale * q * np.sign(np.diag(r))


class FromFileInitializer(PyInitializer):
    """Numbers of a text file, separated by white space, first axis fastest; missing ones are 0."""

    def __init__(self, fname: str | bytes) -> None:
        self.path = Path(fname.decode() if isinstance(fname, bytes) else fname)

    def values(self, dims: tuple[int, ...], is_lookup: bool) -> np.ndarray:
        numbers = np.array(self.path.read_text().split(), np.float64)
        found = np.zeros(math.prod(dims))
        found[: numbers.size] = numbers[: found.size]
        return found.reshape(dims, order="F")


class NumpyInitializer(PyInitializer):
    """The values of an array of the parameter's shape."""

    def __init__(self, array: Any) -> None:
        self.array = as_numbers("NumpyInitializer", array).astype(np.float64)

    def values(self, dims: tuple[int, ...], is_lookup: bool) -> np.ndarray:
        if self.array.shape != dims:
            raise ShapeError("NumpyInitializer", f"an array of shape {dims}", self.array.shape)
        return self.array


def he(dims: tuple[int, ...]) -> PyInitializer:
    """Normal with variance 2 / (inputs), the inputs being the last axis.  Source: He et al. 2015, equation 10."""
    return NormalInitializer(0.0, 2.0 / max(1, dims[-1]))


def initializer_of(init: Any, dims: tuple[int, ...], scale: float, mean: float, std: float) -> PyInitializer:
    """The initialiser that `add_parameters` means: an object, a number, an array, a name, or None (Glorot)."""
    named = {
        "uniform": lambda: UniformInitializer(scale),
        "normal": lambda: NormalInitializer(mean, as_finite("add_parameters", std) ** 2),
        "glorot": GlorotInitializer, "he": lambda: he(dims), "identity": IdentityInitializer, "saxe": SaxeInitializer,
    }  # fmt: skip
    if init is None:
        return GlorotInitializer()
    if isinstance(init, PyInitializer):
        return init
    if isinstance(init, (int, float, np.integer, np.floating)):
        return ConstInitializer(float(init))
    if isinstance(init, np.ndarray):
        return NumpyInitializer(init)
    if isinstance(init, str) and init in named:
        return named[init]()
    raise ValueError(located(
        f"add_parameters: needs an initialiser, a number, an array or one of {sorted(named)}, got {init!r}"
    ))  # fmt: skip
