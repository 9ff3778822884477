"""Elementwise functions: errors against float64, limits, exactness in float64, vector code."""

import math
import re

import numba
import numpy as np
import pytest
import scipy.special

from dynjit import jit, scalars

OPTIONS = {key: value for key, value in jit.OPTIONS.items() if key != "no_cpython_wrapper"}
INF, NAN = math.inf, math.nan
SPECIAL = np.array([0, -1, 1, 80, -80, 1000, -1000, 1e-45, 1e-40, -1e-40, 3e38, -3e38, INF, -INF, NAN], np.float32)


def over(function):
    """The function over arrays, compiled as in a kernel."""

    @numba.njit(**OPTIONS)
    def run(x, y):
        for i in range(x.size):
            y[i] = function(x[i])

    def call(x):
        y = np.empty_like(x)
        run(x, y)
        return y

    call.run = run
    return call


def samples():
    """Numbers of all magnitudes and, densely, those where the functions change."""
    bits = np.arange(0, 2**32, 20011, dtype=np.uint64).astype(np.uint32).view(np.float32)
    dense = np.concatenate([np.linspace(-110, 95, 200_001), np.linspace(-3, 3, 200_001)]).astype(np.float32)
    return np.concatenate([SPECIAL, bits, dense])


# what exp gives for less, and what is made from that, may be 0: the last numbers above float32's smallest normal one
EXP_SMALLEST = 1.7e-38
TINY = float(np.finfo(np.float32).tiny)
# function: float64 reference, largest relative error, and the smallest result of which it holds
FLOAT32 = {
    "exp": (np.exp, 1.2e-7, EXP_SMALLEST),
    "expm1": (np.expm1, 2.5e-7, TINY),
    "log": (np.log, 1.2e-7, TINY),
    "log1p": (np.log1p, 2e-7, TINY),
    "tanh": (np.tanh, 3e-7, TINY),
    "logistic": (scipy.special.expit, 2e-7, TINY),
    "log_sigmoid": (scipy.special.log_expit, 3e-7, EXP_SMALLEST),
    "erf": (scipy.special.erf, 4e-7, TINY),
}


@pytest.mark.parametrize("name", FLOAT32)
def test_float32_error(name):
    reference, largest, smallest = FLOAT32[name]
    function = over(getattr(scalars, name))
    x = samples()
    with np.errstate(all="ignore"):
        y, want = function(x), reference(x.astype(float))
        rounded = want.astype(np.float32)
    assert (np.isnan(y) == np.isnan(want)).all()
    assert (y[np.isinf(rounded)] == rounded[np.isinf(rounded)]).all()
    finite = np.isfinite(rounded)
    error = np.abs(y[finite] - want[finite])
    relative = error / np.maximum(np.abs(want[finite]), smallest)
    normal = np.abs(want[finite]) >= smallest
    assert relative[normal].max() <= largest
    assert error[~normal].max(initial=0) <= (smallest if smallest == EXP_SMALLEST else 1e-38)
    vector = re.compile(r"<\d+ x float>")
    assert any(vector.search(text) for text in function.run.inspect_llvm().values()), "the loop is not vector code"


@pytest.mark.parametrize(
    ("name", "x", "want"),
    [
        ("exp", [-INF, -1000, 0, 1000, INF], [0, 0, 1, INF, INF]),
        ("expm1", [-INF, -1000, 0, 1e-30, INF], [-1, -1, 0, 1e-30, INF]),
        ("log", [0, 1, -1, INF, -INF, 2.0**-149], [-INF, 0, NAN, INF, NAN, -149 * math.log(2)]),
        ("log1p", [0, -1, -2, 1e-30, INF, -INF], [0, -INF, NAN, 1e-30, INF, NAN]),
        ("tanh", [-INF, -1000, 0, 1e-30, 80, INF], [-1, -1, 0, 1e-30, 1, 1]),
        ("logistic", [-INF, -1000, 0, 80, INF], [0, 0, 0.5, 1, 1]),
        ("log_sigmoid", [-INF, -1000, 1000, INF], [-INF, -1000, 0, 0]),
        ("erf", [-INF, -1000, 0, 5, INF], [-1, -1, 0, 1, 1]),
        ("digamma", [INF, NAN, -INF], [INF, NAN, NAN]),
    ],
)
@pytest.mark.parametrize("real", [np.float32, np.float64])
def test_limits(name, x, want, real):
    y = over(getattr(scalars, name))(np.array(x, real))
    assert np.allclose(y, np.array(want, real), rtol=1e-6, atol=0, equal_nan=True)


