"""DLPack capsules of memory of a GPU, by which PyTorch, CuPy and others take it as it is.

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
