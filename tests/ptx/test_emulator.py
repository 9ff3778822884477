"""Right kernels run right, in every order of their threads."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ptx import build, compile
from ptx.emulator import ORDERS, Emulated, Order
from ptx.test_instructions import HEAD

compile.require(compile.missing(), build.missing())

from numba import cuda, float32, float64, int32, int64  # noqa: E402

from ptx import kernels  # noqa: E402
from ptx.kernels import f1, f2, i1  # noqa: E402

i2, d1, l1 = int32[:, ::1], float64[::1], int64[::1]
SIGNATURES = {
    kernels.tiled_product: (f2, f2, f2),
    kernels.warp_sums: (f1, f1, i2),
    kernels.shuffles: (f1, f2),
    kernels.counts: (i1, i1, i1, f1),
    kernels.relay: (f1, f1, int64),
    kernels.block_counts: (f1, i2),
    kernels.mirror: (f1,),
    kernels.chosen: (f1, i1),
    kernels.neighbours: (f1,),
    kernels.shared_counts: (l1, i1, l1, d1),
}
in_every_order = pytest.mark.parametrize("order", ORDERS)


@pytest.fixture(scope="module")
def emulated() -> dict[str, Emulated]:
    """All kernels of this file, compiled together."""
    compiled = {function.__name__: compile.to_ptx(function, types) for function, types in SIGNATURES.items()}
    build.build(list(compiled.values()))
    return {name: Emulated(ptx) for name, ptx in compiled.items()}


@pytest.fixture
def draw() -> np.random.Generator:
    return np.random.default_rng(8)


@in_every_order
@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (16, 16, 16), (17, 15, 33), (40, 70, 31)])
def test_tiled_product(emulated: dict, draw: np.random.Generator, order: Order, m: int, k: int, n: int) -> None:
    a, b = (draw.standard_normal(shape).astype(np.float32) for shape in ((m, k), (k, n)))
    c = np.full((m, n), np.nan, dtype=np.float32)
    emulated["tiled_product"][(-(-n // 16), -(-m // 16)), (16, 16)](a, b, c, order=order, seed=m)
    np.testing.assert_allclose(c, a @ b, rtol=1e-4, atol=1e-5)


@in_every_order
def test_warp_sums_and_votes(emulated: dict, draw: np.random.Generator, order: Order) -> None:
    x = draw.standard_normal(256).astype(np.float32)
    x[32:64], x[64:96] = abs(x[32:64]), -abs(x[64:96])
    sums, votes = np.zeros(8, np.float32), np.zeros((8, 3), np.int32)
    emulated["warp_sums"][4, 64](x, sums, votes, order=order)
    positive = x.reshape(8, 32) > 0
    np.testing.assert_allclose(sums, x.reshape(8, 32).sum(1), atol=1e-5)
    ballots = [sum(1 << lane for lane in range(32) if row[lane]) for row in positive]
    assert votes.view(np.uint32)[:, 0].tolist() == ballots
    assert votes[:, 1].tolist() == positive.any(1).tolist()
    assert votes[:, 2].tolist() == positive.all(1).tolist()


@in_every_order
def test_shuffles(emulated: dict, order: Order) -> None:
    x, y = np.arange(32, dtype=np.float32), np.zeros((4, 32), np.float32)
    emulated["shuffles"][1, 32](x, y, order=order)
    lanes = np.arange(32)
    up, down = np.where(lanes >= 3, lanes - 3, lanes), np.where(lanes + 5 < 32, lanes + 5, lanes)
    assert y.tolist() == [up.tolist(), down.tolist(), (lanes ^ 9).tolist(), [7] * 32]


@in_every_order
def test_atomics(emulated: dict, draw: np.random.Generator, order: Order) -> None:
    x = draw.integers(1, 1000, 500, dtype=np.int32)
    bins, extremes, floats = np.zeros(10, np.int32), np.array([9999, 0, 0, 0], np.int32), np.zeros(2, np.float32)
    emulated["counts"][4, 128](x, bins, extremes, floats, order=order)
    assert bins.tolist() == np.bincount(x % 10, minlength=10).tolist()
    assert extremes.tolist() == [x.min(), x.max(), 500, 0]
    assert floats.tolist() == [x.sum(), x.max()]


@in_every_order
def test_atomics_in_shared_memory_and_of_64_bits(emulated: dict, draw: np.random.Generator, order: Order) -> None:
    x = draw.integers(1, 2**40, 128)
    bins, largest, total = np.zeros(8, np.int32), np.zeros(2, np.int64), np.zeros(1)
    emulated["shared_counts"][2, 64](x, bins, largest, total, order=order)
    assert bins.tolist() == np.bincount(x % 8, minlength=8).tolist()
    assert largest[0] == x.max() and largest[1] in x
    assert total == x.sum()


@in_every_order
def test_a_warp_is_synchronised(emulated: dict, order: Order) -> None:
    x = np.arange(64, dtype=np.float32)
    emulated["neighbours"][1, 64](x, order=order)
    assert x.tolist() == [i ^ 1 for i in range(64)]


@in_every_order
def test_the_grid_is_synchronised(emulated: dict, order: Order) -> None:
    x, y = np.arange(96, dtype=np.float32), np.zeros(96, np.float32)
    emulated["relay"][3, 32](x, y, 5, order=order)
    assert x.tolist() == np.roll(np.arange(96), -5).tolist()


@in_every_order
def test_barriers_reduce(emulated: dict, order: Order) -> None:
    x, out = np.array([1] * 40 + [-1] * 40 + [1, -1] * 20, np.float32), np.zeros((3, 3), np.int32)
    emulated["block_counts"][3, 40](x, out, order=order)
    assert out.tolist() == [[40, 1, 1], [0, 0, 0], [20, 1, 0]]


@in_every_order
def test_dynamic_shared_and_local_memory(emulated: dict, order: Order) -> None:
    x = np.arange(96, dtype=np.float32)
    emulated["mirror"][2, 48, 48 * 4](x, order=order)
    assert x.tolist() == np.concatenate([np.arange(48)[::-1], np.arange(48, 96)[::-1]]).tolist()
    places = np.arange(96, dtype=np.int32) % 8
    expected = x * places
    emulated["chosen"][3, 32](x, places, order=order)
    assert x.tolist() == expected.tolist()


def random_expression(draw: np.random.Generator, depth: int) -> str:
    """A float32 expression in x, y and z that means the same to NumPy; no product is in a sum, which would be fused."""
    if depth == 0:
        return str(draw.choice(["x", "y", "z"]))
    a, b, c = (random_expression(draw, depth - 1) for _ in range(3))
    forms = (
        "({a} + {b})",
        "({a} - {b})",
        "abs({a} * {b})",
        "({a} / {b})",
        "-{a}",
        "abs({a})",
        "sqrt(abs({a}))",
        "floor({a})",
    )
    forms += "copysign({a}, {b})", "({a} if {b} < {c} else {b})", "({a} if {b} >= {c} else {c})"
    return str(draw.choice(forms)).format(a=a, b=b, c=c)


def test_random_expressions_equal_numpy(draw: np.random.Generator) -> None:
    expressions = [random_expression(draw, depth) for depth in (1, 2, 3, 4) for _ in range(12)]
    values = "i = cuda.grid(1)\n    if i >= out.shape[1]: return\n    x = xs[i]; y = ys[i]; z = zs[i]"
    lines = "\n".join(f"    out[{k}, i] = {expression}" for k, expression in enumerate(expressions))
    names = {"cuda": cuda, "sqrt": math.sqrt, "floor": math.floor, "copysign": math.copysign}
    exec(f"def kernel(xs, ys, zs, out):\n    {values}\n{lines}", names)
    arrays = [(10 * draw.standard_normal(100)).astype(np.float32) for _ in range(3)]
    out = np.full((len(expressions), 100), np.nan, np.float32)
    ptx = compile.to_ptx(names["kernel"], (f1, f1, f1, f2))
    Emulated(ptx)[4, 32](*arrays, out)
    numpy = {"sqrt": np.sqrt, "floor": np.floor, "copysign": np.copysign}
    with np.errstate(all="ignore"):
        for expression, got in zip(expressions, out):
            expected = [eval(expression, numpy, dict(zip("xyz", three))) for three in zip(*arrays)]
            assert np.array_equal(got, np.array(expected, np.float32), equal_nan=True), expression


FUNCTIONS = {
    **dict.fromkeys(
        ["exp", "expm1", "sinh", "cosh", "tanh", "asinh", "atan", "erf", "sin", "cos", "tan"], (-12.0, 12.0)
    ),
    **dict.fromkeys(["log", "log1p", "sqrt", "lgamma", "gamma"], (0.01, 20.0)),
    **dict.fromkeys(["asin", "acos", "atanh", "erfc"], (-0.99, 0.99)),
    "acosh": (1.01, 50.0),
}


@pytest.mark.parametrize(
    ("array", "dtype", "tolerance"), [(float32[:, ::1], "f4", 4e-6), (float64[:, ::1], "f8", 1e-14)]
)
def test_mathematical_functions(array: object, dtype: str, tolerance: float) -> None:
    names = {"cuda": cuda, **{name: getattr(math, name) for name in FUNCTIONS}}
    lines = "\n".join(f"    y[{k}, i] = {name}(x[{k}, i])" for k, name in enumerate(FUNCTIONS))
    exec(f"def kernel(x, y):\n    i = cuda.grid(1)\n{lines}", names)
    x = np.array([np.linspace(low, high, 64) for low, high in FUNCTIONS.values()], dtype)
    y = np.zeros_like(x)
    Emulated(compile.to_ptx(names["kernel"], (array, array)))[2, 32](x, y)
    for name, given, got in zip(FUNCTIONS, x, y):
        expected = [getattr(math, name)(each) for each in given.tolist()]
        np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance, err_msg=name)


def test_calls_branch_tables_and_vectors() -> None:
    ptx = f"""{HEAD}
