"""Operators whose threads share long lines: equal to the CPU's at lengths around those at which threads join in."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from ptx import build, compile

from dynjit import cudakernels, op
from dynjit.op import Case

compile.require(compile.missing(), build.missing())

from target.emulated import Device, Executor  # noqa: E402
from target.networks import close, computing_on  # noqa: E402
from target.test_operators import computed  # noqa: E402

SIZES = (1, 31, 32, 33, 255, 256, 257, 1000)
CASES: dict[str, Callable[[int], tuple[Case, ...]]] = {
    "softmax": lambda n: (Case(((n,),), -20, 20, (0,)), Case((((3, n), 2),), arguments=(1,))),
    "log_softmax": lambda n: (Case(((n,),), -20, 20), Case((((n, 3), 2),))),
    "pickneglogsoftmax": lambda n: (Case(((n,),), -20, 20, (n // 2,)),),
    "pickneglogsoftmax_batch": lambda n: (
        Case((((n,), 3),), arguments=((0, n - 1, n // 2),)), Case(((n,),), arguments=((n // 2, 0, n // 2),)),
    ),
    "logsumexp_dim": lambda n: (Case(((n,),), -20, 20, (0,)), Case((((3, n), 2),), arguments=(1,))),
    "squared_norm": lambda n: (Case(((n,),)), Case((((n, 3), 2),))),
    "sum_dim": lambda n: (
        Case((((n, 3), 2),), arguments=((0,), 0, 0)), Case((((3, n), 2),), arguments=((1,), 0, 0)),
        Case((((3, n, 2), 2),), arguments=((0, 2), 0, 0)), Case((((3, 2, n), 2),), arguments=((0, 2), 1, 0)),
        Case((((2, n, 3), 2),), arguments=((1,), 1, 0)),
    ),
    "std_dim": lambda n: (
        Case((((n, 3), 2),), arguments=((0,), 0, 0)), Case((((3, n, 2), 2),), arguments=((0, 2), 0, 0)),
        Case((((2, n, 3), 2),), arguments=((1,), 1, 0)),
    ),
    "l2_norm": lambda n: (Case((((n,), 2),)),),
    "layer_norm": lambda n: (
        Case(((n,), (n,), (n,))), Case((((n, 2), 3), (n,), (1,))), Case(((n,), ((n,), 3), ((n,), 3))),
    ),
    "weight_norm": lambda n: (Case(((n,), (1,))), Case(((n,), ((1,), 3))), Case((((n,), 3), (1,)))),
    "squared_distance": lambda n: (Case(((n,), (n,))), Case(((n,), ((n,), 3))), Case((((n,), 3), (n,)))),
}  # fmt: skip
OPERATORS = {operator.name: operator for operator in op.operators}
executor = Executor(Device(order="reverse"))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CASES)
def test_lines_of_all_lengths(name: str, size: int) -> None:
    operator = OPERATORS[name]
    for case in CASES[name](size):
        expected = computed(operator, case, 1)
        with computing_on(executor):
            found = computed(operator, case, 1)
        for a, b in zip((*found[0], *found[1]), (*expected[0], *expected[1]), strict=True):
            close(a, b)


@pytest.mark.parametrize("name", CASES)
def test_one_long_line_has_many_threads(name: str) -> None:
    assert cudakernels.form(OPERATORS[name].code * op.SLOTS)[1] == cudakernels.LINES


def test_infinite_and_missing_numbers_are_as_on_the_cpu() -> None:
    import dynjit as dy

    def values() -> list[np.ndarray]:
        dy.renew_cg()
        lines = [np.linspace(-3, 3, 100) for _ in range(4)]
        lines[1][70], lines[2][40], lines[3][:] = np.inf, np.nan, -np.inf
        xs = [dy.inputTensor(line) for line in lines]
        return [np.array(f(x).npvalue()) for x in xs for f in (dy.softmax, dy.log_softmax)]

    with np.errstate(all="ignore"):
        expected = values()
        with computing_on(executor):
            found = values()
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, 1e-5)
