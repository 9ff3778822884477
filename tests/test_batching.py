"""Explanations of what ran alone: one case for each reason."""

from __future__ import annotations

import pytest

import dynjit as dy
from dynjit import batching
from dynjit.batching import Alone


def vectors(count: int, size: int = 16) -> list[dy.Expression]:
    """Inputs; those of 16 elements lie end to end."""
    return [dy.inputVector([0.1 * i] * size) for i in range(count)]


def explained(*targets: dy.Expression) -> dict[tuple[str, str], int]:
    """How many nodes of an operator ran alone for a reason, once the targets are computed together."""
    (dy.esum(list(targets)) if len(targets) > 1 else targets[0]).value()
    found: dict[tuple[str, str], int] = {}
    for row in dy.explain_batching().rows:
        found[row.operator, row.reason] = found.get((row.operator, row.reason), 0) + row.nodes
    return found


def test_nothing_computed() -> None:
    dy.inputVector([1.0])
    found = dy.explain_batching()
    assert (found.nodes, found.groups, found.rows, found.alone) == (0, 0, [], 0)
    assert str(found) == "no node of the current graph has been computed"


def test_what_ran_together_needs_no_reason() -> None:
    assert explained(*[dy.tanh(x) for x in vectors(20)]) == {("esum", batching.OPERANDS): 1}
    found = dy.explain_batching()
    assert (found.nodes, found.groups, found.alone) == (21, 2, 1)


def test_switched_off() -> None:
    dy.renew_cg(autobatching=False)
    assert explained(*[dy.tanh(x) for x in vectors(13)]) == {("tanh", batching.OFF): 13, ("esum", batching.OFF): 1}


def test_never_groups() -> None:
    joined = [dy.concatenate_to_batch([x, x]) for x in vectors(13)]
    assert explained(*joined)["concatenate_to_batch", batching.NEVER] == 13


def test_mini_batches_of_weights_and_operands(model) -> None:
    w, x = model.add_parameters((4, 4)), model.add_lookup_parameters((5, 4))
    batched = dy.concatenate_to_batch([w, w])
    pairs = [dy.lookup_batch(x, [i % 5, 1]) for i in range(13)]
    assert explained(*[batched * p for p in pairs])["product", batching.WEIGHT_BATCH] == 13
    dy.renew_cg()
    pairs = [dy.lookup_batch(x, [i % 5, 1]) for i in range(13)]
    mixed = [dy.affine_transform([model.add_parameters(4), w, p, w, x[0]]) for p in pairs]
    assert explained(*mixed)["affine_transform", batching.MIXED_BATCHES] == 13


def test_the_only_call() -> None:
    assert explained(dy.tanh(vectors(1)[0])) == {("tanh", batching.ONCE): 1}


def test_other_shapes() -> None:
    tanhs = [dy.sum_elems(dy.tanh(vectors(1, size)[0])) for size in (2, 3, 4)]
    assert explained(*tanhs)["tanh", batching.SHAPES] == 3


def test_other_weights(model) -> None:
    u, w, x = model.add_parameters((4, 4)), model.add_parameters((4, 4)), vectors(1, 4)[0]
    assert explained(u * x, w * x)["product", batching.WEIGHTS] == 2


def test_other_gradients(model) -> None:
    x = model.add_parameters(4)
    assert explained(dy.tanh(x), dy.tanh(vectors(1, 4)[0]))["tanh", batching.GRADIENTS] == 2


def test_other_places() -> None:
    x, y, *rest = vectors(20)
    once, twice = dy.exp(x + y), x - y
    assert explained(once, dy.exp(twice), twice, *map(dy.square, rest))[("exp", batching.PLACES)] == 2


def test_values_asked_for() -> None:
    for x in vectors(3):
        found = explained(dy.tanh(x))
    assert found == {("tanh", batching.ASKED): 3}


def test_few_pending_nodes() -> None:
    assert explained(*[dy.tanh(x) for x in vectors(3)])["tanh", batching.FEW] == 3


def test_ready_at_different_times() -> None:
    x = vectors(1)[0]
    for _ in range(20):
        x = dy.tanh(x)
    assert explained(x) == {("tanh", batching.READY): 20}


def test_other_numbers() -> None:
    scaled = [float(i) * x for i, x in enumerate(vectors(20))]
    assert explained(*scaled)["scale", batching.NUMBERS] == 20


def test_operands_apart() -> None:
    tanhs = [dy.tanh(x) for x in vectors(20, 3)]  # each begins at a multiple of 16
    assert explained(*tanhs)["tanh", batching.APART] == 20


def test_most_bytes_first() -> None:
    small, large = vectors(1, 4)[0], vectors(1, 400)[0]
    (dy.sum_elems(dy.exp(large)) + dy.sum_elems(dy.tanh(small))).value()
    found = dy.explain_batching()
    assert found.rows[0] == Alone("exp", "(400,)", "(400,)", batching.ONCE, 1, 2 * 4 * 400)
    assert [row.nbytes for row in found.rows] == sorted((row.nbytes for row in found.rows), reverse=True)
    assert found.reasons == {batching.ONCE: 3, batching.SHAPES: 2}
    head, names, first, *_ = str(found).splitlines()
    assert head == "5 nodes were computed in 5 groups; 5 of them alone:"
    assert " ".join(names.split()) == "operator nodes MB operands -> result why alone"
    assert " ".join(first.split()) == "exp 1 0.003 (400,) -> (400,) the only call of this operator"


def test_another_graph() -> None:
    dy.tanh(vectors(1)[0]).value()
    with dy.new_graph():
        assert dy.explain_batching().nodes == 0
    assert dy.explain_batching().nodes == 1


def test_long_lists_are_cut_short() -> None:
    assert explained(*vectors(20))["esum", batching.OPERANDS] == 1
    assert dy.explain_batching().rows[0].operands == "(16,), (16,), (16,), ..."


@pytest.mark.parametrize("sizes", [(3, 5), (20, 4)])
def test_reverted_nodes_do_not_count(sizes) -> None:
    before, after = sizes
    explained(*[dy.tanh(x) for x in vectors(before)])
    count = dy.explain_batching().nodes
    dy.cg_checkpoint()
    explained(*[dy.exp(x) for x in vectors(after)])
    assert dy.explain_batching().nodes == count + after + 1
    dy.cg_revert()
    assert dy.explain_batching().nodes == count
