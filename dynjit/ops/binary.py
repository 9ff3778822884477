"""Elementwise functions of two operands; an axis of size 1, a missing trailing axis and a mini-batch of 1 stretch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dynjit.errors import ShapeError
from dynjit.jit import scalar, scalar_of_all
from dynjit.op import Case, define, names_of, native
from dynjit.scalars import ONE, ZERO, log, power_slope
from dynjit.shape import Result, Shape

AXES = 4  # loops of a kernel, after axes that stretch alike have been joined


def stretched(operator: str, a: Shape, b: Shape) -> Result:
    """Shape rule: axes are compared from the left.  ints: per loop its length and both operands' strides."""
    rank = max(len(a.dims), len(b.dims))
    dims, loops = [], [[1, 0, 0]]
    inner_a = inner_b = 1
    for axis in range(rank):
        m, n = a.dim(axis), b.dim(axis)
        if m != n and 1 not in (m, n):
            raise ShapeError(operator, "axes that are equal or 1, counted from the left", a, b)
        size = m if n == 1 else n
        dims.append(size)
        step_a, step_b = (inner_a if m > 1 else 0), (inner_b if n > 1 else 0)
        inner_a, inner_b = inner_a * m, inner_b * n
        length, last_a, last_b = loops[-1]
        if size == 1:
            continue
        if length == 1:
            loops[-1] = [size, step_a, step_b]
        elif step_a == last_a * length and step_b == last_b * length:
            loops[-1][0] *= size
        else:
            loops.append([size, step_a, step_b])
    if a.batch != b.batch and 1 not in (a.batch, b.batch):
        raise ShapeError(operator, "mini-batches that are equal or 1", a, b)
    if len(loops) > AXES:
        raise ShapeError(operator, f"at most {AXES} alternations of stretched axes", a, b)
    loops += [[1, 0, 0]] * (AXES - len(loops))
    return Result(Shape(tuple(dims), max(a.batch, b.batch)), ints=tuple(number for loop in loops for number in loop))


def aligned(x: np.ndarray, rank: int) -> np.ndarray:
    """An array with axes of size 1 behind it, as left-aligned stretching has it."""
    return x.reshape(x.shape + (1,) * (rank - x.ndim))


CASES = (
    Case(((5,), (5,))), Case(((1,), (1,))), Case((((3, 4), 2), ((3, 4), 2))), Case((((3, 4), 2), (3, 4))),
    Case(((3, 4), ((3, 4), 2))), Case(((3, 4), (3,))), Case(((3, 1), (3, 4))), Case((((1, 4), 2), (3,))),
    Case(((2, 3, 4), (2, 1, 4))), Case(((1,), ((3, 2), 2))),
)  # fmt: skip


def onto(function: Callable) -> Callable:
    """A function of kernels that puts function(x, y) in the place of x; y may be one number."""

    @scalar
    def line(out, y):  # type: ignore[no-untyped-def]
        count = out.size
        if y.size == count:
            for i in range(count):
                out[i] = function(out[i], y[i])
        else:
            e = y[0]
            for i in range(count):
                out[i] = function(out[i], e)

    return line


