"""A GPU for dynjit in numba-cuda's simulator, which runs kernels as Python functions, a thread for each of theirs.

For a process with NUMBA_ENABLE_CUDASIM=1, and for that one alone: importing it replaces what compiles kernels.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.core.dispatcher import Dispatcher
from numba.cuda.simulator import kernel as simulator
from numba.cuda.simulator import kernelapi
from numba.np.numpy_support import as_dtype
from numpy.typing import DTypeLike
from ptx.device import POISON, Launched

from dynjit import cudakernels, lines, scalars, tiles

cuda = cudakernels.compiler()


class Kernel(NamedTuple):
    """What dynjit gets in place of a kernel's PTX: a kernel of the simulator, and the types of its arguments."""

    simulated: Any
    signature: tuple[Any, ...]


class Shared(kernelapi.FakeCUDAShared):
    """Shared memory by the line that asks for it; two threads that ask at once get one array, unlike the simulator's."""

    def array(self, shape: Any, dtype: Any) -> np.ndarray:  # type: ignore[override]
        place = sys._getframe(1).f_lineno
        return self._allocations.setdefault(place, np.full(shape, np.nan, as_dtype(dtype)))


class InKernel:
    """`cuda` for the functions that a kernel calls: what the simulator puts in its place in the kernel alone."""

    def __getattr__(self, name: str) -> Any:
        return getattr(simulator._get_kernel_context(), name)


def in_python(function: Any) -> Callable:
    """In place of `for_device`: the helpers that a function calls, which are compiled for the CPU, run in Python, too."""
    plain = getattr(function, "py_func", function)
    return FunctionType(plain.__code__, scope_of(plain.__module__), plain.__name__, None, plain.__closure__)


def scope_of(module: str) -> dict[str, Any]:
    """What the functions of a module see in the simulator."""
    if module not in scopes:
        scope = scopes[module] = {**vars(sys.modules[module]), **cudakernels.PRODUCTS}
        scope |= {name: in_python(each) for name, each in scope.items() if isinstance(each, Dispatcher)}
        scope |= {name: getattr(np, name) for name, each in scope.items() if any(each is x for x in INTRINSICS)}
    return scopes[module]


scopes: dict[str, dict[str, Any]] = {}
INTRINSICS = [scalars.maximum, scalars.floor, scalars.ceil]  # NumPy has them under the same names


def simulated(function: Callable, signature: tuple[Any, ...], capability: tuple[int, int]) -> Kernel:
    """In place of `compiled_ptx`."""
    return Kernel(cuda.jit(function), signature)


cudakernels.for_device = in_python
cudakernels.compiled_ptx = simulated
cudakernels.stored_ptx = lambda path, make: make()
kernelapi.FakeCUDAShared = Shared
tiles.cuda = lines.cuda = InKernel()
lines.maximum = np.maximum


class Device:
    """A simulated GPU; new memory is full of NaN.  cooperates: whether blocks can wait for each other."""

    name, number, capability = "simulated", 0, (8, 0)

    def __init__(self, cooperates: bool = False) -> None:
        self.cooperates = cooperates
        self.pieces: dict[int, Any] = {}  # address -> array of bytes
        self.launches: list[Launched] = []

    def allocate(self, nbytes: int) -> int:
        array = cuda.device_array(nbytes, np.uint8)
        array[:] = POISON
        self.pieces[array.ctypes.data] = array
        return int(array.ctypes.data)

    def free(self, address: int) -> None:
        del self.pieces[address]

    def window(self, address: int, nbytes: int, dtype: DTypeLike) -> Any:
        """Device memory as an array; it must lie in one piece."""
        for start, array in self.pieces.items():
            if start <= address and address + nbytes <= start + array.size:
                return array[address - start : address - start + nbytes].view(dtype)
        raise ValueError(f"device: {nbytes} bytes at {address:#x} are not in allocated memory")

    def upload(self, address: int, values: np.ndarray) -> None:
        values = np.ascontiguousarray(values).reshape(-1)
        self.window(address, values.nbytes, values.dtype).copy_to_device(values)

    def download(self, address: int, count: int, dtype: DTypeLike) -> np.ndarray:
        return self.window(address, count * np.dtype(dtype).itemsize, dtype).copy_to_host()  # type: ignore[no-any-return]

    def fill(self, address: int, nbytes: int, byte: int = 0) -> None:
        self.window(address, nbytes, np.uint8)[:] = byte

    def wait(self) -> None:
        cuda.synchronize()

    def resident_blocks(self, kernel: Kernel) -> int:
        overload = kernel.simulated.overloads[kernel.signature]
        return overload.max_cooperative_grid_blocks(tiles.THREADS) if self.cooperates else 0  # type: ignore[no-any-return]

    def launch(
        self, kernel: Kernel, blocks: int, threads: int, arguments: Sequence[int], together: bool = False
    ) -> None:
        numbers = iter(arguments)
        given = [self.argument(kind, numbers) for kind in kernel.signature]
        assert next(numbers, None) is None
        self.launches.append(Launched(kernel.simulated.fn.__name__, blocks, threads))
        kernel.simulated[blocks, threads](*given)

    def argument(self, kind: Any, numbers: Iterator[int]) -> Any:
        """The next argument of a launch, of a type."""
        if not isinstance(kind, types.Array):
            return next(numbers)
        _, _, count, itemsize, address, length, stride = itertools.islice(numbers, 7)
        dtype = as_dtype(kind.dtype)
        assert (count, dtype.itemsize) == (length, itemsize) == (count, stride)
        return self.window(address, count * itemsize, dtype)
