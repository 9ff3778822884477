"""Elementwise functions of one operand: two scalar functions and a line each."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from dynjit import scalars
from dynjit.jit import scalar
from dynjit.op import Case, define, native
from dynjit.scalars import HALF, ONE, TWO, ZERO
from dynjit.shape import Shape

GENERAL = (Case(((5,),)), Case(((1,),)), Case((((3, 4), 2),)))


def same_shape(x: Shape) -> Shape:
    return x


def unary(
    name: str,
    function: Callable,
    slope: Callable,
    *,
    reference: Callable,
    doc: str,
    cases: tuple[Case, ...] = GENERAL,
) -> Callable[[Any], Any]:
    """The public function y = function(x), elementwise, with dy/dx = slope(x, y)."""
    slope = scalar(slope)

    def forward(v, x0, y, n):  # type: ignore[no-untyped-def]
        x, out = v[x0 : x0 + n], v[y : y + n]
        for i in range(n):
            out[i] = function(x[i])

    def d0(v, g, x0, y, n):  # type: ignore[no-untyped-def]
        x, out, dy, dx = v[x0 : x0 + n], v[y : y + n], g[y : y + n], g[x0 : x0 + n]
        for i in range(n):
            dx[i] += dy[i] * slope(x[i], out[i])

    forward.__name__, d0.__name__ = f"{name}_forward", f"{name}_d0"
    operator = define(name, shape=same_shape, forward=forward, backward=(d0,), reference=reference, cases=cases)

    def public(x):  # type: ignore[no-untyped-def]
        return operator(x)

    public.__name__ = public.__qualname__ = name
    public.__module__ = __name__
    public.__doc__ = f"{doc}\n\n    x: any shape, any mini-batch; the result has the same.\n    "
    return native(operator)(public)


# ---- with a number ---------------------------------------------------------------------------------------------------


def with_number(name: str, function: Callable, slope: Callable, *, reference: Callable, doc: str,
                cases: tuple[Case, ...]) -> Callable[[Any, float], Any]:  # fmt: skip
    """The function y = function(x, number), elementwise, with dy/dx = slope(x, y, number)."""
    function, slope = scalar(function), scalar(slope)

    def forward(v, x0, y, n, f0):  # type: ignore[no-untyped-def]
        x, out = v[x0 : x0 + n], v[y : y + n]
        for i in range(n):
            out[i] = function(x[i], f0)

    def d0(v, g, x0, y, n, f0):  # type: ignore[no-untyped-def]
        x, out, dy, dx = v[x0 : x0 + n], v[y : y + n], g[y : y + n], g[x0 : x0 + n]
        for i in range(n):
            dx[i] += dy[i] * slope(x[i], out[i], f0)

    forward.__name__, d0.__name__ = f"{name}_forward", f"{name}_d0"
    operator = define(name, shape=same_shape, params="xf", forward=forward, backward=(d0,), reference=reference,
                      cases=cases)  # fmt: skip

    def public(x, number):  # type: ignore[no-untyped-def]
        return operator(x, float(number))

    public.__name__ = public.__qualname__ = name
    public.__module__ = __name__
    public.__doc__ = f"{doc}\n\n    x: any shape, any mini-batch; the result has the same.\n    "
    return native(operator)(public)


NUMBER = (Case(((5,),), arguments=(1.5,)), Case(((1,),), arguments=(-2.0,)), Case((((3, 4), 2),), arguments=(0.3,)))

add_number = with_number("add_number", lambda x, c: x + c, lambda x, y, c: ONE,
    reference=lambda x, c: x + c, cases=NUMBER, doc="x + number.")  # fmt: skip
number_minus = with_number("number_minus", lambda x, c: c - x, lambda x, y, c: -ONE,
    reference=lambda x, c: c - x, cases=NUMBER, doc="number - x.")  # fmt: skip
scale = with_number("scale", lambda x, c: x * c, lambda x, y, c: c,
    reference=lambda x, c: x * c, cases=NUMBER, doc="x * number.")  # fmt: skip
number_over = with_number("number_over", lambda x, c: c / x, lambda x, y, c: -y / x,
    reference=lambda x, c: c / x, doc="number / x.",
    cases=tuple(Case(case.shapes, 0.5, 2, case.arguments) for case in NUMBER))  # fmt: skip

# ---- functions of x --------------------------------------------------------------------------------------------------


@scalar
def negated(x):  # type: ignore[no-untyped-def]
    return -x


@scalar
def squared(x):  # type: ignore[no-untyped-def]
    return x * x


@scalar
def rectified(x):  # type: ignore[no-untyped-def]
    return max(x, x * ZERO)  # ZERO of the type of x; NaN stays


@scalar
def root(x):  # type: ignore[no-untyped-def]
    return math.sqrt(x)


EXTREME = (*GENERAL, Case(((6,),), -80, 80))
POSITIVE = tuple(Case(case.shapes, 0.1, 3) for case in GENERAL)

negate = unary("negate", negated, lambda x, y: -ONE, reference=lambda x: -x, doc="-x.")
tanh = unary("tanh", scalars.tanh, lambda x, y: ONE - y * y, reference=np.tanh, cases=EXTREME,
    doc="Hyperbolic tangent, elementwise.")  # fmt: skip
logistic = unary("logistic", scalars.logistic, lambda x, y: y * (ONE - y), cases=EXTREME,
    reference=lambda x: 1 / (1 + np.exp(-x)), doc="Logistic function, elementwise: y = 1 / (1 + exp(-x)).")  # fmt: skip
rectify = unary("rectify", rectified, lambda x, y: ONE if x > ZERO else ZERO, reference=lambda x: np.maximum(x, 0),
    doc="y = max(x, 0), elementwise; the gradient at 0 is 0.")  # fmt: skip
exp = unary("exp", scalars.exp, lambda x, y: y, reference=np.exp,
    doc="y = e^x, elementwise; inf where it exceeds float32's range.")  # fmt: skip
log = unary("log", scalars.log, lambda x, y: ONE / x, reference=np.log, cases=POSITIVE,
    doc="Natural logarithm, elementwise; -inf at 0, NaN below.")  # fmt: skip
sqrt = unary("sqrt", root, lambda x, y: HALF / y, reference=np.sqrt, cases=POSITIVE,
    doc="Square root, elementwise; NaN below 0; the gradient at 0 is infinite.")  # fmt: skip
square = unary("square", squared, lambda x, y: TWO * x, reference=np.square, doc="y = x * x, elementwise.")
