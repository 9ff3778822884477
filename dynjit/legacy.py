"""Names of DyNet that few programs use: boxed numbers and the description of devices."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Generic, TypeVar

from dynjit.errors import NoCudaError, located
from dynjit.shape import as_integer, as_list, as_number

HAVE_CUDA = False
ERRMSG = "dynjit computes on the CPU: leave the request for a GPU out."
T = TypeVar("T")


class Box(Generic[T]):
    """A value that can be exchanged."""

    value: T

    def get(self) -> T:
        """The value."""
        return self.value

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.value!r})"


def unsigned(val: Any) -> int:
    """An int of 0 or more."""
    found = as_integer("UnsignedValue", val)
    if found < 0:
        raise ValueError(located(f"UnsignedValue: needs an int of 0 or more, got {val!r}"))
    return found


class UnsignedValue(Box[int]):
    """A box for an int of 0 or more."""

    def __init__(self, val: int = 0) -> None:
        self.set(val)

    def set(self, val: int) -> None:
        """Replaces the value; raises ValueError for a negative one."""
        self.value = unsigned(val)


class FloatValue(Box[float]):
    """A box for a float."""

    def __init__(self, val: float = 0) -> None:
        self.set(val)

    def set(self, val: float) -> None:
        """Replaces the value."""
        self.value = as_number("FloatValue", val)


class UnsignedVectorValue(Box[list[int]]):
    """A box for a list of ints of 0 or more."""

    def __init__(self, vals: Iterable[int]) -> None:
        self.set(vals)

    def set(self, newval: Iterable[int]) -> None:
        """Replaces the list, perhaps by one of another length; raises ValueError for negative ints."""
        self.value = [unsigned(item) for item in as_list("UnsignedVectorValue", "ints", newval)]

    def size(self) -> int:
        """Number of elements."""
        return len(self.value)


class FloatVectorValue(Box[list[float]]):
    """A box for a list of floats."""

    def __init__(self, vals: Iterable[float]) -> None:
        self.set(vals)

    def set(self, newval: Iterable[float]) -> None:
        """Replaces the list, perhaps by one of another length."""
        self.value = [as_number("FloatVectorValue", item) for item in as_list("FloatVectorValue", "numbers", newval)]

    def size(self) -> int:
        """Number of elements."""
        return len(self.value)


class DeviceInfo:
    """What is known of a device: name (bytes), number and kind (-1: CPU)."""

    def __init__(self, name: bytes | str, id: int, dtype: int) -> None:
        self.name = name.encode() if isinstance(name, str) else name
        self.id, self.type = id, dtype

    def __repr__(self) -> str:
        return f"DeviceInfo({self.name!r}, {self.id}, {self.type})"


DEVICES = [DeviceInfo(b"CPU", 0, -1)]  # those that compute; a GPU is added when it is chosen


def available_devices() -> list[bytes]:
    """Names of the devices, as bytes."""
    return [device.name for device in DEVICES]


def check_device(operator: str, name: Any) -> None:
    """Raises NoCudaError for a GPU that does not compute, RuntimeError for what is no device's name; "" is right."""
    if type(name) is str and name in ("", "CPU"):
        return
    text = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
    if not isinstance(name, (str, bytes)) or text not in ("", *(device.name.decode() for device in DEVICES)):
        error = NoCudaError if text.startswith("GPU:") else RuntimeError
        raise error(located(f"{operator}: Invalid device name: needs 'CPU', got {name!r}"))


def get_device_info(name: str | bytes) -> DeviceInfo:
    """A device by name; raises RuntimeError if there is none."""
    wanted = name.encode() if isinstance(name, str) else name
    found = next((device for device in DEVICES if device.name == wanted), None)
    if found is None:
        raise RuntimeError(located(f"Invalid device name: {name!r}, needs one of {available_devices()}"))
    return found
