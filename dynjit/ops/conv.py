"""Convolution and pooling over windows of a map, in two dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dynjit.blas import gemm_nn, gemm_nt, gemm_tn
from dynjit.errors import ShapeError
from dynjit.jit import helper, kernel, scalar
from dynjit.op import Case, define, native
from dynjit.scalars import ZERO
from dynjit.shape import Result, Shape

# ---- windows of a map ------------------------------------------------------------------------------------------------


def windows(name: str, x: Shape, size: tuple[int, ...], steps: tuple[int, ...], is_valid: int) -> tuple[int, ...]:
    """How many windows a map has down and to the right, and the rows and columns of zeros before it.

    is_valid: windows lie within the map.  Else there is one for every `steps`-th position, with zeros around the map,
    as evenly as possible.
    """
    counts, pads = [], []
    for axis in (0, 1):
        length, window, step = x.dim(axis), size[axis], steps[axis]
        if step < 1 or window < 1 or (is_valid and window > length):
            raise ShapeError(name, f"steps of 1 or more, not {steps}, and windows that fit the map, not {size}", x)
        counts.append((length - window) // step + 1 if is_valid else -(-length // step))
        pads.append(0 if is_valid else max((counts[-1] - 1) * step + window - length, 0) // 2)
    return (*counts, *pads)


def pair(name: str, numbers: tuple[int, ...]) -> tuple[int, int]:
    """Two ints, for rows and columns."""
    if len(numbers) != 2:
        raise ShapeError(name, "two numbers, for rows and columns", numbers)
    return numbers[0], numbers[1]


def windows_reference(x: np.ndarray, size: tuple[int, ...], steps: tuple[int, ...], is_valid: int, fill: float) -> Any:
    """The windows as an array (down, right, rows, cols, channels)."""
    x = x.reshape(x.shape + (1,) * (3 - x.ndim))
    down, right, up, left = windows("", Shape(x.shape), size, steps, is_valid)
    wide = np.pad(x, ((up, size[0]), (left, size[1]), (0, 0)), constant_values=fill)
    corners = [[(r * steps[0], c * steps[1]) for c in range(right)] for r in range(down)]
    return np.array([[wide[r : r + size[0], c : c + size[1]] for r, c in row] for row in corners])


@helper
def inside(start, step, count, length):
    """The range of those i below `count` for which start + i * step lies in an axis."""
    first = min(max(0, -(start // step)), count)
    return first, max(first, min(count, -((start - length) // step)))


# ---- conv2d ----------------------------------------------------------------------------------------------------------


def conv2d_shape(x: Shape, f: Shape, steps: tuple[int, ...], is_valid: int) -> Result:
    """ints: windows, zeros, size, steps, rows and cols of x, channels."""
    batch = max(x.batch, f.batch)
    fits = len(x.dims) in (2, 3) and 2 <= len(f.dims) <= 4 and x.dim(2) == f.dim(2)
    if not fits or any(shape.batch not in (1, batch) for shape in (x, f)):
        needs = "x (rows, cols, channels) and f (r, c, channels, filters), with mini-batches that are equal or 1"
        raise ShapeError("conv2d", needs, x, f)
    size, steps = (f.dim(0), f.dim(1)), pair("conv2d", steps)
    places = windows("conv2d", x, size, steps, is_valid)
    ints = (*places, *size, *steps, x.dim(0), x.dim(1), x.dim(2))
    down, right = places[:2]
    return Result(Shape((down, right, f.dim(3)), batch), ints, scratch=down * right * x.dim(2) * size[0] * size[1])


@helper
def copy_windows(x, out, ints):
    """out (windows, elements of a window)."""
    down, right, up, left, size_r, size_c, step_r, step_c, rows, cols, channels = (
        ints[0], ints[1], ints[2], ints[3], ints[4], ints[5], ints[6], ints[7], ints[8], ints[9], ints[10])  # fmt: skip
    for k in range(channels * size_c * size_r):
        r, c, channel = k % size_r - up, k // size_r % size_c - left, k // (size_r * size_c)
        first, behind = inside(r, step_r, down, rows)
        for j in range(right):
            to = out[(k * right + j) * down : (k * right + j + 1) * down]
            at = (channel * cols + c + j * step_c) * rows + r
            for i in range(down):
                to[i] = ZERO
            if 0 <= c + j * step_c < cols:
                for i in range(first, behind):
                    to[i] = x[at + i * step_r]


@helper
def add_windows(dx, dout, ints):
    """Adds the gradient of what `copy_windows` makes to that of x."""
    down, right, up, left, size_r, size_c, step_r, step_c, rows, cols, channels = (
        ints[0], ints[1], ints[2], ints[3], ints[4], ints[5], ints[6], ints[7], ints[8], ints[9], ints[10])  # fmt: skip
    for k in range(channels * size_c * size_r):
        r, c, channel = k % size_r - up, k // size_r % size_c - left, k // (size_r * size_c)
        first, behind = inside(r, step_r, down, rows)
        for j in range(right):
            d = dout[(k * right + j) * down : (k * right + j + 1) * down]
            at = (channel * cols + c + j * step_c) * rows + r
            if 0 <= c + j * step_c < cols:
                for i in range(first, behind):
                    dx[at + i * step_r] += d[i]


@kernel
def conv2d_forward(v, x0, x1, y, s, item, item0, item1, batch, step0, step1, ints):
    places = ints[0] * ints[1]
    depth = ints[4] * ints[5] * ints[10]
    for b in range(batch):
        patches = v[s + b * places * depth : s + (b + 1) * places * depth]
        copy_windows(v[x0 + b * step0 : x0 + b * step0 + item0], patches, ints)
        f, out = v[x1 + b * step1 : x1 + b * step1 + item1], v[y + b * item : y + (b + 1) * item]
        gemm_nn(patches, f, out, places, item // places, depth, 0)


@kernel
def conv2d_d0(v, g, x0, x1, y, s, item, item0, item1, batch, step0, step1, ints):
    places = ints[0] * ints[1]
    depth = ints[4] * ints[5] * ints[10]
    for b in range(batch):
        dpatches = g[s + b * places * depth : s + (b + 1) * places * depth]
        f, dy = v[x1 + b * step1 : x1 + b * step1 + item1], g[y + b * item : y + (b + 1) * item]
        gemm_nt(dy, f, dpatches, places, depth, item // places, 0)
        add_windows(g[x0 + b * step0 : x0 + b * step0 + item0], dpatches, ints)


@kernel
def conv2d_d1(v, g, x1, y, s, item, item1, batch, step1, ints):
    places = ints[0] * ints[1]
    depth = ints[4] * ints[5] * ints[10]
    for b in range(batch):
        patches = v[s + b * places * depth : s + (b + 1) * places * depth]
        df, dy = g[x1 + b * step1 : x1 + b * step1 + item1], g[y + b * item : y + (b + 1) * item]
        gemm_tn(patches, dy, df, depth, item // places, places, 1)


@helper
def window_sum(v, x, f, r, c, ints):
    """The product of a filter and the window of a map that begins at row r and column c; what is outside is zero."""
    size_r, size_c, rows, cols = ints[4], ints[5], ints[8], ints[9]
    total = ZERO
    for k in range(ints[10]):
        for q in range(max(0, -c), min(size_c, cols - c)):
            at, to = x + (k * cols + c + q) * rows + r, f + (k * size_c + q) * size_r
            for p in range(max(0, -r), min(size_r, rows - r)):
                total += v[at + p] * v[to + p]
    return total


@kernel
def conv2d_forward_cuda(v, x0, x1, y, item, batch, step0, step1, ints, thread, threads):
    down, right = ints[0], ints[1]
    each = ints[4] * ints[5] * ints[10]
    for e in range(thread, item * batch, threads):
        b, place = e // item, e % item
        f = x1 + b * step1 + place // (down * right) * each
        r, c = place % down * ints[6] - ints[2], place // down % right * ints[7] - ints[3]
        v[y + e] = window_sum(v, x0 + b * step0, f, r, c, ints)


@kernel
def conv2d_d0_cuda(v, g, x0, x1, y, item, item0, batch, step0, step1, ints, thread, threads):
    for e in range(thread, item0 * batch if step0 else item0, threads):  # all windows that hold the element
        down, right, size_r, size_c, step_r, step_c = ints[0], ints[1], ints[4], ints[5], ints[6], ints[7]
        r, c = e % ints[8] + ints[2], e // ints[8] % ints[9] + ints[3]
        channel, filters = e % item0 // (ints[8] * ints[9]), item // (down * right)
        total = ZERO
        for p in range(filters if step0 else filters * batch):
            k, b = p % filters, e // item0 if step0 else p // filters
            dy, f = y + p * down * right, x1 + b * step1 + (k * ints[10] + channel) * size_r * size_c
            if step0:
                dy += b * item
            for j in range(max(0, (c - size_c) // step_c + 1), min(right, c // step_c + 1)):
                for i in range(max(0, (r - size_r) // step_r + 1), min(down, r // step_r + 1)):
                    total += g[dy + j * down + i] * v[f + (c - j * step_c) * size_r + r - i * step_r]
        g[x0 + e] += total


@kernel
def conv2d_d1_cuda(v, g, x0, x1, y, item, item1, batch, step0, step1, ints, thread, threads):
    down, right, size_r, size_c, step_r, step_c, rows, cols = (
        ints[0], ints[1], ints[4], ints[5], ints[6], ints[7], ints[8], ints[9])  # fmt: skip
    for e in range(thread, item1 * batch if step1 else item1, threads):
        each = e % item1
        r, c = each % size_r - ints[2], each // size_r % size_c - ints[3]
        channel, k = each // (size_r * size_c) % ints[10], each // (size_r * size_c * ints[10])
        total = ZERO
        for b in range(e // item1, e // item1 + 1 if step1 else batch):
            x, dy = x0 + b * step0 + channel * rows * cols, y + b * item + k * down * right
            for j in range(right):
                if 0 <= c + j * step_c < cols:
                    at = x + (c + j * step_c) * rows + r
                    for i in range(down):
                        if 0 <= r + i * step_r < rows:
                            total += v[at + i * step_r] * g[dy + j * down + i]
        g[x1 + e] += total


def conv2d_reference(x: np.ndarray, f: np.ndarray, steps: tuple[int, ...], is_valid: int) -> Any:
    f = f.reshape(f.shape + (1,) * (4 - f.ndim))
    patches = windows_reference(x, f.shape[:2], steps, is_valid, 0)
    return np.einsum("abrck,rckf->abf", patches, f)


def conv2d_flops(y: Shape, x: Shape, f: Shape, *bias: Shape) -> tuple[int, ...]:
    product = 2 * y.size * math.prod(f.dims[:3])
    return product, product, product, *(y.size for _ in bias)


CONV2D = define("conv2d", shape=conv2d_shape, params="xxIi", forward=conv2d_forward, backward=(conv2d_d0, conv2d_d1),
    forward_cuda=conv2d_forward_cuda, backward_cuda=(conv2d_d0_cuda, conv2d_d1_cuda),
    flops=conv2d_flops,
    reference=conv2d_reference,
    cases=(Case((((5, 6, 2), 2), (3, 2, 2, 3)), arguments=((1, 1), 1)), Case(((1, 1), (1, 1)), arguments=((1, 1), 1)),
           Case(((5, 6, 2), (3, 2, 2, 3)), arguments=((2, 1), 0)), Case(((4, 3), (4, 4, 1, 2)), arguments=((1, 3), 0)),
           Case(((7, 6), ((2, 3, 1, 2), 2)), arguments=((3, 2), 1))))  # fmt: skip


@native(CONV2D)
def conv2d(x: Any, f: Any, stride: Sequence[int], is_valid: bool = True) -> Any:
    """Sums over windows y_abf = sum_rck x_(a s + r)(b t + c)k f_rckf, where stride = [s, t].

    x: (rows, cols, channels);  f: (r, c, channels, filters);  missing axes have size 1;  mini-batches equal or 1.
    is_valid: windows lie within x; else there are as many as positions (divided by the steps, rounded up), with zeros
    around x.
    Raises ShapeError unless the shapes fit, and for steps below 1.
    """
    return CONV2D(x, f, stride, is_valid)


def conv2d_bias_shape(x: Shape, f: Shape, b: Shape, steps: tuple[int, ...], is_valid: int) -> Result:
    result = conv2d_shape(x, f, steps, is_valid)
    dims, batch = result.shape
    if b.dims != dims[2:] or (b.batch != batch and 1 not in (b.batch, batch)):
        raise ShapeError("conv2d_bias", "a bias for each filter, with mini-batches that are equal or 1", x, f, b)
    return result._replace(shape=Shape(dims, max(batch, b.batch)))


@kernel
def conv2d_bias_forward(v, x0, x1, x2, y, s, item, item0, item1, item2, batch, step0, step1, step2, ints):
    places = ints[0] * ints[1]
    depth = ints[4] * ints[5] * ints[10]
    for b in range(batch):
        patches = v[s + b * places * depth : s + (b + 1) * places * depth]
        copy_windows(v[x0 + b * step0 : x0 + b * step0 + item0], patches, ints)
        f, out = v[x1 + b * step1 : x1 + b * step1 + item1], v[y + b * item : y + (b + 1) * item]
        bias = v[x2 + b * step2 : x2 + b * step2 + item2]
        for i in range(item):
            out[i] = bias[i // places]
        gemm_nn(patches, f, out, places, item2, depth, 1)


@kernel
def conv2d_bias_d2(g, x2, y, item, item2, batch, step2, ints):
    places = ints[0] * ints[1]
    for b in range(batch):
        db = g[x2 + b * step2 : x2 + b * step2 + item2]
        for k in range(item2):
            dy = g[y + b * item + k * places : y + b * item + (k + 1) * places]
            total = ZERO
            for i in range(places):
                total += dy[i]
            db[k] += total


@kernel
def conv2d_bias_forward_cuda(v, x0, x1, x2, y, item, batch, step0, step1, step2, ints, thread, threads):
    down, right = ints[0], ints[1]
    each = ints[4] * ints[5] * ints[10]
    for e in range(thread, item * batch, threads):
        b, place = e // item, e % item
        k = place // (down * right)
        r, c = place % down * ints[6] - ints[2], place // down % right * ints[7] - ints[3]
        bias = v[x2 + b * step2 + k]
        v[y + e] = bias + window_sum(v, x0 + b * step0, x1 + b * step1 + k * each, r, c, ints)


@kernel
def conv2d_bias_d2_cuda(g, x2, y, item, item2, batch, step2, ints, thread, threads):
    places = ints[0] * ints[1]
    for e in range(thread, item2 * batch if step2 else item2, threads):
        total = ZERO
        for b in range(e // item2, e // item2 + 1 if step2 else batch):
            for i in range(places):
                total += g[y + b * item + e % item2 * places + i]
        g[x2 + e] += total


CONV2D_BIAS = define("conv2d_bias", shape=conv2d_bias_shape, params="xxxIi", forward=conv2d_bias_forward,
    flops=conv2d_flops,
    backward=(conv2d_d0, conv2d_d1, conv2d_bias_d2),
    forward_cuda=conv2d_bias_forward_cuda, backward_cuda=(conv2d_d0_cuda, conv2d_d1_cuda, conv2d_bias_d2_cuda),
    reference=lambda x, f, b, *numbers: conv2d_reference(x, f, *numbers) + b,
    cases=(Case((((5, 6, 2), 2), (3, 2, 2, 3), (3,)), arguments=((1, 1), 1)),
           Case(((1, 1), (1, 1), (1,)), arguments=((1, 1), 1)), Case(((4, 3), (2, 2), ((1,), 2)), arguments=((1, 1),
    1)),
           Case(((5, 6, 2), (3, 2, 2, 3), (3,)), arguments=((2, 1), 0))))  # fmt: skip


@native(CONV2D_BIAS)
def conv2d_bias(x: Any, f: Any, b: Any, stride: Sequence[int], is_valid: bool = True) -> Any:
    """`conv2d` with a bias added to each filter's map.

    b: (filters,).  Raises ShapeError unless the shapes fit, and for steps below 1.
    """
    return CONV2D_BIAS(x, f, b, stride, is_valid)


# ---- maxpooling2d ----------------------------------------------------------------------------------------------------


def maxpooling2d_shape(x: Shape, size: tuple[int, ...], steps: tuple[int, ...], is_valid: int) -> Result:
    """ints: windows, zeros, size, steps, rows and cols of x."""
    if len(x.dims) not in (2, 3):
        raise ShapeError("maxpooling2d", "x (rows, cols) or (rows, cols, channels)", x)
    size, steps = pair("maxpooling2d", size), pair("maxpooling2d", steps)
    places = windows("maxpooling2d", x, size, steps, is_valid)
    return Result(Shape((*places[:2], *x.dims[2:]), x.batch), (*places, *size, *steps, *x.dims[:2]))


@scalar
def largest(v, x0, i, ints):  # type: ignore[no-untyped-def]
    """The largest element of window i."""
    down, right, rows, cols = ints[0], ints[1], ints[8], ints[9]
    r, c = i % down * ints[6] - ints[2], i // down % right * ints[7] - ints[3]
    at = x0 + i // (down * right) * rows * cols
    first, behind = max(r, 0), min(r + ints[4], rows)
    top = v[at + max(c, 0) * rows + first]
    for k in range(max(c, 0), min(c + ints[5], cols)):
        x = v[at + k * rows + first : at + k * rows + behind]
        for j in range(behind - first):
            top = max(top, x[j])
    return top


@scalar
def give_to_largest(v, g, x0, y, i, ints):  # type: ignore[no-untyped-def]
    """Adds the gradient of window i to that of its largest element, of equal ones the first."""
    down, right, rows, cols = ints[0], ints[1], ints[8], ints[9]
    r, c = i % down * ints[6] - ints[2], i // down % right * ints[7] - ints[3]
    at = x0 + i // (down * right) * rows * cols
    found = False
    for k in range(max(c, 0), min(c + ints[5], cols)):
        for j in range(max(r, 0), min(r + ints[4], rows)):
            if not found and v[at + k * rows + j] == v[y + i]:
                g[at + k * rows + j] += g[y + i]
                found = True


@kernel
def maxpooling2d_forward(v, x0, y, n, ints):
    for i in range(n):
        v[y + i] = largest(v, x0, i, ints)


@kernel
def maxpooling2d_d0(v, g, x0, y, n, ints):
    for i in range(n):
        give_to_largest(v, g, x0, y, i, ints)


@kernel
def maxpooling2d_forward_cuda(v, x0, y, n, ints, thread, threads):
    for i in range(thread, n, threads):
        v[y + i] = largest(v, x0, i, ints)


@kernel
def maxpooling2d_d0_cuda(v, g, x0, y, n, ints, thread, threads):
    count = ints[0] * ints[1]
    for start in range(thread * count, n, threads * count):  # windows of one channel may share an element
        for i in range(start, start + count):
            give_to_largest(v, g, x0, y, i, ints)


def maxpooling2d_reference(x: np.ndarray, size: tuple[int, ...], steps: tuple[int, ...], is_valid: int) -> Any:
    return windows_reference(x, size, steps, is_valid, -np.inf).max((2, 3))


MAXPOOLING2D = define("maxpooling2d", shape=maxpooling2d_shape, params="xIIi", forward=maxpooling2d_forward,
    backward=(maxpooling2d_d0,), forward_cuda=maxpooling2d_forward_cuda, backward_cuda=(maxpooling2d_d0_cuda,),
    reference=maxpooling2d_reference,
    cases=(Case((((5, 6, 2), 2),), arguments=((2, 3), (1, 1), 1)), Case(((1, 1),), arguments=((1, 1), (1, 1), 1)),
           Case(((5, 6, 2),), arguments=((2, 3), (2, 2), 0)), Case(((7, 5),), arguments=((4, 2), (3, 1), 0)),
           Case(((7, 5),), arguments=((2, 2), (3, 3), 1))))  # fmt: skip


@native(MAXPOOLING2D)
def maxpooling2d(x: Any, ksize: Sequence[int], stride: Sequence[int], is_valid: bool = True) -> Any:
    """Largest element of each window of `ksize` = [rows, cols], every stride[0] rows and stride[1] columns.

    x: (rows, cols) or (rows, cols, channels) x batch.  is_valid: as in `conv2d`; what lies outside never counts.
    Raises ShapeError for other shapes, for windows that do not fit and for steps below 1.
    """
    return MAXPOOLING2D(x, ksize, stride, is_valid)
