"""Equal nodes are computed once, and nobody can tell but by the time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import dynjit as dy
from dynjit import graph

SIZE, ROWS, WORDS = 4, 5, 120


class Network:
    """A layer over single words, one over pairs of words, a recurrent one."""

    def __init__(self, model: dy.ParameterCollection, noise: float = 0.0) -> None:
        dy.reset_random_seed(3)
        self.table = model.add_lookup_parameters((ROWS, SIZE), init="uniform", scale=1.0)
        self.other = model.add_lookup_parameters((ROWS, SIZE), init="uniform", scale=1.0)
        self.w, self.u = model.add_parameters((SIZE, SIZE)), model.add_parameters((SIZE, 2 * SIZE))
        self.b = model.add_parameters(SIZE, init="uniform", scale=0.5)
        self.model, self.noise = model, noise

    def build(self, grouped: bool = True) -> None:
        dy.renew_cg(autobatching=grouped)
        random = np.random.default_rng(1)
        words = [int(word) for word in random.integers(0, ROWS, WORDS)]
        self.rows = [self.table[word] for word in words]
        self.inner = [
            dy.tanh(self.b + self.w * (dy.dropout(row, self.noise) if self.noise else row)) for row in self.rows
        ]
        pairs = zip(self.inner, [*self.inner[1:], dy.inputVector([0.1] * SIZE)])
        self.outer = [dy.logistic(self.u * dy.concatenate([left, right])) for left, right in pairs]
        state, self.states = dy.zeros(SIZE), []
        for word, outer in zip(words, self.outer):
            state = dy.tanh(self.w * state + dy.cmult(outer, self.other[word]))
            self.states.append(state)
        self.loss = dy.esum([dy.squared_norm(x) for x in (*self.outer, *self.states, *self.inner[:3])])

    def gradients(self) -> list[np.ndarray]:
        for stored in self.model.stored:
            stored.gradients()[:] = 0
        self.loss.backward()
        return [stored.gradients().copy() for stored in self.model.stored]


@pytest.fixture
def network(model: dy.ParameterCollection) -> Network:
    return Network(model)


def close(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def merged() -> int:
    return graph.current.header.merged


def test_values_and_gradients_stay_and_less_is_computed(network: Network) -> None:
    network.build(grouped=False)
    value, gradients = network.loss.value(), network.gradients()
    values = [x.npvalue() for x in (*network.rows, *network.inner, *network.outer, *network.states)]
    assert merged() == 0
    ungrouped = dy.explain_batching().nodes
    network.build()
    assert network.loss.value() == pytest.approx(value, rel=1e-5)
    assert dy.explain_batching().nodes < ungrouped - 4 * (WORDS - 2 * ROWS)
    close(network.gradients(), gradients)
    close([x.npvalue() for x in (*network.rows, *network.inner, *network.outer, *network.states)], values)


def test_rare_twins_are_not_searched(model: dy.ParameterCollection) -> None:
    w, table = model.add_parameters((SIZE, SIZE)), model.add_lookup_parameters((WORDS, SIZE))
    for words, edges in (([*range(WORDS), 7, 8], 2), ([*range(WORDS), *range(WORDS // 5)], 2 * (WORDS // 5))):
        dy.renew_cg()
        dy.esum([dy.tanh(w * table[word]) for word in words]).value()
        assert merged() == edges


def test_noise_is_never_equal(model: dy.ParameterCollection) -> None:
    network = Network(model, noise=0.5)
    network.build()
    network.loss.value()
    same = [x.value() for x, row in zip(network.inner, network.rows) if row.value() == network.rows[0].value()]
    assert len({tuple(value) for value in same}) > 1


def test_gradients_of_inner_nodes_are_their_own(network: Network) -> None:
    def inner_gradients(grouped: bool) -> list[np.ndarray]:
        network.build(grouped)
        gradients = network.gradients()
        found = [x.gradient() for x in (*network.rows, *network.inner)]
        close([stored.gradients() for stored in network.model.stored], gradients)
        return found

    close(inner_gradients(True), inner_gradients(False))


def test_an_index_can_be_changed(network: Network) -> None:
    def after(grouped: bool) -> list[np.ndarray]:
        network.build(grouped)
        network.loss.value()
        rows = [x for x in network.rows if x.value() == network.rows[0].value()]
        row = rows[len(rows) // 2]
        dy.renew_cg(autobatching=grouped)
        words = [int(i) for i in np.random.default_rng(1).integers(0, ROWS, WORDS)]
        lookups = [network.table[word] for word in words]
        hidden = [dy.tanh(network.w * x) for x in lookups]
        network.loss = dy.esum([dy.squared_norm(x) for x in hidden])
        network.loss.value()
        assert (merged() > 0) == grouped
        lookups[words.index(words[0])].set((words[0] + 1) % ROWS)  # the first: it serves the others
        lookups[WORDS - 1].set((words[-1] + 2) % ROWS)
        assert row is not None
        return [network.loss.npvalue(), *(x.npvalue() for x in hidden), *network.gradients()]

    close(after(True), after(False))


def test_nodes_made_later_use_merged_ones(network: Network) -> None:
    def outcome(grouped: bool) -> list[np.ndarray]:
        network.build(grouped)
        network.loss.value()
        network.loss = network.loss + dy.esum([dy.squared_norm(dy.tanh(network.w * x)) for x in network.inner])
        return [network.loss.npvalue(), *network.gradients()]

    close(outcome(True), outcome(False))


def test_several_targets(network: Network) -> None:
    def outcome(grouped: bool) -> list[np.ndarray]:
        network.build(grouped)
        dy.forward([*network.inner, network.loss])
        return [x.npvalue() for x in (*network.inner, network.loss)]

    close(outcome(True), outcome(False))


def test_cutting_back(network: Network) -> None:
    def outcome(grouped: bool) -> list[np.ndarray]:
        network.build(grouped)
        dy.cg_checkpoint()
        loss, network.loss = network.loss, dy.esum([dy.squared_norm(x) for x in network.states])
        loss.value()
        dy.cg_revert()
        network.loss = dy.esum([dy.squared_norm(dy.tanh(x)) for x in network.outer])
        return [network.loss.npvalue(), *network.gradients()]

    close(outcome(True), outcome(False))


def test_pictures_show_what_was_recorded(network: Network, capsys: pytest.CaptureFixture) -> None:
    network.build()
    dy.print_graphviz()
    before = capsys.readouterr().out
    network.loss.value()
    assert merged() > 0
    dy.print_graphviz()
    assert capsys.readouterr().out == before


@pytest.mark.parametrize("constants_first", [True, False])
def test_constants_are_not_their_twins(model: dy.ParameterCollection, constants_first: bool) -> None:
    w, table = model.add_parameters((SIZE, SIZE)), model.add_lookup_parameters((ROWS, SIZE))

    def hidden() -> list[dy.Expression]:
        return [dy.tanh(w * table[number % ROWS]) for number in range(WORDS)]

    def gradients(grouped: bool) -> list[np.ndarray]:
        dy.renew_cg(autobatching=grouped)
        before = [] if constants_first else hidden()
        with dy.no_grad():
            constants = hidden()
            dy.esum([dy.squared_norm(x) for x in [*before, *constants]]).value()
        trained = hidden() if constants_first else before
        loss = dy.esum([dy.dot_product(x, y + 1) for x, y in zip(trained, constants)])
        for stored in model.stored:
            stored.gradients()[:] = 0
        loss.backward()
        return [stored.gradients().copy() for stored in model.stored]

    close(gradients(True), gradients(False))


@pytest.mark.parametrize("what", [lambda n: n.loss.backward(), lambda n: n.loss.forward()])
def test_repeated_passes(network: Network, what: Callable) -> None:
    network.build()
    value = network.loss.value()
    for _ in range(2):
        what(network)
        assert network.loss.value() == pytest.approx(value, rel=1e-6)
