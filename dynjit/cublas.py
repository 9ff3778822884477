"""Large matrix products by cuBLAS, where CuPy is installed: it works on the same memory and in the same order.

A library of products is an object with one method, `multiply`; tests put another one in its place.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dynjit.program import NN, NT, TN


def modules() -> tuple[Any, Any] | None:
    """CuPy's module of streams and its binding of cuBLAS; None where CuPy or its libraries are missing."""
    try:
        from cupy import cuda
        from cupy_backends.cuda.libs import cublas
    except ImportError:
        return None
    return cuda, cublas


class Cublas:
    """cuBLAS on the present GPU, in float32 without TF32: results are the CPU's but for rounding."""

    def __init__(self, cuda: Any, cublas: Any) -> None:
        self.cublas, self.stream = cublas, cuda.Stream.null  # that of all launches
        self.handle = cublas.create()  # not CuPy's own: what a program sets there (TF32, device scalars) stays there
        self.scalars = np.array([0, 1], np.float32)
        turned, not_turned = cublas.CUBLAS_OP_T, cublas.CUBLAS_OP_N
        self.turns = {NN: (not_turned, not_turned), TN: (turned, not_turned), NT: (not_turned, turned)}

    def multiply(self, kind: int, a: int, b: int, c: int, m: int, n: int, k: int, beta: int) -> None:
        """C (m, n) = beta C + A B (kind NN), A' B (TN) or A B' (NT), at addresses of the device, column-major."""
        lda, ldb = k if kind == TN else m, n if kind == NT else k
        zero = self.scalars.ctypes.data
        with self.stream:
            self.cublas.sgemm(
                self.handle, *self.turns[kind], m, n, k, zero + 4, a, lda, b, ldb, zero + 4 * beta, c, m
            )  # fmt: skip


def library() -> Cublas | None:
    """What multiplies large matrices on the present GPU; None: dynjit's own kernels."""
    found = modules()
    return Cublas(*found) if found else None
