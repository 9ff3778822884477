"""Random numbers: dropout, noise, and random tensors.

Random numbers are counted, not drawn one after the other: number i of a mini-batch item is a hash of the item's stream
(each item of each node has its own, whose number begins with the seed that held when the node was made) and of i.  So
values do not depend on grouping, on the order of execution, on the number type or on the device, and the backward pass
meets the same numbers again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from dynjit import errors
from dynjit.errors import ShapeError
from dynjit.jit import kernel, scalar
from dynjit.op import ANY, NOT_NEGATIVE, PROBABILITY, SHARE, Case, Range, define, native
from dynjit.scalars import ONE, ZERO, log
from dynjit.shape import Result, Shape, dims_of

# ---- the numbers -----------------------------------------------------------------------------------------------------

STREAM_BITS = 32  # of a stream's number that count; those before them are the seed
GOLDEN, MIX1, MIX2 = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
BITS27, BITS30, BITS31 = (np.uint64(n) for n in (27, 30, 31))

TWO_24, TWO_M24, TWO_M23 = (np.float32(2.0**power) for power in (24, -24, -23))
CENTRE, THREE, FIVE, ROOT_TWO = (np.float32(number) for number in (2.5, 3, 5, math.sqrt(2)))
A0, A1, A2, A3, A4, A5, A6, A7, A8 = (
    np.float32(number)
    for number in (
        2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503,
        -0.00417768164, 0.246640727, 1.50140941,
    )
)  # fmt: skip
B0, B1, B2, B3, B4, B5, B6, B7, B8 = (
    np.float32(number)
    for number in (
        -0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613,
        0.00943887047, 1.00167406, 2.83297682,
    )
)  # fmt: skip


@scalar
def stream_key(stream):  # type: ignore[no-untyped-def]
    """64 random bits for a stream: two rounds of SplitMix64 (Steele, Lea and Flood 2014), one for its seed."""
    z = np.uint64(stream >> STREAM_BITS)  # without sign: to LLVM, what overflows a signed number may be any number
    for addend in (GOLDEN, np.uint64(stream & ((1 << STREAM_BITS) - 1))):
        z += addend * GOLDEN
        z = (z ^ (z >> BITS30)) * MIX1
        z = (z ^ (z >> BITS27)) * MIX2
        z ^= z >> BITS31
    return np.int64(z)


@scalar
def random_bits(key, i):  # type: ignore[no-untyped-def]
    """24 random bits: number i of the stream with a key.

    Source: Wellons 2018, hash-prospector, `triple32`, whose bits change about as independently as those of a random
    permutation; half of the key enters before, half behind its first round.  As vector code 0.3 ns each.
    """
    x = np.uint32(np.uint32(i) + np.uint32(key))
    x = np.uint32((x ^ (x >> np.uint32(17))) * np.uint32(0xED5AD4BB))
    x = np.uint32((x ^ (x >> np.uint32(11))) + np.uint32(key >> 32))
    x = np.uint32(x * np.uint32(0xAC4C1B51))
    x = np.uint32((x ^ (x >> np.uint32(15))) * np.uint32(0x31848BAB))
    x = x ^ (x >> np.uint32(14))
    return np.int32(x >> np.uint32(8))


@scalar
def normal(n):  # type: ignore[no-untyped-def]
    """The standard normal number below which n / 2^24 of them lie; n odd.

    Relative error at most 3e-7.  Source: Giles 2010, "Approximating the erfinv function", table 5.
    """
    x = n * TWO_M23 - ONE
    w = -log((ONE - x) * (ONE + x))
    a, b = w - CENTRE, math.sqrt(w) - THREE
    p = ((((((((A0 * a + A1) * a + A2) * a + A3) * a + A4) * a + A5) * a + A6) * a + A7) * a + A8) * x
    q = ((((((((B0 * b + B1) * b + B2) * b + B3) * b + B4) * b + B5) * b + B6) * b + B7) * b + B8) * x
    return ROOT_TWO * (p if w < FIVE else q)


# ---- dropout ---------------------------------------------------------------------------------------------------------


def dropout_shape(x: Shape) -> Result:
    """ints: elements before, along and behind an axis that shares a mask, and mini-batch items that do."""
    return Result(x, ints=(x.item, 1, 1, 1))


@kernel
def dropout_forward(v, x0, y, item, batch, i0, i1, i2, i3, f0, ids):
    dropped, factor = int(f0 * TWO_24), ONE / (ONE - f0) if f0 < ONE else ZERO
    for b in range(batch):
        key = stream_key(ids[b // i3 * i3])
        for c in range(i1 * i2):
            at = b * item + c * i0
            x, out = v[x0 + at : x0 + at + i0], v[y + at : y + at + i0]
            first = c // i1 * i0
            for i in range(i0):
                out[i] = x[i] * factor if random_bits(key, first + i) >= dropped else ZERO


@kernel
def dropout_d0(g, x0, y, item, batch, i0, i1, i2, i3, f0, ids):
    dropped, factor = int(f0 * TWO_24), ONE / (ONE - f0) if f0 < ONE else ZERO
    for b in range(batch):
        key = stream_key(ids[b // i3 * i3])
        for c in range(i1 * i2):
            at = b * item + c * i0
            dx, dy = g[x0 + at : x0 + at + i0], g[y + at : y + at + i0]
            first = c // i1 * i0
            for i in range(i0):
                dx[i] += dy[i] * factor if random_bits(key, first + i) >= dropped else ZERO


@scalar
def is_dropped(e, item, i0, i1, i3, f0, ids):  # type: ignore[no-untyped-def]
    """Whether element e of the result is dropped."""
    b, i = e // item, e % item
    return random_bits(stream_key(ids[b // i3 * i3]), i // i0 // i1 * i0 + i % i0) < int(f0 * TWO_24)


@kernel
def dropout_forward_cuda(v, x0, y, n, item, i0, i1, i3, f0, ids, thread, threads):
    factor = ONE / (ONE - f0) if f0 < ONE else ZERO
    for e in range(thread, n, threads):
        v[y + e] = ZERO if is_dropped(e, item, i0, i1, i3, f0, ids) else v[x0 + e] * factor


@kernel
def dropout_d0_cuda(g, x0, y, n, item, i0, i1, i3, f0, ids, thread, threads):
    factor = ONE / (ONE - f0) if f0 < ONE else ZERO
    for e in range(thread, n, threads):
        g[x0 + e] += ZERO if is_dropped(e, item, i0, i1, i3, f0, ids) else g[y + e] * factor


DROPOUT = define("dropout", shape=dropout_shape, params="xfr", floats=(PROBABILITY,), forward=dropout_forward,
    backward=(dropout_d0,), forward_cuda=dropout_forward_cuda,
    backward_cuda=(dropout_d0_cuda,),
    cases=(Case(((40,),), arguments=(0.3,)), Case(((1,),), arguments=(0.0,)),
           Case((((3, 4), 2),), arguments=(0.5,))))  # fmt: skip


@native(DROPOUT)
def dropout(x: Any, p: float) -> Any:
    """Each element is 0 with probability p, else x / (1 - p); there is no switch: leave it out when not training.

    x: any shape x batch.  Raises ValueError unless 0 <= p < 1.
    """
    return DROPOUT(x, p)


def dropout_dim_shape(x: Shape, axis: int) -> Result:
    if not 0 <= axis < len(x.dims):
        raise ShapeError("dropout_dim", f"an axis below the rank, not {axis}", x)
    return Result(x, ints=(*x.around(axis), 1))


DROPOUT_DIM = define("dropout_dim", shape=dropout_dim_shape, params="xifr", floats=(PROBABILITY,),
    forward=dropout_forward,
    backward=(dropout_d0,), forward_cuda=dropout_forward_cuda,
    backward_cuda=(dropout_d0_cuda,),
    cases=(Case(((3, 4),), arguments=(0, 0.3)), Case(((1,),), arguments=(0, 0.0)),
           Case((((3, 4), 2),), arguments=(1, 0.5)), Case(((2, 3, 2),), arguments=(1, 0.5))))  # fmt: skip


@native(DROPOUT_DIM)
def dropout_dim(x: Any, d: int, p: float) -> Any:
    """`dropout` that drops or keeps all positions of axis `d` together.

    x: any shape x batch.  Raises ShapeError for a missing axis, ValueError unless 0 <= p < 1.
    """
    return DROPOUT_DIM(x, d, p)


def dropout_batch_shape(x: Shape) -> Result:
    return Result(x, ints=(1, x.item, 1, 1))


DROPOUT_BATCH = define("dropout_batch", shape=dropout_batch_shape, params="xfr", floats=(PROBABILITY,),
    forward=dropout_forward,
    backward=(dropout_d0,), forward_cuda=dropout_forward_cuda,
    backward_cuda=(dropout_d0_cuda,),
    cases=(Case((((3,), 6),), arguments=(0.5,)), Case(((1,),), arguments=(0.0,))))  # fmt: skip


@native(DROPOUT_BATCH)
def dropout_batch(x: Any, p: float) -> Any:
    """`dropout` that drops or keeps each mini-batch item as a whole.

    x: any shape x batch.  Raises ValueError unless 0 <= p < 1.
    """
    return DROPOUT_BATCH(x, p)


def block_dropout_shape(x: Shape) -> Result:
    return Result(x, ints=(1, x.item, 1, x.batch))


BLOCK_DROPOUT = define("block_dropout", shape=block_dropout_shape, params="xfr", floats=(SHARE,),
    forward=dropout_forward, backward=(dropout_d0,), forward_cuda=dropout_forward_cuda,
    backward_cuda=(dropout_d0_cuda,), whole_batch=True,
    cases=(Case((((3,), 2),), arguments=(0.5,)), Case(((1,),), arguments=(1.0,))))  # fmt: skip


@native(BLOCK_DROPOUT)
def block_dropout(x: Any, p: float) -> Any:
    """`dropout` that drops or keeps the whole tensor with its mini-batch.

    x: any shape x batch.  Raises ValueError unless 0 <= p <= 1.
    """
    return BLOCK_DROPOUT(x, p)


# ---- noise -----------------------------------------------------------------------------------------------------------


def noise_shape(x: Shape) -> Shape:
    return x


@kernel
def noise_forward(v, x0, y, item, batch, f0, ids):
    for b in range(batch):
        key = stream_key(ids[b])
        x, out = v[x0 + b * item : x0 + (b + 1) * item], v[y + b * item : y + (b + 1) * item]
        for i in range(item):
            out[i] = random_bits(key, i) | 1
        for i in range(item):
            out[i] = x[i] + f0 * normal(out[i])


@kernel
def noise_d0(g, x0, y, n):
    dx, dy = g[x0 : x0 + n], g[y : y + n]
    for i in range(n):
        dx[i] += dy[i]


NOISE = define("noise", shape=noise_shape, params="xfr", floats=(NOT_NEGATIVE,), forward=noise_forward,
    backward=(noise_d0,),
    cases=(Case(((40,),), arguments=(0.3,)), Case(((1,),), arguments=(0.0,)),
           Case((((3, 4), 2),), arguments=(2.0,))))  # fmt: skip


@native(NOISE)
def noise(x: Any, stddev: float) -> Any:
    """x + normal noise of mean 0 and standard deviation `stddev`, independent for each element.

    x: any shape x batch.  Raises ValueError for a negative deviation.
    """
    return NOISE(x, stddev)


# ---- random tensors --------------------------------------------------------------------------------------------------


def random_shape(name: str) -> Callable[[tuple[int, ...], int], Shape]:
    def shape(dims: tuple[int, ...], batch: int) -> Shape:
        if batch < 1:
            raise ValueError(errors.located(f"{name}: needs a mini-batch of 1 or more, got {batch}"))
        return Shape(dims_of(name, dims), batch)

    return shape


def random_tensor(name: str, function: Any, *floats: Range) -> Any:
    """The operator y = function(n, f0, f1) with random odd numbers n from 1 to 2^24 - 1."""
    function = scalar(function)

    def forward(v, y, item, batch, f0, f1, ids):  # type: ignore[no-untyped-def]
        for b in range(batch):
            key = stream_key(ids[b])
            out = v[y + b * item : y + (b + 1) * item]
            for i in range(item):
                out[i] = random_bits(key, i) | 1
            for i in range(item):
                out[i] = function(out[i], f0, f1)

    forward.__name__ = f"{name}_forward"
    cases = (Case((), arguments=((5,), 0.5, 1.0, 1)), Case((), arguments=((3, 4), 0.0, 2.0, 2)))
    return define(name, shape=random_shape(name), params="Iffir", forward=forward, cases=cases, floats=floats)


RANDOM_NORMAL = random_tensor("random_normal", lambda n, mean, stddev: mean + stddev * normal(n), ANY, NOT_NEGATIVE)
RANDOM_UNIFORM = random_tensor("random_uniform", lambda n, left, right: left + (right - left) * (n * TWO_M24))
RANDOM_BERNOULLI = random_tensor(
    "random_bernoulli", lambda n, p, scale: scale if n * TWO_M24 < p else scale * ZERO, SHARE
)
RANDOM_GUMBEL = random_tensor(
    "random_gumbel", lambda n, mu, beta: mu - beta * log(-log(n * TWO_M24)), ANY, NOT_NEGATIVE
)


@native(RANDOM_NORMAL)
def random_normal(dim: Any, mean: float = 0.0, stddev: float = 1.0, batch_size: int = 1) -> Any:
    """Independent normal numbers; no gradient.

    dim: int or tuple.  Raises ValueError for a negative deviation, wrong dims and a mini-batch below 1.
    """
    return RANDOM_NORMAL(dim, mean, stddev, batch_size)


@native(RANDOM_UNIFORM)
def random_uniform(dim: Any, left: float, right: float, batch_size: int = 1) -> Any:
    """Independent uniform numbers between left and right; no gradient.

    dim: int or tuple.  Raises ValueError for wrong dims and a mini-batch below 1.
    """
    return RANDOM_UNIFORM(dim, left, right, batch_size)


@native(RANDOM_BERNOULLI)
def random_bernoulli(dim: Any, p: float, scale: float = 1.0, batch_size: int = 1) -> Any:
    """Independent numbers that are `scale` with probability p, else 0; no gradient.

    dim: int or tuple.  Raises ValueError unless 0 <= p <= 1, for wrong dims and a mini-batch below 1.
    """
    return RANDOM_BERNOULLI(dim, p, scale, batch_size)


@native(RANDOM_GUMBEL)
def random_gumbel(dim: Any, mu: float = 0.0, beta: float = 1.0, batch_size: int = 1) -> Any:
    """Independent Gumbel numbers mu - beta log(-log(u)) with uniform u; no gradient.

    dim: int or tuple.  Raises ValueError for a negative beta, wrong dims and a mini-batch below 1.
    """
    return RANDOM_GUMBEL(dim, mu, beta, batch_size)
