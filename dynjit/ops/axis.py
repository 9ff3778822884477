"""Operators along one axis: extremes, their positions, the k largest, logarithms of sums, running sums."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from dynjit.errors import ShapeError
from dynjit.jit import kernel, scalar
from dynjit.lines import lines_of, own_line, shared_log_sum_exp, turn_in, width_of
from dynjit.op import Case, define, mode_of, native, native_modes
from dynjit.scalars import INF, ONE, ZERO, exp, log, log_sum_exp, maximum
from dynjit.shape import Result, Shape, without

# ---- max_dim, min_dim ------------------------------------------------------------------------------------------------


def axis_result(operator: str, x: Shape, axis: int) -> Result:
    """Shape rule: the axis is removed.  ints: the elements before it, and along it."""
    if not 0 <= axis < len(x.dims):
        raise ShapeError(operator, f"an axis from 0 to {len(x.dims) - 1}, not {axis}", x)
    return Result(Shape(without(x.dims, axis), x.batch), ints=x.around(axis)[:2])


AXIS = (
    Case(((5,),), arguments=(0,)), Case(((1,),), arguments=(0,)), Case((((3, 4), 2),), arguments=(0,)),
    Case((((3, 4), 2),), arguments=(1,)), Case((((5, 3), 2),), arguments=(1,)), Case(((2, 3, 4),), arguments=(1,)),
    Case(((3, 40),), -80, 80, (1,)),
)  # fmt: skip


def extreme(name: str, is_better: Callable, reference: Callable, doc: str) -> Callable[[Any, int], Any]:
    """The public function of the best element along an axis."""
    is_better = scalar(is_better)

    def rule(x: Shape, axis: int) -> Result:
        return axis_result(name, x, axis)

    def forward(v, x0, y, n, i0, i1):  # type: ignore[no-untyped-def]
        for c in range(n // i0):
            x, out = v[x0 + c * i0 * i1 : x0 + (c + 1) * i0 * i1], v[y + c * i0 : y + (c + 1) * i0]
            for r in range(i0):
                best = x[r]
                for i in range(1, i1):
                    best = x[i * i0 + r] if is_better(x[i * i0 + r], best) else best
                out[r] = best

    def d0(v, g, x0, y, n, i0, i1):  # type: ignore[no-untyped-def]
        for c in range(n // i0):
            x, out = v[x0 + c * i0 * i1 : x0 + (c + 1) * i0 * i1], v[y + c * i0 : y + (c + 1) * i0]
            dx, dy = g[x0 + c * i0 * i1 : x0 + (c + 1) * i0 * i1], g[y + c * i0 : y + (c + 1) * i0]
            for r in range(i0):
                for i in range(i1):
                    if x[i * i0 + r] == out[r]:
                        dx[i * i0 + r] += dy[r]
                        break

    forward.__name__, d0.__name__ = f"{name}_forward", f"{name}_d0"
    operator = define(name, shape=rule, params="xi", forward=forward, backward=(d0,), reference=reference, cases=AXIS)

    def public(x, d=0):  # type: ignore[no-untyped-def]
        return operator(x, d)

    public.__name__ = public.__qualname__ = name
    public.__module__ = __name__
    public.__doc__ = f"""{doc} along axis `d`, which is removed; the first of equals gets the gradient.

    x: any shape x batch.  Raises ShapeError for a missing axis.
    """
    return native(operator)(public)


max_dim = extreme("max_dim", lambda a, b: a > b, np.max, "Maximum")
min_dim = extreme("min_dim", lambda a, b: a < b, np.min, "Minimum")


# ---- logsumexp_dim ---------------------------------------------------------------------------------------------------


def logsumexp_dim_shape(x: Shape, axis: int) -> Result:
    return axis_result("logsumexp_dim", x, axis)


@scalar
def log_sum_exp_line(x, count, step):  # type: ignore[no-untyped-def]
    """Log of the sum of exp of every `step`-th element of a window."""
    top = x[0]
    for i in range(1, count):
        top = maximum(top, x[i * step])
    if top - top != ZERO:  # infinite or NaN
        return top
    total = top - top
    for i in range(count):
        total += exp(x[i * step] - top)
    return top + log(total)


@kernel
def logsumexp_dim_forward(v, x0, y, n, i0, i1):
    for c in range(n // i0):
        for r in range(i0):
            x = v[x0 + c * i0 * i1 + r : x0 + (c + 1) * i0 * i1]
            v[y + c * i0 + r] = log_sum_exp(x) if i0 == 1 else log_sum_exp_line(x, i1, i0)


@kernel
def logsumexp_dim_d0(v, g, x0, y, n, i0, i1):
    for c in range(n // i0):
        out, dy = v[y + c * i0 : y + (c + 1) * i0], g[y + c * i0 : y + (c + 1) * i0]
        if i0 == 1:
            x, dx, z, e = v[x0 + c * i1 : x0 + (c + 1) * i1], g[x0 + c * i1 : x0 + (c + 1) * i1], out[0], dy[0]
            for i in range(i1):
                dx[i] += exp(x[i] - z) * e if z > -INF else ZERO
            continue
        for i in range(i1):
            at = x0 + (c * i1 + i) * i0
            x, dx = v[at : at + i0], g[at : at + i0]
            for r in range(i0):
                dx[r] += exp(x[r] - out[r]) * dy[r] if out[r] > -INF else ZERO


@kernel
def logsumexp_dim_forward_cuda(v, x0, y, n, i0, i1, strip, part, parts):
    width = width_of(i1)
    for first in lines_of(width, part, n, parts):
        e = own_line(first, width)
        at, count = x0 + e // i0 * i0 * i1 + e % i0, i1 if e < n else 0
        z = shared_log_sum_exp(v, at, i0, count, width, strip)
        if e < n and turn_in(width) == 0:
            v[y + e] = z


@kernel
def logsumexp_dim_d0_cuda(v, g, x0, y, n0, i0, i1, thread, threads):
    for e in range(thread, n0, threads):
        line = e // (i0 * i1) * i0 + e % i0
        if v[y + line] > -INF:
            g[x0 + e] += exp(v[x0 + e] - v[y + line]) * g[y + line]


LOGSUMEXP_DIM = define("logsumexp_dim", shape=logsumexp_dim_shape, params="xi", forward=logsumexp_dim_forward,
    forward_cuda=logsumexp_dim_forward_cuda, backward=(logsumexp_dim_d0,), backward_cuda=(logsumexp_dim_d0_cuda,),
    reference=lambda x, axis: np.logaddexp.reduce(x, axis=axis), cases=AXIS)  # fmt: skip


@native(LOGSUMEXP_DIM)
def logsumexp_dim(x: Any, d: int = 0) -> Any:
    """log(sum over i of exp(x_i)) along axis `d`, which is removed; in nats, without overflow or underflow.

    x: any shape x batch.  Raises ShapeError for a missing axis.
    """
    return LOGSUMEXP_DIM(x, d)


# ---- cumsum ----------------------------------------------------------------------------------------------------------


def cumsum_shape(x: Shape, axis: int) -> Result:
    if axis < 0:
        raise ShapeError("cumsum", f"an axis of 0 or more, not {axis}", x)
    return Result(x, ints=x.around(axis)[:2])  # along an axis behind those of x, of size 1: x itself (as in DyNet)


@kernel
def cumsum_forward(v, x0, y, n, i0, i1):
    for b in range(0, n, i0 * i1):
        x, out = v[x0 + b : x0 + b + i0 * i1], v[y + b : y + b + i0 * i1]
        for r in range(i0):
            out[r] = x[r]
        for i in range(i0, i0 * i1):
            out[i] = out[i - i0] + x[i]


@kernel
def cumsum_d0(g, x0, y, n, i0, i1):
    for b in range(0, n, i0 * i1):
        dx, dy = g[x0 + b : x0 + b + i0 * i1], g[y + b : y + b + i0 * i1]
        for r in range(i0):
            total = ZERO
            for i in range(i1 - 1, -1, -1):
                total += dy[i * i0 + r]
                dx[i * i0 + r] += total


CUMSUM = define("cumsum", shape=cumsum_shape, params="xi", forward=cumsum_forward, backward=(cumsum_d0,),
                reference=np.cumsum, cases=AXIS)  # fmt: skip


@native(CUMSUM)
def cumsum(x: Any, d: int = 0) -> Any:
    """y_i = sum of x_j for j up to i, along axis `d`.

    x: any shape x batch; the result has the same, and is x for an axis behind those of x.
    Raises ShapeError for a negative axis.
    """
    return CUMSUM(x, d)


# ---- kmax_pooling ----------------------------------------------------------------------------------------------------


def kmax_pooling_shape(x: Shape, k: int, axis: int) -> Result:
    result = axis_result("kmax_pooling", x, axis)
    if not 1 <= k <= x.dims[axis]:
        raise ShapeError("kmax_pooling", f"k from 1 to the size of axis {axis}, not {k}", x)
    dims = (*x.dims[:axis], k, *x.dims[axis + 1 :])
    return Result(Shape(dims, x.batch), ints=(*result.ints, k), scratch=math.prod(dims))  # type: ignore[misc]


@scalar
def lowest_kept(x, count, step, k):  # type: ignore[no-untyped-def]
    """The k-th largest of every `step`-th element of a window, and how many of those equal to it are among the k."""
    limit, found, equal = x[0], 0, 0
    for p in range(k):
        top, equal = -INF, 0
        for i in range(count):
            e = x[i * step]
            if p == 0 or e < limit:
                if e > top:
                    top, equal = e, 1
                elif e == top:
                    equal += 1
        limit = top
        found += equal
        if found >= k:
            break
    return limit, k - found + equal


@kernel
def kmax_pooling_forward(v, x0, y, s, n, i0, i1, i2):
    # the scratch holds the positions of the kept elements
    for c in range(n // (i0 * i2)):
        for r in range(i0):
            x = v[x0 + c * i0 * i1 + r : x0 + (c + 1) * i0 * i1]
            out = v[y + c * i0 * i2 + r : y + (c + 1) * i0 * i2]
            position = v[s + c * i0 * i2 + r : s + (c + 1) * i0 * i2]
            limit, spare = lowest_kept(x, i1, i0, i2)
            kept = 0
            for i in range(i1):
                e = x[i * i0]
                if kept < i2 and (not e <= limit or (e == limit and spare > 0)):  # NaN is kept
                    out[kept * i0] = e
                    position[kept * i0] = i
                    kept += 1
                    spare -= e == limit


@kernel
def kmax_pooling_d0(v, g, x0, y, s, n, i0, i1, i2):
    for c in range(n // (i0 * i2)):
        for r in range(i0):
            dx, dy = g[x0 + c * i0 * i1 + r : x0 + (c + 1) * i0 * i1], g[y + c * i0 * i2 + r : y + (c + 1) * i0 * i2]
            position = v[s + c * i0 * i2 + r : s + (c + 1) * i0 * i2]
            for i in range(i2):
                dx[int(position[i * i0]) * i0] += dy[i * i0]


def kmax_pooling_reference(x: np.ndarray, k: int, axis: int) -> np.ndarray:
    kept = np.sort(np.argsort(-x, axis, kind="stable").take(range(k), axis), axis)
    return np.take_along_axis(x, kept, axis)


KMAX_POOLING = define("kmax_pooling", shape=kmax_pooling_shape, params="xii", forward=kmax_pooling_forward,
    backward=(kmax_pooling_d0,), reference=kmax_pooling_reference,
    cases=(Case(((5,),), arguments=(2, 0)), Case(((1,),), arguments=(1, 0)), Case((((3, 9), 2),), arguments=(4, 1)),
           Case((((9, 3), 2),), arguments=(4, 0)), Case(((2, 5, 3),), arguments=(3, 1)),
           Case(((3, 4),), arguments=(4, 1))))  # fmt: skip


@native(KMAX_POOLING)
def kmax_pooling(x: Any, k: int, d: int = 1) -> Any:
    """The k largest elements along axis `d`, in their order in x; of equals the first ones.

    x: any shape x batch;  k: 1 to the size of axis d; the result has size k there.
    Raises ShapeError for a missing axis or another k.
    """
    return KMAX_POOLING(x, k, d)


# ---- argmax ----------------------------------------------------------------------------------------------------------


def argmax_shape(x: Shape) -> Shape:
    if x.cols != 1:
        raise ShapeError("argmax", "a vector (k,)", x)
    return x


@kernel
def argmax_forward(v, x0, y, item, batch):
    for b in range(batch):
        x, out = v[x0 + b * item : x0 + (b + 1) * item], v[y + b * item : y + (b + 1) * item]
        best = 0
        for i in range(item):
            out[i] = ZERO
            if x[i] > x[best]:
                best = i
        out[best] = ONE


@kernel
def argmax_d0(g, x0, y, n):
    dx, dy = g[x0 : x0 + n], g[y : y + n]
    for i in range(n):
        dx[i] += dy[i]


VECTORS = (Case(((5,),)), Case(((1,),)), Case((((4,), 3),)))


def argmax_reference(x: np.ndarray) -> np.ndarray:
    return np.eye(x.size)[np.argmax(x)]


ARGMAX = {
    "zero_gradient": define("argmax", shape=argmax_shape, forward=argmax_forward, reference=argmax_reference,
                            cases=VECTORS),
    "straight_through_gradient": define("argmax_straight_through", shape=argmax_shape, forward=argmax_forward,
        backward=(argmax_d0,), reference=argmax_reference,
        cases=tuple(replace(case, no_difference=True, reason="the gradient is by intent that of y = x")
                    for case in VECTORS)),
}  # fmt: skip


@native_modes(ARGMAX)
def argmax(x: Any, gradient_mode: str) -> Any:
    """1 at the maximum (the first of equals), 0 elsewhere.

    x: (k,) x batch; the result has the same shape.
    gradient_mode: "zero_gradient", or "straight_through_gradient" for dy/dx = 1.
    Raises ShapeError unless x is a vector, ValueError for other modes.
    """
    return mode_of("argmax", gradient_mode, ARGMAX)(x)
