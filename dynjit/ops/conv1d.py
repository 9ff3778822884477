"""Convolutions in one dimension: over the columns of a matrix, and circular ones of vectors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dynjit.blas import gemm_nn, gemm_nt, gemm_tn
from dynjit.errors import ShapeError
from dynjit.jit import helper, kernel
from dynjit.op import STACKED, Case, define, native
from dynjit.scalars import ZERO
from dynjit.shape import Result, Shape
from dynjit.tiles import multiply

# ---- filter1d_narrow -------------------------------------------------------------------------------------------------


def filter1d_narrow_shape(x: Shape, f: Shape) -> Result:
    """ints: columns of the result, elements of a window."""
    batch = max(x.batch, f.batch)
    fits = len(x.dims) == 2 and len(f.dims) in (2, 3) and x.rows == f.rows and f.dim(1) <= x.cols
    if not fits or any(shape.batch not in (1, batch) for shape in (x, f)):
        needs = "x (rows, cols) and f (rows, k, filters) with k <= cols, and mini-batches that are equal or 1"
        raise ShapeError("filter1d_narrow", needs, x, f)
    count, size = x.cols - f.dim(1) + 1, x.rows * f.dim(1)
    return Result(Shape((f.dim(2), count), batch), (count, size), scratch=count * size)


@kernel
def filter1d_narrow_forward(v, x0, x1, y, s, rows, rows0, item, item1, batch, batch1, step0, step1, i0, i1):
    for b in range(batch):
        for c in range(i0):
            at, to = x0 + b * step0 + c * rows0, s + (b * i0 + c) * i1
            x, out = v[at : at + i1], v[to : to + i1]
            for i in range(i1):
                out[i] = x[i]
    columns, repeats = (i0 * batch, 1) if batch1 == 1 else (i0, batch)
    for b in range(repeats):
        f, patches = v[x1 + b * step1 : x1 + b * step1 + item1], v[s + b * i0 * i1 : s + (b * i0 + columns) * i1]
        gemm_tn(f, patches, v[y + b * item : y + b * item + rows * columns], rows, columns, i1, 0)


@kernel
def filter1d_narrow_d0(v, g, x0, x1, y, s, rows, rows0, item, item1, batch, batch1, step0, step1, i0, i1):
    columns, repeats = (i0 * batch, 1) if batch1 == 1 else (i0, batch)
    for b in range(repeats):
        f, dpatches = v[x1 + b * step1 : x1 + b * step1 + item1], g[s + b * i0 * i1 : s + (b * i0 + columns) * i1]
        gemm_nn(f, g[y + b * item : y + b * item + rows * columns], dpatches, i1, columns, rows, 0)
    for b in range(batch):
        for c in range(i0):
            at, to = x0 + b * step0 + c * rows0, s + (b * i0 + c) * i1
            dx, d = g[at : at + i1], g[to : to + i1]
            for i in range(i1):
                dx[i] += d[i]


@kernel
def filter1d_narrow_d1(v, g, x1, y, s, rows, item, item1, batch, batch1, step1, i0, i1):
    columns, repeats = (i0 * batch, 1) if batch1 == 1 else (i0, batch)
    for b in range(repeats):
        df, patches = g[x1 + b * step1 : x1 + b * step1 + item1], v[s + b * i0 * i1 : s + (b * i0 + columns) * i1]
        gemm_nt(patches, g[y + b * item : y + b * item + rows * columns], df, i1, rows, columns, 1)


@kernel
def filter1d_narrow_forward_cuda(
    v, x0, x1, y, rows, rows0, item, batch, step0, step1, i0, i1, left, right, part, parts
):  # fmt: skip
    for b in range(batch):  # a window is a column of a matrix whose columns overlap
        f, x = x1 + b * step1, x0 + b * step0
        multiply(v, f, i1, 1, v, x, 1, rows0, v, y + b * item, rows, i0, i1, False, left, right, part + b, parts)


@kernel
def filter1d_narrow_d0_cuda(v, g, x0, x1, y, rows, rows0, item, item0, n0, batch, step1, i0, i1, thread, threads):
    for e in range(thread, n0, threads):
        total, place = ZERO, e % item0
        for b in range(e // item0, batch, n0 // item0):  # all items of an x that they share
            for c in range(max(0, place // rows0 - i1 // rows0 + 1), min(i0, place // rows0 + 1)):
                for r in range(rows):
                    total += v[x1 + b * step1 + r * i1 + place - c * rows0] * g[y + b * item + c * rows + r]
        g[x0 + e] += total


@kernel
def filter1d_narrow_d1_cuda(
    v, g, x0, x1, y, rows, rows0, item, batch, step0, step1, i0, i1, left, right, part, parts
):  # fmt: skip
    for b in range(batch):  # the same block adds all items of a filter that they share
        df, x, turn = x1 + b * step1, x0 + b * step0, part + b if step1 > 0 else part
        multiply(v, x, 1, rows0, g, y + b * item, rows, 1, g, df, i1, rows, i0, True, left, right, turn, parts)


def filter1d_narrow_reference(x: np.ndarray, f: np.ndarray) -> np.ndarray:
    width = f.shape[1]
    f = f.reshape((*f.shape[:2], -1))
    return np.array([np.einsum("rk,rkf->f", x[:, c : c + width], f) for c in range(x.shape[1] - width + 1)]).T


def filter1d_narrow_flops(y: Shape, x: Shape, f: Shape) -> tuple[int, ...]:
    return (2 * y.size * math.prod(f.dims[:2]),) * 3


FILTER1D_NARROW = define("filter1d_narrow", shape=filter1d_narrow_shape, params="xx", forward=filter1d_narrow_forward,
    flops=filter1d_narrow_flops,
    forward_cuda=filter1d_narrow_forward_cuda, backward=(filter1d_narrow_d0, filter1d_narrow_d1),
    backward_cuda=(filter1d_narrow_d0_cuda, filter1d_narrow_d1_cuda), reference=filter1d_narrow_reference,
    cases=(Case(((3, 6), (3, 2, 4))), Case(((1, 1), (1, 1))), Case((((3, 6), 2), (3, 3, 2))),
           Case(((3, 6), ((3, 2), 2))), Case((((2, 4), 2), ((2, 3, 2), 2)))))  # fmt: skip


@native(FILTER1D_NARROW)
def filter1d_narrow(x: Any, y: Any) -> Any:
    """Sums over windows of columns z_fc = sum_rk x_r(c + k) y_rkf.

    x: (rows, cols);  y: (rows, k) or (rows, k, filters);  the result: (filters, cols - k + 1).
    Mini-batches equal or 1.  Raises ShapeError unless the shapes fit.
    """
    return FILTER1D_NARROW(x, y)


# ---- kmh_ngram -------------------------------------------------------------------------------------------------------


def kmh_ngram_shape(x: Shape, width: int) -> Result:
    if len(x.dims) != 2 or not 1 <= width <= x.cols:
        raise ShapeError("kmh_ngram", f"a matrix of at least {width} columns, and at least one per window", x)
    return Result(Shape((x.rows, x.cols - width + 1), x.batch), ints=(width,))


@kernel
def kmh_ngram_forward(v, x0, y, rows, item, item0, batch, i0):
    for b in range(batch):
        out = v[y + b * item : y + (b + 1) * item]
        x = v[x0 + b * item0 : x0 + b * item0 + item]
        for i in range(item):
            out[i] = x[i]
        for k in range(1, i0):
            x = v[x0 + b * item0 + k * rows : x0 + b * item0 + k * rows + item]
            for i in range(item):
                out[i] += x[i]


@kernel
def kmh_ngram_d0(g, x0, y, rows, item, item0, batch, i0):
    for b in range(batch):
        dy = g[y + b * item : y + (b + 1) * item]
        for k in range(i0):
            dx = g[x0 + b * item0 + k * rows : x0 + b * item0 + k * rows + item]
            for i in range(item):
                dx[i] += dy[i]


KMH_NGRAM = define("kmh_ngram", shape=kmh_ngram_shape, params="xi", forward=kmh_ngram_forward, backward=(kmh_ngram_d0,),
    reference=lambda x, width: sum(x[:, k : x.shape[1] - width + 1 + k] for k in range(width)),
    cases=(Case(((3, 5),), arguments=(2,)), Case(((1, 1),), arguments=(1,)),
           Case((((2, 4), 2),), arguments=(3,))))  # fmt: skip


@native(KMH_NGRAM)
def kmh_ngram(x: Any, v: int) -> Any:
    """Sums of v neighbouring columns: y_rc = sum over k < v of x_r(c + k).

    x: (rows, cols) x batch; the result: (rows, cols - v + 1) x batch.  Raises ShapeError unless 1 <= v <= cols.
    """
    return KMH_NGRAM(x, v)


# ---- circ_conv, circ_corr --------------------------------------------------------------------------------------------


@helper
def add_convolution(a, b, out):
    """out_i += sum_j a_j b_(i - j), indices modulo the length."""
    n = a.size
    for j in range(n):
        to, x = out[j:n], b[0 : n - j]
        for i in range(n - j):
            to[i] += a[j] * x[i]
        to, x = out[0:j], b[n - j : n]
        for i in range(j):
            to[i] += a[j] * x[i]


@helper
def add_correlation(a, b, out):
    """out_i += sum_j a_j b_(i + j), indices modulo the length."""
    n = a.size
    for j in range(n):
        to, x = out[0 : n - j], b[j:n]
        for i in range(n - j):
            to[i] += a[j] * x[i]
        to, x = out[n - j : n], b[0:j]
        for i in range(j):
            to[i] += a[j] * x[i]


def circular_shape(u: Shape, x: Shape) -> Shape:
    batches = {u.batch, x.batch} - {1}
    if u.dims != x.dims or len(u.dims) != 1 or len(batches) > 1:
        raise ShapeError("circ_conv, circ_corr", "two vectors (n,), with mini-batches that are equal or 1", u, x)
    return Shape(u.dims, max(batches, default=1))


@kernel
def circ_conv_forward(v, x0, x1, y, item, batch, step0, step1):
    for b in range(batch):
        out = v[y + b * item : y + (b + 1) * item]
        for i in range(item):
            out[i] = 0
        add_convolution(v[x0 + b * step0 : x0 + b * step0 + item], v[x1 + b * step1 : x1 + b * step1 + item], out)


@kernel
def circ_conv_d0(v, g, x0, x1, y, item, batch, step0, step1):
    for b in range(batch):
        x, du = v[x1 + b * step1 : x1 + b * step1 + item], g[x0 + b * step0 : x0 + b * step0 + item]
        add_correlation(x, g[y + b * item : y + (b + 1) * item], du)


@kernel
def circ_conv_d1(v, g, x0, x1, y, item, batch, step0, step1):
    for b in range(batch):
        u, dx = v[x0 + b * step0 : x0 + b * step0 + item], g[x1 + b * step1 : x1 + b * step1 + item]
        add_correlation(u, g[y + b * item : y + (b + 1) * item], dx)


def circular_flops(y: Shape, u: Shape, x: Shape) -> tuple[int, ...]:
    return (2 * y.size * y.item,) * 3


CIRCULAR = (Case(((5,), (5,))), Case(((1,), (1,))), Case((((4,), 2), (4,))), Case(((4,), ((4,), 2))))

CIRC_CONV = define("circ_conv", shape=circular_shape, params="xx", forward=circ_conv_forward,
    flops=circular_flops,
    backward=(circ_conv_d0, circ_conv_d1), group=(STACKED, STACKED), cases=CIRCULAR,
    reference=lambda u, x: np.array([sum(u[j] * x[i - j] for j in range(len(u))) for i in range(len(u))]))  # fmt: skip


@native(CIRC_CONV)
def circ_conv(u: Any, v: Any) -> Any:
    """Circular convolution z_i = sum_j u_j v_(i - j), indices modulo n.

    u, v: (n,), mini-batches equal or 1.  Raises ShapeError for other shapes.
    """
    return CIRC_CONV(u, v)


@kernel
def circ_corr_forward(v, x0, x1, y, item, batch, step0, step1):
    for b in range(batch):
        out = v[y + b * item : y + (b + 1) * item]
        for i in range(item):
            out[i] = 0
        add_correlation(v[x0 + b * step0 : x0 + b * step0 + item], v[x1 + b * step1 : x1 + b * step1 + item], out)


@kernel
def circ_corr_d0(v, g, x0, x1, y, item, batch, step0, step1):
    for b in range(batch):
        x, du = v[x1 + b * step1 : x1 + b * step1 + item], g[x0 + b * step0 : x0 + b * step0 + item]
        add_correlation(g[y + b * item : y + (b + 1) * item], x, du)


@kernel
def circ_corr_d1(v, g, x0, x1, y, item, batch, step0, step1):
    for b in range(batch):
        u, dx = v[x0 + b * step0 : x0 + b * step0 + item], g[x1 + b * step1 : x1 + b * step1 + item]
        add_convolution(u, g[y + b * item : y + (b + 1) * item], dx)


CIRC_CORR = define("circ_corr", shape=circular_shape, params="xx", forward=circ_corr_forward,
    flops=circular_flops,
    backward=(circ_corr_d0, circ_corr_d1), group=(STACKED, STACKED), cases=CIRCULAR,
    reference=lambda u, x: np.array([(u * np.roll(x, -i)).sum() for i in range(len(u))]))  # fmt: skip


@native(CIRC_CORR)
def circ_corr(u: Any, v: Any) -> Any:
    """Circular correlation z_i = sum_j u_j v_(i + j), indices modulo n.

    u, v: (n,), mini-batches equal or 1.  Raises ShapeError for other shapes.
    """
    return CIRC_CORR(u, v)
