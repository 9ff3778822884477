"""Kernels that the tests of the tools compile: some right, some with a planted fault. Imported only where CUDA is."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda, float32, int32, types
from numba.cuda.extending import intrinsic

HALF = np.float32(0.5)
ZERO = np.float32(0)
TILE = 16
PADDED = (16, 17)
f1, f2, i1 = float32[::1], float32[:, ::1], int32[::1]


@intrinsic
def floats_at(typing: Any, address: Any) -> Any:
    """The pointer to float32 at an address."""

    def code(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], target.get_value_type(signature.return_type))

    return types.CPointer(types.float32)(address), code


def halve(address, count):
    """Halves `count` numbers at an address of the device."""
    values = floats_at(address)
    i = cuda.grid(1)
    if i < count:
        values[i] *= HALF
