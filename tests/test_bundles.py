"""Bundles: what is planned together is computed as if each node were planned by itself, whatever is asked for, and when."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import dynjit as dy
from dynjit import graph, op
from dynjit.arena import GATHER

SIZE, STEPS = 4, 12


class Network:
    """A recurrent network of products, sums and elementwise operators, with an output layer after each step."""

    def __init__(self, model: dy.ParameterCollection) -> None:
        self.model, self.table = model, model.add_lookup_parameters((7, SIZE))
        self.w, self.u, self.v = (model.add_parameters((SIZE, SIZE)) for _ in range(3))
        self.b, self.c = (model.add_parameters(SIZE, init="uniform", scale=0.5) for _ in range(2))

    def build(self, grouped: bool) -> None:
        dy.renew_cg(autobatching=grouped)
        h, self.gates, self.states, self.scores = dy.zeros(SIZE), [], [], []
        for step in range(STEPS):
            gate = dy.logistic(self.u * h + self.w * self.table[step % 7] + self.b)
            h = dy.cmult(gate, dy.tanh(gate + self.c)) + dy.cmult(1 - gate, h)
            self.gates.append(gate)
            self.states.append(h)
            self.scores.append(dy.softmax(self.v * h + self.c))

    def gradients(self, loss: dy.Expression) -> list[np.ndarray]:
        for stored in self.model.stored:
            stored.gradients()[:] = 0
        loss.backward()
        return [stored.gradients().copy() for stored in self.model.stored]

    def loss(self) -> dy.Expression:
        return -dy.esum([dy.log(dy.pick(score, 1)) for score in self.scores])


def calls() -> np.ndarray:
    """The kernel calls of the current graph's plan."""
    return graph.current.storage.arrays["calls"][: graph.current.header.call_count]  # type: ignore[no-any-return]


def bundle_count() -> int:
    return graph.current.header.bundle_count


def both(net: Network, use: Callable[[], list[np.ndarray]]) -> None:
    """Compares what `use` finds with and without grouping."""
    found = []
    for grouped in (False, True):
        net.build(grouped)
        found.append(use())
    for alone, together in zip(*found, strict=True):
        np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


def test_a_step_is_a_few_bundles(model: dy.ParameterCollection) -> None:
    net = Network(model)
    net.build(True)
    net.loss().value()
    assert bundle_count() < graph.current.header.node_count / 2


def test_output_layers_wait_for_all_steps(model: dy.ParameterCollection) -> None:
    net = Network(model)
    net.build(True)
    net.loss().value()
    weight = net.v._node()
    order, args, nodes = graph.current.storage.arrays["order"], graph.current.storage.args, graph.current.nodes
    sizes = [
        int(call["count"])
        for call in calls()
        if call["signature"] != GATHER
        and op.operators[int(op.SIGNATURES[call["signature"]]["op"])].name == "product"
        and args[nodes[order[call["first"]]]["args"]] == weight
    ]
    assert sizes == [STEPS]


def test_nodes_in_the_middle_are_asked_for_first(model: dy.ParameterCollection) -> None:
    net = Network(model)

    def use() -> list[np.ndarray]:
        first = [net.gates[5].npvalue(), net.states[3].npvalue()]
        loss = net.loss()
        return [*first, loss.npvalue(), *net.gradients(loss)]

    both(net, use)


def test_values_whose_place_was_taken_are_computed_anew(model: dy.ParameterCollection) -> None:
    net = Network(model)

    def use() -> list[np.ndarray]:
        loss = net.loss()
        gradients = net.gradients(loss)
        inner = [net.scores[2].npvalue(), *(x.npvalue() for x in net.gates), *(x.npvalue() for x in net.states)]
        again = dy.sum_elems(net.gates[4]) + loss
        return [*gradients, *inner, *net.gradients(again)]

    both(net, use)


def test_a_lower_target_after_a_higher_one(model: dy.ParameterCollection) -> None:
    net = Network(model)

    def use() -> list[np.ndarray]:
        before = dy.squared_norm(net.gates[2])
        loss = net.loss()
        found = [net.states[-1].npvalue(), before.npvalue(), net.gates[1].npvalue(), loss.npvalue()]
        return [*found, *net.gradients(loss + before)]

    both(net, use)


def test_nodes_of_a_bundle_are_dropped(model: dy.ParameterCollection) -> None:
    net = Network(model)

    def use() -> list[np.ndarray]:
        x = net.u * net.states[4]
        dy.cg_checkpoint()
        dropped = dy.tanh(x + net.b)
        found = [dropped.npvalue()]
        dy.cg_revert()
        kept = dy.logistic(x + net.c)
        return [*found, kept.npvalue(), *net.gradients(dy.sum_elems(kept))]

    both(net, use)


