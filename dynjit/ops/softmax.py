"""The softmax family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dynjit import errors
from dynjit.errors import ShapeError
from dynjit.jit import kernel, scalar
from dynjit.op import Case, define, native
from dynjit.scalars import HALF, INF, ONE, ZERO, exp, log_sum_exp, maximum
from dynjit.shape import Result, Shape

# ---- softmax ---------------------------------------------------------------------------------------------------------


def softmax_shape(x: Shape, axis: int) -> Result:
    if not 0 <= axis < len(x.dims):
        raise ShapeError("softmax", f"an axis below the rank, not {axis}", x)
    return Result(x, ints=x.around(axis)[:2])


@scalar
def softmax_line(x, out, count, step):  # type: ignore[no-untyped-def]
    """Softmax of every `step`-th element of a window."""
    top, total = x[0], ZERO
    for i in range(1, count):
        top = maximum(top, x[i * step])
    for i in range(count):
        out[i * step] = exp(x[i * step] - top)
        total += out[i * step]
    scale = ONE / total
    for i in range(count):
        out[i * step] *= scale


@kernel
def softmax_forward(v, x0, y, n, i0, i1):
    for b in range(0, n, i0 * i1):
        for r in range(b, b + i0):
            x, out = v[x0 + r : x0 + b + i0 * i1], v[y + r : y + b + i0 * i1]
            if i0 == 1:  # a constant step makes vector code
                softmax_line(x, out, i1, 1)
            else:
                softmax_line(x, out, i1, i0)


@scalar
def softmax_line_d(out, dy, dx, count, step):  # type: ignore[no-untyped-def]
    mean = ZERO
    for i in range(count):
        mean += out[i * step] * dy[i * step]
    for i in range(count):
        dx[i * step] += out[i * step] * (dy[i * step] - mean)


@kernel
def softmax_d0(v, g, x0, y, n, i0, i1):
    for b in range(0, n, i0 * i1):
        for r in range(b, b + i0):
            end = b + i0 * i1
            out, dy, dx = v[y + r : y + end], g[y + r : y + end], g[x0 + r : x0 + end]
            if i0 == 1:
                softmax_line_d(out, dy, dx, i1, 1)
            else:
                softmax_line_d(out, dy, dx, i1, i0)


def softmax_reference(x: np.ndarray, axis: int) -> np.ndarray:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


SOFTMAX = define("softmax", shape=softmax_shape, params="xi", forward=softmax_forward, backward=(softmax_d0,),
    reference=softmax_reference,
    cases=(Case(((5,),), arguments=(0,)), Case(((1,),), arguments=(0,)), Case(((40,),), -80, 80, (0,)),
           Case((((3, 4), 2),), arguments=(0,)), Case((((3, 4), 2),), arguments=(1,)), Case(((4, 5),), -80, 80, (1,)),
           Case(((2, 3, 4),), arguments=(1,))))  # fmt: skip


@native(SOFTMAX)
def softmax(x: Any, d: int = 0) -> Any:
    """exp(x_i) / (sum over j of exp(x_j)), along axis `d`.

    x: any shape x batch; the result has the same.  Raises ShapeError for a missing axis.
    """
    return SOFTMAX(x, d)


# ---- log_softmax -----------------------------------------------------------------------------------------------------


def log_softmax_shape(x: Shape) -> Shape:
    return x


@kernel
def log_softmax_forward(v, x0, y, n, rows):
    for b in range(0, n, rows):
        x, out = v[x0 + b : x0 + b + rows], v[y + b : y + b + rows]
        z = log_sum_exp(x)
        for i in range(rows):
            out[i] = x[i] - z


@kernel
def log_softmax_d0(v, g, x0, y, n, rows):
    for b in range(0, n, rows):
        out, dy, dx = v[y + b : y + b + rows], g[y + b : y + b + rows], g[x0 + b : x0 + b + rows]
        total = ZERO
        for i in range(rows):
            total += dy[i]
        for i in range(rows):
            dx[i] += dy[i] - exp(out[i]) * total


LOG_SOFTMAX = define("log_softmax", shape=log_softmax_shape, forward=log_softmax_forward, backward=(log_softmax_d0,),
    reference=lambda x: np.log(softmax_reference(x, 0)),
    cases=(Case(((5,),)), Case(((1,),)), Case(((40,),), -80, 80), Case((((3, 4), 2),)), Case(((2, 3, 4),))))  # fmt: skip


def log_softmax(x: Any, restrict: Sequence[int] | None = None) -> Any:
    """x_i - log(sum over j of exp(x_j)), along the first axis, in nats.

    x: (k, ...) x batch; the result has the same shape.
    restrict: the indices that take part; the others get -inf.  x is a vector then.
    Raises ShapeError for indices and no vector, ValueError for an empty list, IndexError for indices out of range.
    """
    return LOG_SOFTMAX(x) if restrict is None else RESTRICTED_LOG_SOFTMAX(x, sorted(set(restrict)))


# ---- log_softmax over some indices -----------------------------------------------------------------------------------


def chosen(operator: str, x: Shape, indices: Sequence[int]) -> None:
    """Raises an error unless x is a vector and the indices, one or more, are indices of it."""
    if x.cols != 1:
        raise ShapeError(operator, "a vector (k,)", x)
    if not indices:
        raise ValueError(errors.located(f"{operator}: needs one index or more, got none"))
    if min(indices) < 0 or max(indices) >= x.rows:
        raise IndexError(errors.located(f"{operator}: needs indices from 0 to {x.rows - 1}, got {list(indices)}"))


def restricted_log_softmax_shape(x: Shape, *indices: int) -> Result:
    chosen("log_softmax", x, indices)
    return Result(x, ints=(len(indices), *indices))


@kernel
def restricted_log_softmax_forward(v, x0, y, item, batch, ints):
    for b in range(batch):
        x, out = v[x0 + b * item : x0 + (b + 1) * item], v[y + b * item : y + (b + 1) * item]
        for i in range(item):
            out[i] = -INF
        for j in range(1, ints[0] + 1):  # packed to the front: log_sum_exp takes a window
            out[j - 1] = x[ints[j]]
        z = log_sum_exp(out[: ints[0]])
        for i in range(item):
            out[i] = -INF
        for j in range(1, ints[0] + 1):
            out[ints[j]] = x[ints[j]] - z


@kernel
def restricted_log_softmax_d0(v, g, x0, y, item, batch, ints):
    for b in range(batch):
        out, dy, dx = v[y + b * item : y + (b + 1) * item], g[y + b * item : y + (b + 1) * item], g[x0 + b * item :]
        total = ZERO
        for j in range(1, ints[0] + 1):
            total += dy[ints[j]]
        for j in range(1, ints[0] + 1):
            dx[ints[j]] += dy[ints[j]] - exp(out[ints[j]]) * total


def restricted_log_softmax_reference(x: np.ndarray, indices: Sequence[int]) -> np.ndarray:
    y = np.full_like(x, -np.inf)
    y[list(indices)] = np.log(softmax_reference(x[list(indices)], 0))
    return y


INFINITE = "the result has infinite elements, which have no differences"
RESTRICTED_LOG_SOFTMAX = define("restricted_log_softmax", shape=restricted_log_softmax_shape, params="xI",
    forward=restricted_log_softmax_forward, backward=(restricted_log_softmax_d0,),
    reference=restricted_log_softmax_reference,
    cases=(Case(((5,),), arguments=((0, 1, 2, 3, 4),)), Case(((1,),), arguments=((0,),)),
           Case((((4,), 3),), -80, 80, ((0, 1, 2, 3),)),
           Case((((5,), 2),), arguments=((1, 3, 4),), no_difference=True, reason=INFINITE)))  # fmt: skip
