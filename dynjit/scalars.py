"""Elementwise functions for kernels: in float32 fast and vectorised, in float64 exactly those of `math`.

Each function is a plain Python formula.  A compiled function that calls it with a float64 gets that formula.  With a
float32 it gets the approximation named in `@fast(...)`: branch-free arithmetic, which LLVM turns into vector code, and
whose largest error stands in the docstring ("relative" is to the true value, 1.2e-7 is one unit in the last place).
Called from Python, the formula serves every type.  CUDA kernels get the approximation too, unless the formulas, which
`FUNCTIONS` lists, are registered as overloads for them: then the device's own exp and log serve.

All functions give NaN for NaN, and at +-inf and outside of float32's range the limit of the true function.
"""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload, register_jitable

from dynjit.jit import helper, scalar

ZERO = np.float32(0)
HALF = np.float32(0.5)
ONE = np.float32(1)
TWO = np.float32(2)
INF = np.float32(np.inf)
NAN = np.float32(np.nan)

FUNCTIONS: list[Any] = []
# only "contract" (fused multiply-add): the rounding tricks below must not be reassociated
OPTIONS: Any = {"error_model": "numpy", "fastmath": {"contract"}, "forceinline": True}


def fast(approximation=None):
    """Compile calls of the decorated f(x) to `approximation`, if given, for float32, and to f itself for float64."""

    def decorate(function):
        @overload(function, jit_options=OPTIONS)
        def choose(x):
            return {types.float32: approximation or function, types.float64: function}.get(x)

        FUNCTIONS.append(function)
        return function

    return decorate


def bit_trick(build):
    """An intrinsic float32 -> float32; `build(builder, bits)` gets and returns the number as an int32's LLVM value."""

    def trick(typingctx, x):
        def codegen(context, builder, signature, args):
            return builder.bitcast(build(builder, builder.bitcast(args[0], ir.IntType(32))), ir.FloatType())

        return types.float32(types.float32), codegen

    trick.__name__ = trick.__qualname__ = build.__name__
    trick.__doc__ = build.__doc__
    return intrinsic(trick)


# ---- exp, expm1 ------------------------------------------------------------------
# x = n log(2) + r with a whole n and |r| <= log(2) / 2, so that exp(x) = 2^n exp(r).  exp(r) = 1 + r + r^2 (E0 + E1 r +
# ... + E4 r^4) but for 4e-9; the coefficients have the least error relative to exp(r).
# Source: Moshier, Cephes 2.2 (1992), expf: the two parts of log(2).

LOG2_E = np.float32(1.44269504088896341)
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
# adding it to a float32 of magnitude below 2^22 rounds to a whole number, which the lowest bits then hold
ROUND = np.float32(1.5 * 2**23)
EXP_LOW, EXP_HIGH = np.float32(-87.3), np.float32(89)  # beyond: 0 and inf
E0, E1, E2, E3, E4 = (
    np.float32(c) for c in (4.9999994040e-1, 1.6666521132e-1, 4.1668388993e-2, 8.3687454462e-3, 1.3814540580e-3)
)


@bit_trick
def half_power(builder, bits):
    """2^(n - 1) from n + ROUND, for n from -125 to 128; 0 for n = -126."""
    return builder.add(builder.shl(bits, ir.IntType(32)(23)), ir.IntType(32)(126 << 23))


@register_jitable(**OPTIONS)
def exp_parts(x):
    """exp(r) - 1 and 2^(n - 1): 2^n itself leaves float32's range before the result does."""
    x = EXP_HIGH if x > EXP_HIGH else x
    x = EXP_LOW if x < EXP_LOW else x
    shifted = x * LOG2_E + ROUND
    n = shifted - ROUND
    r = x - n * LN2_HIGH - n * LN2_LOW
    z = r * r
    p = (E4 * z + (E3 * r + E2)) * z + (E1 * r + E0)  # few steps that wait for each other
    return p * z + r, half_power(shifted)


def exp_float32(x):
    e, half = exp_parts(x)
    return (TWO * e + TWO) * half


@fast(exp_float32)
def exp(x):
    """e^x; 0 below -86.99, inf above 88.73.  float32: relative error at most 1.2e-7 where the result is not 0."""
    return math.exp(x)


def expm1_float32(x):
    e, half = exp_parts(x)
    return (e * half + (half - HALF)) * TWO


@fast(expm1_float32)
def expm1(x):
    """e^x - 1, accurate also near 0.  float32: relative error at most 2.5e-7."""
    return math.expm1(x)


