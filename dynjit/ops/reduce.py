"""Sums of a function over all elements, some axes or the mini-batch: sums, means, moments, standard deviations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dynjit import errors
from dynjit.errors import ShapeError
from dynjit.jit import helper, kernel, scalar
from dynjit.lines import joined, lines_of, own_line, turn_in, width_of
from dynjit.op import Case, define, native
from dynjit.scalars import ONE, TWO, ZERO
from dynjit.shape import Result, Shape, without

MAX_RUNS = 8  # seven axes and the mini-batch

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


@scalar
def summand(e, t, span, ints):  # type: ignore[no-untyped-def]
    """Where in an item of `span` elements the t-th one stands of those that add to element e of the result."""
    stride, i = ints[1] + 0, 4
    if ints[0] and stride == span:  # all of the item
        return t
    at = e % stride
    if ints[0]:
        at, t = t % stride, t // stride
    while stride < span:
        if ints[i + 1]:
            at += e // ints[i + 1] % ints[i] * stride
        else:
            at += t % ints[i] * stride
            t //= ints[i]
        stride *= ints[i]
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

    def forward_cuda(v, x0, y, n0, item, batch, ints, strip, part, parts):  # type: ignore[no-untyped-def]
        order, span, lines = ints[3], n0 // batch, item * batch
        count = span // item
        width = width_of(count)
        for first in lines_of(width, part, lines, parts):
            e, total = own_line(first, width), ZERO
            for t in range(turn_in(width), count if e < lines else 0, width):
                total += function(v[x0 + e // item * span + summand(e % item, t, span, ints)], order)
            total = joined(total, True, width, strip)
            if e < lines and turn_in(width) == 0:
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


@kernel
def std_forward_cuda(v, x0, y, s, n0, item, batch, ints, strip, part, parts):
    span, lines, divisor = n0 // batch, item * batch, type(v[y])(ints[2])
    width = width_of(span // item)
    for first in lines_of(width, part, lines, parts):
        e, mean, total = own_line(first, width), ZERO, ZERO
        x, count = x0 + e // item * span, span // item if e < lines else 0
        for t in range(turn_in(width), count, width):
            mean += v[x + summand(e % item, t, span, ints)]
        mean = joined(mean, True, width, strip) / divisor
        for t in range(turn_in(width), count, width):
            d = v[x + summand(e % item, t, span, ints)] - mean
            total += d * d
        total = joined(total, True, width, strip)
        if e < lines and turn_in(width) == 0:
            v[s + e] = mean
            v[y + e] = math.sqrt(total / divisor)


@kernel
def std_d0_cuda(v, g, x0, y, s, n0, item, batch, ints, thread, threads):
    run, span = ints[1], n0 // batch
    for e in range(thread, n0, threads):
        to = e // span * item + place(e % span // run, ints) + (0 if ints[0] else e % run)
        out = v[y + to]
        if out > ZERO:  # of equal elements 0
            g[x0 + e] += g[y + to] / (out * type(out)(ints[2])) * (v[x0 + e] - v[s + to])


STD: dict[str, Any] = {"forward": std_forward, "backward": (std_d0,),
                       "forward_cuda": std_forward_cuda, "backward_cuda": (std_d0_cuda,)}  # fmt: skip


def std_elems_shape(x: Shape) -> Result:
    return deviated(reduced(x, range(len(x.dims)), False))


def std_batches_shape(x: Shape) -> Result:
    return deviated(reduced(x, (), True))


def std_dim_shape(x: Shape, axes: tuple[int, ...], over_batch: int, _: int) -> Result:
    return deviated(reduced(x, axes_of("std_dim", x, axes, over_batch), bool(over_batch)))


STD_ELEMS = define("std_elems", shape=std_elems_shape, **STD, reference=np.std,
                   cases=tuple(replace(case, low=-80, high=80) for case in ELEMENTS))  # fmt: skip
STD_BATCHES = define("std_batches", shape=std_batches_shape, **STD,
                     reference=lambda x: x.std(-1), cases=BATCHES)  # fmt: skip
STD_DIM = define("std_dim", shape=std_dim_shape, params="xIii", **STD,
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
