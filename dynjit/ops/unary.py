"""Elementwise functions of one operand: two scalar functions and a line each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from dynjit import scalars
from dynjit.jit import kernel, scalar, scalar_of_all
from dynjit.legacy import check_device
from dynjit.op import Case, Operator, define, mode_of, names_of, native, native_modes
from dynjit.scalars import HALF, ONE, TWO, ZERO
from dynjit.shape import Shape, dim_of

THREE, TWO_OVER_ROOT_PI = np.float32(3), np.float32(2 / math.sqrt(math.pi))
GENERAL = (Case(((5,),)), Case(((1,),)), Case((((3, 4), 2),)))


def within(low: float, high: float) -> tuple[Case, ...]:
    """The general cases with another domain."""
    return tuple(replace(case, low=low, high=high) for case in GENERAL)


EXTREME = (*GENERAL, Case(((6,),), -80, 80))
HUGE = (*GENERAL, Case(((1,),), 79, 80), Case(((1,),), -80, -79))  # one element: no sum of unlike magnitudes
POSITIVE = within(0.1, 3)


def same_shape(x: Shape) -> Shape:
    return x


def elementwise(
    name: str, function: Callable, slope: Callable, *, params: str, reference: Callable, cases: tuple[Case, ...],
    shape: Callable[..., Shape] = same_shape,
) -> Operator:  # fmt: skip
    """The operator y = function(x) or, with a number c, function(x, c); dy/dx = slope of those of x, y, c it names.

    Without x in the slope, the result may take the operand's place.
    """
    needs = names_of(slope)
    overwrites = () if "x" in needs else (0,)
    slope = scalar_of_all(slope, "x", "y", "c")
    if params == "x":

        def forward(v, x0, y, n):  # type: ignore[no-untyped-def]
            x, out = v[x0 : x0 + n], v[y : y + n]
            if overwrites and x0 == y:  # as vector code, which an array under two names would not be
                for i in range(n):
                    out[i] = function(out[i])
            else:
                for i in range(n):
                    out[i] = function(x[i])

        def d0(v, g, x0, y, n):  # type: ignore[no-untyped-def]
            x, out, dy, dx = v[x0 : x0 + n], v[y : y + n], g[y : y + n], g[x0 : x0 + n]
            for i in range(n):
                dx[i] += dy[i] * slope(x[i], out[i], ZERO)

        def in_place(v, g, y, n):  # type: ignore[no-untyped-def]
            out, dy = v[y : y + n], g[y : y + n]
            for i in range(n):
                dy[i] *= slope(ZERO, out[i], ZERO)

    else:

        def forward(v, x0, y, n, f0):  # type: ignore[no-untyped-def,misc]
            x, out = v[x0 : x0 + n], v[y : y + n]
            if overwrites and x0 == y:
                for i in range(n):
                    out[i] = function(out[i], f0)
            else:
                for i in range(n):
                    out[i] = function(x[i], f0)

        def d0(v, g, x0, y, n, f0):  # type: ignore[no-untyped-def,misc]
            x, out, dy, dx = v[x0 : x0 + n], v[y : y + n], g[y : y + n], g[x0 : x0 + n]
            for i in range(n):
                dx[i] += dy[i] * slope(x[i], out[i], f0)

        def in_place(v, g, y, n, f0):  # type: ignore[no-untyped-def,misc]
            out, dy = v[y : y + n], g[y : y + n]
            for i in range(n):
                dy[i] *= slope(ZERO, out[i], f0)

    forward.__name__, d0.__name__, in_place.__name__ = f"{name}_forward", f"{name}_d0", f"{name}_in_place"
    return define(name, shape=shape, params=params, forward=forward, backward=(d0,), keeps_result="y" in needs,
                  overwrites=overwrites, in_place=in_place if overwrites else None, reference=reference,
                  cases=cases)  # fmt: skip


def unary(
    name: str,
    function: Callable,
    slope: Callable,
    *,
    reference: Callable,
    doc: str,
    cases: tuple[Case, ...] = GENERAL,
) -> Callable[[Any], Any]:
    """The public function y = function(x), elementwise; its derivative is the slope of those of x, y it names."""
    operator = elementwise(name, function, slope, params="x", reference=reference, cases=cases)

    def public(x):  # type: ignore[no-untyped-def]
        return operator(x)

    public.__name__ = public.__qualname__ = name
    public.__module__ = __name__
    public.__doc__ = f"{doc}\n\n    x: any shape, any mini-batch; the result has the same.\n    "
    return native(operator)(public)


# ---- with a number ---------------------------------------------------------------------------------------------------


def number_operator(
    name: str, function: Callable, slope: Callable, *, reference: Callable, cases: tuple[Case, ...]
) -> Operator:
    """The operator y = function(x, number), elementwise; its derivative is the slope of those of x, y, c it names."""
    return elementwise(name, scalar(function), slope, params="xf", reference=reference, cases=cases)


NUMBER = (Case(((5,),), arguments=(1.5,)), Case(((1,),), arguments=(-2.0,)), Case((((3, 4), 2),), arguments=(0.3,)))


def with_number(
    name: str, function: Callable, slope: Callable, *, reference: Callable, doc: str, cases: tuple[Case, ...] = NUMBER
) -> Callable[[Any, float], Any]:
    """The function y = function(x, number) of an expression and a number."""
    operator = number_operator(name, function, slope, reference=reference, cases=cases)

    def public(x, number):  # type: ignore[no-untyped-def]
        return operator(x, number)

    public.__name__ = public.__qualname__ = name
    public.__module__ = __name__
    public.__doc__ = f"{doc}\n\n    x: any shape, any mini-batch; the result has the same.\n    "
    return native(operator)(public)


add_number = with_number("add_number", lambda x, c: x + c, lambda: ONE,
    reference=lambda x, c: x + c, doc="x + number.")  # fmt: skip
number_minus = with_number("number_minus", lambda x, c: c - x, lambda: -ONE,
    reference=lambda x, c: c - x, doc="number - x.")  # fmt: skip
scale = with_number("scale", lambda x, c: x * c, lambda c: c,
    reference=lambda x, c: x * c, doc="x * number.")  # fmt: skip
number_over = with_number("number_over", lambda x, c: c / x, lambda x, y: -y / x,
    reference=lambda x, c: c / x, doc="number / x.",
    cases=tuple(replace(case, low=0.5, high=2) for case in NUMBER))  # fmt: skip

# ---- functions of x --------------------------------------------------------------------------------------------------


@scalar
def negated(x):  # type: ignore[no-untyped-def]
    return -x


@scalar
def squared(x):  # type: ignore[no-untyped-def]
    return x * x


@scalar
def cubed(x):  # type: ignore[no-untyped-def]
    return x * x * x


@scalar
def rectified(x):  # type: ignore[no-untyped-def]
    return max(x, x * ZERO)  # ZERO of the type of x; NaN stays


@scalar
def sign(x):  # type: ignore[no-untyped-def]
    return ONE if x > ZERO else (-ONE if x < ZERO else ZERO)


@scalar
def softened_sign(x):  # type: ignore[no-untyped-def]
    return x / (ONE + math.fabs(x))


@scalar
def softened_sign_slope(x):  # type: ignore[no-untyped-def]
    root = ONE + math.fabs(x)
    return ONE / (root * root)


negate = unary("negate", negated, lambda: -ONE, reference=lambda x: -x, doc="-x.")
tanh = unary("tanh", scalars.tanh, lambda y: ONE - y * y, reference=np.tanh, cases=EXTREME,
    doc="Hyperbolic tangent, elementwise.")  # fmt: skip
logistic = unary("logistic", scalars.logistic, lambda y: y * (ONE - y), cases=EXTREME,
    reference=lambda x: 1 / (1 + np.exp(-x)), doc="Logistic function, elementwise: y = 1 / (1 + exp(-x)).")  # fmt: skip
rectify = unary("rectify", rectified, lambda y: ONE if y > ZERO else ZERO, reference=lambda x: np.maximum(x, 0),
    doc="y = max(x, 0), elementwise; the gradient at 0 is 0.")  # fmt: skip
exp = unary("exp", scalars.exp, lambda y: y, reference=np.exp, cases=HUGE,
    doc="y = e^x, elementwise; inf where it exceeds float32's range.")  # fmt: skip
log = unary("log", scalars.log, lambda x: ONE / x, reference=np.log, cases=POSITIVE,
    doc="Natural logarithm, elementwise; -inf at 0, NaN below.")  # fmt: skip
sqrt = unary("sqrt", math.sqrt, lambda y: HALF / y, reference=np.sqrt, cases=POSITIVE,
    doc="Square root, elementwise; NaN below 0; the gradient at 0 is infinite.")  # fmt: skip
square = unary("square", squared, lambda x: TWO * x, reference=np.square, doc="y = x * x, elementwise.")
cube = unary("cube", cubed, lambda x: THREE * x * x, reference=lambda x: x**3, doc="y = x * x * x, elementwise.")
abs = unary("abs", math.fabs, sign, reference=np.abs, doc="y = |x|, elementwise; the gradient at 0 is 0.")
erf = unary("erf", scalars.erf, lambda x: TWO_OVER_ROOT_PI * scalars.exp(-x * x), cases=EXTREME,
    reference=np.vectorize(math.erf, otypes=[float]),
    doc="Error function, elementwise: y = 2 / sqrt(pi) * (integral of exp(-t^2) from 0 to x).")  # fmt: skip
lgamma = unary("lgamma", math.lgamma, lambda x: scalars.digamma(x), cases=(*POSITIVE, *within(-0.9, -0.1)),
    reference=np.vectorize(math.lgamma, otypes=[float]),
    doc="Logarithm of the absolute value of the gamma function, elementwise; inf at 0, -1, -2, ...")  # fmt: skip
log_sigmoid = unary("log_sigmoid", scalars.log_sigmoid, lambda x: scalars.logistic(-x), cases=EXTREME,
    reference=lambda x: -np.logaddexp(0, -x),
    doc="y = log(1 / (1 + exp(-x))), elementwise, without underflow.")  # fmt: skip
softsign = unary("softsign", softened_sign, softened_sign_slope, cases=EXTREME,
    reference=lambda x: x / (1 + np.abs(x)), doc="y = x / (1 + |x|), elementwise.")  # fmt: skip

# ---- trigonometric and hyperbolic functions --------------------------------------------------------------------------

INSIDE = within(-0.9, 0.9)

sin = unary("sin", math.sin, lambda x: math.cos(x), reference=np.sin, cases=within(-4, 4), doc="Sine, elementwise.")
cos = unary("cos", math.cos, lambda x: -math.sin(x), reference=np.cos, cases=within(-4, 4),
    doc="Cosine, elementwise.")  # fmt: skip
tan = unary("tan", math.tan, lambda y: ONE + y * y, reference=np.tan, doc="Tangent, elementwise.")
asin = unary("asin", math.asin, lambda x: ONE / math.sqrt(ONE - x * x), reference=np.arcsin, cases=INSIDE,
    doc="Inverse sine, elementwise; NaN outside of -1 to 1, where the gradient is infinite.")  # fmt: skip
acos = unary("acos", math.acos, lambda x: -ONE / math.sqrt(ONE - x * x), reference=np.arccos, cases=INSIDE,
    doc="Inverse cosine, elementwise; NaN outside of -1 to 1, where the gradient is infinite.")  # fmt: skip
atan = unary("atan", math.atan, lambda x: ONE / (ONE + x * x), reference=np.arctan, cases=within(-4, 4),
    doc="Inverse tangent, elementwise.")  # fmt: skip
sinh = unary("sinh", math.sinh, lambda x: math.cosh(x), reference=np.sinh, cases=HUGE,
    doc="Hyperbolic sine, elementwise; infinite where it exceeds float32's range.")  # fmt: skip
cosh = unary("cosh", math.cosh, lambda x: math.sinh(x), reference=np.cosh, cases=HUGE,
    doc="Hyperbolic cosine, elementwise; infinite where it exceeds float32's range.")  # fmt: skip
asinh = unary("asinh", math.asinh, lambda x: ONE / math.sqrt(x * x + ONE), reference=np.arcsinh, cases=EXTREME,
    doc="Inverse hyperbolic sine, elementwise.")  # fmt: skip
acosh = unary("acosh", math.acosh, lambda x: ONE / math.sqrt(x * x - ONE), reference=np.arccosh,
    cases=within(1.1, 5),
    doc="Inverse hyperbolic cosine, elementwise; NaN below 1, where the gradient is infinite.")  # fmt: skip
atanh = unary("atanh", math.atanh, lambda x: ONE / (ONE - x * x), reference=np.arctanh, cases=INSIDE,
    doc="Inverse hyperbolic tangent, elementwise; infinite at -1 and 1, NaN beyond.")  # fmt: skip

# ---- elu, selu, silu -------------------------------------------------------------------------------------------------

# Source: Klambauer et al. (2017), Self-normalizing neural networks, section 2.
SELU_ALPHA, SELU_SCALE = np.float32(1.6732632423543772), np.float32(1.0507009873554805)


@scalar
def exponential_unit(x, alpha):  # type: ignore[no-untyped-def]
    return x if x > ZERO else alpha * scalars.expm1(x)


@scalar
def exponential_unit_slope(x, y, c):  # type: ignore[no-untyped-def]
    return ONE if x > ZERO else y + c


@scalar
def scaled_unit(x):  # type: ignore[no-untyped-def]
    return SELU_SCALE * exponential_unit(x, SELU_ALPHA)


def elu_reference(x: np.ndarray, alpha: float) -> np.ndarray:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def silu_slope(x, y, c):  # type: ignore[no-untyped-def]
    s = scalars.logistic(c * x)
    return s + c * y * (ONE - s)


ELU = number_operator("elu", exponential_unit, exponential_unit_slope, reference=elu_reference,
                      cases=(*NUMBER, Case(((6,),), -80, 80, (0.5,))))  # fmt: skip
SILU = number_operator("silu", lambda x, beta: x * scalars.logistic(beta * x), silu_slope,
                       reference=lambda x, beta: x / (1 + np.exp(-beta * x)),
                       cases=(*NUMBER, Case(((6,),), -80, 80, (1.0,))))  # fmt: skip


@native(ELU)
def elu(x: Any, alpha: float = 1.0) -> Any:
    """y = x if x > 0 else alpha * (exp(x) - 1), elementwise.

    x: any shape, any mini-batch; the result has the same.
    Source: Clevert et al. (2016), Fast and accurate deep network learning by exponential linear units.
    """
    return ELU(x, alpha)


@native(SILU)
def silu(x: Any, beta: float = 1.0) -> Any:
    """y = x / (1 + exp(-beta * x)), elementwise.

    x: any shape, any mini-batch; the result has the same.
    """
    return SILU(x, beta)


selu = unary("selu", scaled_unit, lambda y: SELU_SCALE if y > ZERO else y + SELU_SCALE * SELU_ALPHA, cases=EXTREME,
    reference=lambda x: float(SELU_SCALE) * elu_reference(x, float(SELU_ALPHA)),
    doc="y = 1.0507 * elu(x, 1.67326), elementwise, which keeps mean 0 and variance 1.")  # fmt: skip

# ---- copies with another gradient ------------------------------------------------------------------------------------


@kernel
def copy_forward(v, x0, y, n):
    x, out = v[x0 : x0 + n], v[y : y + n]
    for i in range(n):
        out[i] = x[i]


def without_difference(cases: tuple[Case, ...], reason: str) -> tuple[Case, ...]:
    return tuple(replace(case, no_difference=True, reason=reason) for case in cases)


SCALED = "the gradient is scaled, the value is not"

NOBACKPROP = define("nobackprop", shape=same_shape, forward=copy_forward, reference=lambda x: x, cases=GENERAL)
SCALE_GRADIENT = number_operator("scale_gradient", lambda x, c: x, lambda c: c, reference=lambda x, c: x,
                                 cases=without_difference(NUMBER, SCALED))  # fmt: skip


@native(NOBACKPROP)
def nobackprop(x: Any) -> Any:
    """x, but no gradient flows back.

    x: any shape, any mini-batch; the result has the same.
    """
    return NOBACKPROP(x)


@native(SCALE_GRADIENT)
def scale_gradient(x: Any, lambd: float = 1.0) -> Any:
    """x, but its gradient is multiplied by `lambd`.

    x: any shape, any mini-batch; the result has the same.
    """
    return SCALE_GRADIENT(x, lambd)


flip_gradient = unary("flip_gradient", scalar(lambda x: x), lambda: -ONE, reference=lambda x: x,
    cases=without_difference(GENERAL, SCALED), doc="x, but its gradient changes its sign.")  # fmt: skip


@native(None, "x", device_str="CPU")
def to_device(e: Any, device_str: str) -> Any:
    """e itself: all expressions of this process live on one device, that of `init(device=...)`.

    Raises NoCudaError for the name of a GPU that does not compute, RuntimeError for other names.
    """
    check_device("to_device", device_str)
    dim_of("to_device", e)  # raises if it is stale
    return e


# ---- steps -----------------------------------------------------------------------------------------------------------


def step_function(name: str, function: Callable, reference: Callable, doc: str) -> Callable[[Any, str], Any]:
    """The public function y = function(x, gradient_mode), where the function is constant but for jumps."""
    function = scalar(function)

    def forward(v, x0, y, n):  # type: ignore[no-untyped-def]
        x, out = v[x0 : x0 + n], v[y : y + n]
        for i in range(n):
            out[i] = function(x[i])

    forward.__name__ = f"{name}_forward"
    cases = without_difference(within(-3, 3), "the gradient is by intent that of y = x")
    modes = {
        "zero_gradient": define(name, shape=same_shape, forward=forward, reference=reference, cases=within(-3, 3)),
        "straight_through_gradient": define(
            f"{name}_straight_through", shape=same_shape, forward=forward, backward=(add_d0,), keeps_result=False,
            overwrites=(0,), reference=reference, cases=cases,
        ),
    }  # fmt: skip

    def public(x, gradient_mode):  # type: ignore[no-untyped-def]
        return mode_of(name, gradient_mode, modes)(x)

    public.__name__ = public.__qualname__ = name
    public.__module__ = __name__
    public.__doc__ = f"""{doc}

    x: any shape, any mini-batch; the result has the same.
    gradient_mode: "zero_gradient", or "straight_through_gradient" for dy/dx = 1.  Raises ValueError for other modes.
    """
    return native_modes(modes)(public)


@kernel
def add_d0(g, x0, y, n):
    dy, dx = g[y : y + n], g[x0 : x0 + n]
    for i in range(n):
        dx[i] += dy[i]


def rounded(x):  # type: ignore[no-untyped-def]
    # not floor(x + 0.5): that sum rounds up the number just below 0.5, and odd numbers above 2^23
    size = math.fabs(x)
    whole = scalars.floor(size)
    return math.copysign(whole + ONE if size - whole >= HALF else whole, x)


def rounded_reference(x: np.ndarray) -> np.ndarray:
    return np.sign(x) * np.floor(np.abs(x) + 0.5)


round = step_function("round", rounded, rounded_reference, "The nearest whole number, elementwise; halves away from 0.")
ceil = step_function("ceil", lambda x: scalars.ceil(x), np.ceil, "The next whole number from x upwards, elementwise.")
floor = step_function(
    "floor", lambda x: scalars.floor(x), np.floor, "The next whole number from x downwards, elementwise."
)

# ---- x ** number -----------------------------------------------------------------------------------------------------


def power_shape(x: Shape) -> Shape:
    """That of `binary.power` with a number."""
    return x.truncated()


SECOND_POWER = elementwise("second_power", squared, lambda x: TWO * x, params="x", reference=np.square, cases=GENERAL,
                           shape=power_shape)  # fmt: skip
NUMBER_POWER = elementwise("number_power", scalar(lambda x, c: x**c), lambda x, c: scalars.power_slope(x, c),
                           params="xf", reference=lambda x, c: x**c, shape=power_shape,
                           cases=tuple(replace(case, low=0.5, high=2) for case in NUMBER))  # fmt: skip
