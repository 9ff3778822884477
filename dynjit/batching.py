"""Says which nodes of a graph ran alone, and why."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dynjit import graph as graphs
from dynjit import op, timing
from dynjit.arena import GATHER
from dynjit.graph import ComputationGraph
from dynjit.op import FLAGGED
from dynjit.parts import DIRECT
from dynjit.profiling import aligned, operand_shapes

OFF = "batching is switched off for this graph"
NEVER = "the operator never groups"
OPERANDS = f"more than {FLAGGED} operands"
WEIGHT_BATCH = "its weight has a mini-batch of its own"
MIXED_BATCHES = "its operands' mini-batches differ"
ONCE = "the only call of this operator"
SHAPES = "other calls have other shapes or integers"
WEIGHTS = "other calls have other weights"
GRADIENTS = "other calls differ in which operands need gradients"
PLACES = "equal calls differ in whose place the result takes"
ASKED = "a value was asked for in between"
FEW = f"up to {DIRECT} nodes were pending: called one by one"
READY = "ready at another time than equal calls"
NUMBERS = "equal calls have other numbers"
APART = "its operands lie apart from those of equal calls"


Key = tuple[int, tuple[int, ...], int, int]  # signature, weights, flags, operand whose place is taken


class Alone(NamedTuple):
    """Nodes that ran alone for the same reason.

    operands, shape: as text;  nodes: how many;  nbytes: that they read and write.
    """

    operator: str
    operands: str
    shape: str
    reason: str
    nodes: int
    nbytes: int


class Explanation:
    """Which nodes of a graph ran alone, and why: print it, or read its numbers.

    nodes: that a kernel computed;  groups: calls of kernels that computed them;  rows: the nodes that ran alone, those
    that read and write most first.
    """

    def __init__(self, nodes: int, groups: int, rows: Sequence[Alone]) -> None:
        self.nodes, self.groups, self.rows = nodes, groups, sorted(rows, key=lambda row: (-row.nbytes, row))

    @property
    def alone(self) -> int:
        """How many nodes ran alone."""
        return sum(row.nodes for row in self.rows)

    @property
    def reasons(self) -> dict[str, int]:
        """How many nodes ran alone for each reason."""
        found: Counter[str] = Counter()
        for row in self.rows:
            found[row.reason] += row.nodes
        return dict(found)

    def __str__(self) -> str:
        if not self.nodes:
            return "no node of the current graph has been computed"
        head = f"{self.nodes} nodes were computed in {self.groups} groups; {self.alone} of them alone"
        lines = [("operator", "nodes", "MB", "operands -> result", "why alone")]
        for row in self.rows:
            took = f"{row.operands} -> {row.shape}"
            lines.append((row.operator, str(row.nodes), f"{row.nbytes / 1e6:.3f}", took, row.reason))
        return f"{head}:\n{aligned(lines, left=(0, 3, 4))}" if self.rows else head


class Reader:
    """A graph's nodes as planning saw them."""

    def __init__(self, graph: ComputationGraph) -> None:
        self.graph, self.nodes, self.args = graph, graph.nodes, graph.storage.args
        arrays, count = graph.storage.arrays, graph.header.node_count
        self.order: list[int] = arrays["order"][: graph.header.order_count].tolist()
        self.calls = arrays["calls"][: graph.header.call_count]
        self.plan_of = dict(enumerate(arrays["bundles"]["stamp"][arrays["bundle_of"][:count]].tolist()))
        self.planned = Counter(self.plan_of.values())
        self.takes = {
            number: int(call["takes"])
            for call in self.calls
            for number in self.order[call["first"] : call["first"] + call["count"]]
        }
        self.key_of = {number: self.key(number) for number in self.order}  # each once, also if computed twice
        self.group_of = self.groups()
        self.members: defaultdict[int, list[int]] = defaultdict(list)  # of a group
        for number, group in self.group_of.items():
            self.members[group].append(number)
        keys = self.key_of.values()
        self.of_key = Counter(keys)
        self.of_key_and_plan = Counter((key, self.plan_of[number]) for number, key in self.key_of.items())
        self.of_parts = Counter(key[:length] for key in keys for length in (1, 2, 3))
        self.of_operator = Counter(graph.operator(number).code for number in self.key_of)

    def operands(self, number: int) -> list[int]:
        """The nodes that a node is computed from."""
        node = self.nodes[number]
        return self.args[int(node["args"]) : int(node["args"]) + int(node["arity"])].tolist()  # type: ignore[no-any-return]

    def weights(self, number: int) -> tuple[int, ...]:
        """The operands that all nodes of a group share."""
        shared = int(op.TABLE[self.graph.operator(number).code]["shared"])
        return tuple(source for k, source in enumerate(self.operands(number)) if k < 62 and shared >> k & 1)

    def key(self, number: int) -> Key:
        """The group key of plan.py."""
        node = self.nodes[number]
        return int(node["signature"]), self.weights(number), int(node["flags"]), self.takes.get(number, -1)

    def groups(self) -> dict[int, int]:
        """The group that planning put a node into, by a number.

        Nodes of one group follow each other.  If two groups of one key do so, the second's nodes have operands in the
        first.
        """
        found: dict[int, int] = {}
        group, last = 0, None
        for number in self.order:
            kind = self.key_of[number], self.plan_of[number]
            if kind != last or any(found.get(source) == group for source in self.operands(number)):
                group += 1
            last = kind
            found[number] = group
        return found

    def floats(self, number: int) -> list[int]:
        """A node's numbers that are no part of its signature."""
        start = int(self.nodes[number]["data"])
        count = int(op.TABLE[self.graph.operator(number).code]["floats"])
        return self.graph.storage.data[start : start + count].tolist()  # type: ignore[no-any-return]

    def why_never(self, number: int) -> str:
        """Why nodes like this one never have a group; empty if they may."""
        operands, weights = self.operands(number), self.weights(number)
        if not self.graph.header.autobatch:
            return OFF
        if self.graph.operator(number).group == op.NEVER:
            return NEVER
        if len(operands) > FLAGGED:
            return OPERANDS
        if any(self.graph.shape(source).batch > 1 for source in weights):
            return WEIGHT_BATCH
        others = (self.graph.shape(source).batch for source in operands if source not in weights)
        return MIXED_BATCHES if weights and any(batch != self.graph.shape(number).batch for batch in others) else ""

    def why_unlike(self, number: int) -> str:
        """In what a node differs from the most similar ones; empty if there are others with its key."""
        key = self.key_of[number]
        if self.of_key[key] > 1:
            return ""
        for length, reason in ((3, PLACES), (2, GRADIENTS), (1, WEIGHTS)):
            if self.of_parts[key[:length]] > 1:
                return reason
        return SHAPES if self.of_operator[self.graph.operator(number).code] > 1 else ONCE

    def why_apart(self, number: int) -> str:
        """What kept a node from running with the others of its key."""
        plan = self.plan_of[number]
        if self.of_key_and_plan[self.key_of[number], plan] == 1:
            return ASKED
        if self.planned[plan] <= DIRECT:
            return FEW
        others = [other for other in self.members[self.group_of[number]] if other != number]
        if not others:
            return READY
        return APART if any(self.floats(other) == self.floats(number) for other in others) else NUMBERS

    def explanation(self) -> Explanation:
        """Of all nodes that ran alone."""
        timing.enter_costs()
        nodes: Counter[tuple[str, str, str, str]] = Counter()
        nbytes: Counter[tuple[str, str, str, str]] = Counter()
        computed = self.calls["signature"] != GATHER
        for index in np.flatnonzero(computed & (self.calls["count"] == 1)).tolist():
            number, signature = self.order[self.calls[index]["first"]], int(self.calls[index]["signature"])
            reason = self.why_never(number) or self.why_unlike(number) or self.why_apart(number)
            operator, shape = self.graph.operator(number).name, self.graph.shape(number)
            row = operator, operand_shapes(signature), str(shape), reason
            nodes[row] += 1
            nbytes[row] += timing.nbytes_of.call(self.graph.address, timing.RECORDER_ADDRESS, index)
        total = int(self.calls["count"][computed].sum())
        return Explanation(total, int(computed.sum()), [Alone(*row, nodes[row], nbytes[row]) for row in nodes])


def explain_batching() -> Explanation:
    """Says which of the nodes of the current graph that have been computed ran alone, and why; print what it returns.

    Nodes of one operator, shape and reason are a row; what reads and writes most bytes comes first.
    Inputs and views (reshape) are not computed.
    """
    return Reader(graphs.current).explanation()
