"""The driver's side of the GPU, with a driver that is made up: what goes wrong is named, and touches nothing."""

from __future__ import annotations

import enum
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

import dynjit as dy
from dynjit import cli, device, options
from dynjit.errors import NoCudaError


class Result(enum.IntEnum):
    """The driver's answers."""

    CUDA_SUCCESS = 0
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NO_DEVICE = 100


class Attribute(enum.IntEnum):
    """What can be asked of a GPU; the numbers are the answers."""

    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 9
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 0
    CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = 132
    CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH = 1


class Driver(ModuleType):
    """As much of cuda.bindings.driver as the tests need; `free`: bytes that can be had."""

    CUresult, CUdevice_attribute = Result, Attribute
    free, version, start = 1 << 20, 13000, Result.CUDA_SUCCESS

    def cuInit(self, flags: int) -> tuple[Any, ...]:
        return (self.start,)

    def cuDriverGetVersion(self) -> tuple[Any, ...]:
        return Result.CUDA_SUCCESS, self.version

    def cuGetErrorString(self, error: Any) -> tuple[Any, ...]:
        return Result.CUDA_SUCCESS, b"as the driver says"

    def cuDeviceGetCount(self) -> tuple[Any, ...]:
        return Result.CUDA_SUCCESS, 1

    def cuDeviceGet(self, number: int) -> tuple[Any, ...]:
        return Result.CUDA_SUCCESS, number

    def cuDevicePrimaryCtxRetain(self, handle: int) -> tuple[Any, ...]:
        return Result.CUDA_SUCCESS, handle

    def cuCtxSetCurrent(self, context: int) -> tuple[Any, ...]:
        return (Result.CUDA_SUCCESS,)

    def cuDeviceGetName(self, length: int, handle: int) -> tuple[Any, ...]:
        return Result.CUDA_SUCCESS, b"Made Up 9000\0\0"

    def cuDeviceGetAttribute(self, attribute: Attribute, handle: int) -> tuple[Any, ...]:
        return Result.CUDA_SUCCESS, int(attribute)

    def cuMemAlloc(self, nbytes: int) -> tuple[Any, ...]:
        return (Result.CUDA_ERROR_OUT_OF_MEMORY, 0) if nbytes > self.free else (Result.CUDA_SUCCESS, 1 << 40)

    def cuMemGetInfo(self) -> tuple[Any, ...]:
        return Result.CUDA_SUCCESS, (self.free, 1 << 30)

    def cuMemFree(self, address: int) -> tuple[Any, ...]:
        return (Result.CUDA_SUCCESS,)

    def cuMemsetD8(self, address: int, byte: int, nbytes: int) -> tuple[Any, ...]:
        return (Result.CUDA_ERROR_NO_DEVICE,)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The driver that is made up, in place of the real one."""
    made, package = Driver("cuda.bindings.driver"), ModuleType("cuda.bindings")
    package.driver = made
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", package)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", made)
    device.driver.cache_clear()
    yield made
    options.use_device("cpu")
    device.driver.cache_clear()


def no_package(driver: Any) -> None:
    sys.modules["cuda.bindings"] = None  # type: ignore[assignment]  # importing it fails


def no_library(driver: Any) -> None:
    def start(flags: int) -> None:
        raise RuntimeError("libcuda.so.1 is not there")

    driver.cuInit = start


def no_start(driver: Any) -> None:
    driver.start = Result.CUDA_ERROR_NO_DEVICE


def too_old(driver: Any) -> None:
    driver.version = 12040


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_package, r"GPU: needs the package numba-cuda: pip install dynjit\[cuda\]"),
        (no_library, "GPU: needs an NVIDIA driver, and finds none"),
        (no_start, "GPU: the NVIDIA driver does not start: CUDA_ERROR_NO_DEVICE"),
        (too_old, "GPU: needs a driver for CUDA 13.0 or later, finds one for 12.4"),
    ],
    ids=["no package", "no library", "no start", "too old"],
)
def test_a_gpu_that_cannot_be_had_changes_nothing(driver: Any, spoil: Callable[[Any], None], message: str) -> None:
    p = dy.ParameterCollection().add_parameters((2,), init=3.0)
    y = dy.cmult(p, p)
    spoil(driver)
    with pytest.raises(NoCudaError, match=f"device gpu: {message}. Without a GPU dynjit computes on the CPU"):
        options.use_device("gpu")
    assert cli.devices() == []
    assert y.value() == [9, 9]
    assert p.as_array().tolist() == [3, 3]


def test_gpus_have_numbers_and_names(driver: Any) -> None:
    assert cli.devices() == ["GPU:0 Made Up 9000"]
    assert (device.Device(0).capability, device.Device(0).processors) == ((9, 0), 132)
    with pytest.raises(NoCudaError, match="GPU: needs a GPU with the number 1, the driver knows 1"):
        options.use_device("gpu:1")


def test_a_full_gpu_leaves_the_graph_to_the_cpu(driver: Any) -> None:
    p = dy.ParameterCollection().add_parameters((2,), init=3.0)
    options.use_device("gpu")
    y = dy.cmult(p, p)
    with pytest.raises(MemoryError, match=r"no room on the GPU .* Made Up 9000: \d+ bytes asked for, 1048576 are free"):
        y.value()
    options.use_device("cpu")
    assert y.value() == [9, 9]
    assert p.as_array().tolist() == [3, 3]


def test_the_driver_speaks_for_itself(driver: Any) -> None:
    with pytest.raises(RuntimeError, match="GPU: CUDA_ERROR_NO_DEVICE: as the driver says"):
        device.Device().fill(0, 8)


def test_users_of_the_cpu_load_nothing_of_cuda(python: Callable[..., Any]) -> None:
    program = """
import sys
import dynjit as dy
p = dy.ParameterCollection().add_parameters((2,), init=3.0)
dy.squared_norm(p).backward()
print([name for name in sys.modules if name.partition(".")[0] in ("cuda", "numba_cuda", "cupy", "torch")])
print([name for name in sys.modules if name.startswith("numba.cuda.cudadrv")])
"""
    assert python(program).stdout == "[]\n[]\n"