.const .align 4 .f32 table[3] = {{0f3F800000, 0f40000000, 0f40400000}};
.func (.param .b64 result) twice(.param .b32 low, .param .align 8 .b8 pair[16])
{{
    .reg .b64 %x<4>;
    .reg .b32 %n;
    ld.param.u32 %n, [low];
    ld.param.v2.u64 {{%x0, %x1}}, [pair];
    cvt.u64.u32 %x2, %n;
    add.u64 %x3, %x0, %x1;
    mad.lo.u64 %x3, %x3, 2, %x2;
    st.param.b64 [result], %x3;
    ret;
}}
.visible .entry kernel(.param .u64 out, .param .align 8 .b8 both[16], .param .f32 scale)
{{
    .reg .b64 %r<6>;
    .reg .b32 %n, %m<4>;
    .reg .f32 %f<3>;
    .reg .pred %p;
    ld.param.u64 %r0, [out];
    ld.param.u64 %r1, [both];
    ld.param.u64 %r2, [both+8];
    mov.u32 %n, %tid.x;
    mul.wide.u32 %r3, %n, 16;
    add.u64 %r0, %r0, %r3;
    setp.gt.u32 %p, %n, 2;
    @%p bra DONE;
    {{
        .reg .b32 %n;
        .param .b32 first;
        .param .align 8 .b8 second[16];
        .param .b64 result;
        mov.u32 %n, 5;
        st.param.b32 [first+0], %n;
        st.param.v2.u64 [second+0], {{%r1, %r2}};
        call.uni (result), twice, (first, second);
        ld.param.b64 %r4, [result+0];
    }}
    mov.u64 %r5, table;
    mul.wide.u32 %r3, %n, 4;
    add.u64 %r5, %r5, %r3;
    ld.const.f32 %f0, [%r5];
    ld.param.f32 %f1, [scale];
    mul.f32 %f2, %f0, %f1;
    CASES: .branchtargets ZERO, ONE, TWO;
    brx.idx %n, CASES;
ZERO:
    mov.u32 %m0, 100;
    bra STORE;
ONE:
    mov.u32 %m0, 200;
    bra STORE;
TWO:
    mov.u32 %m0, 300;
STORE:
    cvt.u32.u64 %m1, %r4;
    mov.b32 %m2, %f2;
    mov.u32 %m3, 7;
    st.global.v4.u32 [%r0], {{%m0, %m1, %m2, %m3}};
DONE:
    ret;
}}
"""
    out = np.zeros((4, 4), np.int32)
    memory = [np.lib.array_utils.byte_bounds(out)]
    both = 10 | 20 << 64
    Emulated(ptx)[1, 4](out.ctypes.data, both, 0.5, memory=memory)
    assert out[:, [0, 1, 3]].tolist() == [[100, 65, 7], [200, 65, 7], [300, 65, 7], [0, 0, 0]]
    assert out[:, 2].view(np.float32).tolist() == [0.5, 1, 1.5, 0]


def test_arguments_are_checked(emulated: dict) -> None:
    with pytest.raises(ValueError, match=r"mirror.*needs 7 parameters, got 2 \(an array counts as 5 \+ 2 for each dim"):
        emulated["mirror"][1, 1](1, 2)
    with pytest.raises(ValueError, match="at most 1024 threads a block, got 2048"):
        emulated["mirror"][1, 2048](np.zeros(3, np.float32))


def test_random_orders_differ_by_seed_and_repeat() -> None:
    def kernel(x, turn):
        i = cuda.grid(1)
        x[cuda.atomic.add(turn, 0, 1)] = i

    emulated = Emulated(compile.to_ptx(kernel, (i1, i1)))
    found = {}
    for order, seed in [("forward", 0), ("reverse", 0), ("random", 1), ("random", 2), ("random", 1)]:
        x = np.zeros(64, np.int32)
        emulated[2, 32](x, np.zeros(1, np.int32), order=order, seed=seed)
        assert found.setdefault((order, seed), x.tolist()) == x.tolist()
    assert found["forward", 0] == list(range(64)) == found["reverse", 0][::-1]
    assert len(set(map(tuple, found.values()))) == 4
