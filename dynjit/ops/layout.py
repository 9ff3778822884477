"""Operators that move elements: selections, slices, joins, new shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dynjit import errors
from dynjit.errors import ShapeError
from dynjit.jit import kernel
from dynjit.op import Case, define, native
from dynjit.shape import Result, Shape

# ---- pick ------------------------------------------------------------------------------------------------------------


def without(dims: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return dims[:axis] + dims[axis + 1 :] or (1,)


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


PICK = define("pick", shape=pick_shape, params="xdi", forward=pick_forward, backward=(pick_d0,),
    reference=lambda x, index, axis: np.take(x, index, axis) if x.ndim > 1 else x[[index]],
    cases=(Case(((5,),), arguments=(2, 0)), Case(((1,),), arguments=(0, 0)), Case((((3, 4), 2),), arguments=(3, 1)),
           Case(((2, 3, 4),), arguments=(1, 1))))  # fmt: skip


@native(PICK)
def pick(e: Any, index: int = 0, dim: int = 0) -> Any:
    """Position `index` of axis `dim`; the axis is removed.

    e: any shape x batch.  Raises ShapeError for a missing axis, IndexError for an index out of range.
    """
    return PICK(e, index, dim)


def subscript(e: Any, shape: Shape, index: Any) -> Any:
    """e[index]: an int picks along the first axis."""
    size = shape.rows
    if not -size <= index < size:
        raise IndexError(errors.located(f"[]: needs an index from {-size} to {size - 1}, got {index}"))
    return pick(e, index % size, 0)
