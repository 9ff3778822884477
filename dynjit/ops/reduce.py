"""Operators that make few numbers of many: sums, moments, extremes, norms, distances, normalisations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dynjit import errors
from dynjit.errors import ShapeError
from dynjit.jit import helper, kernel, scalar
from dynjit.op import Case, Range, define, native
from dynjit.scalars import HALF, INF, ONE, TWO, ZERO, exp, log, log_sum_exp, maximum
from dynjit.shape import Result, Shape

MAX_RUNS = 8  # seven axes and the mini-batch


def without(dims: tuple[int, ...], *axes: int) -> tuple[int, ...]:
    """The dims of a tensor that loses some of its axes."""
    return tuple(size for axis, size in enumerate(dims) if axis not in axes) or (1,)


# ---- sums of a function over axes ------------------------------------------------------------------------------------
# An operand is a sequence of blocks: its first axes, as far as they are all kept or all reduced.  The axes behind them
# (neighbours that are all kept or all reduced count as one) say to which place of the result a block adds.


def reduced(x: Shape, axes: Sequence[int], over_batch: bool, divisor: int = 0, order: int = 1) -> Result:
    """Shape rule: sum over axes, and over the mini-batch if asked for, divided by `divisor` (0: by how many there are).

    ints: whether the first block is reduced, its length, the divisor, the order of the moment, then per axis behind the
    block its size and its step in the result.
    """
    sizes = (*x.dims, x.batch) if over_batch else x.dims
    runs: list[list[int]] = []  # size, step in the result, whether it is reduced; without axes of size 1
    step = 1
    for axis, size in enumerate(sizes):
        is_reduced = axis in axes or axis == len(x.dims)
        if size == 1:
            continue
        if runs and runs[-1][2] == is_reduced:
            runs[-1][0] *= size
        else:
            runs.append([size, 0 if is_reduced else step, is_reduced])
        step *= 1 if is_reduced else size
    count = math.prod(size for size, _, is_reduced in runs if is_reduced)
    runs = runs or [[1, 0, True]]
    behind = [number for run in runs[1:] for number in run[:2]] + [1, 0] * (MAX_RUNS - len(runs))
    shape = Shape(without(x.dims, *axes), 1 if over_batch else x.batch)
    return Result(shape, ints=(int(runs[0][2]), runs[0][0], divisor or count, order, *behind))


@helper
def place(block, ints):  # type: ignore[no-untyped-def]
    """Where in the result block number `block` adds."""
    at, i = 0, 4
    while block > 0:
        at += block % ints[i] * ints[i + 1]
        block //= ints[i]
        i += 2
    return at


def reduction(name: str, function: Callable, slope: Callable) -> dict[str, Any]:
    """The kernels of y = sum of function(x, order) over axes / divisor; slope(x, order) is the derivative."""
    function, slope = scalar(function), scalar(slope)

    def forward(v, x0, y, n0, item, batch, ints):  # type: ignore[no-untyped-def]
        run, order, span = ints[1], ints[3], n0 // batch
        for b in range(batch):
            out = v[y + b * item : y + (b + 1) * item]
            for i in range(item):
                out[i] = ZERO
            for w in range(span // run):
                at, to = x0 + b * span + w * run, place(w, ints)
                x, part = v[at : at + run], out[to : to + run]
                if ints[0]:
                    total = ZERO
                    for i in range(run):
                        total += function(x[i], order)
                    part[0] += total
                else:
                    for i in range(run):
                        part[i] += function(x[i], order)
            if ints[2] != 1:
                divisor = type(out[0])(ints[2])
                for i in range(item):
                    out[i] /= divisor

    def d0(v, g, x0, y, n0, item, batch, ints):  # type: ignore[no-untyped-def]
        run, order, span = ints[1], ints[3], n0 // batch
        divisor = type(v[y])(ints[2])
        for b in range(batch):
            for w in range(span // run):
                at, to = x0 + b * span + w * run, y + b * item + place(w, ints)
                x, dx, dy = v[at : at + run], g[at : at + run], g[to : to + run]
                if ints[0]:
                    share = dy[0] / divisor
                    for i in range(run):
                        dx[i] += share * slope(x[i], order)
                else:
                    for i in range(run):
                        dx[i] += dy[i] / divisor * slope(x[i], order)

    def forward_cuda(v, x0, y, n0, item, batch, ints, thread, threads):  # type: ignore[no-untyped-def]
        run, order, span = ints[1], ints[3], n0 // batch
        for e in range(thread, item * batch, threads):
            total = ZERO
            for w in range(span // run):
                at, to = x0 + e // item * span + w * run, place(w, ints)
                if ints[0] and to == e % item:
                    for i in range(at, at + run):
                        total += function(v[i], order)
                elif not ints[0] and to <= e % item < to + run:
                    total += function(v[at + e % item - to], order)
            v[y + e] = total / type(total)(ints[2])

    def d0_cuda(v, g, x0, y, n0, item, batch, ints, thread, threads):  # type: ignore[no-untyped-def]
        run, order, span = ints[1], ints[3], n0 // batch
        for e in range(thread, n0, threads):
            to = y + e // span * item + place(e % span // run, ints) + (0 if ints[0] else e % run)
            g[x0 + e] += g[to] / type(g[to])(ints[2]) * slope(v[x0 + e], order)

    forward.__name__, d0.__name__ = f"{name}_forward", f"{name}_d0"
    return {"forward": forward, "backward": (d0,), "forward_cuda": forward_cuda, "backward_cuda": (d0_cuda,)}


@scalar
def to_the(x, order):  # type: ignore[no-untyped-def]
    power = x
    for _ in range(order - 1):
        power *= x
    return power


@scalar
def to_the_slope(x, order):  # type: ignore[no-untyped-def]
    slope = type(x)(order)
    for _ in range(order - 1):
        slope *= x
    return slope


SUM = reduction("sum", lambda x, order: x, lambda x, order: ONE)
SQUARE_SUM = reduction("square_sum", lambda x, order: x * x, lambda x, order: TWO * x)
MOMENT = reduction("moment", to_the, to_the_slope)

ELEMENTS = (Case(((5,),)), Case(((1,),)), Case((((3, 4), 2),)), Case(((2, 3, 4),)), Case(((40,),), -80, 80))
BATCHES = (Case((((1,), 2),)), Case((((3, 4), 5),)), Case((((2, 3, 4), 3),)))


def elements_shape(x: Shape) -> Result:
    return reduced(x, range(len(x.dims)), False, 1)


def elements_mean_shape(x: Shape) -> Result:
    return reduced(x, range(len(x.dims)), False)


def batches_shape(x: Shape) -> Result:
    return reduced(x, (), True, 1)


def batches_mean_shape(x: Shape) -> Result:
    return reduced(x, (), True)


SUM_ELEMS = define("sum_elems", shape=elements_shape, **SUM,
                   reference=np.sum, cases=ELEMENTS)  # fmt: skip
MEAN_ELEMS = define("mean_elems", shape=elements_mean_shape, **SUM,
                    reference=np.mean, cases=ELEMENTS)  # fmt: skip
SUM_BATCHES = define("sum_batches", shape=batches_shape, **SUM,
                     reference=lambda x: x.sum(-1), cases=BATCHES)  # fmt: skip
MEAN_BATCHES = define("mean_batches", shape=batches_mean_shape, **SUM,
                      reference=lambda x: x.mean(-1), cases=BATCHES)  # fmt: skip
SQUARED_NORM = define("squared_norm", shape=elements_shape, **SQUARE_SUM,
                      reference=lambda x: np.sum(x * x), cases=ELEMENTS)  # fmt: skip


@native(SUM_ELEMS)
def sum_elems(x: Any) -> Any:
    """Sum of all elements of each mini-batch item.

    x: any shape x batch; the result: (1,) x batch.
    """
    return SUM_ELEMS(x)


@native(MEAN_ELEMS)
def mean_elems(x: Any) -> Any:
    """Mean of all elements of each mini-batch item.

    x: any shape x batch; the result: (1,) x batch.
    """
    return MEAN_ELEMS(x)


@native(SUM_BATCHES)
def sum_batches(x: Any) -> Any:
    """Sum over the mini-batch, elementwise.

    x: any shape x batch; the result: the same dims, mini-batch 1.
    """
    return SUM_BATCHES(x)


@native(MEAN_BATCHES)
def mean_batches(x: Any) -> Any:
    """Mean over the mini-batch, elementwise.

    x: any shape x batch; the result: the same dims, mini-batch 1.
    """
    return MEAN_BATCHES(x)


@native(SQUARED_NORM)
def squared_norm(x: Any) -> Any:
    """Sum of the squares of all elements of each mini-batch item.

    x: any shape x batch; the result: (1,) x batch.
    """
    return SQUARED_NORM(x)


# ---- sums over two operands ------------------------------------------------------------------------------------------

PAIRS = (
    Case(((5,), (5,))), Case(((1,), (1,))), Case((((3, 4), 2), ((3, 4), 2))), Case((((3, 4), 2), (3, 4))),
    Case(((5,), ((5,), 3))), Case(((40,), (40,)), -80, 80),
)  # fmt: skip


def pair_sum(name: str, function: Callable, slope0: Callable, slope1: Callable, *, reference: Callable, doc: str,
             cases: tuple[Case, ...] = PAIRS) -> Callable[[Any, Any], Any]:  # fmt: skip
    """The public function z = sum over i of function(x_i, y_i), with the function's derivatives slope0 and slope1."""
    function, slope0, slope1 = scalar(function), scalar(slope0), scalar(slope1)

    def rule(x: Shape, y: Shape) -> Shape:
        return pair_shape(name, x, y)

    def forward(v, x0, x1, y, item0, batch, step0, step1):  # type: ignore[no-untyped-def]
        for b in range(batch):
            p, q = v[x0 + b * step0 : x0 + b * step0 + item0], v[x1 + b * step1 : x1 + b * step1 + item0]
            total = ZERO
            for i in range(item0):
                total += function(p[i], q[i])
            v[y + b] = total

    def gradient(slope, to0):  # type: ignore[no-untyped-def]
        def d(v, g, x0, x1, y, item0, batch, step0, step1):  # type: ignore[no-untyped-def]
            for b in range(batch):
                at0, at1, dz = x0 + b * step0, x1 + b * step1, g[y + b]
                p, q = v[at0 : at0 + item0], v[at1 : at1 + item0]
                to = g[at0 : at0 + item0] if to0 else g[at1 : at1 + item0]
                for i in range(item0):
                    to[i] += dz * slope(p[i], q[i])

        return d

    d0, d1 = gradient(slope0, True), gradient(slope1, False)
    forward.__name__, d0.__name__, d1.__name__ = f"{name}_forward", f"{name}_d0", f"{name}_d1"
    operator = define(name, shape=rule, params="xx", forward=forward, backward=(d0, d1), reference=reference,
                      cases=cases)  # fmt: skip

    def public(x, y):  # type: ignore[no-untyped-def]
        return operator(x, y)

    public.__name__ = public.__qualname__ = name
    public.__module__ = __name__
    public.__doc__ = f"""{doc}

    x, y: equal dims (axes of size 1 behind may be missing), mini-batches equal or 1; the result: (1,) x batch.
    Raises ShapeError for other shapes.
    """
    return native(operator)(public)


