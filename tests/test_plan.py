"""Products are grouped as far as their order allows: as many calls as the longest chain of each kind has members."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest

import dynjit as dy
from dynjit import graph, op
from dynjit.arena import GATHER

SIZE, WORDS = 8, 300


class Network:
    """Lattices, trees and sentences over the same words."""

    def __init__(self, model: dy.ParameterCollection) -> None:
        self.random = np.random.default_rng(0)
        self.table = model.add_lookup_parameters((WORDS, SIZE))
        self.w, self.u, self.join = (model.add_parameters((SIZE, n * SIZE)) for n in (1, 1, 2))
        self.b, self.out = model.add_parameters(SIZE), model.add_parameters((5, SIZE))
        self.lstm = dy.VanillaLSTMBuilder(1, SIZE, SIZE, model)

    def word(self) -> dy.Expression:
        return self.table[int(self.random.integers(WORDS))]

    def lattice(self, length: int) -> list[dy.Expression]:
        """Each node is made from one to three nodes shortly before it."""
        nodes = [self.b + self.word()]
        for number in range(1, length):
            back = {max(0, number - 1 - int(self.random.integers(6))) for _ in range(self.random.integers(1, 4))}
            before = dy.average([nodes[source] for source in sorted(back)])
            nodes.append(dy.tanh(self.w * before + self.u * self.word() + self.b))
        return nodes

    def tree(self, depth: int) -> dy.Expression:
        if depth == 0 or self.random.random() < 0.25:
            return dy.tanh(self.w * self.word())
        return dy.tanh(self.join * dy.concatenate([self.tree(depth - 1), self.tree(depth - 1)]))

    def sentence(self) -> list[dy.Expression]:
        length = int(self.random.integers(3, 30))
        return self.lstm.initial_state().transduce([self.word() for _ in range(length)])

    def tree_over_sentence(self) -> dy.Expression:
        nodes = self.lstm.initial_state().transduce([self.word() for _ in range(16)])
        while len(nodes) > 1:
            pairs = zip(nodes[::2], nodes[1::2])
            nodes = [dy.tanh(self.join * dy.concatenate([left, right])) for left, right in pairs]
        return nodes[0]

    def loss(self, vectors: list[dy.Expression]) -> dy.Expression:
        return dy.esum([dy.pickneglogsoftmax(self.out * x, 1) for x in vectors])


def calls_and_chains() -> tuple[Counter, dict]:
    """By kind of product: in how many calls they were computed, and the longest chain of them in the graph."""
    found = graph.current
    nodes, args = found.nodes, found.recorded_args()
    kinds: dict[int, tuple] = {}
    chains: list[dict[tuple, int]] = []
    longest: dict[tuple, int] = defaultdict(int)
    for number in range(found.header.node_count):
        node, operator = nodes[number], found.operator(number)
        sources = args[node["args"] : node["args"] + node["arity"]].tolist()
        chain: dict[tuple, int] = {}
        for source in sources:
            for kind, length in chains[source].items():
                chain[kind] = max(length, chain.get(kind, 0))
        weights = tuple(source for k, source in enumerate(sources) if operator.kind(k) == op.SHARED)
        if weights and len(weights) < len(sources):
            kind = kinds[number] = int(node["signature"]), weights, int(node["flags"])
            chain[kind] = chain.get(kind, 0) + 1
            longest[kind] = max(longest[kind], chain[kind])
        chains.append(chain)
    order, calls = found.storage.arrays["order"], found.storage.arrays["calls"][: found.header.call_count]
    made = [int(order[call["first"]]) for call in calls if call["signature"] != GATHER]
    return Counter(kinds[number] for number in made if number in kinds), longest


@pytest.mark.parametrize("what", ["lattices", "trees", "sentences", "all"])
def test_products_have_as_few_calls_as_can_be(model: dy.ParameterCollection, what: str) -> None:
    n = Network(model)
    dy.renew_cg()
    vectors = []
    if what in ("lattices", "all"):
        vectors += [x for _ in range(8) for x in n.lattice(40)]
    if what in ("trees", "all"):
        vectors += [n.tree(6) for _ in range(20)]
    if what in ("sentences", "all"):
        vectors += [x for _ in range(12) for x in n.sentence()] + [n.tree_over_sentence() for _ in range(3)]
    n.loss(vectors).value()
    calls, chains = calls_and_chains()
    if what == "all":  # kinds that occur in two models wait for each other once in a while
        assert sum(calls.values()) <= 1.2 * sum(chains.values())
    else:
        assert calls == chains
