"""A CUDA device for host code, on the CPU: memory of its own, launches by the emulator."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from ptx.emulator import Emulated, Order, Shape

ALIGNMENT = 256
POISON = 0xFF  # a float that is all ones is NaN


@dataclass(frozen=True)
class Launched:
    """One launch, as the device remembers it."""

    name: str
    blocks: Shape
    threads: Shape


class EmulatedDevice:
    """Memory with addresses and launches of kernels; new memory is full of NaN, and no two pieces touch.

    kernels are PTX or Emulated; `ptx_of` turns whatever else the host code has into PTX.
    order, seed, check_races: as in Emulated.launch; the random order goes on from launch to launch.
    """

    def __init__(
        self,
        ptx_of: Callable[[Any], str] = str,
        order: Order = "forward",
        seed: int = 0,
        check_races: bool = True,
    ) -> None:
        self.emulated = functools.cache(
            lambda kernel: kernel if isinstance(kernel, Emulated) else Emulated(ptx_of(kernel))
        )
        self.order = order
        self.seeds = itertools.count(seed)
        self.check_races = check_races
        self.pieces: dict[int, tuple[np.ndarray, int]] = {}  # address -> what keeps it alive, bytes
        self.launches: list[Launched] = []
        self.most_bytes: int | None = None  # a smaller device, to test what happens when it is full

    @property
    def allocated(self) -> int:
        """Bytes in use."""
        return sum(nbytes for _, nbytes in self.pieces.values())

    def allocate(self, nbytes: int) -> int:
        """The address of new memory; MemoryError beyond `most_bytes`."""
        if self.most_bytes is not None and self.allocated + nbytes > self.most_bytes:
            raise MemoryError(f"device: {nbytes} bytes asked for, {self.most_bytes - self.allocated} are free")
        kept = np.full(nbytes + 3 * ALIGNMENT, POISON, dtype=np.uint8)
        address = -(-kept.ctypes.data // ALIGNMENT) * ALIGNMENT + ALIGNMENT
        self.pieces[address] = kept, nbytes
        return address

    def free(self, address: int) -> None:
        """Gives memory back; ValueError unless the address came from `allocate`."""
        if address not in self.pieces:
            raise ValueError(f"device: {address:#x} is not the address of allocated memory")
        del self.pieces[address]

    def window(self, address: int, nbytes: int) -> np.ndarray:
        """The bytes at an address; ValueError if they are not in one piece of memory."""
        for start, (kept, length) in self.pieces.items():
            if start <= address and address + nbytes <= start + length:
                place = address - kept.ctypes.data
                return kept[place : place + nbytes]
        raise ValueError(f"device: {nbytes} bytes at {address:#x} are not in allocated memory")

    def upload(self, address: int, values: np.ndarray) -> None:
        """Copies an array to the device."""
        self.window(address, values.nbytes)[:] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)

    def download(self, address: int, count: int, dtype: DTypeLike) -> np.ndarray:
        """Copies `count` numbers from the device."""
        return self.window(address, count * np.dtype(dtype).itemsize).view(dtype).copy()

    def fill(self, address: int, nbytes: int, byte: int = 0) -> None:
        """Sets every byte."""
        self.window(address, nbytes)[:] = byte

    def wait(self) -> None:
        """Nothing: a launch is done when it returns."""

    def launch(self, kernel: Any, blocks: Shape, threads: Shape, arguments: Sequence[Any]) -> None:
        """Runs a kernel; addresses among its arguments are integers. EmulationError if it does anything wrong."""
        emulated = self.emulated(kernel)
        self.launches.append(Launched(emulated.name, blocks, threads))
        memory = [(start, start + nbytes) for start, (_, nbytes) in self.pieces.items() if nbytes]
        emulated.launch(
            blocks,
            threads,
            *arguments,
            order=self.order,
            seed=next(self.seeds),
            check_races=self.check_races,
            memory=memory,
        )
