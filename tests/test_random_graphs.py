"""Random graphs: values and gradients do not depend on grouping, nor on when values are asked for, nor on float32."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dynjit as dy
from dynjit import graph, initializers, threads
from dynjit.arena import random_state
from dynjit.gradcheck import WideGraph

SIZE, BATCH, ROWS = 4, 3, 6
profile = settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), print_blob=False
)


class Network:
    """The parameters that all graphs of a test use."""

    def __init__(self) -> None:
        initializers.reset_random_seed(5)
        self.collection = dy.ParameterCollection()
        add = self.collection.add_parameters
        self.w = [add((SIZE, SIZE), init="uniform", scale=0.7) for _ in range(3)]
        self.b = [add((SIZE,), init="uniform", scale=0.5) for _ in range(2)]
        self.table = self.collection.add_lookup_parameters((ROWS, SIZE), init="uniform", scale=1.0)
        self.lstm = dy.VanillaLSTMBuilder(2, SIZE, SIZE, self.collection)

    def gradients(self) -> list[np.ndarray]:
        return [stored.gradients().copy() for stored in self.collection.stored]

    def clear(self) -> None:
        for stored in self.collection.stored:
            stored.gradients()[:] = 0
        self.table.marks()[:] = 0


network: list[Network] = []  # made by the first test


class Builder:
    """A graph in the making: the vectors so far, LSTM states, losses.

    latest: only so many of the vectors are operands, counted from the last, so that equal steps make equal cells.
    """

    def __init__(self, net: Network, latest: int = 0) -> None:
        self.net, self.latest = net, latest
        self.vectors = [dy.inputVector([0.1, -0.2, 0.3, 0.4]), net.b[0] + 0.0]
        self.states = [net.lstm.initial_state()]
        self.losses: list[dy.Expression] = []

    def vector(self, i: int) -> dy.Expression:
        return self.vectors[-1 - i % min(self.latest, len(self.vectors)) if self.latest else i % len(self.vectors)]

    def step(self, kind: int, a: int, b: int, c: int) -> None:
        x, y, w = self.vector(a), self.vector(b), self.net.w[c % 3]
        if kind == 0:  # a step of an LSTM, from any state so far
            self.states.append(self.states[-1 if self.latest else b % len(self.states)].add_input(x))
            self.vectors.append(self.states[-1].output())
        elif kind == 1:
            self.losses.append(dy.sum_batches(LOSSES[c % len(LOSSES)](x, y, b % SIZE)))
        else:
            self.vectors.append(STEPS[kind % len(STEPS)](self.net, x, y, w, a, b, c))

    def total(self) -> dy.Expression:
        return dy.esum([*self.losses, dy.sum_batches(dy.squared_norm(self.vectors[-1]))])


Step = Callable[..., Any]
STEPS: list[Step] = [
    lambda n, x, y, w, a, b, c: dy.tanh(x),
    lambda n, x, y, w, a, b, c: dy.logistic(x + c / 10),
    lambda n, x, y, w, a, b, c: dy.tanh(w * x),
    lambda n, x, y, w, a, b, c: dy.tanh(dy.affine_transform([n.b[1], w, x])),
    lambda n, x, y, w, a, b, c: dy.tanh(dy.affine_transform([n.b[a % 2], w, x, n.w[b % 3], y])),
    lambda n, x, y, w, a, b, c: x + y,
    lambda n, x, y, w, a, b, c: 1 - x,
    lambda n, x, y, w, a, b, c: dy.tanh(dy.cmult(x, y)),
    lambda n, x, y, w, a, b, c: dy.tanh(dy.cdiv(x, dy.square(y) + 1.5)),
    lambda n, x, y, w, a, b, c: n.table[a % ROWS],
    lambda n, x, y, w, a, b, c: dy.lookup_batch(n.table, [a % ROWS, b % ROWS, c % ROWS]),
    lambda n, x, y, w, a, b, c: dy.concatenate([x, y])[c % SIZE : c % SIZE + SIZE],
    lambda n, x, y, w, a, b, c: dy.average([x, y, x][: 1 + c % 3]),
    lambda n, x, y, w, a, b, c: dy.softmax(x),
    lambda n, x, y, w, a, b, c: dy.tanh(dy.cmult(dy.dot_product(x, y), x)),
    lambda n, x, y, w, a, b, c: dy.reshape(dy.transpose(dy.reshape(x, (2, 2))), (SIZE,)),
    lambda n, x, y, w, a, b, c: dy.tanh(dy.sum_batches(x)),
    lambda n, x, y, w, a, b, c: dy.tanh(dy.reshape(dy.concatenate_cols([x, y]) * dy.inputVector([0.5, c / 5]), (4,))),
    lambda n, x, y, w, a, b, c: dy.nobackprop(x) * 0.5 + y * 0.5,
    lambda n, x, y, w, a, b, c: dy.tanh(dy.bmax(x, y)),
    lambda n, x, y, w, a, b, c: dy.dropout(x, 0.25),
    lambda n, x, y, w, a, b, c: dy.tanh(dy.log_softmax(x)),
    lambda n, x, y, w, a, b, c: dy.exp(dy.tanh(x) - 1),
    lambda n, x, y, w, a, b, c: dy.tanh(dy.inputTensor(np.full((SIZE, SIZE), c / 10)) * x),
]
LOSSES: list[Step] = [
    lambda x, y, i: dy.pickneglogsoftmax(x, i),
    lambda x, y, i: dy.squared_distance(x, y),
    lambda x, y, i: dy.pick(x, i),
    lambda x, y, i: dy.sum_elems(dy.cmult(x, y)),
    lambda x, y, i: dy.hinge(x, i),
    lambda x, y, i: -dy.log(dy.pick(dy.softmax(x), i)),
]
instruction = st.tuples(
    st.integers(0, len(STEPS) + 5).map(lambda k: min(k, len(STEPS) + 1) % (len(STEPS) + 2)),
    st.integers(0, 30), st.integers(0, 30), st.integers(0, 30),
)  # fmt: skip
programs = st.lists(instruction, min_size=1, max_size=60)


def build(program: list[tuple[int, int, int, int]], grouped: bool, stops: bool = False) -> Builder:
    if not network:
        network.append(Network())
    initializers.reset_random_seed(7)  # the same dropout masks
    network[0].clear()
    dy.renew_cg(autobatching=grouped)
    builder = Builder(network[0])
    for number, step in enumerate(program):
        builder.step(*step)
        if stops and (step[1] + number) % 3 == 0:
            builder.vectors[-1].value()
    return builder


def close(found: list[np.ndarray], expected: list[np.ndarray], tolerance: float) -> None:
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(1.0, float(np.abs(b).max(initial=0))))


def run(builder: Builder, target: Callable[[Builder], dy.Expression]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(values of all vectors, gradients of all parameters)."""
    loss = target(builder)
    loss.backward()
    gradients = builder.net.gradients()
    return [loss.npvalue(), *(v.npvalue() for v in builder.vectors)], gradients