def test_results_stay_within_bounds():
    x = np.linspace(-12, 12, 100_001).astype(np.float32)
    for name, low in (("tanh", -1), ("erf", -1), ("logistic", 0)):
        y = over(getattr(scalars, name))(x)
        assert low <= y.min() and y.max() <= 1


@pytest.mark.parametrize("name", ["exp", "expm1", "log", "log1p", "tanh", "erf"])
def test_float64_is_maths(name):
    x = np.random.default_rng(1).uniform(0.01, 20, 1000)
    want = [getattr(math, name)(number) for number in x]
    assert (over(getattr(scalars, name))(x) == want).all()
    assert getattr(scalars, name)(1.5) == getattr(math, name)(1.5)


def test_float64_compositions():
    x = np.linspace(-40, 40, 1001)
    assert np.allclose(over(scalars.logistic)(x), scipy.special.expit(x), rtol=1e-15, atol=0)
    assert np.allclose(over(scalars.log_sigmoid)(x), scipy.special.log_expit(x), rtol=1e-15, atol=0)


@pytest.mark.parametrize(("real", "largest"), [(np.float32, 1e-6), (np.float64, 1e-14)])
def test_digamma(real, largest):
    function = over(scalars.digamma)
    random = np.random.default_rng(1)
    positive = np.concatenate([random.uniform(1e-3, 20, 50_000), 10 ** random.uniform(1, 30, 1000)]).astype(real)
    want = scipy.special.digamma(positive.astype(float))
    assert (np.abs(function(positive) - want) / np.maximum(1, np.abs(want))).max() <= largest
    negative = random.uniform(-0.99, -0.01, 50_000).astype(real)
    exact = negative.astype(float)
    want = scipy.special.digamma(exact + 2) - 1 / (exact + 1) - 1 / exact
    assert (np.abs(function(negative) - want) / np.maximum(1, np.abs(want))).max() <= 2 * largest
    assert np.isinf(function(np.array([0, -1, -7], real))).all()


@numba.njit(**OPTIONS)
def log_sum_exp(x):
    return scalars.log_sum_exp(x)


@pytest.mark.parametrize("real", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 100, 1000])
def test_log_sum_exp(real, n):
    x = (30 * np.random.default_rng(n).standard_normal(n)).astype(real)
    want = scipy.special.logsumexp(x.astype(float))
    assert abs(log_sum_exp(x) - want) <= 3 * np.finfo(real).eps * max(1, abs(want))


@pytest.mark.parametrize(
    ("x", "want"),
    [
        ([INF, 1], INF),
        ([-INF, -INF], -INF),
        ([-INF, 1], 1),
        ([-80, -80, 80], 80),
        ([1e30, 1], 1e30),
        ([-1e30, -1e30], -1e30),
        ([NAN, 1], NAN),
        ([1, 2, NAN], NAN),
        ([INF, NAN], NAN),
    ],
)
def test_log_sum_exp_limits(x, want):
    for padding in (0, 64):  # the longer one runs through vector code
        padded = np.array(x + [-INF] * padding, np.float32)
        assert np.allclose(log_sum_exp(padded), np.float32(want), equal_nan=True)


def test_every_function_is_listed_for_cuda():
    assert {function.__name__ for function in scalars.FUNCTIONS} == {*FLOAT32, "digamma"}
