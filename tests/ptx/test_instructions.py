"""Every instruction of the emulator against its meaning, in kernels of PTX written here."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from ptx import build, compile
from ptx.emulator import Emulated
from ptx.parse import UnknownPtxError, size_of

compile.require(build.missing())

HEAD = ".version 8.0\n.target sm_80\n.address_size 64\n"
DTYPES = {"f32": np.float32, "f64": np.float64, **{f"{k}{n}": np.dtype(f"{'i' if k == 's' else 'u'}{n // 8}") for k in "su" for n in (16, 32, 64)}}  # fmt: skip
Row = tuple[str, str, Callable[..., Any]]  # instruction, type of its result, meaning


def table_kernel(kind: str, rows: list[Row]) -> str:
    """A kernel whose thread i applies every row to (a[i], b[i], c[i]); results lie in slots of 8 bytes, row by row."""
    bits = 8 * size_of(kind)
    code = []
    for text, result, _ in rows:
        slot = {8: "%out64", 4: "%out32", 2: "%out16"}[4 if result == "pred" else size_of(result)]
        names = {"A": "%a", "B": "%b", "C": "%c", "D": "%flag" if result == "pred" else slot}
        code.append(re.sub(r"\b[ABCD]\b", lambda name: names[name[0]], text) + ";")
        if result == "pred":
            code.append("selp.u32 %out32, 1, 0, %flag;")
        code.append(f"st.global.b{slot[-2:]} [%slot], {slot};\nadd.u64 %slot, %slot, %stride;")
    loads = "\n".join(
        f"ld.param.u64 %p, [{name}];\nmul.wide.u32 %o, %tid_, {bits // 8};\nadd.u64 %p, %p, %o;\nld.global.b{bits} %{name}, [%p];"
        for name in "abc"
    )
    return f"""{HEAD}