def binary(
    name: str,
    function: Callable,
    slope0: Callable,
    slope1: Callable,
    *,
    reference: Callable,
    doc: str,
    cases: tuple[Case, ...] = CASES,
    shape: Callable[[str, Shape, Shape], Result] = stretched,
    overwrites: tuple[int, ...] = (),
) -> Callable[[Any, Any], Any]:
    """The public function z = function(x, y); dz/dx and dz/dy are the slopes of those of x, y, z that they name.

    overwrites: operands whose slope is one, in whose place the result may lie.
    """
    keeps_result = "z" in (*names_of(slope0), *names_of(slope1))
    function, slope0, slope1 = scalar(function), *(scalar_of_all(slope, "x", "y", "z") for slope in (slope0, slope1))

    @scalar
    def line(p, q, out):  # type: ignore[no-untyped-def]
        if p.size == q.size:
            for i in range(out.size):
                out[i] = function(p[i], q[i])
        elif p.size > q.size:
            e = q[0]
            for i in range(out.size):
                out[i] = function(p[i], e)
        else:
            e = p[0]
            for i in range(out.size):
                out[i] = function(e, q[i])

    # an array under two names would not be vector code: whether they overlap is asked while the program runs
    onto_first, onto_second = onto(function), onto(scalar(lambda x, y: function(y, x)))

    def forward(v, x0, x1, y, item, batch, step0, step1, ints):  # type: ignore[no-untyped-def]
        run, run0, run1 = ints[0], max(ints[0] * ints[1], 1), max(ints[0] * ints[2], 1)
        if run == item and step0 == item and step1 == item:  # nothing stretches: one line of all
            run = run0 = run1 = item * batch
            batch = 1
        i = y
        for b in range(batch):
            for w in range(ints[9]):
                for k in range(ints[6]):
                    for c in range(ints[3]):
                        at0 = x0 + b * step0 + w * ints[10] + k * ints[7] + c * ints[4]
                        at1 = x1 + b * step1 + w * ints[11] + k * ints[8] + c * ints[5]
                        out = v[i : i + run]
                        if 0 in overwrites and x0 == y:
                            onto_first(out, v[at1 : at1 + run1])
                        elif 1 in overwrites and x1 == y:
                            onto_second(out, v[at0 : at0 + run0])
                        else:
                            line(v[at0 : at0 + run0], v[at1 : at1 + run1], out)
                        i += run

    def forward_cuda(v, x0, x1, y, item, batch, step0, step1, ints, thread, threads):  # type: ignore[no-untyped-def]
        for e in range(thread, item * batch, threads):
            at0, at1, rest = x0 + e // item * step0, x1 + e // item * step1, e % item
            for k in range(0, 3 * AXES, 3):
                c, rest = rest % ints[k], rest // ints[k]
                at0 += c * ints[k + 1]
                at1 += c * ints[k + 2]
            v[y + e] = function(v[at0], v[at1])

    def gradient_cuda(slope, own):  # type: ignore[no-untyped-def]
        @scalar
        def element(v, g, x0, x1, y, item, batch, step0, step1, ints, e, count, step):  # type: ignore[no-untyped-def]
            """The gradient of element e of an operand with `count` elements per mini-batch item."""
            first, behind = (e // count, e // count + 1) if step > 0 or batch == 1 else (0, batch)
            total = ZERO
            for b in range(first, behind):
                for repeat in range(item // count):
                    at0, at1, at, inner = x0 + b * step0, x1 + b * step1, y + b * item, 1
                    kept, stretched = e % count, repeat
                    for k in range(0, 3 * AXES, 3):
                        if ints[k + own] > 0:
                            c, kept = kept % ints[k], kept // ints[k]
                        else:
                            c, stretched = stretched % ints[k], stretched // ints[k]
                        at0 += c * ints[k + 1]
                        at1 += c * ints[k + 2]
                        at += c * inner
                        inner *= ints[k]
                    total += g[at] * slope(v[at0], v[at1], v[at])
            return total

        return element

    slope0_cuda, slope1_cuda = gradient_cuda(slope0, 1), gradient_cuda(slope1, 2)

    def d0_cuda(v, g, x0, x1, y, item, batch, step0, step1, ints, item0, n0, thread, threads):  # type: ignore[no-untyped-def]
        for e in range(thread, n0, threads):
            g[x0 + e] += slope0_cuda(v, g, x0, x1, y, item, batch, step0, step1, ints, e, item0, step0)

    def d1_cuda(v, g, x0, x1, y, item, batch, step0, step1, ints, item1, n1, thread, threads):  # type: ignore[no-untyped-def]
        for e in range(thread, n1, threads):
            g[x1 + e] += slope1_cuda(v, g, x0, x1, y, item, batch, step0, step1, ints, e, item1, step1)

    def gradient(slope, to0):  # type: ignore[no-untyped-def]
        @scalar
        def line_d(p, q, out, dz, to):  # type: ignore[no-untyped-def]
            if p.size == q.size:
                for i in range(out.size):
                    to[i] += dz[i] * slope(p[i], q[i], out[i])
                return
            total, e, f = ZERO, p[0], q[0]
            if p.size > q.size and to0:
                for i in range(out.size):
                    to[i] += dz[i] * slope(p[i], f, out[i])
            elif p.size > q.size:
                for i in range(out.size):
                    total += dz[i] * slope(p[i], f, out[i])
                to[0] += total
            elif to0:
                for i in range(out.size):
                    total += dz[i] * slope(e, q[i], out[i])
                to[0] += total
            else:
                for i in range(out.size):
                    to[i] += dz[i] * slope(e, q[i], out[i])

        def d(v, g, x0, x1, y, item, batch, step0, step1, ints):  # type: ignore[no-untyped-def]
            run, run0, run1 = ints[0], max(ints[0] * ints[1], 1), max(ints[0] * ints[2], 1)
            if run == item and step0 == item and step1 == item:
                run = run0 = run1 = item * batch
                batch = 1
            i = y
            for b in range(batch):
                for w in range(ints[9]):
                    for k in range(ints[6]):
                        for c in range(ints[3]):
                            at0 = x0 + b * step0 + w * ints[10] + k * ints[7] + c * ints[4]
                            at1 = x1 + b * step1 + w * ints[11] + k * ints[8] + c * ints[5]
                            to = g[at0 : at0 + run0] if to0 else g[at1 : at1 + run1]
                            line_d(v[at0 : at0 + run0], v[at1 : at1 + run1], v[i : i + run], g[i : i + run], to)
                            i += run

        return d

    d0, d1 = gradient(slope0, True), gradient(slope1, False)
    forward.__name__, d0.__name__, d1.__name__ = f"{name}_forward", f"{name}_d0", f"{name}_d1"

    def rule(a: Shape, b: Shape) -> Result:
        return shape(name, a, b)

    def stretching_reference(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        rank = max(x.ndim, y.ndim)
        return reference(aligned(x, rank), aligned(y, rank))  # type: ignore[no-any-return]

    operator = define(name, shape=rule, params="xx", forward=forward, backward=(d0, d1),
                      forward_cuda=forward_cuda, backward_cuda=(d0_cuda, d1_cuda), keeps_result=keeps_result,
                      overwrites=overwrites, reference=stretching_reference, cases=cases)  # fmt: skip

    def public(x, y):  # type: ignore[no-untyped-def]
        return operator(x, y)

    public.__name__ = public.__qualname__ = name
    public.__module__ = __name__
    shapes = "shapes that are equal but for axes of size 1 (or missing behind), which stretch"
    public.__doc__ = f"""{doc}

    x, y: {shapes if shape is stretched else "a matrix (rows, cols) and a vector (rows,)"}; mini-batches equal or 1.
    Raises ShapeError for other shapes.
    """
    return native(operator)(public)


def columns(operator: str, x: Shape, y: Shape) -> Result:
    """Shape rule: a matrix, and a vector that stretches over its columns."""
    if len(x.dims) != 2 or y.cols != 1 or y.rows != x.rows:
        raise ShapeError(operator, "x (rows, cols) and y (rows,)", x, y)
    return stretched(operator, x, y)


POSITIVE = tuple(Case(case.shapes, 0.5, 2) for case in CASES)


def power_result(operator: str, x: Shape, y: Shape) -> Result:
    """Shape rule: as `stretched`, without trailing axes of size 1 (as in DyNet)."""
    result = stretched(operator, x, y)
    return result._replace(shape=result.shape.truncated())


def power_slope1(x, z):  # type: ignore[no-untyped-def]
    return z * log(x) if z != ZERO else z  # at 0 the logarithm is infinite


add = binary("add", lambda x, y: x + y, lambda: ONE, lambda: ONE, overwrites=(0, 1),
    reference=lambda x, y: x + y, doc="x + y, elementwise.")  # fmt: skip
subtract = binary("subtract", lambda x, y: x - y, lambda: ONE, lambda: -ONE, overwrites=(0,),
    reference=lambda x, y: x - y, doc="x - y, elementwise.")  # fmt: skip
cmult = binary("cmult", lambda x, y: x * y, lambda y: y, lambda x: x,
    reference=lambda x, y: x * y, doc="x * y, elementwise.")  # fmt: skip
cdiv = binary("cdiv", lambda x, y: x / y, lambda y: ONE / y, lambda y, z: -z / y,
    reference=lambda x, y: x / y, cases=POSITIVE, doc="x / y, elementwise.")  # fmt: skip
power = binary("pow", lambda x, y: x**y, lambda x, y: power_slope(x, y), power_slope1,
    reference=lambda x, y: x**y, cases=POSITIVE, shape=power_result,
    doc="x to the power of y, elementwise; NaN for x < 0 and a y that is not whole.")  # fmt: skip
pow = power
bmin = binary("bmin", lambda x, y: x if x < y else y, lambda x, y: ONE if x < y else ZERO,
    lambda x, y: ZERO if x < y else ONE, reference=np.minimum,
    doc="The smaller of x and y, elementwise; where they are equal, y gets the gradient.")  # fmt: skip
bmax = binary("bmax", lambda x, y: x if x > y else y, lambda x, y: ONE if x > y else ZERO,
    lambda x, y: ZERO if x > y else ONE, reference=np.maximum,
    doc="The larger of x and y, elementwise; where they are equal, y gets the gradient.")  # fmt: skip
colwise_add = binary("colwise_add", lambda x, y: x + y, lambda: ONE, lambda: ONE, shape=columns,
    overwrites=(0, 1),
    reference=lambda x, y: x + y, doc="x_rc + y_r: adds a vector to every column of a matrix.",
    cases=(Case(((3, 4), (3,))), Case(((1, 1), (1,))), Case((((3, 4), 2), (3, 1))),
           Case(((3, 4), ((3,), 2)))))  # fmt: skip
