"""Runs compiled CUDA kernels (PTX) on the CPU, and finds what is wrong with them.

>>> kernel = Emulated(ptx)
>>> kernel[blocks, threads](x, y, 3)                    # NumPy arrays are the device's arrays, changed in place
>>> kernel[blocks, threads](x, y, 3, order="random", seed=7)

Every access is checked: it must lie in an array that was passed or in registered memory, be aligned, and not race with
another thread's. Barriers and the synchronisation of warps and of the grid order accesses; atomics do not race with each
other, but order nothing, so that a barrier made of them is not understood. What races are words of four bytes. Shared
memory must be written before it is read. Threads run in a chosen order, one after another up to where they wait: weaker
orders of the memory model are not seen. Approximate functions (ex2.approx, …) are the C library's, so that their last
bits differ from a GPU's.
"""

from __future__ import annotations

import ctypes
import functools
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np

from ptx.build import KernelDescription, build, digest_of, load, runtime
from ptx.operands import c_type
from ptx.parse import Variable, entry_head
from ptx.translate import parameter_offsets

Order = Literal["forward", "reverse", "random"]
ORDERS: tuple[Order, ...] = ("forward", "reverse", "random")
Shape = int | tuple[int, ...]
FAULTS = (  # in the order of runtime.h
    "",
    "out of bounds",
    "misaligned",
    "read of shared memory that was never written",
    "race: two threads write",
    "race: a thread reads what another writes",
    "race: a thread writes what another reads",
    "deadlock",
    "endless loop",
    "warp mask differs between threads, or lacks the calling thread",
    "shuffle from a lane that takes no part",
    "barrier divergence: threads wait at different barriers",
    "trap",
    "the emulator has no memory left",
)
NUMBERS = {"float": np.float32, "double": np.float64}
FUEL = 2 * 10**9


class EmulationError(RuntimeError):
    """What is wrong with a kernel: `kind` is one of FAULTS."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class LaunchSetup(ctypes.Structure):
    """`Launch` of runtime.h, with room for the part that is the scheduler's."""

    _fields_ = [
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        *((name, ctypes.c_uint32) for name in ["dynamic_shared", "ranges", "check_races", "order", "cooperative"]),
        ("seed", ctypes.c_uint64),
        ("fuel", ctypes.c_uint64),
        ("range", ctypes.c_void_p),
        ("parameters", ctypes.c_void_p),
        ("scheduler", ctypes.c_uint64 * 8),
    ]


class Fault(ctypes.Structure):
    """`Fault` of runtime.c."""

    _fields_ = [(name, ctypes.c_int64) for name in ["code", "line", "block", "thread", "other"]] + [
        ("address", ctypes.c_uint64)
    ]


def readable(name: str) -> str:
    """The dotted name of a function from the one that Numba gives its kernel: _ZN3ptx7kernels5halveB… is ptx.kernels.halve."""
    words, rest = [], name.removeprefix("_ZN")
    while found := re.match(r"\d+", rest):
        end = found.end() + int(found[0])
        words.append(rest[found.end() : end])
        rest = rest[end:]
    return ".".join(words) or name


def three(shape: Shape) -> tuple[int, ...]:
    """A launch shape in three dimensions."""
    given = shape if isinstance(shape, tuple) else (shape,)
    return (*(int(length) for length in given), 1, 1)[:3]


def scalars_of(argument: Any) -> Iterable[Any]:
    """The kernel's parameters for one argument, as Numba passes it: an array is 5 + 2 * ndim numbers."""
    if isinstance(argument, np.ndarray):
        return (0, 0, argument.size, argument.itemsize, argument.ctypes.data, *argument.shape, *argument.strides)
    return argument if isinstance(argument, tuple) else (argument,)


def bytes_of(parameter: Variable, number: Any) -> bytes:
    """One number in the type of its parameter."""
    name = c_type(parameter.type)
    if name in NUMBERS:
        return NUMBERS[name](number).tobytes()
    return (int(number) & (2 ** (8 * parameter.nbytes) - 1)).to_bytes(parameter.nbytes, "little")


