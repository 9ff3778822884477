"""Parts of a graph: which graphs are divided, how, and that all else works on graphs that are."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

import dynjit as dy
from dynjit import graph, op, parts, threads
from dynjit.arena import GATHER

WORDS, SIZE = 20, 6


@pytest.fixture(autouse=True)
def two_threads(every_call_is_shared: None) -> Iterator[None]:
    threads.set_threads(2)
    threads.start()
    yield


class Network:
    """A recurrent network, operator by operator, so that its bias is an operand of its own."""

    def __init__(self, model: dy.ParameterCollection, hidden: int = SIZE) -> None:
        self.model, self.hidden = model, hidden
        self.table = model.add_lookup_parameters((WORDS, SIZE))
        self.w, self.u = model.add_parameters((hidden, SIZE)), model.add_parameters((hidden, hidden))
        self.b, self.v = model.add_parameters(hidden, init="uniform", scale=0.5), model.add_parameters((3, hidden))

    def states(self, words: list[int]) -> list[dy.Expression]:
        h, states = dy.zeros(self.hidden), []
        for word in words:
            h = dy.tanh(self.b + self.w * self.table[word] + self.u * h)
            states.append(h)
        return states

    def loss(self, words: list[int]) -> dy.Expression:
        return dy.esum([dy.pickneglogsoftmax(self.v * h, word % 3) for h, word in zip(self.states(words), words)])

    def gradients(self) -> list[np.ndarray]:
        return [stored.gradients().copy() for stored in self.model.stored]

    def clear(self) -> None:
        for stored in self.model.stored:
            stored.gradients()[:] = 0


def sentences(count: int, length: int = 5) -> list[list[int]]:
    random = np.random.default_rng(count)
    return [random.integers(0, WORDS, length).tolist() for _ in range(count)]


def part_count() -> int:
    return graph.current.header.parts


def total(net: Network, count: int = 8) -> dy.Expression:
    return dy.esum([net.loss(words) for words in sentences(count)])


def both(net: Network, use: Callable[[], list[np.ndarray]]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """What `use` finds in a new graph with one thread, and with two."""
    found = []
    for count in (1, 2):
        threads.set_threads(count)
        net.clear()
        dy.renew_cg()
        found.append(use())
    return found[0], found[1]


def close(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


# ---- which graphs are divided ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 5])
def test_sentences_become_as_many_parts_as_threads(model: dy.ParameterCollection, count: int) -> None:
    net = Network(model)
    threads.set_threads(count)
    total(net, 10).backward()
    assert part_count() == count
    sizes = [int(part["stop"] - part["call"]) for part in graph.current.storage.arrays["part_table"][:count]]
    assert min(sizes) > 0


def is_cut() -> bool:
    """Whether the parts lie one behind the other."""
    return bool(graph.current.header.is_cut)


def test_sentences_one_behind_the_other_are_cut_apart(model: dy.ParameterCollection) -> None:
    total(Network(model)).backward()
    assert part_count() == 2 and is_cut()


def chain_of_sums(net: Network) -> dy.Expression:
    """Sentences whose losses are added up on the way, so that none lies apart from what is in front of it."""
    loss = dy.zeros(1)
    for words in sentences(8):
        loss = loss + net.loss(words)
    return loss


def loss_made_at_the_end(net: Network) -> dy.Expression:
    """Sentences whose losses are made when the states of all of them are known."""
    states = [net.states(words) for words in sentences(8)]
    return dy.esum([dy.pickneglogsoftmax(net.v * h, 1) for some in states for h in some])


def last_looks_back(net: Network) -> dy.Expression:
    """The node before the sum needs the first sentence."""
    losses = [net.loss(words) for words in sentences(8)]
    return dy.esum([*losses[1:], losses[0] * 2.0]) * 0.5


def one_looks_back_on_the_way(net: Network) -> dy.Expression:
    """A node between the sixth sentence and the seventh needs the first: a thread meets it only on its way down."""
    losses = [net.loss(words) for words in sentences(8)[:6]]
    back = losses[0] * 2.0
    return dy.esum([*losses, back, *(net.loss(words) for words in sentences(8)[6:])])


@pytest.mark.parametrize("use", [chain_of_sums, loss_made_at_the_end, last_looks_back, one_looks_back_on_the_way])
def test_what_lies_otherwise_has_the_same_gradients(
    use: Callable[[Network], dy.Expression], model: dy.ParameterCollection
) -> None:
    net = Network(model)

    def run() -> list[np.ndarray]:
        loss = use(net)
        loss.backward()
        return [np.array([loss.value()]), *net.gradients()]

    alone, shared = both(net, run)
    assert part_count() == 2 and is_cut() == (use is last_looks_back)
    close(shared, alone)


def test_a_graph_that_was_gone_through_in_vain_is_planned_as_a_whole(model: dy.ParameterCollection) -> None:
    net = Network(model)

    def run() -> list[np.ndarray]:
        loss = total(net)
        loss.backward()
        return [np.array([loss.value()]), *net.gradients()]

    threads.pool[threads.WIDE] = 1 << 20  # no graph is as wide
    alone, together = both(net, run)
    assert part_count() == 0 and not is_cut()
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_array_equal(a, b)


def test_both_directions_of_a_network_are_parts(model: dy.ParameterCollection) -> None:
    net, other = Network(model), Network(model)
    words = sentences(1, 40)[0]
    states = zip(net.states(words), other.states(words[::-1])[::-1])
    dy.esum([dy.sum_elems(left + right) for left, right in states]).backward()
    assert part_count() == 2


def test_subtrees_are_parts(model: dy.ParameterCollection) -> None:
    net = Network(model)

    def visit(depth: int) -> dy.Expression:
        if depth == 0:
            return dy.tanh(net.w * net.table[depth])
        return dy.tanh(net.u * (visit(depth - 1) + visit(depth - 1)))

    dy.sum_elems(visit(6)).backward()
    assert part_count() == 2


def shared_state(net: Network) -> dy.Expression:
    """Sentences that all need a state with a value, which gets a gradient from each."""
    start = dy.tanh(net.b * 2.0)
    start.value()
    return dy.esum([dy.sum_elems(net.states(words)[-1] + start) for words in sentences(8)])


@pytest.mark.parametrize(
    "make",
    [
        lambda net: net.loss(sentences(1, 40)[0]),  # a chain
        shared_state,
        lambda net: dy.esum([dy.sum_elems(net.b * float(i)) for i in range(4)]),
    ],
    ids=["chain", "shared value", "twelve nodes"],
)
def test_other_graphs_stay_whole(model: dy.ParameterCollection, make: Callable[[Network], dy.Expression]) -> None:
    net = Network(model)
    make(net).backward()
    assert part_count() == 0


def test_large_parameters_have_no_shadows(model: dy.ParameterCollection) -> None:
    large = model.add_parameters(parts.SMALL + 1)
    dy.esum([dy.sum_elems(dy.tanh(dy.tanh(large + float(i)))) for i in range(12)]).backward()
    assert part_count() == 0
    assert graph.current.header.shadows == 0


def test_small_graphs_are_not_worth_it(model: dy.ParameterCollection) -> None:
    net = Network(model)
    threads.pool[[threads.WAKING, threads.WIDE]] = 50_000, 12
    total(net, 4).value()
    assert part_count() == 0
    dy.renew_cg()
    total(net, 400).value()
    assert part_count() == 2


@pytest.mark.parametrize("add_up", [dy.esum, sum], ids=["at the end", "on the way"])
def test_large_graphs_are_divided_for_one_thread_too(add_up: Callable, model: dy.ParameterCollection) -> None:
    net = Network(model)
    threads.set_threads(1)
    words, step = sentences(4000), 500
    net.clear()
    for first in range(0, len(words), step):
        dy.renew_cg()
        dy.esum([net.loss(sentence) for sentence in words[first : first + step]]).backward()
        assert part_count() == 0
    expected = net.gradients()
    net.clear()
    dy.renew_cg()
    losses = (net.loss(sentence) for sentence in words)
    add_up([*losses] if add_up is dy.esum else losses).backward()
    assert part_count() == graph.current.header.node_count // parts.MANY == 2
    assert is_cut() == (add_up is dy.esum)
    for found, gradient in zip(net.gradients(), expected, strict=True):
        np.testing.assert_allclose(found, gradient, rtol=1e-4, atol=1e-4 * np.abs(gradient).max())


# ---- plans -----------------------------------------------------------------------------------------------------------


def test_parts_lie_behind_each_other(model: dy.ParameterCollection) -> None:
    net = Network(model)
    loss = total(net)
    loss.value()
    header, arrays = graph.current.header, graph.current.storage.arrays
    calls, order = arrays["calls"][: header.call_count], arrays["order"]
    table = arrays["part_table"][:2]
    assert table[0]["stop"] == table[1]["call"] < table[1]["stop"] < len(calls)
    ends = [max(int(call["y"]) for call in calls[part["call"] : part["stop"]]) for part in table]
    numbers = [
        order[call["first"] : call["first"] + call["count"]] for call in calls[table[0]["call"] : table[0]["stop"]]
    ]
    operands = graph.current.nodes["arity"][np.concatenate(numbers)].sum()
    assert table[1]["merged"] - table[0]["merged"] <= operands  # a part takes no more room than its nodes need
    assert ends[0] < min(int(call["y"]) for call in calls[table[1]["call"] : table[1]["stop"]])
    planned = [
        int(number)
        for call in calls
        if call["signature"] != GATHER
        for number in order[call["first"] : call["first"] + call["count"]]
    ]
    assert sorted(planned) == sorted(set(planned))
    assert sorted(planned) == sorted(order[: header.order_count].tolist())
    assert loss._node() in planned


def test_recorded_operands_are_the_parameters(model: dy.ParameterCollection) -> None:
    net = Network(model)
    loss = total(net)
    before = graph.current.storage.args[: graph.current.header.arg_count].copy()
    loss.value()
    assert graph.current.header.shadows == 1  # of the bias; weights and the table need none
    assert (graph.current.storage.args[: len(before)] != before).any()
    np.testing.assert_array_equal(graph.current.recorded_args(), before)


def test_many_graphs_later_stamps_begin_anew(model: dy.ParameterCollection) -> None:
    net = Network(model)
    net.clear()
    total(net).backward()
    expected = net.gradients()
    header = graph.current.header
    for counter in ("generation", "reach"):
        setattr(header, counter, (1 << 31) - 1)
        net.clear()
        dy.renew_cg()
        total(net).backward()
        assert header.generation < 1000
        close(net.gradients(), expected)


# ---- values and gradients --------------------------------------------------------------------------------------------


def test_values_and_gradients_are_as_with_one_thread(model: dy.ParameterCollection) -> None:
    net = Network(model, 40)

    def use() -> list[np.ndarray]:
        loss = total(net, 30)
        loss.backward()
        return [loss.npvalue(), *net.gradients()]

    one, two = both(net, use)
    assert part_count() == 2
    close(two, one)
    again = both(net, use)[1]
    for a, b in zip(two, again, strict=True):
        np.testing.assert_array_equal(a, b)


def test_later_plans_of_a_divided_graph(model: dy.ParameterCollection) -> None:
    net = Network(model)

    def use() -> list[np.ndarray]:
        first = total(net)
        first.value()
        second = total(net, 9) + first
        second.backward()
        return [second.npvalue(), *net.gradients()]

    one, two = both(net, use)
    close(two, one)


def test_gradients_of_inner_nodes_and_inputs(model: dy.ParameterCollection) -> None:
    net = Network(model)

    def use() -> list[np.ndarray]:
        states = [net.states(words) for words in sentences(8)]
        x = dy.inputVector(np.linspace(0, 1, SIZE))
        loss = dy.esum([dy.squared_distance(h, x) for each in states for h in each])
        loss.backward(full=True)
        kept = net.gradients()
        return [x.gradient(), *(h.gradient() for each in states for h in each), *kept, *net.gradients()]

    one, two = both(net, use)
    close(two, one)


def test_values_whose_place_was_taken(model: dy.ParameterCollection) -> None:
    """They are computed anew, with the parameters as they are then."""
    net = Network(model)

    def use() -> list[np.ndarray]:
        sums = [net.b + net.w * net.table[i] for i in range(8)]
        loss = dy.esum([dy.sum_elems(dy.tanh(dy.tanh(s))) for s in sums])
        loss.value()
        net.b.set_value(np.arange(SIZE))
        after = [s.npvalue() for s in sums]
        net.b.set_value(np.ones(SIZE))
        return after

    one, two = both(net, use)
    close(two, one)


def test_changed_words(model: dy.ParameterCollection) -> None:
    net = Network(model)

    def use() -> list[np.ndarray]:
        rows = [net.table[i % 3] for i in range(8)]
        loss = dy.esum([dy.sum_elems(dy.tanh(net.b + net.w * row)) for row in rows])
        before = loss.npvalue()
        for i, row in enumerate(rows):
            row.set(10 + i)
        return [before, loss.npvalue()]

    one, two = both(net, use)
    close(two, one)


def test_checkpoints_before_and_behind_parts(model: dy.ParameterCollection) -> None:
    net = Network(model)

    def use() -> list[np.ndarray]:
        dy.cg_checkpoint()
        found = [total(net).npvalue()]
        dy.cg_revert()
        found.append(total(net, 9).npvalue())
        dy.cg_checkpoint()
        found.append(total(net, 7).npvalue())
        dy.cg_revert()
        loss = total(net, 6)
        loss.backward()
        return [*found, loss.npvalue(), *net.gradients()]

    one, two = both(net, use)
    close(two, one)


def test_profiles_and_explanations(model: dy.ParameterCollection) -> None:
    net = Network(model)

    def use() -> list[np.ndarray]:
        with dy.profile() as profile:
            loss = total(net)
            loss.backward()
        assert "product" in str(profile)
        assert "nodes were computed" in str(dy.explain_batching())
        return [loss.npvalue(), *net.gradients()]

    one, two = both(net, use)
    close(two, one)


def test_kernels_are_loaded_before_parts_run(python: Callable) -> None:
    """A worker cannot: it would wait for the interpreter, which its caller holds."""
    program = """
