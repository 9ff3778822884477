"""Contractions of tensors of three axes."""

from __future__ import annotations

from typing import Any

from dynjit.blas import gemm_nn, gemm_nt, gemm_tn
from dynjit.errors import ShapeError
from dynjit.jit import kernel
from dynjit.lines import joined, lines_of, own_line, turn_in, width_of
from dynjit.op import STACKED, Case, define, native
from dynjit.ops import linear  # functions to compose, no kernels
from dynjit.scalars import ZERO
from dynjit.shape import Shape

# ---- contract3d ------------------------------------------------------------------------------------------------------


def contract3d_1d_shape(x: Shape, y: Shape, b: Shape | None = None) -> Shape:
    batches = {shape.batch for shape in (x, y, b) if shape} - {1}
    if len(x.dims) != 3 or (y.rows, y.cols) != (x.dims[2], 1) or (b and b.dims != x.dims[:2]) or len(batches) > 1:
        needs = "x (a, b, c), y (c,) and perhaps a bias (a, b), with mini-batches that are equal or 1"
        raise ShapeError("contract3d_1d", needs, x, y, *([b] if b else []))
    return Shape(x.dims[:2], max(batches, default=1))


@kernel
def contract3d_1d_forward(v, x0, x1, y, item, item0, item1, batch, step0, step1):
    for b in range(batch):
        x, z = v[x0 + b * step0 : x0 + b * step0 + item0], v[x1 + b * step1 : x1 + b * step1 + item1]
        gemm_nn(x, z, v[y + b * item : y + (b + 1) * item], item, 1, item1, 0)


@kernel
def contract3d_1d_d0(v, g, x0, x1, y, item, item0, item1, batch, step0, step1):
    for b in range(batch):
        dx, z = g[x0 + b * step0 : x0 + b * step0 + item0], v[x1 + b * step1 : x1 + b * step1 + item1]
        gemm_nt(g[y + b * item : y + (b + 1) * item], z, dx, item, item1, 1, 1)


@kernel
def contract3d_1d_d1(v, g, x0, x1, y, item, item0, item1, batch, step0, step1):
    for b in range(batch):
        x, dz = v[x0 + b * step0 : x0 + b * step0 + item0], g[x1 + b * step1 : x1 + b * step1 + item1]
        gemm_tn(x, g[y + b * item : y + (b + 1) * item], dz, item1, 1, item, 1)


@kernel
def contract3d_1d_forward_cuda(v, x0, x1, y, item, item1, batch, step0, step1, thread, threads):
    for e in range(thread, item * batch, threads):
        total, x, z = ZERO, x0 + e // item * step0 + e % item, x1 + e // item * step1
        for k in range(item1):
            total += v[x + k * item] * v[z + k]
        v[y + e] = total


