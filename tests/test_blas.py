"""Matrix products against NumPy's in float64, over ragged sizes."""

import os
import subprocess
import sys

import numba
import numpy as np
import pytest

from dynjit import blas, jit, vectors

OPTIONS = {key: value for key, value in jit.OPTIONS.items() if key != "no_cpython_wrapper"}
REALS = [np.float32, np.float64]
# around the multiples of a vector (4 to 16 numbers), of a tile (6 columns; 2 or 4 vectors) and of a block (128, 512)
ROWS = (1, 2, 3, 5, 15, 16, 17, 33, 64, 65, 130)
COLUMNS = (1, 2, 5, 6, 7, 12, 13, 40, 150)
DEPTHS = (0, 1, 2, 3, 7, 31, 32, 33, 100, 600)


def compiled(gemm):
    @numba.njit(**OPTIONS)
    def run(v, a, b, c, m, n, k, beta):
        gemm(v[a : a + m * k], v[b : b + n * k], v[c : c + m * n], m, n, k, beta)

    return run


@numba.njit(**OPTIONS)
def run_plus(v, a, b, c, m, n, k, d):
    blas.gemm_nn_plus(v[a : a + m * k], v[b : b + n * k], v[c : c + m * n], m, n, k, d)


PRODUCTS = {name: compiled(getattr(blas, name)) for name in ("gemm_nn", "gemm_tn", "gemm_nt")}


def check(name, m, n, k, real):
    """Both betas; the numbers before and behind C stay as they are."""
    random = np.random.default_rng((m, n, k))
    v = np.full(k * (m + n) + m * n + 10, np.nan, real)
    a, b, c = 0, m * k, (m + n) * k + 5
    v[: (m + n) * k] = random.standard_normal((m + n) * k)
    left, right = v[:b], v[b : b + n * k]
    left = left.reshape(m, k) if name == "gemm_tn" else left.reshape(k, m).T
    right = right.reshape(k, n) if name == "gemm_nt" else right.reshape(n, k).T
    want = left.astype(float) @ right.astype(float)
    tolerance = 2 * np.finfo(real).eps * (np.abs(left.astype(float)) @ np.abs(right.astype(float))) * max(1, k) ** 0.5
    for beta, target in ((0, want), (1, 2 * want)):
        PRODUCTS[name](v, a, b, c, m, n, k, beta)
        got = v[c : c + m * n].reshape(n, m).T
        assert (np.abs(got - target) <= 2 * tolerance).all(), (name, m, n, k, beta)
    if name == "gemm_nn":
        bias = random.standard_normal(m).astype(real)
        run_plus(v, a, b, c, m, n, k, bias)
        got = v[c : c + m * n].reshape(n, m).T - bias[:, None].astype(float)
        assert (np.abs(got - want) <= 2 * tolerance + 4 * np.finfo(real).eps * np.abs(bias)[:, None]).all(), (m, n, k)
    assert np.isnan(v[(m + n) * k : c]).all() and np.isnan(v[c + m * n :]).all()


@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize("name", PRODUCTS)
def test_ragged_sizes(name, real):
    for m in ROWS:
        for n in COLUMNS:
            for k in DEPTHS:
                check(name, m, n, k, real)


@pytest.mark.parametrize("name", PRODUCTS)
def test_large_sizes(name):
    for m, n, k in ((1024, 200, 300), (300, 1025, 129), (2000, 7, 256), (70, 130, 1500), (10_000, 3, 20)):
        check(name, m, n, k, np.float32)


@pytest.mark.parametrize("name", PRODUCTS)
def test_nothing_to_do(name):
    v = np.full(20, np.nan, np.float32)
    PRODUCTS[name](v, 0, 0, 0, 0, 4, 4, 0)
    PRODUCTS[name](v, 0, 0, 0, 4, 0, 4, 0)
    assert np.isnan(v).all()
    PRODUCTS[name](v, 0, 0, 4, 2, 3, 0, 0)
    assert (v[4:10] == 0).all() and np.isnan(v[10:]).all()


def test_nan_and_infinity_pass_through():
    v = np.ones(3 * 9, np.float32)
    v[0] = np.nan
    v[4] = np.inf
    for run in PRODUCTS.values():
        run(v, 0, 9, 18, 3, 3, 3, 0)
        assert np.isnan(v[18:]).any() and np.isinf(v[18:]).any() and np.isfinite(v[18:]).any()


def test_other_arrays_are_refused():
    @numba.njit(**OPTIONS)
    def run(a, b, c):
        blas.gemm_nn(a, b, c, 1, 1, 1, 0)

    one, double = np.ones(1, np.float32), np.ones(1)
    for arguments in ((one, one, double), (one, one[::1].reshape(1, 1), one), (np.ones(4, np.float32)[::2], one, one)):
        with pytest.raises(numba.TypingError):
            run(*arguments)


OTHER_TARGET = """
import sys
sys.path.insert(0, {folder!r})
from dynjit import vectors
if {patched}:
    vectors.target = lambda: {target}
import numpy, test_blas
assert test_blas.vectors.target()[0] == {target}[0]
for name in test_blas.PRODUCTS:
    for m, n, k in ((1, 1, 1), (5, 1, 0), (7, 3, 9), (17, 7, 33), (34, 13, 5), (70, 20, 20), (33, 140, 150), (130, 40, 600)):
        for real in {reals}:
            test_blas.check(name, m, n, k, getattr(numpy, real))
"""


def check_on(target, reals, patched, **environment):
    names = [real.__name__ for real in reals]
    code = OTHER_TARGET.format(folder=os.path.dirname(__file__), target=target, reals=names, patched=patched)
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, **environment})


@pytest.mark.parametrize(
    ("cpu", "target", "reals"), [("x86-64", (16, 16, False), REALS), ("x86-64-v3", (32, 16, True), REALS[:1])]
)
def test_smaller_vectors(cpu, target, reals):
    """The code for processors without AVX-512 and without AVX, which this one runs as well."""
    if vectors.target()[0] < target[0]:
        pytest.skip("the processor has no registers of this size")
    check_on(target, reals, False, NUMBA_CPU_NAME=cpu, NUMBA_CPU_FEATURES="")


@pytest.mark.skipif(vectors.target()[0] == 64, reason="the other tests run the code for AVX-512 as it is")
def test_larger_vectors(tmp_path):
    """The code for AVX-512, whose registers the compiler makes of those that are there."""
    check_on((64, 32, True), REALS[:1], True, DYNJIT_CACHE_DIR=str(tmp_path), DYNJIT_QUIET="1")


def test_import_compiles_nothing():
    code = "import dynjit.blas as b; assert not any('compiled' in vars(r) for r in b.ROUTINES.values())"
    subprocess.run([sys.executable, "-c", code], check=True)