def trimmed(dims: tuple[int, ...]) -> tuple[int, ...]:
    """Dims without axes of size 1 at the end."""
    while len(dims) > 1 and dims[-1] == 1:
        dims = dims[:-1]
    return dims


def pair_shape(operator: str, x: Shape, y: Shape) -> Shape:
    if trimmed(x.dims) != trimmed(y.dims) or (x.batch != y.batch and 1 not in (x.batch, y.batch)):
        raise ShapeError(operator, "two expressions of equal dims, with mini-batches that are equal or 1", x, y)
    return Shape((1,), max(x.batch, y.batch))


@scalar
def sign(x):  # type: ignore[no-untyped-def]
    return ONE if x > ZERO else (-ONE if x < ZERO else ZERO)


dot_product = pair_sum("dot_product", lambda x, y: x * y, lambda x, y: y, lambda x, y: x,
    reference=lambda x, y: (x * y).sum(), doc="Sum over i of x_i * y_i.")  # fmt: skip
trace_of_product = pair_sum("trace_of_product", lambda x, y: x * y, lambda x, y: y, lambda x, y: x,
    reference=lambda x, y: (x * y).sum(),
    doc="Trace of x times the transposed y, which is the sum over i, j of x_ij * y_ij.")  # fmt: skip
squared_distance = pair_sum("squared_distance", lambda x, y: (x - y) * (x - y), lambda x, y: TWO * (x - y),
    lambda x, y: TWO * (y - x), reference=lambda x, y: ((x - y) ** 2).sum(),
    doc="Sum over i of (x_i - y_i)^2.")  # fmt: skip
