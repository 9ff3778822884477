"""Each case of each operator's record goes through the same checks; to test a new operator, write its record."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest
from records import call, expected_value, shape_of

import dynjit as dy
from dynjit import backprop, graph, initializers, op, threads
from dynjit.gradcheck import WideGraph, check_nodes
from dynjit.ops import leaf

TABLE = [
    pytest.param(operator, case, id=f"{operator.name}-{i}")
    for operator in op.operators
    for i, case in enumerate(operator.cases)
]
EVERY_OPERATOR = [pytest.param(operator, id=operator.name) for operator in op.operators if not operator.leaf]


def random_of(operator: op.Operator, case: op.Case) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(repr((operator.name, case.shapes, case.arguments)).encode()))


def operands_of(operator: op.Operator, case: op.Case, random: np.random.Generator) -> list[Any]:
    """Inputs with random values of the case's domain."""
    return [
        leaf.add_leaf(leaf.INPUT, shape, random.uniform(case.low, case.high, shape.size))
        for shape in map(shape_of, case.shapes)
    ]


@pytest.fixture(autouse=True)
def new_graph() -> None:
    graph.current.renew()


@pytest.mark.parametrize(("operator", "case"), TABLE)
def test_forward_equals_reference(operator: op.Operator, case: op.Case) -> None:
    if operator.reference is None:
        pytest.skip("the record has no reference: its values are random")
    operands = operands_of(operator, case, random_of(operator, case))
    y = call(operator, operands, case)
    arrays = [np.array(graph.current.value(x._node()), float) for x in operands]
    y.forward()
    expected = expected_value(operator, case, arrays, graph.current.shape(y._node()))
    wide = WideGraph(graph.current)
    wide.forward()
    np.testing.assert_allclose(wide.window(y._node()), expected, rtol=1e-9, atol=1e-9)
    scale = max(1.0, float(np.abs(expected[np.isfinite(expected)]).max(initial=0)))
    np.testing.assert_allclose(graph.current.value(y._node()), expected, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize(("operator", "case"), TABLE)
def test_gradient_equals_central_differences(operator: op.Operator, case: op.Case) -> None:
    random = random_of(operator, case)
    operands = operands_of(operator, case, random)
    y = call(operator, operands, case)
    y.forward()
    if op.TABLE[operator.code]["flags"] & op.NO_GRADIENT or case.no_difference:
        pytest.skip("no gradient flows, or (by its record) not that of the function")
    wide = WideGraph(graph.current)
    dy = random.uniform(0.5, 1, graph.current.shape(y._node()).size)
    kernels = operator.backward * (len(operands) if operator.is_list else 1)
    nodes = [x._node() for x, kernel in zip(operands, kernels or (True,), strict=False) if kernel]
    assert check_nodes(wide, y._node(), nodes, dy, step=case.step) < case.tolerance


@pytest.mark.parametrize(("operator", "case"), TABLE)
def test_value_is_written_whole_and_gradients_add_up(operator: op.Operator, case: op.Case) -> None:
    operands = operands_of(operator, case, random_of(operator, case))
    y = call(operator, operands, case)
    y.forward()
    value = graph.current.value(y._node())
    before = value.copy()
    if not operator.view:
        value[:] = np.nan
    y.forward(recalculate=True)
    np.testing.assert_array_equal(graph.current.value(y._node()), before)
    gradients = [graph.current.gradient(x._node()) for x in operands]
    whole = graph.current.gradient(y._node())
    results = []
    for rounds in (1, 2):
        backprop.start_backward.call(graph.current.address, y._node(), 1)
        for _ in range(rounds):
            whole[:] = 1
            graph.current.header.cursor = graph.current.header.call_count
            graph.current.run_backward()
        results.append([gradient.copy() for gradient in gradients])
    if operator.view:
        return
    for once, twice in zip(*results, strict=True):
        np.testing.assert_allclose(twice, 2 * once, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("operator", "case"), TABLE)
def test_grouped_equals_single(operator: op.Operator, case: op.Case) -> None:
    found = []
    for autobatch in (1, 0):
        random = random_of(operator, case)
        graph.current.renew(autobatching=bool(autobatch))
        shared = [
            leaf.add_leaf(leaf.INPUT, shape, random.uniform(case.low, case.high, shape.size))
            for shape in map(shape_of, case.shapes)
        ]
        results, inputs = [], []
        for copy in range(8):
            operands = operands_of(operator, case, random)
            for k in range(len(operands)):
                if operator.kind(k) == op.SHARED or (copy % 3 == 2 and k == 0):
                    operands[k] = shared[k]
            inputs += operands
            results.append(call(operator, operands, case))
        if "r" in operator.params:
            pytest.skip("random: each node has a stream of its own")
        numbers = [y._node() for y in results]
        graph.current.evaluate(numbers)
        backprop.start_backward.call(graph.current.address, numbers[0], 1)
        for number in numbers:
            graph.current.storage.arrays["work"]["reached"][number] = graph.current.header.reach
            graph.current.gradient(number)[:] = random.uniform(0.5, 1, graph.current.shape(number).size)
        graph.current.run_backward()
        found.append((
            [graph.current.value(number).copy() for number in numbers],
            [graph.current.gradient(x._node()).copy() for x in inputs],
        ))  # fmt: skip
    for grouped, single in zip(found[0][0] + found[0][1], found[1][0] + found[1][1], strict=True):
        scale = max(1.0, float(np.abs(single[np.isfinite(single)]).max(initial=0)))
        np.testing.assert_allclose(grouped, single, rtol=2e-6, atol=2e-6 * scale)


@pytest.mark.parametrize(("operator", "case"), TABLE)
def test_taken_places_change_nothing(operator: op.Operator, case: op.Case) -> None:
    """Each node takes its operands' places, if it can, and gives its own away."""
    found = []
    for overwriting in (1, 0):
        random = random_of(operator, case)
        graph.current.renew()
        graph.current.header.overwriting = overwriting
        inputs, results = [], []
        initializers.reset_random_seed(3)
        for _ in range(20):
            operands = operands_of(operator, case, random)
            inputs += operands
            results.append(call(operator, [x + 0.0 for x in operands], case) + 0.5)
        y = dy.esum([dy.sum_batches(dy.squared_norm(result)) for result in results])
        y.backward(full=True)
        assert overwriting or not graph.current.header.overwritten
        if not op.TABLE[operator.code]["flags"] & (op.KEEPS_RESULT | op.VIEW) or operator.overwrites:
            assert bool(graph.current.header.overwritten) == bool(overwriting)
        found.append([y.npvalue(), *(graph.current.gradient(x._node()).copy() for x in inputs)])
        found[-1] += [result.npvalue() for result in results]
    for taken, kept in zip(*found, strict=True):
        scale = max(1.0, float(np.abs(kept[np.isfinite(kept)]).max(initial=0)))
        np.testing.assert_allclose(taken, kept, rtol=2e-6, atol=2e-6 * scale)


@pytest.mark.usefixtures("every_call_is_shared")
@pytest.mark.parametrize(("operator", "case"), TABLE)
def test_threads_change_nothing(operator: op.Operator, case: op.Case) -> None:
    threads.set_threads(3)
    for copies in (1, 20):  # alone, and in a group
        found = []
        for count in (3, 1):
            threads.pool[threads.COUNT] = count  # one: the workers look on
            graph.current.renew()
            initializers.reset_random_seed(3)
            random = random_of(operator, case)
            inputs, results = [], []
            for _ in range(copies):
                operands = operands_of(operator, case, random)
                inputs += operands
                results.append(call(operator, operands, case))
            y = dy.esum([dy.sum_batches(dy.squared_norm(result)) for result in results])
            y.backward(full=True)
            found.append([*(result.npvalue() for result in results), *(x.gradient() for x in inputs)])
        for many, one in zip(*found, strict=True):
            scale = max(1.0, float(np.abs(one[np.isfinite(one)]).max(initial=0)))
            np.testing.assert_allclose(many, one, rtol=2e-6, atol=2e-6 * scale)


@pytest.mark.parametrize("operator", EVERY_OPERATOR)
def test_record_is_complete(operator: op.Operator) -> None:
    assert operator.cases, "no cases"
    assert operator.reference or "r" in operator.params, "no reference"
    for case in operator.cases:
        assert case.tolerance == 1e-6 or case.reason, "a loosened tolerance needs its reason"
    if operator.backward and not operator.is_list:
        assert len(operator.backward) == operator.params.count("x"), "one gradient kernel per operand, or None"
