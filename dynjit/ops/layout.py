"""Operators that arrange elements: joins, new shapes, transposition, regular distances, folding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from dynjit.errors import ShapeError
from dynjit.jit import kernel, scalar
from dynjit.op import NEVER, Case, define, moving, native
from dynjit.shape import MAX_RANK, Result, Shape

# ---- concatenate -----------------------------------------------------------------------------------------------------


def concatenate_shape(xs: list[Shape], axis: int = 1) -> Result:
    """ints: runs, and the elements of a run that lie before each operand and in total."""
    longest, batch = max(len(x.dims) for x in xs), max(x.batch for x in xs)
    is_axis = 0 <= axis <= min(longest, MAX_RANK - 1)
    rank = max(axis + 1, longest) if is_axis else longest
    around = {tuple(x.dim(k) for k in range(rank) if k != axis) for x in xs}
    if not is_axis or len(around) > 1 or any(x.batch not in (1, batch) for x in xs):
        needs = f"equal sizes but along axis {axis}, which is at most the rank, and mini-batches that are equal or 1"
        raise ShapeError("concatenate", needs, *xs)
    dims = [xs[0].dim(k) for k in range(max(axis + 1, len(xs[0].dims)))]
    before, starts = math.prod(dims[:axis]), [0]
    for x in xs:
        starts.append(starts[-1] + before * x.dim(axis))
    dims[axis] = sum(x.dim(axis) for x in xs)
    return Result(Shape(tuple(dims), batch), ints=(math.prod(dims[axis + 1 :]), *starts))


@kernel
def concatenate_forward(v, y, arg, a, k, ints, item, batch):
    runs, total = ints[0], ints[1 + k]
    for p in range(k):
        start, size = ints[1 + p], ints[2 + p] - ints[1 + p]
        step = size * runs if arg[a + k + p] == batch else 0
        for b in range(batch):
            for c in range(runs):
                at, to = arg[a + p] + b * step + c * size, y + b * item + c * total + start
                x, out = v[at : at + size], v[to : to + size]
                for i in range(size):
                    out[i] = x[i]


@kernel
def concatenate_d(g, y, arg, a, k, j, ints, item, batch):
    runs, total = ints[0], ints[1 + k]
    start, size = ints[1 + j], ints[2 + j] - ints[1 + j]
    step = size * runs if arg[a + k + j] == batch else 0
    for b in range(batch):
        for c in range(runs):
            at, to = arg[a + j] + b * step + c * size, y + b * item + c * total + start
            dx, dy = g[at : at + size], g[to : to + size]
            for i in range(size):
                dx[i] += dy[i]


def concatenate_reference(*xs: Any) -> np.ndarray:
    axis = xs[-1] if isinstance(xs[-1], int) else 1
    arrays = [x for x in xs if isinstance(x, np.ndarray)]
    rank = max(axis + 1, *(x.ndim for x in arrays))
    return np.concatenate([x.reshape(x.shape + (1,) * (rank - x.ndim)) for x in arrays], axis)


@kernel
def concatenate_forward_cuda(v, y, arg, a, k, ints, item, batch, thread, threads):
    total = ints[1 + k]
    for e in range(thread, item * batch, threads):
        at, p = e % total, 0
        while at >= ints[2 + p]:
            p += 1
        size = ints[2 + p] - ints[1 + p]
        run = e // total if arg[a + k + p] == batch else e // total % ints[0]
        v[y + e] = v[arg[a + p] + run * size + at - ints[1 + p]]


@kernel
def concatenate_d_cuda(g, y, arg, a, k, j, ints, item, batch, thread, threads):
    size = ints[2 + j] - ints[1 + j]
    runs = ints[0] * batch if arg[a + k + j] == batch else ints[0]
    for i in range(thread, size * runs, threads):
        for run in range(i // size, ints[0] * batch, runs):
            g[arg[a + j] + i] += g[y + run * ints[1 + k] + ints[1 + j] + i % size]


CONCATENATE = define("concatenate", shape=concatenate_shape, params="Xi", forward=concatenate_forward,
    flops=moving, backward=(concatenate_d,), forward_cuda=concatenate_forward_cuda, backward_cuda=(concatenate_d_cuda,),
    reference=concatenate_reference,
    cases=(Case(((5,), (1,), (2,)), arguments=(0,)), Case(((1,),), arguments=(0,)),
           Case((((3, 4), 2), (2, 4), ((1, 4), 2)), arguments=(0,)), Case((((3, 4), 2), (3,)), arguments=(1,)),
           Case(((2, 3, 4), (2, 1, 4)), arguments=(1,)), Case(((3,), (3,)), arguments=(1,)),
           Case(((2, 3), (2, 3)), arguments=(2,))))  # fmt: skip


@native(CONCATENATE)
def concatenate(xs: Sequence[Any], d: int = 0) -> Any:
    """The operands one behind the other along axis `d`.

    xs: shapes that are equal but along the axis, or for axes of size 1 behind; mini-batches equal or 1.  `d` may be the
    rank.  The result has as many axes as the first operand, at least d + 1.
    Raises ShapeError for other shapes, ValueError for an empty list.
    """
    return CONCATENATE(list(xs), d)


CONCATENATE_COLS = define("concatenate_cols", shape=concatenate_shape, params="X", forward=concatenate_forward,
    flops=moving, backward=(concatenate_d,), forward_cuda=concatenate_forward_cuda, backward_cuda=(concatenate_d_cuda,),
    reference=concatenate_reference,
    cases=(Case(((3,), (3,))), Case(((1,),)), Case((((3, 2), 2), (3,)))))  # fmt: skip


@native(CONCATENATE_COLS)
def concatenate_cols(xs: Sequence[Any]) -> Any:
    """The operands as columns, one behind the other: `concatenate(xs, 1)`."""
    return CONCATENATE_COLS(list(xs))


# ---- concatenate_to_batch --------------------------------------------------------------------------------------------


def concatenate_to_batch_shape(xs: list[Shape]) -> Result:
    """ints: the elements before each operand, and in total."""
    if len({x.dims for x in xs}) > 1:
        raise ShapeError("concatenate_to_batch", "equal shapes", *xs)
    starts = [0]
    for x in xs:
        starts.append(starts[-1] + x.size)
    return Result(Shape(xs[0].dims, sum(x.batch for x in xs)), ints=tuple(starts))


@kernel
def concatenate_to_batch_forward(v, y, arg, a, k, ints):
    for p in range(k):
        size = ints[p + 1] - ints[p]
        x, out = v[arg[a + p] : arg[a + p] + size], v[y + ints[p] : y + ints[p] + size]
        for i in range(size):
            out[i] = x[i]


@kernel
def concatenate_to_batch_d(g, y, arg, a, j, ints):
    size = ints[j + 1] - ints[j]
    dx, dy = g[arg[a + j] : arg[a + j] + size], g[y + ints[j] : y + ints[j] + size]
    for i in range(size):
        dx[i] += dy[i]


@kernel
def concatenate_to_batch_forward_cuda(v, y, arg, a, k, ints, thread, threads):
    for e in range(thread, ints[k], threads):
        p = 0
        while e >= ints[p + 1]:
            p += 1
        v[y + e] = v[arg[a + p] + e - ints[p]]


@kernel
def concatenate_to_batch_d_cuda(g, y, arg, a, j, ints, thread, threads):
    for e in range(ints[j] + thread, ints[j + 1], threads):
        g[arg[a + j] + e - ints[j]] += g[y + e]


CONCATENATE_TO_BATCH = define("concatenate_to_batch", shape=concatenate_to_batch_shape, params="X",
    flops=moving, forward=concatenate_to_batch_forward, backward=(concatenate_to_batch_d,),
    forward_cuda=concatenate_to_batch_forward_cuda, backward_cuda=(concatenate_to_batch_d_cuda,),
    group=NEVER,  # a group's operands lie end to end each, their joins do not
    whole_batch=True, reference=lambda x: x, cases=(Case((((3, 2), 2),)), Case(((1,),))))  # fmt: skip


@native(CONCATENATE_TO_BATCH)
def concatenate_to_batch(xs: Sequence[Any]) -> Any:
    """One mini-batch of all items of the operands' mini-batches.

    xs: equal shapes x any batch.  Raises ShapeError for other shapes, ValueError for an empty list.
    """
    return CONCATENATE_TO_BATCH(list(xs))


# ---- reshape ---------------------------------------------------------------------------------------------------------


def reshape_shape(x: Shape, dims: tuple[int, ...], batch: int) -> Shape:
    shape = Shape(dims, batch)
    if min((*dims, batch)) < 0 or len(dims) > MAX_RANK:
        raise ShapeError("reshape", f"up to {MAX_RANK} sizes of 0 or more, not {shape}", x)
    if shape.size == x.size:
        return shape
    if shape.batch == 1 and shape.item == x.item:
        return Shape(shape.dims, x.batch)
    raise ShapeError("reshape", f"as many elements as {shape}", x)


RESHAPE = define("reshape", shape=reshape_shape, params="xIi", view=True,
    flops=moving, reference=lambda x, dims, batch: x.reshape(-1, order="F"),
    cases=(Case(((6,),), arguments=((3, 2), 1)), Case(((1,),), arguments=((1,), 1)),
           Case((((3, 4), 2),), arguments=((4, 3), 2)), Case((((3, 4), 2),), arguments=((12,), 1))))  # fmt: skip


@native(RESHAPE)
def reshape(x: Any, d: Any, batch_size: int = 1) -> Any:
    """The same elements, in memory order, under other dims and another mini-batch size; nothing is copied.

    d: int or tuple.  If `d` alone has the elements of one mini-batch item of x, the mini-batch stays.
    Raises ShapeError if the numbers of elements differ.
    """
    return RESHAPE(x, d, batch_size)


# ---- transpose, strided_select: elements at regular distances --------------------------------------------------------


def strided(dims: Sequence[int], steps: Sequence[int], base: int, x: Shape, items: tuple[int, int, int]) -> Result:
    """Result whose axis k steps by steps[k] elements through an item of x.

    items: how many, from which on, and step, of the mini-batch.
    ints: items, mini-batch of x, base, number of axes, then length and step of each; axes that step alike are joined.
    """
    loops = [[1, 1]]
    for size, step in zip(dims, steps, strict=True):
        if loops[-1][0] == 1:
            loops[-1] = [size, step]
        elif step == loops[-1][0] * loops[-1][1]:
            loops[-1][0] *= size
        elif size > 1:
            loops.append([size, step])
    numbers = (number for loop in loops for number in loop)
    return Result(Shape(tuple(dims), items[0]), ints=(*items, x.batch, base, len(loops), *numbers))


@kernel
def strided_forward(v, x0, y, item, item0, batch, ints):
    length, step = ints[6], ints[7]
    for b in range(batch):
        first = x0 + (b // ints[0] * ints[3] + ints[1] + b % ints[0] * ints[2]) * item0 + ints[4]
        for c in range(item // length):
            at, rest = first, c
            for k in range(1, ints[5]):
                at += rest % ints[6 + 2 * k] * ints[7 + 2 * k]
                rest //= ints[6 + 2 * k]
            x = v[at : at + (length - 1) * step + 1]
            out = v[y + b * item + c * length : y + b * item + (c + 1) * length]
            for i in range(length):
                out[i] = x[i * step]


@kernel
def strided_d0(g, x0, y, item, item0, batch, ints):
    length, step = ints[6], ints[7]
    for b in range(batch):
        first = x0 + (b // ints[0] * ints[3] + ints[1] + b % ints[0] * ints[2]) * item0 + ints[4]
        for c in range(item // length):
            at, rest = first, c
            for k in range(1, ints[5]):
                at += rest % ints[6 + 2 * k] * ints[7 + 2 * k]
                rest //= ints[6 + 2 * k]
            dx = g[at : at + (length - 1) * step + 1]
            dy = g[y + b * item + c * length : y + b * item + (c + 1) * length]
            for i in range(length):
                dx[i * step] += dy[i]


@scalar
def strided_place(e, item, item0, ints):  # type: ignore[no-untyped-def]
    """Where element e of the result lies in x."""
    b, rest = e // item, e % item
    at = (b // ints[0] * ints[3] + ints[1] + b % ints[0] * ints[2]) * item0 + ints[4]
    for k in range(ints[5]):
        at += rest % ints[6 + 2 * k] * ints[7 + 2 * k]
        rest //= ints[6 + 2 * k]
    return at


@kernel
def strided_forward_cuda(v, x0, y, n, item, item0, ints, thread, threads):
    for e in range(thread, n, threads):
        v[y + e] = v[x0 + strided_place(e, item, item0, ints)]


@kernel
def strided_d0_cuda(g, x0, y, n, item, item0, ints, thread, threads):
    for e in range(thread, n, threads):  # no element of x is taken twice
        g[x0 + strided_place(e, item, item0, ints)] += g[y + e]


def transpose_shape(x: Shape, axes: tuple[int, ...]) -> Result:
    if sorted(axes) != list(range(len(axes))) or len(axes) < len(x.dims):
        raise ShapeError("transpose", f"an order of all axes, not {axes}", x)
    steps = [x.around(axis)[0] for axis in axes]
    return strided([x.dim(axis) for axis in axes], steps, 0, x, (x.batch, 0, 1))


TRANSPOSE = define("transpose", shape=transpose_shape, params="xI", forward=strided_forward, backward=(strided_d0,),
    flops=moving, forward_cuda=strided_forward_cuda, backward_cuda=(strided_d0_cuda,),
    reference=lambda x, axes: x.reshape(x.shape + (1,) * (len(axes) - x.ndim)).transpose(axes),
    cases=(Case(((5,),), arguments=((1, 0),)), Case(((1,),), arguments=((0,),)),
           Case((((3, 4), 2),), arguments=((1, 0),)), Case((((2, 3, 4), 2),), arguments=((2, 0, 1),)),
           Case(((2, 3, 4),), arguments=((0, 2, 1),)), Case(((2, 3, 2, 2),), arguments=((3, 1, 0, 2),))))  # fmt: skip


@native(TRANSPOSE)
def transpose(x: Any, dims: Sequence[int] = (1, 0)) -> Any:
    """The axes of x in the order `dims`: y_rc = x_cr of a matrix; a vector (n,) becomes (1, n).

    x: any shape x batch.  Raises ShapeError unless `dims` has each axis once.
    """
    return TRANSPOSE(x, dims)


END = -1  # a range goes to the end of its axis


def strided_select_shape(x: Shape, strides: tuple[int, ...], starts: tuple[int, ...], stops: tuple[int, ...]) -> Result:
    """A step, a start and a stop of each axis and, behind the last, of the mini-batch; what is missing is the whole."""
    sizes = (*x.dims, x.batch)
    count = max(len(strides), len(starts), len(stops))
    if count > len(sizes):
        raise ShapeError("strided_select", f"a range per axis and one for the mini-batch, not {count}", x)
    ranges = [
        (1 if step is None else step, start or 0, END if stop is None else stop)
        for step, start, stop, _ in zip_longest(strides, starts, stops, (END,) * len(sizes))
    ]
    dims, steps, base, inner = [], [], 0, 1
    for size, (step, start, stop) in zip(sizes, ranges, strict=True):
        stop = size if stop == END else stop
        if step < 1 or not 0 <= start < stop <= size:
            needs = f"steps of 1 or more and ranges within the axes, not {start}:{stop}:{step}"
            raise ShapeError("strided_select", needs, x)
        dims.append(-(-(stop - start) // step))
        steps.append(inner * step)
        base += inner * start
        inner *= size
    step, start, _ = ranges[-1]
    return strided(dims[:-1], steps[:-1], base - start * x.item, x, (dims[-1], start, step))


def strided_select_reference(
    x: np.ndarray, strides: Sequence[int], starts: Sequence[int], stops: Sequence[int]
) -> np.ndarray:
    ranges = zip(starts, (None if stop == END else stop for stop in stops), strides, strict=True)
    return x[tuple(slice(*numbers) for numbers in list(ranges)[: x.ndim])]


STRIDED_SELECT = define("strided_select", shape=strided_select_shape, params="xIII",
    flops=moving, forward=strided_forward, backward=(strided_d0,), reference=strided_select_reference,
    forward_cuda=strided_forward_cuda, backward_cuda=(strided_d0_cuda,),
    cases=(Case(((7,),), arguments=((2,), (1,), (6,))), Case(((1,),), arguments=((1,), (0,), (END,))),
           Case((((3, 4), 2),), arguments=((2, 1), (0, 1), (3, 3))),
           Case((((4, 5), 2),), arguments=((1, 2), (0, 1), (4, END))),
           Case(((5, 3, 6),), arguments=((3, 1, 2), (1, 1, 0), (END, 3, 5))),
           Case((((3, 4), 3),), arguments=((1, 1, 1), (1, 0, 2), (3, END, 3)))))  # fmt: skip


@native(STRIDED_SELECT)
def strided_select(x: Any, strides: Sequence[int], range_from: Sequence[int], range_to: Sequence[int] = ()) -> Any:
    """Every strides[k]-th position from range_from[k] to range_to[k] - 1 of each axis k.

    One entry more than the rank is for the mini-batch.  The lists may be short: missing ranges are whole axes.
    Raises ShapeError for steps below 1 and ranges that are empty or leave their axis.
    """
    return STRIDED_SELECT(x, strides, range_from, range_to)


# ---- fold_rows -------------------------------------------------------------------------------------------------------


def fold_rows_shape(x: Shape, nrows: int) -> Shape:
    if nrows < 1 or x.rows % nrows:
        raise ShapeError("fold_rows", f"rows that are a multiple of {nrows}", x)
    return Shape((x.rows // nrows, *(x.dims[1:] or (1,))), x.batch)


@kernel
def fold_rows_forward(v, x0, y, n, i0):
    x, out = v[x0 : x0 + n * i0], v[y : y + n]
    for i in range(n):
        out[i] = x[i * i0]
        for r in range(1, i0):
            out[i] += x[i * i0 + r]


@kernel
def fold_rows_d0(g, x0, y, n, i0):
    dx, dy = g[x0 : x0 + n * i0], g[y : y + n]
    for i in range(n):
        for r in range(i0):
            dx[i * i0 + r] += dy[i]


FOLD_ROWS = define("fold_rows", shape=fold_rows_shape, params="xi", forward=fold_rows_forward, backward=(fold_rows_d0,),
    reference=lambda x, nrows: x.reshape((nrows, -1, *x.shape[1:]), order="F").sum(0),
    cases=(Case(((6,),), arguments=(3,)), Case(((1,),), arguments=(1,)),
           Case((((4, 3), 2),), arguments=(2,))))  # fmt: skip


@native(FOLD_ROWS)
def fold_rows(x: Any, nrows: int = 2) -> Any:
    """Sums of `nrows` consecutive rows each: y_rc = sum_k x_(r nrows + k)c.

    x: (rows, ...) x batch; the result: (rows / nrows, ...) x batch, of a vector (rows / nrows, 1) x batch.
    Raises ShapeError unless nrows divides rows.
    """
    return FOLD_ROWS(x, nrows)