l1_distance = pair_sum("l1_distance", lambda x, y: math.fabs(x - y), lambda x, y: sign(x - y), lambda x, y: sign(y - x),
    reference=lambda x, y: np.abs(x - y).sum(),
    doc="Sum over i of |x_i - y_i|; where they are equal the gradient is 0.")  # fmt: skip


# ---- huber_distance --------------------------------------------------------------------------------------------------


def huber_distance_shape(x: Shape, y: Shape) -> Shape:
    return pair_shape("huber_distance", x, y)


@kernel
def huber_distance_forward(v, x0, x1, y, item0, batch, step0, step1, f0):
    for b in range(batch):
        p, q = v[x0 + b * step0 : x0 + b * step0 + item0], v[x1 + b * step1 : x1 + b * step1 + item0]
        total = ZERO
        for i in range(item0):
            d = math.fabs(p[i] - q[i])
            total += HALF * d * d if d < f0 else f0 * (d - HALF * f0)
        v[y + b] = total


@kernel
def huber_distance_d0(v, g, x0, x1, y, item0, batch, step0, step1, f0):
    for b in range(batch):
        p, q = v[x0 + b * step0 : x0 + b * step0 + item0], v[x1 + b * step1 : x1 + b * step1 + item0]
        dp, dz = g[x0 + b * step0 : x0 + b * step0 + item0], g[y + b]
        for i in range(item0):
            dp[i] += dz * max(-f0, min(f0, p[i] - q[i]))


