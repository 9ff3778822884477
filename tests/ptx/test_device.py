"""The emulated device: memory and launches as host code sees them."""

from __future__ import annotations

import numpy as np
import pytest

from ptx import build, compile
from ptx.device import EmulatedDevice, Launched
from ptx.emulator import EmulationError

compile.require(compile.missing(), build.missing())

from numba import int64  # noqa: E402

from ptx import kernels  # noqa: E402


@pytest.fixture(scope="module")
def halve() -> str:
    return compile.to_ptx(kernels.halve, (int64, int64))


@pytest.fixture
def device() -> EmulatedDevice:
    return EmulatedDevice()


def test_memory_is_aligned_full_of_nan_and_copied(device: EmulatedDevice) -> None:
    address = device.allocate(40)
    assert address % 256 == 0
    assert np.isnan(device.download(address, 10, np.float32)).all()
    device.upload(address + 8, np.arange(4, dtype=np.float32).reshape(2, 2))
    assert device.download(address + 8, 4, np.float32).tolist() == [0, 1, 2, 3]
    device.fill(address, 12)
    assert device.download(address, 4, np.float32).tolist() == [0, 0, 0, 1]
    assert device.allocated == 40
    device.free(address)
    assert device.allocated == 0


def test_memory_is_checked(device: EmulatedDevice) -> None:
    address = device.allocate(16)
    with pytest.raises(ValueError, match=f"32 bytes at {address:#x} are not in allocated memory"):
        device.download(address, 8, np.float32)
    with pytest.raises(ValueError, match="not the address of allocated memory"):
        device.free(address + 4)
    device.most_bytes = 100
    with pytest.raises(MemoryError, match="85 bytes asked for, 84 are free"):
        device.allocate(85)


def test_launch_works_on_addresses(device: EmulatedDevice, halve: str) -> None:
    address = device.allocate(400)
    device.upload(address, np.arange(100, dtype=np.float32))
    device.launch(halve, 4, 32, (address, 99))
    expected = np.append(np.arange(99) / 2, 99)
    assert device.download(address, 100, np.float32).tolist() == expected.tolist()
    assert device.launches == [Launched("ptx.kernels.halve", 4, 32)]


def test_launch_finds_what_lies_outside(device: EmulatedDevice, halve: str) -> None:
    first, second = device.allocate(400), device.allocate(400)
    with pytest.raises(EmulationError, match="out of bounds: .*halve.*block 3, thread 4") as caught:
        device.launch(halve, 4, 32, (first, 101))
    assert caught.value.kind == "out of bounds"
    device.free(second)
    with pytest.raises(EmulationError, match="out of bounds"):
        device.launch(halve, 4, 32, (second, 100))


def test_kernels_of_other_kinds_are_turned_into_ptx(halve: str) -> None:
    device = EmulatedDevice({"halve": halve}.__getitem__, order="random", check_races=False)
    address = device.allocate(4)
    device.fill(address, 4)
    device.launch("halve", 1, 1, (address, 1))
    assert device.download(address, 1, np.float32) == 0
