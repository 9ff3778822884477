"""Random graphs of all operators: grouped as single, two threads as one, native as twins, products as NumPy's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from records import twins_alone
from table_programs import LARGER, OPERATORS, OWN_NUMBERS, Graph, Plan, Program, Step, clear, numbers, planned, stored

import dynjit as dy
from dynjit import frontend, graph, op, threads
from dynjit.arena import random_state
from dynjit.gradcheck import WideGraph

CASES = [
    (number, case)
    for number, operator in enumerate(OPERATORS)
    for case in range(len(operator.cases + LARGER.get(operator.name, ())))
]
numbers("order").shuffle(CASES)
PARTS, LANES = 6, 3
EVERY = [  # every case of every operator
    Program(LANES, tuple(Step(number, case, 7 * k) for k, (number, case) in enumerate(CASES[part::PARTS])))
    for part in range(PARTS)
]
step = st.builds(Step, st.integers(0, len(OPERATORS) - 1), st.integers(0, 11), st.integers(0, 2 * OWN_NUMBERS))
programs = st.builds(Program, st.integers(1, 5), st.lists(step, min_size=1, max_size=12).map(tuple))
drawn: set[str] = set()
grouped_together: set[str] = set()  # operators of which a call has computed several nodes


def each_program(test: Callable[[Program], None]) -> Callable[[], None]:
    """The test takes every case of every operator, and random programs."""
    for program in EVERY:
        test = example(program)(test)
    profile = settings(
        max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), print_blob=False
    )
    return profile(given(programs)(test))  # type: ignore[no-any-return]


def run(
    plan: Plan, grouped: bool = True, stops: bool = False, by_lane: bool = False
) -> tuple[Graph, list[np.ndarray], list[np.ndarray]]:
    """A graph, with its loss; the values of all nodes, the gradients of all parameters."""
    dy.renew_cg(autobatching=grouped)
    clear()
    made = Graph(plan, stops=stops, by_lane=by_lane)
    if not plan.left:  # a program none of whose operators found operands
        return made, [], []
    loss = made.loss()
    loss.backward()
    drawn.update(plan.drawn)
    gradients = [item.gradients().copy() for item in stored()]
    return made, [loss.npvalue(), *made.values()], gradients


def close(found: list[np.ndarray], expected: list[np.ndarray], tolerance: float) -> None:
    for a, b in zip(found, expected, strict=True):
        scale = max(1.0, float(np.abs(b).max(initial=0)))
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * scale)


def groups(plan: Plan) -> set[str]:
    """The operators of which a call computes several nodes."""
    dy.renew_cg()
    dy.forward(Graph(plan).made)
    calls = graph.current.storage.arrays["calls"][: graph.current.header.call_count]
    order = graph.current.storage.arrays["order"]
    return {graph.current.operator(int(order[call["first"]])).name for call in calls if call["count"] > 1}


@each_program
def test_grouped_equals_single(program: Program) -> None:
    plan = planned(program)
    _, values, gradients = run(plan, grouped=False)
    grouped_together.update(groups(plan))
    for grouped, stops, by_lane in (
        (True, False, False), (True, True, False), (False, True, False), (True, False, True), (True, True, True),
    ):  # fmt: skip
        _, other_values, other_gradients = run(plan, grouped, stops, by_lane)
        close(other_values, values, 1e-4)
        close(other_gradients, gradients, 1e-3)


@pytest.mark.usefixtures("every_call_is_shared")
@each_program
def test_two_threads_equal_one(program: Program) -> None:
    plan = planned(program)
    for by_lane in (False, True):
        found = []
        for count in (1, 2, 2):
            threads.set_threads(count)
            found.append(run(plan, by_lane=by_lane)[1:])
        for a, b in zip(found[1][0] + found[1][1], found[2][0] + found[2][1], strict=True):
            np.testing.assert_array_equal(a, b)
        close(found[1][0], found[0][0], 1e-4)
        close(found[1][1], found[0][1], 1e-3)


def recorded(plan: Plan, twins: bool) -> tuple[bytes, ...]:
    """All that a graph has recorded."""
    dy.renew_cg()
    Graph(plan, twins)
    header, storage = graph.current.header, graph.current.storage
    nodes = graph.current.nodes[: header.node_count]
    return (
        nodes.tobytes(), storage.args[: header.arg_count].tobytes(),
        storage.data[: header.data_count].tobytes(), random_state.tobytes(),
    )  # fmt: skip


@pytest.mark.skipif(not frontend.is_native, reason="this interpreter has the twins alone")
@each_program
def test_native_equals_twins(program: Program) -> None:
    plan = planned(program)
    native = recorded(plan, twins=False)
    with twins_alone():
        assert recorded(plan, twins=True) == native


@each_program
def test_values_equal_numpy_and_gradients_central_differences(program: Program) -> None:
    """Products among them: the references are NumPy's, whose products are those of a BLAS."""
    plan = planned(program)
    if not plan.left:
        return
    dy.renew_cg()
    clear()
    graph.current.header.overwriting = 0  # a place for each result
    made = Graph(plan)
    loss = made.loss()
    loss.backward()
    nodes = [e._node() if isinstance(e, dy.Expression) else e.join() for e in made.made]
    wide = WideGraph(graph.current)
    leaves = [item.join() for item in stored()]
    for leaf in leaves:
        wide.gradient(leaf)[:] = 0
    wide.forward()
    wide.backward(loss._node())
    for number, node in enumerate(plan.nodes):
        expected = plan.expected(number, [wide.window(nodes[i]) for i in node.operands])
        if expected is not None:
            close([wide.window(nodes[number])], [expected], 1e-9)
    computed = [number for number, node in zip(nodes, plan.nodes, strict=True) if node.operator]
    close([graph.current.value(k) for k in computed], [wide.window(k) for k in computed], 1e-4)
    gradients = [wide.gradient(leaf).copy() for leaf in leaves]
    close([item.gradients() for item in stored()], gradients, 1e-3)
    if plan.is_differentiable:
        check_direction(wide, loss._node(), leaves, gradients)
    wide.close()


def check_direction(wide: WideGraph, loss: int, leaves: list[int], gradients: list[np.ndarray]) -> None:
    """The loss's derivative in a direction of all parameters."""
    random = np.random.default_rng(1)
    directions = [random.uniform(-1, 1, gradient.size) for gradient in gradients]
    kept, losses = [wide.window(leaf).copy() for leaf in leaves], []
    for step in (1e-5, -1e-5):
        for leaf, value, direction in zip(leaves, kept, directions, strict=True):
            wide.window(leaf)[:] = value + step * direction
        wide.forward()
        losses.append(wide.window(loss)[0])
    found = sum(float(g @ d) for g, d in zip(gradients, directions, strict=True))
    assert (losses[0] - losses[1]) / 2e-5 == pytest.approx(found, rel=1e-4, abs=1e-4)


def test_every_operator_was_drawn_and_grouped() -> None:
    for program in EVERY:
        drawn.update(planned(program).drawn)
        grouped_together.update(groups(planned(program)))
    assert {operator.name for operator in OPERATORS} - drawn == set()
    for number, operator in enumerate(OPERATORS):
        if (
            operator.group == op.NEVER or operator.view
        ):  # the one joins mini-batches of any size, the other computes nothing
            continue
        for choice in range(20):  # other operands, whose places may be neighbours
            if operator.name not in grouped_together:
                grouped_together.update(groups(planned(Program(5, 3 * (Step(number, choice, choice),)))))
        assert operator.name in grouped_together