@kernel
def huber_distance_d1(v, g, x0, x1, y, item0, batch, step0, step1, f0):
    for b in range(batch):
        p, q = v[x0 + b * step0 : x0 + b * step0 + item0], v[x1 + b * step1 : x1 + b * step1 + item0]
        dq, dz = g[x1 + b * step1 : x1 + b * step1 + item0], g[y + b]
        for i in range(item0):
            dq[i] -= dz * max(-f0, min(f0, p[i] - q[i]))


def huber_distance_reference(x: np.ndarray, y: np.ndarray, c: float) -> float:
    d = np.abs(x - y)
    return float(np.where(d < c, d * d / 2, c * (d - c / 2)).sum())


HUBER_C = Range("c of 0 or more", 0.0, math.inf)
HUBER_DISTANCE = define("huber_distance", shape=huber_distance_shape, params="xxf", floats=(HUBER_C,),
    forward=huber_distance_forward,
    backward=(huber_distance_d0, huber_distance_d1), reference=huber_distance_reference,
    cases=tuple(replace(case, arguments=(c,)) for case, c in zip(PAIRS, (1.345, 0.1, 0.5, 0.5, 0.5, 1.0), strict=True)),
)  # fmt: skip


@native(HUBER_DISTANCE)
def huber_distance(x: Any, y: Any, c: float = 1.345) -> Any:
    """Sum over i of d^2 / 2 if d < c, else c * (d - c / 2), where d = |x_i - y_i|.

    x, y: equal dims, mini-batches equal or 1; the result: (1,) x batch;  c: 0 or more.
    Raises ShapeError for other shapes, ValueError for a negative c.
    Source: Huber (1964), Robust estimation of a location parameter.
    """
    return HUBER_DISTANCE(x, y, c)


# ---- l2_norm ---------------------------------------------------------------------------------------------------------


def l2_norm_shape(x: Shape) -> Shape:
    return Shape((1,), x.batch)


@kernel
def l2_norm_forward(v, x0, y, item0, batch):
    for b in range(batch):
        x = v[x0 + b * item0 : x0 + (b + 1) * item0]
        total = ZERO
        for i in range(item0):
            total += x[i] * x[i]
        v[y + b] = math.sqrt(total)


@kernel
def l2_norm_d0(v, g, x0, y, item0, batch):
    for b in range(batch):
        x, dx = v[x0 + b * item0 : x0 + (b + 1) * item0], g[x0 + b * item0 : x0 + (b + 1) * item0]
        if v[y + b] > ZERO:  # at the zero vector the gradient is 0
            share = g[y + b] / v[y + b]
            for i in range(item0):
                dx[i] += share * x[i]


L2_NORM = define("l2_norm", shape=l2_norm_shape, forward=l2_norm_forward, backward=(l2_norm_d0,),
                 reference=lambda x: np.sqrt(np.sum(x * x)), cases=ELEMENTS)  # fmt: skip


@native(L2_NORM)
def l2_norm(x: Any) -> Any:
    """Square root of the sum of the squares of all elements of each mini-batch item; the gradient of 0 is 0.

    x: any shape x batch; the result: (1,) x batch.
    """
    return L2_NORM(x)


# ---- sums, means and moments over chosen axes ------------------------------------------------------------------------


def axes_of(operator: str, x: Shape, axes: Sequence[int], over_batch: int) -> Sequence[int]:
    """The axes, checked: different ones of the operand, one or more unless the mini-batch is reduced."""
    if len(set(axes)) < len(axes) or not all(0 <= axis < len(x.dims) for axis in axes):
        raise ShapeError(operator, f"different axes from 0 to {len(x.dims) - 1}, not {list(axes)}", x)
    if not axes and not over_batch:
        raise ValueError(errors.located(f"{operator}: needs an axis, or b=True, got neither"))
    return axes


MOST_ORDER = 1000  # the kernel multiplies so often; a float32 is 0, 1 or infinite long before


def order_of(operator: str, order: int) -> int:
    """The order of a moment, checked."""
    if not 1 <= order <= MOST_ORDER:
        raise ValueError(errors.located(f"{operator}: needs r from 1 to {MOST_ORDER}, got {order}"))
    return order


def divisor_of(operator: str, divisor: int) -> int:
    """What a sum is divided by, checked; 0: the number of summands."""
    if divisor < 0:
        raise ValueError(errors.located(f"{operator}: needs n of 0 or more, got {divisor}"))
    return divisor


def sum_dim_shape(x: Shape, axes: tuple[int, ...], over_batch: int, _: int) -> Result:
    return reduced(x, axes_of("sum_dim", x, axes, over_batch), bool(over_batch), 1)


def mean_dim_shape(x: Shape, axes: tuple[int, ...], over_batch: int, divisor: int) -> Result:
    divisor = divisor_of("mean_dim", divisor)
    return reduced(x, axes_of("mean_dim", x, axes, over_batch), bool(over_batch), divisor)


def moment_dim_shape(x: Shape, axes: tuple[int, ...], order: int, over_batch: int, divisor: int) -> Result:
    divisor, order = divisor_of("moment_dim", divisor), order_of("moment_dim", order)
    return reduced(x, axes_of("moment_dim", x, axes, over_batch), bool(over_batch), divisor, order)


