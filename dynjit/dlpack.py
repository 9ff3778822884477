"""DLPack capsules of memory of a GPU, by which PyTorch, CuPy and others take it as it is; where others' arrays lie.

Source: DLPack 0.8, dlpack.h: the layout of DLManagedTensor.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

CPU, CUDA = 1, 2  # kinds of devices
FLOAT = 2
FRESH = b"dltensor"  # the name of a capsule that nobody has taken; who takes it renames it, and calls the deleter


class Managed(ctypes.Structure):
    """DLManagedTensor."""

    _fields_ = [
        ("data", ctypes.c_void_p), ("device_kind", ctypes.c_int32), ("device_number", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
        ("shape", ctypes.c_void_p), ("strides", ctypes.c_void_p), ("byte_offset", ctypes.c_uint64),
        ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p),
    ]  # fmt: skip


kept: dict[int, tuple[Any, ...]] = {}  # address of a Managed -> what must live as long


@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def delete(address: int) -> None:
    kept.pop(address, None)


@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def drop(capsule: int) -> None:
    """Called when a capsule goes; by its address, for the object is already on its way out."""
    if ctypes.pythonapi.PyCapsule_IsValid(ctypes.c_void_p(capsule), FRESH):
        get = ctypes.pythonapi.PyCapsule_GetPointer
        delete(get(ctypes.c_void_p(capsule), FRESH))


ctypes.pythonapi.PyCapsule_GetPointer.restype = ctypes.c_void_p
ctypes.pythonapi.PyCapsule_New.restype = ctypes.py_object
ctypes.pythonapi.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


def capsule_of(address: int, number: int, shape: Sequence[int], strides: Sequence[int], owner: Any) -> Any:
    """A capsule of float32 numbers on the GPU of a number; strides in elements; owner: what keeps the memory alive."""
    sizes, steps = (ctypes.c_int64 * len(shape))(*shape), (ctypes.c_int64 * len(shape))(*strides)
    managed = Managed(address, CUDA, number, len(shape), FLOAT, 32, 1, ctypes.addressof(sizes), ctypes.addressof(steps),
                      0, None, ctypes.cast(delete, ctypes.c_void_p))  # fmt: skip
    place = ctypes.addressof(managed)
    kept[place] = managed, sizes, steps, owner
    return ctypes.pythonapi.PyCapsule_New(place, FRESH, ctypes.cast(drop, ctypes.c_void_p))


def device_of(array: Any) -> tuple[int, int]:
    """(kind of the device, number) of an array or a capsule, in DLPack's numbers; number -1: not known."""
    if ctypes.pythonapi.PyCapsule_IsValid(ctypes.py_object(array), FRESH):
        managed = Managed.from_address(ctypes.pythonapi.PyCapsule_GetPointer(ctypes.py_object(array), FRESH))
        return managed.device_kind, managed.device_number
    if hasattr(array, "__dlpack_device__"):
        return array.__dlpack_device__()  # type: ignore[no-any-return]
    return (CUDA, -1) if hasattr(array, "__cuda_array_interface__") else (CPU, 0)


def device_name(kind: int, number: int) -> str:
    if kind == CPU:
        return "the CPU"
    return f"a device of DLPack's kind {kind}" if kind != CUDA else "a GPU" if number < 0 else f"GPU:{number}"


def foreign(values: Any) -> str:
    """The array, or the first of a list, that is not in the host's memory, as "Tensor on GPU:1"; "" if none is."""
    for array in values if isinstance(values, (list, tuple)) else (values,):
        kind, number = device_of(array)
        if kind != CPU:
            return f"{type(array).__name__} on {device_name(kind, number)}"
    return ""