class Emulated:
    """A kernel from its PTX, to be launched like one of Numba's: `kernel[blocks, threads](arguments)`."""

    def __init__(self, ptx: str) -> None:
        self.ptx = ptx
        head = entry_head(ptx)
        self.name = readable(head.name)
        self.parameters = head.parameters
        self.offsets, self.nbytes = parameter_offsets(head.parameters)

    @functools.cached_property
    def description(self) -> KernelDescription:
        """The machine code; compiled when it is first needed and not in the cache."""
        build([self.ptx])
        return load(digest_of(self.ptx))

    def __getitem__(self, shapes: tuple[Any, ...]) -> Any:
        grid, block, *rest = shapes
        return functools.partial(self.launch, grid, block, dynamic_shared=rest[0] if rest else 0)

    def launch(
        self,
        grid: Shape,
        block: Shape,
        *arguments: Any,
        order: Order = "forward",
        seed: int = 0,
        check_races: bool = True,
        memory: Sequence[tuple[int, int]] = (),
        dynamic_shared: int = 0,
        cooperative: bool = False,
        fuel: int = FUEL,
    ) -> None:
        """Runs the kernel over all blocks of a grid.

        arguments: NumPy arrays, numbers, tuples of numbers. memory: further ranges (first byte, byte behind) that the
        kernel may touch through addresses. cooperative: all blocks are resident together, as they always are for
        kernels that synchronise the grid; other kernels run block by block. fuel: jumps back before a loop is endless.
        Raises EmulationError for whatever is wrong in the kernel, ValueError for arguments that do not fit.
        """
        description = self.description
        if math.prod(three(block)) > 1024:
            raise ValueError(f"{self.name}: needs at most 1024 threads a block, got {block}")
        parameters = self.packed(arguments)
        ranges = [np.lib.array_utils.byte_bounds(each) for each in arguments if isinstance(each, np.ndarray)]
        ranges += [*memory, (description.statics, description.statics + description.statics_size)]
        table = np.array(sorted(set(ranges)), dtype=np.uint64)
        setup = LaunchSetup(
            (ctypes.c_uint32 * 3)(*three(grid)), (ctypes.c_uint32 * 3)(*three(block)), dynamic_shared, len(table),
            check_races, ORDERS.index(order), cooperative, seed, fuel, table.ctypes.data,
            ctypes.cast(parameters, ctypes.c_void_p),
        )  # fmt: skip
        fault = Fault()
        if runtime().ptx_launch(ctypes.byref(description), ctypes.byref(setup), ctypes.byref(fault)):
            raise self.error(fault)

    def packed(self, arguments: Sequence[Any]) -> Any:
        """The block of parameters."""
        numbers = [number for argument in arguments for number in scalars_of(argument)]
        if len(numbers) != len(self.parameters):
            raise ValueError(
                f"{self.name}: needs {len(self.parameters)} parameters, got {len(numbers)}"
                " (an array counts as 5 + 2 for each dimension)"
            )
        packed = bytearray(self.nbytes)
        for parameter, number in zip(self.parameters, numbers):
            start = self.offsets[parameter.name]
            packed[start : start + parameter.nbytes] = bytes_of(parameter, number)
        return (ctypes.c_uint8 * max(self.nbytes, 1)).from_buffer_copy(packed or b"\0")

    def error(self, fault: Fault) -> EmulationError:
        """The exception for a fault, with where it happened."""
        kind = FAULTS[fault.code]
        text = " ".join(self.ptx.splitlines()[fault.line - 1].split())
        other = f", other thread {fault.other}" if kind.startswith("race") and fault.other < 2**32 - 2 else ""
        place = f"block {fault.block}, thread {fault.thread}{other}, address {fault.address:#x}"
        return EmulationError(kind, f"{kind}: {self.name}, {place}, PTX line {fault.line}: {text}")
