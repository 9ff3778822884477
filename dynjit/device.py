"""An NVIDIA GPU: memory, copies and launches, through the driver's own interface.

All that the rest of dynjit wants of a GPU is the methods of `Device`; tests put an emulated one in its place.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from dynjit.cudakernels import PACKAGE, entry_name
from dynjit.errors import NoCudaError
from dynjit.tiles import THREADS

LEAST_DRIVER = 13000  # CUDA 13.0: what PTX is made for


@functools.cache
def driver() -> Any:
    """The module of the driver's functions, initialised; raises NoCudaError where package or driver are missing."""
    try:
        from cuda.bindings import driver as found
    except ImportError:
        raise NoCudaError(f"GPU: {PACKAGE}") from None
    try:
        error = found.cuInit(0)[0]
    except RuntimeError:  # the library is not there
        raise NoCudaError("GPU: needs an NVIDIA driver, and finds none") from None
    if error != found.CUresult.CUDA_SUCCESS:
        raise NoCudaError(f"GPU: the NVIDIA driver does not start: {error.name}")
    version = found.cuDriverGetVersion()[1]
    if version < LEAST_DRIVER:
        needs, has = (f"{number // 1000}.{number % 1000 // 10}" for number in (LEAST_DRIVER, version))
        raise NoCudaError(f"GPU: needs a driver for CUDA {needs} or later, finds one for {has}")
    return found


def checked(answer: tuple[Any, ...]) -> Any:
    """What a function of the driver returns; raises RuntimeError with the driver's own words."""
    error, *results = answer
    if error != 0:
        raise RuntimeError(f"GPU: {error.name}: {driver().cuGetErrorString(error)[1].decode()}")
    return results[0] if len(results) == 1 else results


def count() -> int:
    """Number of GPUs; 0 where package or driver are missing."""
    try:
        return checked(driver().cuDeviceGetCount())  # type: ignore[no-any-return]
    except NoCudaError:
        return 0


class Device:
    """One GPU, by its number.  Addresses are integers.  Raises NoCudaError if there is no such GPU."""

    def __init__(self, number: int = 0) -> None:
        self.driver = driver()
        found = checked(self.driver.cuDeviceGetCount())
        if not 0 <= number < found:
            raise NoCudaError(f"GPU: needs a GPU with the number {number}, the driver knows {found}")
        self.handle = checked(self.driver.cuDeviceGet(number))
        self.context = checked(self.driver.cuDevicePrimaryCtxRetain(self.handle))  # that of CuPy and PyTorch, too
        checked(self.driver.cuCtxSetCurrent(self.context))
        self.number = number
        self.name = checked(self.driver.cuDeviceGetName(256, self.handle)).split(b"\0")[0].decode()
        self.capability = (self._attribute("COMPUTE_CAPABILITY_MAJOR"), self._attribute("COMPUTE_CAPABILITY_MINOR"))
        self.processors = self._attribute("MULTIPROCESSOR_COUNT")
        self.cooperates = bool(self._attribute("COOPERATIVE_LAUNCH"))
        self.function = functools.cache(self._function)

    def _attribute(self, name: str) -> int:
        attribute = getattr(self.driver.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return checked(self.driver.cuDeviceGetAttribute(attribute, self.handle))  # type: ignore[no-any-return]

    # ---- memory ----

    def allocate(self, nbytes: int) -> int:
        """The address of new memory; raises MemoryError if there is no room."""
        error, address = self.driver.cuMemAlloc(nbytes)
        if error == self.driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            free = checked(self.driver.cuMemGetInfo())[0]
            raise MemoryError(f"{self.name}: {nbytes} bytes asked for, {free} are free")
        checked((error,))
        return int(address)

    def free(self, address: int) -> None:
        """Gives memory back."""
        checked(self.driver.cuMemFree(address))

    def upload(self, address: int, values: np.ndarray) -> None:
        """Copies an array to the device."""
        values = np.ascontiguousarray(values)
        checked(self.driver.cuMemcpyHtoD(address, values.ctypes.data, values.nbytes))

    def download(self, address: int, count: int, dtype: Any) -> np.ndarray:
        """Copies `count` numbers from the device, when all that was launched is done."""
        values = np.empty(count, dtype)
        checked(self.driver.cuMemcpyDtoH(values.ctypes.data, address, values.nbytes))
        return values

    def fill(self, address: int, nbytes: int, byte: int = 0) -> None:
        """Sets every byte."""
        checked(self.driver.cuMemsetD8(address, byte, nbytes))

    def wait(self) -> None:
        """Waits until all that was launched is done."""
        checked(self.driver.cuCtxSynchronize())

    # ---- kernels ----

    def _function(self, ptx: str) -> Any:
        """The kernel of a PTX text, loaded once."""
        error, module = self.driver.cuModuleLoadData(ptx.encode() + b"\0")
        checked((error, module))
        return checked(self.driver.cuModuleGetFunction(module, entry_name(ptx).encode()))

    def resident_blocks(self, ptx: str) -> int:
        """How many blocks of a kernel run at the same time, so that they can wait for each other; 0: they cannot."""
        if not self.cooperates:
            return 0
        each = self.driver.cuOccupancyMaxActiveBlocksPerMultiprocessor(self.function(ptx), THREADS, 0)
        return int(checked(each)) * self.processors

    def launch(self, ptx: str, blocks: int, threads: int, arguments: Sequence[int], together: bool = False) -> None:
        """Runs a kernel whose arguments are 64-bit integers; `together`: its blocks wait for each other."""
        numbers = np.array(arguments, np.int64)
        places = (ctypes.c_void_p * len(numbers))(*(numbers.ctypes.data + 8 * i for i in range(len(numbers))))
        start = self.driver.cuLaunchCooperativeKernel if together else self.driver.cuLaunchKernel
        shape = (blocks, 1, 1, threads, 1, 1, 0, 0, ctypes.addressof(places))
        checked(start(self.function(ptx), *shape) if together else start(self.function(ptx), *shape, 0))