def moment_elems_shape(x: Shape, order: int) -> Result:
    return reduced(x, range(len(x.dims)), False, 0, order_of("moment_elems", order))


def moment_batches_shape(x: Shape, order: int) -> Result:
    return reduced(x, (), True, 0, order_of("moment_batches", order))


def numpy_axes(axes: Sequence[int], over_batch: int) -> tuple[int, ...]:
    return (*axes, -1) if over_batch else tuple(axes)


def moment_reference(x: np.ndarray, axes: Sequence[int], order: int, over_batch: int, divisor: int) -> np.ndarray:
    mean = (x**order).mean(numpy_axes(axes, over_batch))
    return mean * x.size / np.size(mean) / divisor if divisor else mean


# (operand, over the mini-batch, axes)
AXES: tuple[tuple[Any, int, tuple[int, ...]], ...] = (
    ((5,), 0, (0,)), ((1,), 0, (0,)), (((3, 4), 2), 0, (0,)), (((3, 4), 2), 0, (1,)), (((3, 4), 2), 1, ()),
    (((3, 4), 2), 1, (0,)), (((3, 4), 2), 1, (1,)), (((3, 4), 2), 1, (0, 1)), (((2, 3, 4), 2), 0, (2, 0)),
    (((2, 3, 4), 2), 1, (1,)), ((2, 1, 3, 2, 2, 1, 3), 0, (0, 3, 6)), (((2, 3, 2, 1, 2, 3, 2), 2), 1, (1, 4)),
)  # fmt: skip

SUM_DIM = define("sum_dim", shape=sum_dim_shape, params="xIii", **SUM,
    reference=lambda x, axes, b, n: x.sum(numpy_axes(axes, b)),
    cases=tuple(Case((x,), arguments=(axes, b, 0)) for x, b, axes in AXES))  # fmt: skip
MEAN_DIM = define("mean_dim", shape=mean_dim_shape, params="xIii", **SUM,
    reference=lambda x, axes, b, n: moment_reference(x, axes, 1, b, n),
    cases=tuple(Case((x,), arguments=(axes, b, n)) for n, (x, b, axes) in zip((0, 0, 0, 7) * 3, AXES)))  # fmt: skip
MOMENT_DIM = define("moment_dim", shape=moment_dim_shape, params="xIiii", **MOMENT,
    reference=moment_reference,
    cases=tuple(Case((x,), arguments=(axes, 1 + i % 4, b, i % 3)) for i, (x, b, axes) in enumerate(AXES)))  # fmt: skip
MOMENT_ELEMS = define("moment_elems", shape=moment_elems_shape, params="xi", **MOMENT,
    reference=lambda x, order: (x**order).mean(),
    cases=tuple(Case((x,), arguments=(r,)) for r, x in enumerate(((5,), (1,), ((3, 4), 2), (2, 3, 4)), 1)))  # fmt: skip
MOMENT_BATCHES = define("moment_batches", shape=moment_batches_shape, params="xi", **MOMENT,
    reference=lambda x, order: (x**order).mean(-1),
    cases=tuple(Case((x,), arguments=(r,)) for r, x in enumerate((((1,), 2), ((3, 4), 5)), 2)))  # fmt: skip


@native(SUM_DIM)
def sum_dim(x: Any, d: Sequence[int], b: bool = False, n: int = 0) -> Any:
    """Sum over the axes `d`, and over the mini-batch if `b`; these axes are removed.

    x: any shape x batch;  n: has no effect.
    Raises ShapeError for a missing or repeated axis, ValueError if there is nothing to sum over.
    """
    return SUM_DIM(x, d, b, n)


@native(MEAN_DIM)
def mean_dim(x: Any, d: Sequence[int], b: bool, n: int = 0) -> Any:
    """Mean over the axes `d`, and over the mini-batch if `b`; these axes are removed.

    x: any shape x batch;  n: if not 0, the sum is divided by n.
    Raises ShapeError for a missing or repeated axis, ValueError for n < 0, and if there is nothing to average over.
    """
    return MEAN_DIM(x, d, b, n)


@native(MOMENT_DIM)
def moment_dim(x: Any, d: Sequence[int], r: int, b: bool, n: int = 0) -> Any:
    """Mean of x^r over the axes `d`, and over the mini-batch if `b`; these axes are removed.

    x: any shape x batch;  r: 1 to 1000;  n: if not 0, the sum is divided by n.
    Raises ShapeError for a missing or repeated axis, ValueError for other r or n, or nothing to average over.
    """
    return MOMENT_DIM(x, d, r, b, n)


@native(MOMENT_ELEMS)
def moment_elems(x: Any, r: int) -> Any:
    """Mean of x^r over all elements of each mini-batch item.

    x: any shape x batch;  r: 1 to 1000; the result: (1,) x batch.  Raises ValueError for other r.
    """
    return MOMENT_ELEMS(x, r)