@profile
@given(programs)
def test_grouping_and_early_values_change_nothing(program: list[tuple[int, int, int, int]]) -> None:
    values, gradients = run(build(program, grouped=True), Builder.total)
    for grouped, stops in ((False, False), (True, True), (False, True)):
        other_values, other_gradients = run(build(program, grouped, stops), Builder.total)
        close(other_values, values, 1e-5)
        close(other_gradients, gradients, 1e-4)


Cell = list[tuple[int, int, int, int]]
PLAIN, ASKED, DROPPED, ASKED_AND_DROPPED, CONSTANT = range(5)  # what becomes of a cell


def take_cell(builder: Builder, cell: Cell, left_out: int) -> None:
    for k, step in enumerate(cell):
        if not (left_out >> k) & 1:
            builder.step(*step)


def take_and_drop(builder: Builder, cell: Cell, left_out: int, asked: bool) -> None:
    """A cell that is gone in the end, though its values may have been computed."""
    kept = builder.vectors[:], builder.states[:], builder.losses[:], random_state.copy()
    dy.cg_checkpoint()
    take_cell(builder, cell, left_out)
    if asked:
        builder.vectors[-1].value()
    dy.cg_revert()
    builder.vectors, builder.states, builder.losses, random_state[:] = kept


def sequences(
    cell: Cell, left_out: list[list[tuple[int, int]]], grouped: bool
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Values and gradients of sequences of cells.

    left_out: of each cell of each sequence, bits of steps that are left out, and what becomes of it.
    """
    first = build([], grouped)
    builders = [Builder(first.net, latest=5) for _ in left_out]
    for builder, cells in zip(builders, left_out, strict=True):
        for bits, fate in cells:
            if fate in (DROPPED, ASKED_AND_DROPPED):
                take_and_drop(builder, cell, bits, fate == ASKED_AND_DROPPED)
            with dy.no_grad() if fate == CONSTANT else contextlib.nullcontext():
                take_cell(builder, cell, bits)
            if fate == ASKED:
                builder.vectors[-1].value()
    values, gradients = run(first, lambda _: dy.esum([builder.total() for builder in builders]))
    return [*values, *(v.npvalue() for builder in builders for v in builder.vectors)], gradients


cells = st.lists(instruction, min_size=1, max_size=10)
omissions = st.sampled_from([0, 0, 0, 1, 4, 6, 40, 256])
plain = omissions.map(lambda bits: (bits, PLAIN))
fates = st.tuples(omissions, st.sampled_from([PLAIN, PLAIN, ASKED, DROPPED, ASKED_AND_DROPPED, CONSTANT]))


@pytest.mark.usefixtures("every_call_is_shared")
@profile
@given(cells, st.lists(st.lists(plain | fates, min_size=3, max_size=8), min_size=1, max_size=4))
def test_repeated_cells_are_computed_as_single_nodes(cell: Cell, left_out: list[list[tuple[int, int]]]) -> None:
    values, gradients = sequences(cell, left_out, grouped=False)
    for count in (1, 2):
        threads.set_threads(count)
        other_values, other_gradients = sequences(cell, left_out, grouped=True)
        close(other_values, values, 1e-4)
        close(other_gradients, gradients, 1e-3)


@profile
@given(programs)
def test_float32_equals_float64(program: list[tuple[int, int, int, int]]) -> None:
    for grouped in (True, False):
        builder = build(program, grouped)
        loss = builder.total()
        loss.backward()
        found = builder.net.gradients()
        wide = WideGraph(graph.current)
        nodes = [s.join() for s in builder.net.collection.stored if s.handle >> 32 == dy.cg_version()]
        used = [i for i, s in enumerate(builder.net.collection.stored) if s.handle >> 32 == dy.cg_version()]
        for node in nodes:
            wide.gradient(node)[:] = 0
        wide.forward()
        wide.backward(loss._node())
        close([loss.npvalue()], [wide.window(loss._node())], 1e-5)
        close([found[i] for i in used], [wide.gradient(node) for node in nodes], 1e-3)
        wide.close()


@profile
@given(programs, st.integers(0, 100))
def test_backward_from_one_of_many_losses(program: list[tuple[int, int, int, int]], chosen: int) -> None:
    """All losses are computed together, so that groups have members which the one loss does not depend on."""

    def one(builder: Builder) -> dy.Expression:
        losses = builder.losses or [builder.total()]
        dy.forward([*losses, *builder.vectors])
        return losses[chosen % len(losses)]

    found = []
    for grouped in (True, False):
        builder = build(program, grouped)
        values, gradients = run(builder, one)
        found.append((values, gradients, builder.net.table.marks() != 0))
    close(found[0][0], found[1][0], 1e-5)
    close(found[0][1], found[1][1], 1e-4)
    rows = builder.net.table.rows(found[0][1][builder.net.collection.stored.index(builder.net.table)])
    assert (found[0][2] >= (rows != 0).any(axis=1)).all()  # a row with a gradient is marked
    np.testing.assert_array_equal(found[0][2], found[1][2])


@profile
@given(programs, programs)
def test_gradients_of_two_runs_add_up(
    first: list[tuple[int, int, int, int]], second: list[tuple[int, int, int, int]]
) -> None:
    expected = [a + b for a, b in zip(*(run(build(p, True), Builder.total)[1] for p in (first, second)), strict=True)]
    builder = build(first, True)
    builder.total().backward()
    for step in second:  # in the same graph, behind what is computed already
        builder.step(*step)
    initializers.reset_random_seed(7)
    dy.renew_cg()
    other = Builder(builder.net)
    for step in second:
        other.step(*step)
    other.total().backward()
    close(builder.net.gradients(), expected, 1e-4)


@profile
@given(programs)
def test_changed_inputs_give_the_values_of_a_new_graph(program: list[tuple[int, int, int, int]]) -> None:
    changed = [0.4, 0.3, -0.2, 0.1]
    builder = build(program, True)
    run(builder, Builder.total)
    builder.vectors[0].set(changed)
    builder.net.clear()
    values, gradients = run(builder, Builder.total)
    builder = build(program, False)
    builder.vectors[0].set(changed)
    expected, expected_gradients = run(builder, Builder.total)
    close(values, expected, 1e-5)
    close(gradients, expected_gradients, 1e-4)


@profile
@given(programs)
def test_gradients_of_all_nodes_are_at_hand_though_places_were_taken(program: list[tuple[int, int, int, int]]) -> None:
    found = []
    for grouped in (True, False):
        builder = build(program, grouped)
        builder.total().backward()
        gradients = builder.net.gradients()
        found.append([vector.gradient() for vector in builder.vectors])
        close(builder.net.gradients(), gradients, 0)  # looking at them adds nothing to those of parameters
    close(found[0], found[1], 1e-4)


@pytest.mark.usefixtures("every_call_is_shared")
@profile
@given(programs)
def test_threads_change_nothing(program: list[tuple[int, int, int, int]]) -> None:
    found = []
    for count in (1, 3, 3):
        threads.set_threads(count)
        found.append(run(build(program, grouped=True), Builder.total))
    for a, b in zip(found[1][0] + found[1][1], found[2][0] + found[2][1], strict=True):
        np.testing.assert_array_equal(a, b)
    close(found[1][0], found[0][0], 1e-5)
    close(found[1][1], found[0][1], 1e-4)


@pytest.mark.usefixtures("every_call_is_shared")
@profile
@given(st.lists(programs, min_size=2, max_size=6), st.integers(2, 4))
def test_parts_change_nothing(examples: list[list[tuple[int, int, int, int]]], count: int) -> None:
    """Programs that share parameters alone, in one graph: threads plan and run them side by side."""
    found = []
    for threads_now in (1, count, count):
        threads.set_threads(threads_now)
        first = build(examples[0], grouped=True)
        others = [Builder(first.net) for _ in examples[1:]]
        for other, program in zip(others, examples[1:], strict=True):
            for step in program:
                other.step(*step)
        found.append(run(first, lambda first: dy.esum([builder.total() for builder in [first, *others]])))
        found[-1][0].extend(v.npvalue() for other in others for v in other.vectors)
        divided[threads_now] = divided.get(threads_now, 0) + int(graph.current.header.parts > 0)
    for a, b in zip(found[1][0] + found[1][1], found[2][0] + found[2][1], strict=True):
        np.testing.assert_array_equal(a, b)
    close(found[1][0], found[0][0], 1e-5)
    close(found[1][1], found[0][1], 1e-4)


divided: dict[int, int] = {}  # graphs that have been divided, by the number of threads


def test_many_random_graphs_were_divided() -> None:
    assert divided[1] == 0
    assert divided[2] > 10
    assert divided[3] > 10