import dynjit as dy
from dynjit import graph, threads
threads.pool[[threads.WAKING, threads.WIDE]] = 0, 0
m = dy.ParameterCollection()
w, b = m.add_parameters((4, 4)), m.add_parameters(4)
x = [dy.inputVector([i, 1, 2, 3]) for i in range(12)]
loss = dy.esum([dy.sum_elems(dy.tanh(b + w * dy.exp(w * v))) for v in x])
loss.backward()
print(graph.current.header.parts)
"""
    assert python(program, DYNJIT_THREADS=2).stdout.split() == ["2"]


def test_memory_that_does_not_suffice(model: dy.ParameterCollection) -> None:
    net = Network(model)
    loss = total(net)
    header = graph.current.header
    end = header.value_end
    header.value_end = header.value_top + 64
    with pytest.raises(MemoryError, match="the graph has no room for its values"):
        loss.value()
    header.value_end = end
    assert part_count() == 0
    expected = loss.npvalue()
    dy.renew_cg()
    assert total(net).npvalue() == expected


def test_a_signature_knows_time_and_room(model: dy.ParameterCollection) -> None:
    w = model.add_parameters((30, 50))
    y = w * dy.inputTensor(np.ones((50, 4)), batched=True)
    record = op.SIGNATURES[graph.current.signatures[y._node()]]
    assert record["time"] == op.NODE_TIME + 30 * 4 + 30 * 50 * 4 // op.PER_NANOSECOND
    assert record["room"] == (30 * 4 + 50 * 4) // 16 + 4
