"""Inverse and determinant of square matrices."""

from __future__ import annotations

from typing import Any

import numpy as np

from dynjit.blas import gemm_nt, gemm_tn
from dynjit.errors import ShapeError
from dynjit.jit import helper, kernel
from dynjit.op import Case, define, native
from dynjit.scalars import NAN, ONE, ZERO, log
from dynjit.shape import Result, Shape

# ---- inverse, logdet -------------------------------------------------------------------------------------------------


@helper
def invert(a, out, n):
    """out = inverse of the column-major (n, n) matrix `a`, which is used up; returns the determinant's logarithm.

    Gauss-Jordan elimination of columns; the pivot is the largest element of what is left of a row.
    The result is infinite or NaN for a singular matrix, the logarithm NaN for a negative determinant.
    """
    for i in range(n * n):
        out[i] = 0
    for c in range(n):
        out[c * n + c] = ONE
    total, is_negative = a[0] - a[0], False
    for k in range(n):
        pivot = k
        for c in range(k + 1, n):
            if abs(a[c * n + k]) > abs(a[pivot * n + k]):
                pivot = c
        top = a[pivot * n + k]
        is_negative ^= (top < ZERO) ^ (pivot != k)
        total += log(abs(top))
        for matrix in (a, out):
            p, q = matrix[k * n : (k + 1) * n], matrix[pivot * n : (pivot + 1) * n]
            for r in range(n):
                p[r], q[r] = q[r] / top, p[r] if pivot != k else q[r] / top
        for c in range(n):
            factor = a[c * n + k]
            if c != k:
                for matrix in (a, out):
                    x, p = matrix[c * n : (c + 1) * n], matrix[k * n : (k + 1) * n]
                    for r in range(n):
                        x[r] -= factor * p[r]
    return NAN * total if is_negative else total


def inverse_shape(x: Shape) -> Result:
    if len(x.dims) != 2 or x.rows != x.cols:
        raise ShapeError("inverse", "a square matrix (n, n)", x)
    return Result(x, scratch=x.item)


@kernel
def inverse_forward(v, x0, y, s, rows, item, batch):
    for b in range(batch):
        x, work = v[x0 + b * item : x0 + (b + 1) * item], v[s + b * item : s + (b + 1) * item]
        for i in range(item):
            work[i] = x[i]
        invert(work, v[y + b * item : y + (b + 1) * item], rows)


@kernel
def inverse_d0(v, g, x0, y, s, rows, item, batch):  # dX -= Y' dY Y'
    for b in range(batch):
        out, dy = v[y + b * item : y + (b + 1) * item], g[y + b * item : y + (b + 1) * item]
        work, dx = g[s + b * item : s + (b + 1) * item], g[x0 + b * item : x0 + (b + 1) * item]
        gemm_tn(out, dy, work, rows, rows, rows, 0)
        for i in range(item):
            work[i] = -work[i]
        gemm_nt(work, out, dx, rows, rows, rows, 1)


SQUARE = (Case(((4, 4),), 1, 3), Case(((1, 1),), 1, 2), Case((((2, 2), 3),), 1, 4))


def inverse_flops(y: Shape, x: Shape) -> tuple[int, ...]:
    return (4 * x.size * x.cols,) * 2


INVERSE = define("inverse", shape=inverse_shape, forward=inverse_forward, backward=(inverse_d0,), flops=inverse_flops,
    reference=np.linalg.inv, cases=SQUARE)  # fmt: skip


@native(INVERSE)
def inverse(x: Any) -> Any:
    """Inverse of a matrix; infinite or NaN if it is singular.

    x: (n, n) x batch.  Raises ShapeError unless x is a square matrix.
    """
    return INVERSE(x)


def logdet_shape(x: Shape) -> Result:
    if len(x.dims) != 2 or x.rows != x.cols:
        raise ShapeError("logdet", "a square matrix (n, n)", x)
    return Result(Shape((1,), x.batch), scratch=2 * x.item)


@kernel
def logdet_forward(v, x0, y, s, rows0, item0, batch):
    for b in range(batch):
        work, inverse = s + 2 * b * item0, s + (2 * b + 1) * item0
        x, copy = v[x0 + b * item0 : x0 + (b + 1) * item0], v[work : work + item0]
        for i in range(item0):
            copy[i] = x[i]
        v[y + b] = invert(copy, v[inverse : inverse + item0], rows0)


@kernel
def logdet_d0(v, g, x0, y, s, rows0, item0, batch):  # dX += dy (inverse of X)'
    for b in range(batch):
        inverse = v[s + (2 * b + 1) * item0 : s + (2 * b + 2) * item0]
        dx = g[x0 + b * item0 : x0 + (b + 1) * item0]
        for c in range(rows0):
            for r in range(rows0):
                dx[c * rows0 + r] += g[y + b] * inverse[r * rows0 + c]


def logdet_flops(y: Shape, x: Shape) -> tuple[int, ...]:
    return 4 * x.size * x.cols, x.size


LOGDET = define("logdet", shape=logdet_shape, forward=logdet_forward, backward=(logdet_d0,), flops=logdet_flops,
    reference=lambda x: np.array([np.log(np.linalg.det(x))]),  # the cases' determinants are positive
    cases=(Case(((5, 5),), 1, 3), Case(((3, 3),), 1, 3), Case(((1, 1),), 1, 2),
           Case((((1, 1), 3),), 1, 4)))  # fmt: skip


@native(LOGDET)
def logdet(x: Any) -> Any:
    """Natural logarithm of a matrix's determinant; -inf if it is singular, NaN if it is negative.

    x: (n, n) x batch; the result: (1,) x batch.  Raises ShapeError unless x is a square matrix.
    """
    return LOGDET(x)
