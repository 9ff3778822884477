"""Sums over the elements of two operands: dot products and distances."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from dynjit.errors import ShapeError
from dynjit.jit import kernel, scalar
from dynjit.lines import joined, lines_of, own_line, turn_in, width_of
from dynjit.op import Case, Range, define, native
from dynjit.scalars import HALF, ONE, TWO, ZERO
from dynjit.shape import Shape

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

    def forward_cuda(v, x0, x1, y, item0, batch, step0, step1, strip, part, parts):  # type: ignore[no-untyped-def]
        width = width_of(item0)
        for first in lines_of(width, part, batch, parts):
            b, total = own_line(first, width), ZERO
            for i in range(turn_in(width), item0 if b < batch else 0, width):
                total += function(v[x0 + b * step0 + i], v[x1 + b * step1 + i])
            total = joined(total, True, width, strip)
            if b < batch and turn_in(width) == 0:
                v[y + b] = total

    @scalar
    def share(slope, v, g, x0, x1, y, e, item0, batch, n, step0, step1):  # type: ignore[no-untyped-def]
        total = ZERO
        for b in range(e // item0, batch, n // item0):  # all items of an operand that they share
            total += g[y + b] * slope(v[x0 + b * step0 + e % item0], v[x1 + b * step1 + e % item0])
        return total

    def d0_cuda(v, g, x0, x1, y, item0, batch, n0, step0, step1, thread, threads):  # type: ignore[no-untyped-def]
        for e in range(thread, n0, threads):
            g[x0 + e] += share(slope0, v, g, x0, x1, y, e, item0, batch, n0, step0, step1)

    def d1_cuda(v, g, x0, x1, y, item0, batch, n1, step0, step1, thread, threads):  # type: ignore[no-untyped-def]
        for e in range(thread, n1, threads):
            g[x1 + e] += share(slope1, v, g, x0, x1, y, e, item0, batch, n1, step0, step1)

    d0, d1 = gradient(slope0, True), gradient(slope1, False)
    forward.__name__, d0.__name__, d1.__name__ = f"{name}_forward", f"{name}_d0", f"{name}_d1"
    operator = define(name, shape=rule, params="xx", forward=forward, backward=(d0, d1), forward_cuda=forward_cuda,
                      backward_cuda=(d0_cuda, d1_cuda), reference=reference,
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


def pair_shape(operator: str, x: Shape, y: Shape) -> Shape:
    if x.truncated().dims != y.truncated().dims or (x.batch != y.batch and 1 not in (x.batch, y.batch)):
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