@native(MOMENT_BATCHES)
def moment_batches(x: Any, r: int) -> Any:
    """Mean of x^r over the mini-batch, elementwise.

    x: any shape x batch;  r: 1 to 1000; the result: the same dims, mini-batch 1.  Raises ValueError for other r.
    """
    return MOMENT_BATCHES(x, r)


# ---- standard deviations ---------------------------------------------------------------------------------------------


def deviated(result: Result) -> Result:
    return result._replace(scratch=result.shape.item)  # the means


@kernel
def std_forward(v, x0, y, s, n0, item, batch, ints):
    run, span, divisor = ints[1], n0 // batch, type(v[y])(ints[2])
    for b in range(batch):
        out, mean = v[y + b * item : y + (b + 1) * item], v[s + b * item : s + (b + 1) * item]
        for i in range(item):
            mean[i] = ZERO
            out[i] = ZERO
        for w in range(span // run):
            at, to = x0 + b * span + w * run, place(w, ints)
            x, part, total = v[at : at + run], mean[to : to + run], ZERO
            if ints[0]:
                for i in range(run):
                    total += x[i]
                part[0] += total
            else:
                for i in range(run):
                    part[i] += x[i]
        for i in range(item):
            mean[i] /= divisor
        for w in range(span // run):
            at, to = x0 + b * span + w * run, place(w, ints)
            x, center, part, total = v[at : at + run], mean[to : to + run], out[to : to + run], ZERO
            if ints[0]:
                m = center[0]
                for i in range(run):
                    total += (x[i] - m) * (x[i] - m)
                part[0] += total
            else:
                for i in range(run):
                    part[i] += (x[i] - center[i]) * (x[i] - center[i])
        for i in range(item):
            out[i] = math.sqrt(out[i] / divisor)


@kernel
def std_d0(v, g, x0, y, s, n0, item, batch, ints):
    run, span, divisor = ints[1], n0 // batch, type(v[y])(ints[2])
    for b in range(batch):
        for w in range(span // run):
            at, to = x0 + b * span + w * run, b * item + place(w, ints)
            x, dx, out = v[at : at + run], g[at : at + run], v[y + to : y + to + run]
            mean, dy = v[s + to : s + to + run], g[y + to : y + to + run]
            if ints[0]:
                m, share = mean[0], dy[0] / (out[0] * divisor) if out[0] > ZERO else ZERO  # of equal elements 0
                for i in range(run):
                    dx[i] += share * (x[i] - m)
            else:
                for i in range(run):
                    dx[i] += dy[i] / (out[i] * divisor) * (x[i] - mean[i]) if out[i] > ZERO else ZERO


def std_elems_shape(x: Shape) -> Result:
    return deviated(reduced(x, range(len(x.dims)), False))


def std_batches_shape(x: Shape) -> Result:
    return deviated(reduced(x, (), True))


def std_dim_shape(x: Shape, axes: tuple[int, ...], over_batch: int, _: int) -> Result:
    return deviated(reduced(x, axes_of("std_dim", x, axes, over_batch), bool(over_batch)))


STD_ELEMS = define("std_elems", shape=std_elems_shape, forward=std_forward, backward=(std_d0,), reference=np.std,
                   cases=tuple(replace(case, low=-80, high=80) for case in ELEMENTS))  # fmt: skip
STD_BATCHES = define("std_batches", shape=std_batches_shape, forward=std_forward, backward=(std_d0,),
                     reference=lambda x: x.std(-1), cases=BATCHES)  # fmt: skip
STD_DIM = define("std_dim", shape=std_dim_shape, params="xIii", forward=std_forward, backward=(std_d0,),
                 reference=lambda x, axes, b, n: x.std(numpy_axes(axes, b)), cases=SUM_DIM.cases)  # fmt: skip


@native(STD_ELEMS)
def std_elems(x: Any) -> Any:
    """Standard deviation (of a population) of all elements of each mini-batch item; the gradient of 0 is 0.

    x: any shape x batch; the result: (1,) x batch.
    """
    return STD_ELEMS(x)


@native(STD_BATCHES)
def std_batches(x: Any) -> Any:
    """Standard deviation (of a population) over the mini-batch, elementwise; the gradient of 0 is 0.

    x: any shape x batch; the result: the same dims, mini-batch 1.
    """
    return STD_BATCHES(x)


@native(STD_DIM)
def std_dim(x: Any, d: Sequence[int], b: bool, n: int = 0) -> Any:
    """Standard deviation (of a population) over the axes `d`, and over the mini-batch if `b`; these axes are removed.

    x: any shape x batch;  n: has no effect; the gradient of 0 is 0.
    Raises ShapeError for a missing or repeated axis, ValueError if there is nothing to reduce.
    """
    return STD_DIM(x, d, b, n)


# ---- along one axis --------------------------------------------------------------------------------------------------


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


LOGSUMEXP_DIM = define("logsumexp_dim", shape=logsumexp_dim_shape, params="xi", forward=logsumexp_dim_forward,
    backward=(logsumexp_dim_d0,), reference=lambda x, axis: np.logaddexp.reduce(x, axis=axis), cases=AXIS)  # fmt: skip


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


def argmax(x: Any, gradient_mode: str) -> Any:
    """1 at the maximum (the first of equals), 0 elsewhere.

    x: (k,) x batch; the result has the same shape.
    gradient_mode: "zero_gradient", or "straight_through_gradient" for dy/dx = 1.
    Raises ShapeError unless x is a vector, ValueError for other modes.
    """
    operator = ARGMAX.get(gradient_mode) if type(gradient_mode) is str else None
    if operator is None:
        needs = " or ".join(ARGMAX)
        raise ValueError(errors.located(f"argmax: Unknown gradient mode: needs {needs}, got {gradient_mode!r}"))
    return operator.call(x)


# ---- layer_norm ------------------------------------------------------------------------------------------------------

EPSILON = np.float32(1e-8)  # added to the standard deviation, as in DyNet


def layer_norm_shape(x: Shape, gain: Shape, bias: Shape) -> Result:
    fits = all(trimmed(p.dims) in (x.dims[: len(trimmed(p.dims))], (1,)) for p in (gain, bias))
    batches = {x.batch, gain.batch, bias.batch} - {1}
    if not fits or len(batches) > 1:
        needs = "g and b of the dims of x, of its first ones, or (1,), and mini-batches that are equal or 1"
        raise ShapeError("layer_norm", needs, x, gain, bias)
    return Result(Shape(x.dims, max(batches, default=1)), scratch=2)


@kernel
def layer_norm_forward(v, x0, x1, x2, y, s, item, item1, item2, batch, step0, step1, step2):
    # the scratch holds mean and standard deviation
    count = type(v[y])(item)
    for b in range(batch):
        x, out = v[x0 + b * step0 : x0 + b * step0 + item], v[y + b * item : y + (b + 1) * item]
        gain, bias = v[x1 + b * step1 : x1 + b * step1 + item1], v[x2 + b * step2 : x2 + b * step2 + item2]
        mean, deviation, first = ZERO, ZERO, x[0]
        for i in range(item):
            mean += x[i] - first  # exact for equal elements, whose deviation is 0 then
        mean = first + mean / count
        for i in range(item):
            deviation += (x[i] - mean) * (x[i] - mean)
        deviation = math.sqrt(deviation / count)
        v[s + 2 * b], v[s + 2 * b + 1] = mean, deviation
        scale = ONE / (deviation + EPSILON)
        for c in range(0, item, item1):
            part, to = x[c : c + item1], out[c : c + item1]
            for i in range(item1):
                to[i] = (part[i] - mean) * scale * gain[i]
        for c in range(0, item, item2):
            to = out[c : c + item2]
            for i in range(item2):
                to[i] += bias[i]


@kernel
def layer_norm_d0(v, g, x0, x1, y, s, item, item1, batch, step0, step1):
    count = type(v[y])(item)
    for b in range(batch):
        x, dx = v[x0 + b * step0 : x0 + b * step0 + item], g[x0 + b * step0 : x0 + b * step0 + item]
        gain, dy = v[x1 + b * step1 : x1 + b * step1 + item1], g[y + b * item : y + (b + 1) * item]
        mean, deviation, total, product = v[s + 2 * b], v[s + 2 * b + 1], ZERO, ZERO
        for c in range(0, item, item1):
            part, share = x[c : c + item1], dy[c : c + item1]
            for i in range(item1):
                total += share[i] * gain[i]
                product += share[i] * gain[i] * (part[i] - mean)
        if deviation > ZERO:
            scale = ONE / (deviation + EPSILON)
            total /= count
            product *= scale / (deviation * count)
            for c in range(0, item, item1):
                part, share, to = x[c : c + item1], dy[c : c + item1], dx[c : c + item1]
                for i in range(item1):
                    to[i] += scale * (share[i] * gain[i] - total - (part[i] - mean) * product)


@kernel
def layer_norm_d1(v, g, x0, x1, y, s, item, item1, batch, step0, step1):
    for b in range(batch):
        mean, scale = v[s + 2 * b], ONE / (v[s + 2 * b + 1] + EPSILON)
        dgain = g[x1 + b * step1 : x1 + b * step1 + item1]
        for c in range(0, item, item1):
            x, dy = v[x0 + b * step0 + c : x0 + b * step0 + c + item1], g[y + b * item + c : y + b * item + c + item1]
            for i in range(item1):
                dgain[i] += dy[i] * (x[i] - mean) * scale


@kernel
def layer_norm_d2(g, x2, y, item, item2, batch, step2):
    for b in range(batch):
        dbias = g[x2 + b * step2 : x2 + b * step2 + item2]
        for c in range(y + b * item, y + (b + 1) * item, item2):
            dy = g[c : c + item2]
            for i in range(item2):
                dbias[i] += dy[i]


def layer_norm_reference(x: np.ndarray, gain: np.ndarray, bias: np.ndarray) -> np.ndarray:
    gain, bias = (p.reshape(p.shape + (1,) * (x.ndim - p.ndim)) for p in (gain, bias))
    return gain * (x - x.mean()) / (x.std() + float(EPSILON)) + bias  # type: ignore[no-any-return]


LAYER_NORM = define("layer_norm", shape=layer_norm_shape, params="xxx", forward=layer_norm_forward,
    backward=(layer_norm_d0, layer_norm_d1, layer_norm_d2), reference=layer_norm_reference,
    cases=(Case(((5,), (5,), (5,))), Case((((5,), 2), (5,), (5,))), Case(((5,), (5,), ((5,), 2))),
           Case((((3, 4), 2), (3,), (3, 1))), Case(((3, 4), (3, 4), (1,))), Case(((3, 4), (3, 4), ((3, 4), 2))),
           Case(((2, 3, 4), (2, 3, 4), (2,))), Case(((40,), (40,), (40,)), -80, 80),
           Case(((1,), (1,), (1,)))))  # fmt: skip


@native(LAYER_NORM)
def layer_norm(x: Any, g: Any, b: Any) -> Any:
    """g * (x - mean(x)) / (std(x) + 1e-8) + b, with mean and standard deviation over all elements of a mini-batch item.

    x: any shape x batch;  g, b: the dims of x, its first ones, or (1,); mini-batches equal or 1.
    Raises ShapeError for other shapes.  Where all elements of x are equal, its gradient is 0.
    Source: Ba et al. (2016), Layer normalization, section 3.
    """
    return LAYER_NORM(x, g, b)


# ---- weight_norm -----------------------------------------------------------------------------------------------------


def weight_norm_shape(w: Shape, gain: Shape) -> Result:
    if gain.item != 1 or (w.batch != gain.batch and 1 not in (w.batch, gain.batch)):
        raise ShapeError("weight_norm", "w and g of one element, with mini-batches that are equal or 1", w, gain)
    return Result(Shape(w.dims, max(w.batch, gain.batch)), scratch=1)


@kernel
def weight_norm_forward(v, x0, x1, y, s, item, batch, step0, step1):
    # the scratch holds 1 / |w|, and 0 for the zero vector
    for b in range(batch):
        w, out = v[x0 + b * step0 : x0 + b * step0 + item], v[y + b * item : y + (b + 1) * item]
        total = ZERO
        for i in range(item):
            total += w[i] * w[i]
        v[s + b] = ONE / math.sqrt(total) if total > ZERO else ZERO
        scale = v[x1 + b * step1] * v[s + b]
        for i in range(item):
            out[i] = w[i] * scale


@kernel
def weight_norm_d0(v, g, x0, x1, y, s, item, batch, step0, step1):
    for b in range(batch):
        w, dw = v[x0 + b * step0 : x0 + b * step0 + item], g[x0 + b * step0 : x0 + b * step0 + item]
        dy, inverse = g[y + b * item : y + (b + 1) * item], v[s + b]
        product = ZERO
        for i in range(item):
            product += w[i] * dy[i]
        scale, product = v[x1 + b * step1] * inverse, product * inverse * inverse
        for i in range(item):
            dw[i] += scale * (dy[i] - product * w[i])


@kernel
def weight_norm_d1(v, g, x0, x1, y, s, item, batch, step0, step1):
    for b in range(batch):
        w, dy = v[x0 + b * step0 : x0 + b * step0 + item], g[y + b * item : y + (b + 1) * item]
        product = ZERO
        for i in range(item):
            product += w[i] * dy[i]
        g[x1 + b * step1] += product * v[s + b]


WEIGHT_NORM = define("weight_norm", shape=weight_norm_shape, params="xx", forward=weight_norm_forward,
    backward=(weight_norm_d0, weight_norm_d1), reference=lambda w, gain: gain.item() * w / np.sqrt(np.sum(w * w)),
    cases=(Case(((5,), (1,))), Case(((1,), (1,)), 0.5, 2), Case((((3, 4), 2), (1,))), Case(((3, 4), ((1,), 2))),
           Case((((3, 4), 2), ((1, 1), 2)), -80, 80)))  # fmt: skip


@native(WEIGHT_NORM)
def weight_norm(w: Any, g: Any) -> Any:
    """g * w / |w|, with the square root of the sum of squares |w| of a mini-batch item; 0 for the zero vector.

    w: any shape x batch;  g: one element x batch; mini-batches equal or 1.  Raises ShapeError for other shapes.
    Source: Salimans and Kingma (2016), Weight normalization, equation 2.
    """
    return WEIGHT_NORM(w, g)