# ---- log, log1p ------------------------------------------------------------------
# x = 2^n (1 + r) with a whole n and sqrt(1/2) <= 1 + r < sqrt(2).
# Source: Moshier, Cephes 2.2 (1992), logf.

SMALLEST_NORMAL, TWO_23, TWENTY_THREE = np.float32(2.0**-126), np.float32(2.0**23), np.float32(23)
SQRT_HALF_BITS = 0x3F3504F3
L0, L1, L2, L3, L4, L5, L6, L7, L8 = (
    np.float32(c)
    for c in (
        7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
        -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
    )
)  # fmt: skip


@bit_trick
def binary_exponent(builder, bits):
    """n."""
    n = builder.ashr(builder.sub(bits, ir.IntType(32)(SQRT_HALF_BITS)), ir.IntType(32)(23))
    return builder.bitcast(builder.sitofp(n, ir.FloatType()), ir.IntType(32))


@bit_trick
def mantissa(builder, bits):
    """1 + r."""
    fraction = builder.and_(builder.sub(bits, ir.IntType(32)(SQRT_HALF_BITS)), ir.IntType(32)(0x7FFFFF))
    return builder.add(fraction, ir.IntType(32)(SQRT_HALF_BITS))


@register_jitable(**OPTIONS)
def log_from_parts(n, r):
    z = r * r
    p = (((((((L0 * r + L1) * r + L2) * r + L3) * r + L4) * r + L5) * r + L6) * r + L7) * r + L8
    return (p * r * z + n * LN2_LOW - HALF * z + r) + n * LN2_HIGH


def log_float32(x):
    is_subnormal = x < SMALLEST_NORMAL
    scaled = x * TWO_23 if is_subnormal else x
    n = binary_exponent(scaled) - (TWENTY_THREE if is_subnormal else ZERO)
    y = log_from_parts(n, mantissa(scaled) - ONE)
    y = y if x < INF else x
    return y if x > ZERO else (-INF if x == ZERO else NAN)


@fast(log_float32)
def log(x):
    """Natural logarithm; -inf at 0, NaN below.  float32: relative error at most 1.2e-7."""
    return math.log(x)


def log1p_float32(x):
    u = ONE + x
    n = binary_exponent(u)
    y = log_from_parts(n, x if n == ZERO else mantissa(u) - ONE)
    y = y if u < INF else u
    return y if u > ZERO else (-INF if u == ZERO else NAN)


@fast(log1p_float32)
def log1p(x):
    """log(1 + x), accurate also near 0; -inf at -1, NaN below.  float32: relative error at most 2e-7."""
    return math.log1p(x)


# ---- tanh, logistic, log_sigmoid, erf ----------------------------------------------
# Source of the rational approximations: Eigen 3.3 (generic_fast_tanh_float), XLA (ErfImpl32).

TANH_END, ERF_END = np.float32(9), np.float32(4)
T0, T1, T2, T3, T4, T5, T6 = (
    np.float32(c)
    for c in (
        -2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08,
        1.48572235717979e-05, 6.37261928875436e-04, 4.89352455891786e-03,
    )
)  # fmt: skip
U0, U1, U2, U3 = (
    np.float32(c) for c in (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)
)
R0, R1, R2, R3, R4, R5, R6 = (
    np.float32(c)
    for c in (
        -2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
        -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02,
    )
)  # fmt: skip
S0, S1, S2, S3, S4 = (
    np.float32(c)
    for c in (
        -1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
        -1.42647390514189e-02,
    )
)  # fmt: skip


@register_jitable(**OPTIONS)
def clip(x, end):
    x = end if x > end else x
    return -end if x < -end else x


def tanh_float32(x):
    x = clip(x, TANH_END)
    z = x * x
    p = (((((T0 * z + T1) * z + T2) * z + T3) * z + T4) * z + T5) * z + T6
    return clip(x * (p / (((U0 * z + U1) * z + U2) * z + U3)), ONE)


@fast(tanh_float32)
def tanh(x):
    """Hyperbolic tangent.  float32: relative error at most 3e-7."""
    return math.tanh(x)


def logistic_float32(x):
    return ONE / (ONE + exp(-x))


@fast(logistic_float32)
def logistic(x):
    """1 / (1 + e^-x).  float32: relative error at most 2e-7 above -87, absolute error at most 1e-38 below."""
    return ONE / (ONE + math.exp(-x))