.visible .entry table(.param .u64 a, .param .u64 b, .param .u64 c, .param .u64 d)
{{
    .reg .pred %flag, %other;
    .reg .b16 %out16;
    .reg .b32 %tid_, %out32, %low, %high;
    .reg .b64 %out64, %p, %o, %slot, %stride;
    .reg .b{bits} %a, %b, %c;
    mov.u32 %tid_, %tid.x;
    {loads}
    ld.param.u64 %slot, [d];
    mul.wide.u32 %o, %tid_, 8;
    add.u64 %slot, %slot, %o;
    mov.u32 %out32, %ntid.x;
    mul.wide.u32 %stride, %out32, 8;
    {" ".join(code)}
    ret;
}}
"""


def results_of(kind: str, rows: list[Row], values: list[np.ndarray]) -> list[np.ndarray]:
    """The results of every row for all values."""
    count = len(values[0])
    slots = np.zeros((len(rows), count), dtype=np.uint64)
    memory = [np.lib.array_utils.byte_bounds(each) for each in (*values, slots)]
    addresses = [each.ctypes.data for each in (*values, slots)]
    Emulated(table_kernel(kind, rows)).launch(1, count, *addresses, memory=memory)
    dtypes = [np.dtype(np.uint32) if result == "pred" else np.dtype(DTYPES[result]) for _, result, _ in rows]
    return [slot.view(dtype)[:: 8 // dtype.itemsize] for slot, dtype in zip(slots, dtypes)]


def wrapped(number: int, kind: str) -> int:
    """An integer modulo the range of a type."""
    bits = 8 * size_of(kind)
    number &= 2**bits - 1
    return number - 2**bits if kind[0] == "s" and number >= 2 ** (bits - 1) else number


def quotient(a: int, b: int) -> int:
    return -1 if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def integer_rows(kind: str) -> list[Row]:
    """What holds for all integer types of 32 and 64 bits."""
    bits, bare = 8 * size_of(kind), "b" + kind[1:]
    unsigned = "u" + kind[1:]
    rows: list[Row] = [
        (f"add.{kind} D, A, B", kind, lambda a, b, c: a + b),
        (f"sub.{kind} D, A, B", kind, lambda a, b, c: a - b),
        (f"mul.lo.{kind} D, A, B", kind, lambda a, b, c: a * b),
        (f"mul.hi.{kind} D, A, B", kind, lambda a, b, c: a * b >> bits),
        (f"mad.lo.{kind} D, A, B, C", kind, lambda a, b, c: a * b + c),
        (f"mad.hi.{kind} D, A, B, C", kind, lambda a, b, c: (a * b >> bits) + c),
        (f"div.{kind} D, A, B", kind, lambda a, b, c: quotient(a, b)),
        (f"rem.{kind} D, A, B", kind, lambda a, b, c: a - b * quotient(a, b) if b else a),
        (f"min.{kind} D, A, B", kind, lambda a, b, c: min(a, b)),
        (f"max.{kind} D, A, B", kind, lambda a, b, c: max(a, b)),
        (f"and.{bare} D, A, B", kind, lambda a, b, c: a & b),
        (f"or.{bare} D, A, B", kind, lambda a, b, c: a | b),
        (f"xor.{bare} D, A, B", kind, lambda a, b, c: a ^ b),
        (f"not.{bare} D, A", kind, lambda a, b, c: ~a),
        (f"shl.{bare} D, A, 5", kind, lambda a, b, c: a << 5),
        (f"shl.{bare} D, A, {bits}", kind, lambda a, b, c: 0),
        (f"shr.{kind} D, A, 5", kind, lambda a, b, c: a >> 5),
        (f"shr.{kind} D, A, {bits}", kind, lambda a, b, c: a >> bits),
        (f"popc.{bare} D, A", "u32", lambda a, b, c: wrapped(a, unsigned).bit_count()),
        (f"clz.{bare} D, A", "u32", lambda a, b, c: bits - wrapped(a, unsigned).bit_length()),
        (f"brev.{bare} D, A", unsigned, lambda a, b, c: int(f"{wrapped(a, unsigned):0{bits}b}"[::-1], 2)),
        (f"bfind.{kind} D, A", "u32", lambda a, b, c: (a if a >= 0 else ~a).bit_length() - 1),
        (f"bfe.{kind} D, A, 3, 7", kind, lambda a, b, c: wrapped(a >> 3 << (bits - 7), kind) >> (bits - 7)),
        (f"bfi.{bare} D, A, B, 4, 9", kind, lambda a, b, c: (a & 511) << 4 | (b & ~(511 << 4))),
        (f"selp.{bare} D, A, B, 1", kind, lambda a, b, c: a),
        (f"mov.{bare} D, -7", kind, lambda a, b, c: -7),
        (f"setp.lt.{kind} %other, A, B;\n@%other add.{kind} D, A, 1;\n@!%other mov.{bare} D, B", kind, lambda a, b, c: a + 1 if a < b else b),
        (f"cvt.u16.{kind} D, A", "u16", lambda a, b, c: a),
        (f"cvt.s64.{kind} D, A", "s64", lambda a, b, c: a),
        ("cvt.s64.s8 D, A", "s64", lambda a, b, c: wrapped(a, "s8")),
        (f"cvt.sat.s16.{kind} D, A", "s16", lambda a, b, c: max(-(2**15), min(2**15 - 1, a))),
        (f"cvt.rn.f32.{kind} D, A", "f32", lambda a, b, c: np.dtype(DTYPES[kind]).type(a).astype(np.float32)),
        (f"cvt.rn.f64.{kind} D, A", "f64", lambda a, b, c: float(a)),
        (f"add.cc.{unsigned} %out{bits}, A, B;\naddc.{unsigned} D, C, 0", unsigned,
         lambda a, b, c: c + (wrapped(a, unsigned) + wrapped(b, unsigned) >> bits)),
        (f"sub.cc.{unsigned} %out{bits}, A, B;\nsubc.{unsigned} D, C, 0", unsigned,
         lambda a, b, c: c - (wrapped(a, unsigned) < wrapped(b, unsigned))),
        (f"mad.lo.cc.{unsigned} %out{bits}, A, B, C;\nmadc.hi.{unsigned} D, A, B, 0", unsigned,
         lambda a, b, c: wrapped(a, unsigned) * wrapped(b, unsigned) + wrapped(c, unsigned) >> bits),
    ]  # fmt: skip
    if kind[0] == "s":
        rows += [
            (f"neg.{kind} D, A", kind, lambda a, b, c: -a),
            (f"abs.{kind} D, A", kind, lambda a, b, c: abs(a)),
        ]
    if bits == 32:
        rows += [
            (f"mul.wide.{kind} D, A, B", kind[0] + "64", lambda a, b, c: a * b),
            (f"mad.wide.{kind} D, A, B, 9", kind[0] + "64", lambda a, b, c: a * b + 9),
            ("shf.l.wrap.b32 D, A, B, 7", "u32", lambda a, b, c: (wrapped(b, "u32") << 32 | wrapped(a, "u32")) << 7 >> 32),
            ("shf.r.clamp.b32 D, A, B, 40", "u32", lambda a, b, c: b),
            ("prmt.b32 D, A, B, 0x9410", "u32", lambda a, b, c: a & 0xFFFF | (b & 255) << 16 | (255 if a & 0x8000 else 0) << 24),
            ("lop3.b32 D, A, B, C, 0x96", "u32", lambda a, b, c: a ^ b ^ c),
            ("lop3.b32 D, A, B, C, 0xCA", "u32", lambda a, b, c: a & b | ~a & c),
        ]  # fmt: skip
    else:
        rows += [
            ("mov.b64 {%low, %high}, A;\nadd.u32 D, %low, %high", "u32", lambda a, b, c: (a & 0xFFFFFFFF) + (a >> 32)),
            ("mov.b64 {%low, %high}, A;\nmov.b64 D, {%high, %low}", "u64", lambda a, b, c: (a & 0xFFFFFFFF) << 32 | (a >> 32 & 0xFFFFFFFF)),
        ]  # fmt: skip
    signs = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
    signs |= {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="} if kind[0] == "u" else {}
    for name, sign in signs.items():
        rows.append((f"setp.{name}.{kind} D, A, B", "pred", eval(f"lambda a, b, c: a {sign} b")))
    return rows


@pytest.mark.parametrize("kind", ["s32", "u32", "s64", "u64"])
def test_integers(kind: str) -> None:
    rows = integer_rows(kind)
    dtype, draw = np.dtype(DTYPES[kind]), np.random.default_rng(3)
    limits = np.iinfo(dtype)
    edges = np.array([0, 1, 2, 31, limits.max, limits.min, limits.max - 1], dtype=dtype)
    values = [np.concatenate([np.repeat(edges, 7), draw.integers(limits.min, limits.max, 150, dtype)]) for _ in "abc"]
    values[1][:49] = np.tile(edges, 7)
    for (text, result, meaning), got in zip(rows, results_of(kind, rows, values)):
        expected = [meaning(*(int(value) for value in three)) for three in zip(*values)]
        if result[0] in "su":
            expected = [wrapped(int(each), result) for each in expected]
        assert got.tolist() == expected, text


def to_integer(kind: str, rounding: Callable[[float], int]) -> Callable[..., int]:
    """Conversion of a float: clamped, NaN becomes 0."""
    limits = np.iinfo(DTYPES[kind])
    return lambda a, b, c: (
        0 if math.isnan(a) else int(max(limits.min, min(limits.max, a if math.isinf(a) else rounding(float(a)))))
    )


def exactly(operation: Callable[..., Fraction], towards: float) -> Callable[..., float]:
    """A float32 operation rounded towards -inf, inf or (0.0) zero."""

    def rounded(*values: float) -> float:
        exact = operation(*(Fraction(float(value)) for value in values))
        near = np.float32(float(exact))
        goal = np.float32(towards if towards else 0)
        beyond = Fraction(float(near)) > exact if towards == -math.inf else Fraction(float(near)) < exact
        if towards == 0:
            beyond = abs(Fraction(float(near))) > abs(exact)
        return float(np.nextafter(near, goal) if beyond else near)

    return rounded


def float_rows(kind: str) -> list[Row]:
    """What holds for both float types; the meanings work on numbers of that type."""
    dtype = DTYPES[kind]
    rows: list[Row] = [
        (f"add.{kind} D, A, B", kind, lambda a, b, c: a + b),
        (f"sub.{kind} D, A, B", kind, lambda a, b, c: a - b),
        (f"mul.{kind} D, A, B", kind, lambda a, b, c: a * b),
        (f"div.rn.{kind} D, A, B", kind, lambda a, b, c: a / b),
        (f"rcp.rn.{kind} D, A", kind, lambda a, b, c: dtype(1) / a),
        (f"sqrt.rn.{kind} D, A", kind, lambda a, b, c: np.sqrt(a)),
        (f"neg.{kind} D, A", kind, lambda a, b, c: -a),
        (f"abs.{kind} D, A", kind, lambda a, b, c: abs(a)),
        (f"min.{kind} D, A, B", kind, lambda a, b, c: np.fmin(a, b)),
        (f"max.{kind} D, A, B", kind, lambda a, b, c: np.fmax(a, b)),
        (f"copysign.{kind} D, A, B", kind, lambda a, b, c: np.copysign(b, a)),
        (f"cvt.rni.{kind}.{kind} D, A", kind, lambda a, b, c: np.rint(a)),
        (f"cvt.rzi.{kind}.{kind} D, A", kind, lambda a, b, c: np.trunc(a)),
        (f"cvt.rmi.{kind}.{kind} D, A", kind, lambda a, b, c: np.floor(a)),
        (f"cvt.rpi.{kind}.{kind} D, A", kind, lambda a, b, c: np.ceil(a)),
        (f"cvt.sat.{kind}.{kind} D, A", kind, lambda a, b, c: min(max(a, dtype(0)), dtype(1)) if a == a else 0),
        (f"cvt.rzi.s32.{kind} D, A", "s32", to_integer("s32", math.trunc)),
        (f"cvt.rni.s64.{kind} D, A", "s64", to_integer("s64", round)),
        (f"cvt.rmi.u32.{kind} D, A", "u32", to_integer("u32", math.floor)),
        (f"cvt.rpi.u64.{kind} D, A", "u64", to_integer("u64", math.ceil)),
        (f"testp.finite.{kind} D, A", "pred", lambda a, b, c: np.isfinite(a)),
        (f"testp.notanumber.{kind} D, A", "pred", lambda a, b, c: np.isnan(a)),
    ]
    for name, sign in {"eq": "==", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}.items():
        rows.append((f"setp.{name}.{kind} D, A, B", "pred", eval(f"lambda a, b, c: a {sign} b")))
        rows.append((f"setp.{name}u.{kind} D, A, B", "pred", eval(f"lambda a, b, c: a {sign} b or a != a or b != b")))
    rows += [
        (f"setp.ne.{kind} D, A, B", "pred", lambda a, b, c: a != b and a == a and b == b),
        (f"setp.neu.{kind} D, A, B", "pred", lambda a, b, c: a != b),
        (f"setp.num.{kind} D, A, B", "pred", lambda a, b, c: a == a and b == b),
        (f"setp.nan.{kind} D, A, B", "pred", lambda a, b, c: a != a or b != b),
        (f"setp.lt.{kind} %other, A, B;\nsetp.gt.and.{kind} D, A, C, %other", "pred", lambda a, b, c: c < a < b),
        (f"setp.lt.{kind} D|%other, A, B;\nnot.pred D, %other", "pred", lambda a, b, c: a < b),
    ]
    return rows


@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_floats(kind: str) -> None:
    rows = float_rows(kind)
    dtype, draw = DTYPES[kind], np.random.default_rng(4)
    edges = np.array([0.0, -0.0, 1, -2.5, 3.5, np.inf, -np.inf, np.nan, 1e-40, 3e9, -1e19], dtype=dtype)
    count = len(edges)
    values = [np.concatenate([np.repeat(edges, count), draw.standard_normal(200).astype(dtype) * 50]) for _ in "abc"]
    values[1][: count**2] = np.tile(edges, count)
    results = results_of(kind, rows, values)
    with np.errstate(all="ignore"):
        for (text, result, meaning), got in zip(rows, results):
            expected = [meaning(*three) for three in zip(*values)]
            if result in ("f32", "f64"):
                assert np.array_equal(got, np.array(expected, dtype=DTYPES[result]), equal_nan=True), text
            else:
                assert got.tolist() == [int(each) for each in expected], text


def test_fused_and_directed_arithmetic_is_exact() -> None:
    rows: list[Row] = [
        ("fma.rn.f32 D, A, B, C", "f32", lambda a, b, c: np.float32(float(Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))))),
        ("fma.rm.f32 D, A, B, C", "f32", exactly(lambda a, b, c: a * b + c, -math.inf)),
        ("fma.rz.f32 D, A, B, C", "f32", exactly(lambda a, b, c: a * b + c, 0)),
        ("add.rp.f32 D, A, B", "f32", exactly(lambda a, b, c: a + b, math.inf)),
        ("mul.rm.f32 D, A, B", "f32", exactly(lambda a, b, c: a * b, -math.inf)),
    ]  # fmt: skip
    draw = np.random.default_rng(5)
    values = [draw.standard_normal(300).astype(np.float32) for _ in "abc"]
    for (text, _, meaning), got in zip(rows, results_of("f32", rows, values)):
        assert got.tolist() == [float(meaning(*three)) for three in zip(*values)], text


def test_approximations_and_flushing() -> None:
    rows: list[Row] = [
        ("ex2.approx.f32 D, A", "f32", np.exp2),
        ("lg2.approx.f32 D, B", "f32", lambda a, b, c: np.log2(b)),
        ("rsqrt.approx.f32 D, B", "f32", lambda a, b, c: 1 / np.sqrt(b)),
        ("sin.approx.f32 D, A", "f32", np.sin),
        ("cos.approx.f32 D, A", "f32", np.cos),
        ("tanh.approx.f32 D, A", "f32", np.tanh),
        ("div.full.f32 D, A, B", "f32", lambda a, b, c: a / b),
    ]
    rows = [(text, kind, meaning if isinstance(meaning, type(lambda: 0)) else lambda a, b, c, f=meaning: f(a)) for text, kind, meaning in rows]  # fmt: skip
    rows += [
        ("mul.ftz.f32 D, A, 0f00800000", "f32", lambda a, b, c: a * np.float32(2**-126) if abs(a) >= 1 else a * 0),
        ("mul.f32 D, A, 0f00800000", "f32", lambda a, b, c: a * np.float32(2**-126)),
    ]
    draw = np.random.default_rng(6)
    values = [draw.standard_normal(100).astype(np.float32) for _ in "abc"]
    values[1] = abs(values[1])
    for (text, _, meaning), got in zip(rows, results_of("f32", rows, values)):
        expected = np.array([meaning(*three) for three in zip(*values)], dtype=np.float32)
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=0, err_msg=text)


def test_what_is_not_known_is_an_error() -> None:
    text = table_kernel("s32", [("dp4a.s32.s32 D, A, B, C", "s32", max)])
    with pytest.raises(UnknownPtxError, match=r"line \d+: dp4a.s32.s32 %out32, %a, %b, %c: dp4a.s32.s32"):
        Emulated(text).launch(1, 1, 0, 0, 0, 0)
    with pytest.raises(UnknownPtxError, match="no kernel"):
        Emulated(HEAD)
