"""Elementwise functions of two operands; an axis of size 1, a missing trailing axis and a mini-batch of 1 stretch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dynjit import scalars
from dynjit.errors import ShapeError
from dynjit.jit import scalar
from dynjit.op import Case, define, native
from dynjit.scalars import ONE
from dynjit.shape import Result, Shape

AXES = 4  # loops of a kernel, after axes that stretch alike have been joined


def stretched(operator: str, a: Shape, b: Shape) -> Result:
    """Shape rule: axes are compared from the left.  ints: per loop its length and both operands' strides."""
    rank = max(len(a.dims), len(b.dims))
    dims, loops = [], [[1, 0, 0]]
    inner_a = inner_b = 1
    for axis in range(rank):
        m, n = a.dim(axis), b.dim(axis)
        if (m != n and 1 not in (m, n)) or (a.batch != b.batch and 1 not in (a.batch, b.batch)):
            raise ShapeError(operator, "axes that are equal or 1, counted from the left, and mini-batches likewise", a, b)
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


def binary(
    name: str,
    function: Callable,
    slope0: Callable,
    slope1: Callable,
    *,
    reference: Callable,
    doc: str,
    cases: tuple[Case, ...] = CASES,
) -> Callable[[Any, Any], Any]:
    """The public function z = function(x, y), with dz/dx = slope0(x, y, z) and dz/dy = slope1(x, y, z)."""
    function, slope0, slope1 = scalar(function), scalar(slope0), scalar(slope1)

    def forward(v, x0, x1, y, item, batch, step0, step1, ints):  # type: ignore[no-untyped-def]
        if ints[0] == item and ints[1] == 1 and ints[2] == 1:  # both operands have the result's shape
            if step0 == item and step1 == item:
                item, batch = item * batch, 1
            for b in range(batch):
                p, q = v[x0 + b * step0 : x0 + b * step0 + item], v[x1 + b * step1 : x1 + b * step1 + item]
                out = v[y + b * item : y + (b + 1) * item]
                for i in range(item):
                    out[i] = function(p[i], q[i])
            return
        i = y
        for b in range(batch):
            for w in range(ints[9]):
                for k in range(ints[6]):
                    for c in range(ints[3]):
                        at0 = x0 + b * step0 + w * ints[10] + k * ints[7] + c * ints[4]
                        at1 = x1 + b * step1 + w * ints[11] + k * ints[8] + c * ints[5]
                        for r in range(ints[0]):
                            v[i] = function(v[at0 + r * ints[1]], v[at1 + r * ints[2]])
                            i += 1

    def gradient(slope, to0):  # type: ignore[no-untyped-def]
        def d(v, g, x0, x1, y, item, batch, step0, step1, ints):  # type: ignore[no-untyped-def]
            if ints[0] == item and ints[1] == 1 and ints[2] == 1:
                if step0 == item and step1 == item:
                    item, batch = item * batch, 1
                for b in range(batch):
                    at0, at1, at = x0 + b * step0, x1 + b * step1, y + b * item
                    p, q, out, dz = v[at0 : at0 + item], v[at1 : at1 + item], v[at : at + item], g[at : at + item]
                    to = g[at0 : at0 + item] if to0 else g[at1 : at1 + item]
                    for i in range(item):
                        to[i] += dz[i] * slope(p[i], q[i], out[i])
                return
            i = y
            for b in range(batch):
                for w in range(ints[9]):
                    for k in range(ints[6]):
                        for c in range(ints[3]):
                            at0 = x0 + b * step0 + w * ints[10] + k * ints[7] + c * ints[4]
                            at1 = x1 + b * step1 + w * ints[11] + k * ints[8] + c * ints[5]
                            for r in range(ints[0]):
                                p, q = at0 + r * ints[1], at1 + r * ints[2]
                                g[p if to0 else q] += g[i] * slope(v[p], v[q], v[i])
                                i += 1

        return d

    d0, d1 = gradient(slope0, True), gradient(slope1, False)
    forward.__name__, d0.__name__, d1.__name__ = f"{name}_forward", f"{name}_d0", f"{name}_d1"

    def rule(a: Shape, b: Shape) -> Result:
        return stretched(name, a, b)

    def stretching_reference(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        rank = max(x.ndim, y.ndim)
        return reference(aligned(x, rank), aligned(y, rank))  # type: ignore[no-any-return]

    operator = define(name, shape=rule, params="xx", forward=forward, backward=(d0, d1),
                      reference=stretching_reference, cases=cases)  # fmt: skip

    def public(x, y):  # type: ignore[no-untyped-def]
        return operator(x, y)

    public.__name__ = public.__qualname__ = name
    public.__module__ = __name__
    public.__doc__ = f"""{doc}

    x, y: shapes that are equal but for axes of size 1 (or missing behind), which stretch; mini-batches equal or 1.
    Raises ShapeError for other shapes.
    """
    return native(operator)(public)


POSITIVE = tuple(Case(case.shapes, 0.5, 2) for case in CASES)


@scalar
def first(x, y, z):  # type: ignore[no-untyped-def]
    return x


@scalar
def second(x, y, z):  # type: ignore[no-untyped-def]
    return y


add = binary("add", lambda x, y: x + y, lambda x, y, z: ONE, lambda x, y, z: ONE,
    reference=lambda x, y: x + y, doc="x + y, elementwise.")  # fmt: skip
subtract = binary("subtract", lambda x, y: x - y, lambda x, y, z: ONE, lambda x, y, z: -ONE,
    reference=lambda x, y: x - y, doc="x - y, elementwise.")  # fmt: skip
cmult = binary("cmult", lambda x, y: x * y, second, first,
    reference=lambda x, y: x * y, doc="x * y, elementwise.")  # fmt: skip
cdiv = binary("cdiv", lambda x, y: x / y, lambda x, y, z: ONE / y, lambda x, y, z: -z / y,
    reference=lambda x, y: x / y, cases=POSITIVE, doc="x / y, elementwise.")  # fmt: skip
power = binary("pow", lambda x, y: x**y, lambda x, y, z: y * x ** (y - ONE), lambda x, y, z: z * scalars.log(x),
    reference=lambda x, y: x**y, cases=POSITIVE, doc="x to the power of y, elementwise.")  # fmt: skip