def log_sigmoid_float32(x):
    return (x if x < ZERO else ZERO) - log1p(exp(-abs(x)))


@fast(log_sigmoid_float32)
def log_sigmoid(x):
    """log(1 / (1 + e^-x)), which stays finite.  float32: relative error at most 3e-7 where the result is not 0."""
    return (x if x < ZERO else ZERO) - math.log1p(math.exp(-abs(x)))


def erf_float32(x):
    x = clip(x, ERF_END)
    z = x * x
    p = (((((R0 * z + R1) * z + R2) * z + R3) * z + R4) * z + R5) * z + R6
    return clip(x * (p / ((((S0 * z + S1) * z + S2) * z + S3) * z + S4)), ONE)


@fast(erf_float32)
def erf(x):
    """Error function.  float32: relative error at most 4e-7."""
    return math.erf(x)


# ---- digamma ---------------------------------------------------------------------
# One formula for both types: constants that are no float32 are made in x's own type, from ones that are.

TEN, TWELVE, D2, D3, D4, D5, D6, D6_TOP = (np.float32(c) for c in (10, 12, 120, 252, 240, 132, 32760, 691))
HUGE = np.float32(2.0**60)
PI_HIGH = np.float32(math.pi)
PI_MIDDLE = np.float32(math.pi - float(PI_HIGH))
PI_LOW = np.float32(math.pi - float(PI_HIGH) - float(PI_MIDDLE))


@fast()
def digamma(x):
    """Derivative of log(gamma(x)); infinite at 0, -1, -2, ...

    Error relative to max(1, |y|), for x above -1: at most 2e-6 in float32, 2e-14 in float64.
    Source: Abramowitz and Stegun (1964), 6.3.5, 6.3.7 and 6.3.18.
    """
    if x > HUGE:
        return math.log(x)
    zero = x - x
    one = zero + ONE
    total = zero
    if x <= ZERO:  # reflection
        pi = zero + PI_HIGH + PI_MIDDLE + PI_LOW
        f = -x % one
        total = pi / math.tan(pi * (f - ONE if f > HALF else f))
        x = ONE - x
    while x < TEN:  # recurrence
        total -= ONE / x
        x += ONE
    z = one / (x * x)
    s = one / D5 - z * (D6_TOP / (one * D6) - z * (one / TWELVE))
    s = z * (one / TWELVE - z * (one / D2 - z * (one / D3 - z * (one / D4 - z * s))))
    return total + math.log(x) - HALF / x - s


# ---- over a window -----------------------------------------------------------------


@intrinsic
def maximum(typingctx, a, b):
    """The larger of two numbers of one type, NaN if one is; unlike a comparison it makes a loop vector code."""

    def codegen(context, builder, signature, args):
        kind = args[0].type
        if "nvptx" in builder.module.triple:  # its compiler does not know llvm.maximum
            first = builder.fcmp_unordered(">=", *args)  # true for NaN
            is_number = builder.fcmp_ordered("ord", args[1], args[1])
            return builder.select(builder.and_(first, is_number), *args)
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(kind, [kind] * 2), f"llvm.maximum.{'f32' if a == types.float32 else 'f64'}"
        )
        return builder.call(function, args, fastmath=("nsz",))

    return a(a, b) if a == b else None, codegen


def rounding(name):
    """An intrinsic that rounds a number to a whole one of its own type, as LLVM's function of that name does."""

    def rounded(typingctx, x):
        def codegen(context, builder, signature, args):
            kind = args[0].type
            suffix = "f32" if x == types.float32 else "f64"
            function = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(kind, [kind]), f"llvm.{name}.{suffix}"
            )
            return builder.call(function, args)

        return x(x), codegen

    rounded.__name__ = rounded.__qualname__ = name
    return intrinsic(rounded)


floor, ceil = rounding("floor"), rounding("ceil")


@helper
def log_sum_exp(x):
    """log(sum over i of exp(x_i)) of a window, in nats; it neither overflows nor underflows."""
    top = x[0]
    for i in range(1, x.size):
        top = maximum(top, x[i])  # type: ignore[call-arg]
    if top - top != ZERO:  # infinite or NaN
        return top
    total = top - top
    for i in range(x.size):
        total += exp(x[i] - top)
    return top + log(total)


@scalar
def power_slope(x, exponent):
    """The derivative of x ** exponent by x."""
    return exponent * x ** (exponent - ONE)
