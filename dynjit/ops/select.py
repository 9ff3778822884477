"""Operators that take some of a tensor's elements: by index, range, row, column, or item of the mini-batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dynjit import errors
from dynjit.errors import ShapeError
from dynjit.jit import kernel
from dynjit.op import Case, define, moving, native
from dynjit.shape import Result, Shape, without

# ---- pick ------------------------------------------------------------------------------------------------------------


def pick_shape(x: Shape, axis: int) -> Result:
    if not 0 <= axis < len(x.dims):
        raise ShapeError("pick", f"an axis below the rank, not {axis}", x)
    return Result(Shape(without(x.dims, axis), x.batch), ints=x.around(axis), bound=x.dims[axis])


@kernel
def pick_forward(v, x0, y, item, batch, step0, i0, i1, i2, ids):
    for b in range(batch):
        for c in range(i2):
            at = x0 + b * step0 + (c * i1 + ids[b]) * i0
            x, out = v[at : at + i0], v[y + b * item + c * i0 : y + b * item + (c + 1) * i0]
            for i in range(i0):
                out[i] = x[i]


@kernel
def pick_d0(g, x0, y, item, batch, step0, i0, i1, i2, ids):
    for b in range(batch):
        for c in range(i2):
            at = x0 + b * step0 + (c * i1 + ids[b]) * i0
            dx, dy = g[at : at + i0], g[y + b * item + c * i0 : y + b * item + (c + 1) * i0]
            for i in range(i0):
                dx[i] += dy[i]


def pick_reference(x: np.ndarray, index: int, axis: int) -> np.ndarray:
    return np.take(x, index, axis) if x.ndim > 1 else x[[index]]


PICK = define("pick", shape=pick_shape, params="xdi", forward=pick_forward, backward=(pick_d0,),
    flops=moving, reference=pick_reference,
    cases=(Case(((5,),), arguments=(2, 0)), Case(((1,),), arguments=(0, 0)), Case((((3, 4), 2),), arguments=(3, 1)),
           Case(((2, 3, 4),), arguments=(1, 1))))  # fmt: skip


@native(PICK)
def pick(e: Any, index: int = 0, dim: int = 0) -> Any:
    """Position `index` of axis `dim`; the axis is removed.

    e: any shape x batch.  Raises ShapeError for a missing axis, IndexError for an index out of range.
    """
    return PICK(e, index, dim)


def pick_batch_shape(x: Shape, axis: int, count: int) -> Result:
    if count < 1 or x.batch not in (1, count):
        raise ShapeError("pick_batch", f"one index per mini-batch item, not {count}", x)
    return pick_shape(Shape(x.dims, count), axis)


PICK_BATCH = define("pick_batch", shape=pick_batch_shape, params="xDi", forward=pick_forward, backward=(pick_d0,),
    flops=moving, reference=pick_reference,
    cases=(Case((((5,), 3),), arguments=((2, 0, 4), 0)), Case(((1,),), arguments=((0,), 0)),
           Case((((3, 4), 2),), arguments=((3, 1), 1)), Case(((3, 4),), arguments=((2, 2, 0, 1), 0))))  # fmt: skip


@native(PICK_BATCH)
def pick_batch(e: Any, indices: Sequence[int], dim: int = 0) -> Any:
    """Position `indices[b]` of axis `dim` of mini-batch item b; the axis is removed.

    e: any shape x len(indices); of an e without mini-batch the result is one nevertheless.
    Raises ShapeError for another number of indices or a missing axis, IndexError for an index out of range.
    """
    return PICK_BATCH(e, indices, dim)


# ---- pick_range ------------------------------------------------------------------------------------------------------


def pick_range_shape(x: Shape, length: int, axis: int) -> Result:
    if not 0 <= axis < len(x.dims) or not 0 < length <= x.dims[axis]:
        raise ShapeError("pick_range", f"a range of 1 to all of an axis, not {length} of axis {axis}", x)
    before, along, behind = x.around(axis)
    dims = (*x.dims[:axis], length, *x.dims[axis + 1 :])
    ints = (before, before * along, before * length, behind)
    return Result(Shape(dims, x.batch), ints, bound=along - length + 1)


@kernel
def pick_range_forward(v, x0, y, item, item0, batch, i0, i1, i2, i3, ids):
    for b in range(batch):
        for c in range(i3):
            at, to = x0 + b * item0 + c * i1 + ids[b] * i0, y + b * item + c * i2
            x, out = v[at : at + i2], v[to : to + i2]
            for i in range(i2):
                out[i] = x[i]


@kernel
def pick_range_d0(g, x0, y, item, item0, batch, i0, i1, i2, i3, ids):
    for b in range(batch):
        for c in range(i3):
            at, to = x0 + b * item0 + c * i1 + ids[b] * i0, y + b * item + c * i2
            dx, dy = g[at : at + i2], g[to : to + i2]
            for i in range(i2):
                dx[i] += dy[i]


PICK_RANGE = define("pick_range", shape=pick_range_shape, params="xdei", forward=pick_range_forward,
    flops=moving, backward=(pick_range_d0,),
    reference=lambda x, start, end, axis: np.take(x, range(start, end), axis),
    cases=(Case(((5,),), arguments=(1, 4, 0)), Case(((1,),), arguments=(0, 1, 0)),
           Case((((3, 4), 2),), arguments=(1, 3, 0)), Case((((3, 4), 2),), arguments=(2, 4, 1)),
           Case(((2, 3, 4),), arguments=(1, 3, 1))))  # fmt: skip


@native(PICK_RANGE)
def pick_range(x: Any, s: int, e: int, d: int = 0) -> Any:
    """Positions s to e - 1 of axis `d`.

    x: any shape x batch.
    Raises ShapeError for a missing axis and an empty range, IndexError for one that leaves the axis.
    """
    return PICK_RANGE(x, s, e, d)


def pickrange(x: Any, s: int, e: int) -> Any:
    """Positions s to e - 1 of the first axis: `pick_range(x, s, e)`."""
    return pick_range(x, s, e)


# ---- pick_batch_elem -------------------------------------------------------------------------------------------------


def pick_batch_elem_shape(x: Shape, count: int = 1) -> Result:
    if count < 1:
        raise ValueError(errors.located("pick_batch_elems: needs one index or more, got none"))
    return Result(Shape(x.dims, count), ints=(count, x.batch), bound=x.batch)


@kernel
def pick_batch_elem_forward(v, x0, y, item, batch, i0, i1, ids):
    for b in range(batch):
        at = x0 + (b // i0 * i1 + ids[b]) * item
        x, out = v[at : at + item], v[y + b * item : y + (b + 1) * item]
        for i in range(item):
            out[i] = x[i]


@kernel
def pick_batch_elem_d0(g, x0, y, item, batch, i0, i1, ids):
    for b in range(batch):
        at = x0 + (b // i0 * i1 + ids[b]) * item
        dx, dy = g[at : at + item], g[y + b * item : y + (b + 1) * item]
        for i in range(item):
            dx[i] += dy[i]


@kernel
def pick_batch_elem_forward_cuda(v, x0, y, item, batch, i0, i1, ids, thread, threads):
    for e in range(thread, item * batch, threads):
        b = e // item
        v[y + e] = v[x0 + (b // i0 * i1 + ids[b]) * item + e % item]


@kernel
def pick_batch_elem_d0_cuda(g, x0, y, item, batch, i0, i1, ids, thread, threads):
    for i in range(thread, item, threads):  # the same item may be picked several times
        for b in range(batch):
            g[x0 + (b // i0 * i1 + ids[b]) * item + i] += g[y + b * item + i]


PICK_BATCH_ELEM = define("pick_batch_elem", shape=pick_batch_elem_shape, params="xd",
    flops=moving, forward=pick_batch_elem_forward, backward=(pick_batch_elem_d0,), whole_batch=True,
    forward_cuda=pick_batch_elem_forward_cuda, backward_cuda=(pick_batch_elem_d0_cuda,),
    reference=lambda x, index: x if index == 0 and x.ndim < 3 else x[..., index],
    cases=(Case((((3, 4), 3),), arguments=(2,)), Case(((1,),), arguments=(0,))))  # fmt: skip


@native(PICK_BATCH_ELEM)
def pick_batch_elem(x: Any, v: int) -> Any:
    """Item v of the mini-batch, without mini-batch.

    x: any shape x batch.  Raises IndexError unless 0 <= v < batch.
    """
    return PICK_BATCH_ELEM(x, v)


PICK_BATCH_ELEMS = define("pick_batch_elems", shape=pick_batch_elem_shape, params="xD",
    flops=moving, forward=pick_batch_elem_forward, backward=(pick_batch_elem_d0,), whole_batch=True,
    forward_cuda=pick_batch_elem_forward_cuda, backward_cuda=(pick_batch_elem_d0_cuda,),
    reference=lambda x, index: x if isinstance(index, int) else x[..., index[0]],
    cases=(Case((((3, 4), 3),), arguments=((0, 1, 2, 0),)), Case((((3,), 2),), arguments=((1,),)),
           Case(((3,),), arguments=((0, 0),)), Case(((1,),), arguments=((0,),))))  # fmt: skip


@native(PICK_BATCH_ELEMS)
def pick_batch_elems(x: Any, vs: Sequence[int]) -> Any:
    """Items vs of the mini-batch, in that order, repeats allowed.

    x: any shape x batch; the result: that shape x len(vs).  Raises IndexError unless all 0 <= v < batch.
    """
    return PICK_BATCH_ELEMS(x, vs)


# ---- select_rows, select_cols ----------------------------------------------------------------------------------------


def select_shape(operator: str, x: Shape, axis: int, count: int) -> Result:
    """ints: elements before and along the axis, elements of a whole run of it, positions that are kept."""
    if count < 1:
        raise ValueError(errors.located(f"{operator}: needs one index or more, got none"))
    before, along, behind = x.around(axis)
    shape = Shape((*x.dims[:axis], count, *x.dims[axis + 1 :]), x.batch)
    return Result(shape, ints=(before, before * along, behind, count), bound=along)


def select_rows_shape(x: Shape, count: int) -> Result:
    return select_shape("select_rows", x, 0, count)


def select_cols_shape(x: Shape, count: int) -> Result:
    if len(x.dims) != 2:
        raise ShapeError("select_cols", "a matrix (rows, cols)", x)
    return select_shape("select_cols", x, 1, count)


@kernel
def select_forward(v, x0, y, item, item0, batch, i0, i1, i2, i3, ids):
    for b in range(batch):
        for c in range(i2):
            for k in range(i3):
                at, to = x0 + b * item0 + c * i1 + ids[b * i3 + k] * i0, y + b * item + (c * i3 + k) * i0
                x, out = v[at : at + i0], v[to : to + i0]
                for i in range(i0):
                    out[i] = x[i]


@kernel
def select_d0(g, x0, y, item, item0, batch, i0, i1, i2, i3, ids):
    for b in range(batch):
        for c in range(i2):
            for k in range(i3):
                at, to = x0 + b * item0 + c * i1 + ids[b * i3 + k] * i0, y + b * item + (c * i3 + k) * i0
                dx, dy = g[at : at + i0], g[to : to + i0]
                for i in range(i0):
                    dx[i] += dy[i]


SELECT_ROWS = define("select_rows", shape=select_rows_shape, params="xA", forward=select_forward, backward=(select_d0,),
    reference=lambda x, rows: x[list(rows)],
    cases=(Case(((5,),), arguments=((2, 0, 2),)), Case(((1,),), arguments=((0,),)),
           Case((((3, 4), 2),), arguments=((2, 1),)), Case(((2, 3, 4),), arguments=((1, 0, 1),))))  # fmt: skip


@native(SELECT_ROWS)
def select_rows(x: Any, rs: Sequence[int]) -> Any:
    """Positions rs of the first axis, in that order, repeats allowed.

    x: (rows, ...) x batch; the result: (len(rs), ...) x batch.
    Raises ValueError for an empty list, IndexError unless all 0 <= r < rows.
    """
    return SELECT_ROWS(x, rs)


SELECT_COLS = define("select_cols", shape=select_cols_shape, params="xA", forward=select_forward, backward=(select_d0,),
    reference=lambda x, cols: x[:, list(cols)],
    cases=(Case((((3, 4), 2),), arguments=((3, 1, 3),)), Case(((1, 1),), arguments=((0,),))))  # fmt: skip


@native(SELECT_COLS)
def select_cols(x: Any, cs: Sequence[int]) -> Any:
    """Columns cs of a matrix, in that order, repeats allowed.

    x: (rows, cols) x batch; the result: (rows, len(cs)) x batch.
    Raises ShapeError unless x is a matrix, ValueError for an empty list, IndexError unless all 0 <= c < cols.
    """
    return SELECT_COLS(x, cs)