@kernel
def contract3d_1d_d0_cuda(v, g, x0, x1, y, item, item0, n0, batch, step1, thread, threads):
    for e in range(thread, n0, threads):
        total, place = ZERO, e % item0
        for b in range(e // item0, batch, n0 // item0):  # all items of an x that they share
            total += g[y + b * item + place % item] * v[x1 + b * step1 + place // item]
        g[x0 + e] += total


@kernel
def contract3d_1d_d1_cuda(v, g, x0, x1, y, item, item1, n1, batch, step0, strip, part, parts):
    width = width_of(item)
    for first in lines_of(width, part, n1, parts):
        e, total = own_line(first, width), ZERO
        for b in range(e // item1, batch if e < n1 else 0, n1 // item1):  # all items of a y that they share
            for i in range(turn_in(width), item, width):
                total += v[x0 + b * step0 + e % item1 * item + i] * g[y + b * item + i]
        total = joined(total, True, width, strip)
        if e < n1 and turn_in(width) == 0:
            g[x1 + e] += total


def contract3d_1d_flops(z: Shape, x: Shape, y: Shape, *bias: Shape) -> tuple[int, ...]:
    product = 2 * z.size * y.item
    return product, product, product, *(z.size for _ in bias)


CONTRACT3D_1D = define("contract3d_1d", shape=contract3d_1d_shape, params="xx", forward=contract3d_1d_forward,
    flops=contract3d_1d_flops,
    backward=(contract3d_1d_d0, contract3d_1d_d1), forward_cuda=contract3d_1d_forward_cuda,
    backward_cuda=(contract3d_1d_d0_cuda, contract3d_1d_d1_cuda), group=(STACKED, STACKED),
    reference=lambda x, y: x @ y,
    cases=(Case(((2, 3, 4), (4,))), Case(((1, 1, 1), (1,))), Case((((2, 3, 4), 2), (4,))),
           Case(((2, 3, 4), ((4,), 2)))))  # fmt: skip


@native(CONTRACT3D_1D)
def contract3d_1d(x: Any, y: Any) -> Any:
    """z_ij = sum_k x_ijk y_k.

    x: (a, b, c);  y: (c,);  the result: (a, b);  mini-batches equal or 1.  Raises ShapeError unless the shapes fit.
    """
    return CONTRACT3D_1D(x, y)


@kernel
def contract3d_1d_bias_forward(v, x0, x1, x2, y, item, item0, item1, batch, step0, step1, step2):
    for b in range(batch):
        x, z = v[x0 + b * step0 : x0 + b * step0 + item0], v[x1 + b * step1 : x1 + b * step1 + item1]
        bias, out = v[x2 + b * step2 : x2 + b * step2 + item], v[y + b * item : y + (b + 1) * item]
        for i in range(item):
            out[i] = bias[i]
        gemm_nn(x, z, out, item, 1, item1, 1)


@kernel
def contract3d_1d_bias_d2(g, x2, y, item, batch, step2):
    for b in range(batch):
        db, dy = g[x2 + b * step2 : x2 + b * step2 + item], g[y + b * item : y + (b + 1) * item]
        for i in range(item):
            db[i] += dy[i]


@kernel
def contract3d_1d_bias_forward_cuda(v, x0, x1, x2, y, item, item1, batch, step0, step1, step2, thread, threads):
    for e in range(thread, item * batch, threads):
        total, x, z = v[x2 + e // item * step2 + e % item], x0 + e // item * step0 + e % item, x1 + e // item * step1
        for k in range(item1):
            total += v[x + k * item] * v[z + k]
        v[y + e] = total


CONTRACT3D_1D_BIAS = define("contract3d_1d_bias", shape=contract3d_1d_shape, params="xxx",
    forward=contract3d_1d_bias_forward, backward=(contract3d_1d_d0, contract3d_1d_d1, contract3d_1d_bias_d2),
    forward_cuda=contract3d_1d_bias_forward_cuda, backward_cuda=(contract3d_1d_d0_cuda, contract3d_1d_d1_cuda),
    group=(STACKED, STACKED, STACKED), flops=contract3d_1d_flops, reference=lambda x, y, b: x @ y + b,
    cases=(Case(((2, 3, 4), (4,), (2, 3))), Case(((1, 1, 1), (1,), (1, 1))), Case((((2, 3, 4), 2), (4,), (2, 3))),
           Case(((2, 3, 4), ((4,), 2), ((2, 3), 2)))))  # fmt: skip


@native(CONTRACT3D_1D_BIAS)
def contract3d_1d_bias(x: Any, y: Any, b: Any) -> Any:
    """z_ij = b_ij + sum_k x_ijk y_k.

    x: (a, b, c);  y: (c,);  b: (a, b);  mini-batches equal or 1.  Raises ShapeError unless the shapes fit.
    """
    return CONTRACT3D_1D_BIAS(x, y, b)


@native(None, "xxx")
def contract3d_1d_1d(x: Any, y: Any, z: Any) -> Any:
    """w_i = sum_jk x_ijk z_j y_k.

    x: (a, b, c);  y: (c,);  z: (b,);  the result: (a,);  mini-batches equal or 1.
    Raises ShapeError unless the shapes fit.
    """
    return linear.product(contract3d_1d(x, y), z)


@native(None, "xxxx")
def contract3d_1d_1d_bias(x: Any, y: Any, z: Any, b: Any) -> Any:
    """w_i = b_i + sum_jk x_ijk z_j y_k; see `contract3d_1d_1d`.  b: (a,)."""
    return linear.add_product(b, contract3d_1d(x, y), z)
