"""Operators that make few numbers of many: sums, moments, extremes, norms, distances, normalisations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dynjit import errors
from dynjit.errors import ShapeError
from dynjit.jit import helper, kernel, scalar
from dynjit.op import Case, Operator, define, native
from dynjit.scalars import HALF, ONE, TWO, ZERO, exp, log, log_sum_exp, maximum
from dynjit.shape import Result, Shape

MAX_RUNS = 8  # seven axes and the mini-batch


def without(dims: tuple[int, ...], *axes: int) -> tuple[int, ...]:
    """The dims of a tensor that loses some of its axes."""
    return tuple(size for axis, size in enumerate(dims) if axis not in axes) or (1,)


# ---- sums of a function over axes ------------------------------------------------------------------------------------
# An operand is a sequence of blocks: its first axes, as far as all of them are kept or all are reduced.  The axes behind,
# of which those that are all kept or all reduced again count as one, say to which place of the result a block adds.


def reduced(x: Shape, axes: Sequence[int], over_batch: bool, divisor: int = 0, order: int = 1) -> Result:
    """Shape rule: sum over axes, and over the mini-batch if asked for, divided by `divisor` (0: by how many there are).

    ints: whether the first block is reduced, its length, the divisor, the order of the moment, then per axis behind the
    block its size and its step in the result.
    """
    sizes = (*x.dims, x.batch) if over_batch else x.dims
    runs: list[list[int]] = []  # size, step in the result, whether it is reduced
    step = 1
    for axis, size in enumerate(sizes):
        is_reduced = axis in axes or axis == len(x.dims)
        if runs and runs[-1][2] == is_reduced:
            runs[-1][0] *= size
        else:
            runs.append([size, 0 if is_reduced else step, is_reduced])
        step *= 1 if is_reduced else size
    count = math.prod(size for size, _, is_reduced in runs if is_reduced)
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


def reduction(name: str, function: Callable, slope: Callable) -> tuple[Callable, Callable]:
    """The kernels of y = sum of function(x, order) / divisor over axes; slope(x, order) is the function's derivative."""
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

    forward.__name__, d0.__name__ = f"{name}_forward", f"{name}_d0"
    return forward, d0


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


sum_forward, sum_d0 = reduction("sum", lambda x, order: x, lambda x, order: ONE)
square_sum_forward, square_sum_d0 = reduction("square_sum", lambda x, order: x * x, lambda x, order: TWO * x)
moment_forward, moment_d0 = reduction("moment", to_the, to_the_slope)

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


SUM_ELEMS = define("sum_elems", shape=elements_shape, forward=sum_forward, backward=(sum_d0,),
                   reference=np.sum, cases=ELEMENTS)  # fmt: skip
MEAN_ELEMS = define("mean_elems", shape=elements_mean_shape, forward=sum_forward, backward=(sum_d0,),
                    reference=np.mean, cases=ELEMENTS)  # fmt: skip
SUM_BATCHES = define("sum_batches", shape=batches_shape, forward=sum_forward, backward=(sum_d0,),
                     reference=lambda x: x.sum(-1), cases=BATCHES)  # fmt: skip
MEAN_BATCHES = define("mean_batches", shape=batches_mean_shape, forward=sum_forward, backward=(sum_d0,),
                      reference=lambda x: x.mean(-1), cases=BATCHES)  # fmt: skip
SQUARED_NORM = define("squared_norm", shape=elements_shape, forward=square_sum_forward, backward=(square_sum_d0,),
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
    lambda x, y: TWO * (y - x), reference=lambda x, y: ((x - y) ** 2).sum(), doc="Sum over i of (x_i - y_i)^2.")  # fmt: skip
l1_distance = pair_sum("l1_distance", lambda x, y: math.fabs(x - y), lambda x, y: sign(x - y), lambda x, y: sign(y - x),
    reference=lambda x, y: np.abs(x - y).sum(), doc="Sum over i of |x_i - y_i|; where they are equal the gradient is 0.")  # fmt: skip