@pytest.mark.parametrize("asked", [True, False])
def test_constants_made_after_planning(model: dy.ParameterCollection, asked: bool) -> None:
    net = Network(model)

    def use() -> list[np.ndarray]:
        with dy.no_grad():
            constant = dy.tanh(net.u * net.states[-1] + net.b)
            if asked:
                constant.value()
        trained = dy.tanh(net.u * net.states[-1] + net.b)
        return net.gradients(dy.dot_product(constant, trained))

    both(net, use)


def test_sums_over_many_nodes_are_bundles_of_their_own(model: dy.ParameterCollection) -> None:
    w = model.add_parameters((SIZE, SIZE))
    dy.renew_cg()
    sums = [dy.esum([w * dy.inputVector([float(i + n)] * SIZE) for i in range(n)]) for n in range(2, 20)]
    total = dy.sum_elems(dy.esum(sums))
    total.value()
    products = [
        int(call["count"])
        for call in calls()
        if call["signature"] != GATHER and op.operators[int(op.SIGNATURES[call["signature"]]["op"])].name == "product"
    ]
    assert products == [sum(range(2, 20))]


ORDER = (0, 1, 5, 2, 9, 3, 7, 4, 11, 6, 10, 8)  # the first two are neighbours, the others are not
CELLS: dict[str, Callable[[Network, int], dy.Expression]] = {
    # never grouped: a join of mini-batches; a product of weights with a mini-batch of their own
    "joins": lambda net, i: dy.concatenate_to_batch(
        [x := dy.tanh(dy.lookup_batch(net.table, [i % 7, (i + 1) % 7])), dy.logistic(x)]
    ),
    "batched weights": lambda net, i: net.batch * dy.tanh(net.table[i % 7]),
    # weights that each bundle computes
    "own weights": lambda net, i: (x := net.table[i % 7], dy.tanh(net.w + x) * x)[1],
    # results that do not lie end to end, though each is of the bundle: views, and what takes an operand's place
    "views": lambda net, i: dy.log_softmax(dy.reshape(net.known[ORDER[i]], (2, 2))),
    "taken places": lambda net, i: dy.softmax(net.odd[ORDER[i]] + net.late[i]),
}


@pytest.mark.parametrize("name", CELLS)
def test_cells_are_computed_each_as_by_itself(model: dy.ParameterCollection, name: str) -> None:
    net = Network(model)

    def use() -> list[np.ndarray]:
        words = [dy.lookup(net.table, i % 7) for i in range(STEPS)]
        net.known, net.odd = ([f(word) + net.b for word in words] for f in (dy.tanh, dy.logistic))
        net.late = [net.w * word for word in words]
        dy.forward(net.known)
        net.batch = net.w + dy.lookup_batch(net.table, [1, 2])
        cells = [CELLS[name](net, i) for i in range(STEPS)]
        loss = dy.esum([dy.sum_batches(dy.sum_elems(dy.square(cell))) for cell in cells])
        return [loss.npvalue(), *net.gradients(loss), *(cell.npvalue() for cell in cells)]

    both(net, use)


def columns_copied() -> int:
    return int(calls()["count"][calls()["signature"] == GATHER].sum())


def test_results_of_a_first_step_lie_in_front_of_those_of_later_ones(model: dy.ParameterCollection) -> None:
    """So that the output layer finds them end to end, and the gradient of each weight is one product."""
    lstm, output = dy.VanillaLSTMBuilder(1, SIZE, SIZE, model), model.add_parameters((3, SIZE))
    table = model.add_lookup_parameters((STEPS, SIZE))
    dy.renew_cg()
    states = lstm.initial_state().transduce([table[i] for i in range(STEPS)])
    dy.esum([dy.pickneglogsoftmax(output * h, 1) for h in states]).backward()
    assert columns_copied() == 0
    header, storage = graph.current.header, graph.current.storage
    sizes = sorted(storage.arrays["deferred"]["batch"][: header.deferred_count].tolist())
    assert sizes == [STEPS - 1, STEPS, STEPS, STEPS]  # of what was in front; the table; inputs; the output layer


def test_results_of_two_kinds_of_cells_lie_end_to_end(model: dy.ParameterCollection) -> None:
    """Of leaves and of inner nodes of trees, which have a bias in common."""
    w, u = model.add_parameters((SIZE, SIZE)), model.add_parameters((SIZE, 2 * SIZE))
    b, output = model.add_parameters(SIZE, init="uniform", scale=0.5), model.add_parameters((3, SIZE))
    table = model.add_lookup_parameters((8, SIZE))
    dy.renew_cg()

    def cell(x: dy.Expression) -> dy.Expression:
        return dy.cmult(x, dy.tanh(x))

    level = [cell(b + w * table[i]) for i in range(8)]
    nodes = level[:]
    while len(level) > 1:
        level = [cell(b + u * dy.concatenate([left, right])) for left, right in zip(level[::2], level[1::2])]
        nodes += level
    dy.esum([dy.pickneglogsoftmax(output * h, 1) for h in nodes]).value()
    assert columns_copied() == 0
