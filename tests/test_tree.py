"""Tree LSTMs against their equations, worked out in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import dynjit as dy
from dynjit import tree

TREE = [[1, 4], [2, 3], [], [], []]  # a root with two children, the first of which has two
KINDS = (dy.ChildSumTreeLSTMBuilder, dy.NaryTreeLSTMBuilder, dy.UnidirectionalTreeLSTMBuilder,
         dy.BidirectionalTreeLSTMBuilder)  # fmt: skip
GATED = KINDS[:2]


def fill(model: dy.ParameterCollection) -> None:
    """Parameter k (from 1), in memory order: sin(1.7 i + k) / 2."""
    for k, p in enumerate(model.parameters_list(), 1):
        p.set_value((np.sin(1.7 * np.arange(p.count) + k) / 2).reshape(p.shape(), order="F"))


def made(kind: type, model: dy.ParameterCollection, layers: int = 2, N: int = 3) -> Any:
    """A builder of 4 inputs and 4 hidden units with known parameters."""
    b = kind(*([N] if kind is dy.NaryTreeLSTMBuilder else []), layers, 4, 4, model)
    fill(model)
    return b


def numbers(node: int) -> list[float]:
    return [math.cos(3 * node + i) for i in range(4)]


def inputs(count: int, without: tuple[int, ...] = ()) -> list[dy.Expression | None]:
    return [None if node in without else dy.inputVector(numbers(node)) for node in range(count)]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def child_sum_node(weights: list[np.ndarray], x: np.ndarray | None, c: list, h: list) -> tuple[np.ndarray, np.ndarray]:
    """Tai, Socher and Manning 2015, equations 2 to 8, with 1 added to the forget gates."""
    W, U, b = weights
    i, f, o, u = (b + (W @ x if x is not None else 0)).reshape(4, -1)
    U_i, U_f, U_o, U_u = U.reshape(4, 4, 4)
    total = sum(h, np.zeros(4))
    new_c = sigmoid(i + U_i @ total) * np.tanh(u + U_u @ total)
    new_c = new_c + sum(sigmoid(f + U_f @ h_k + 1) * c_k for c_k, h_k in zip(c, h, strict=True))
    return new_c, sigmoid(o + U_o @ total) * np.tanh(new_c)


def nary_node(weights: list[np.ndarray], x: np.ndarray | None, c: list, h: list) -> tuple[np.ndarray, np.ndarray]:
    """Tai, Socher and Manning 2015, equations 9 to 14, with 1 added to the forget gates and N = 3; None: no child."""
    W, b, *rest = weights
    i, f, o, u = (b + (W @ x if x is not None else 0)).reshape(4, -1)
    present = [l for l, given in enumerate(h) if given is not None]  # noqa: E741
    U_i, U_f1, U_o, U_u = np.array([U.reshape(4, 4, 4) for U in rest[:3]]).transpose(1, 0, 2, 3)
    U_f = [U_f1, rest[3:6], rest[6:9]]

    def total(U: Any) -> np.ndarray:
        return sum((U[l] @ h[l] for l in present), np.zeros(4))  # noqa: E741

    new_c = sigmoid(i + total(U_i)) * np.tanh(u + total(U_u))
    for k in present:
        new_c = new_c + sigmoid(f + total(U_f[k]) + 1) * c[k]
    return new_c, sigmoid(o + total(U_o)) * np.tanh(new_c)


def expected(b: Any, xs: list[Any], children: list[list[Any]]) -> list[np.ndarray]:
    """The top layer's h of all nodes, by the equations."""
    step = child_sum_node if isinstance(b, dy.ChildSumTreeLSTMBuilder) else nary_node
    states: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
    for node in tree.bottom_up(children):
        x = None if xs[node] is None else np.array(xs[node].value())
        states[node] = []
        for layer, parameters in enumerate(b.get_parameters()):
            below = [(None, None) if child is None else states[child][layer] for child in children[node]]
            c, x = step([p.as_array() for p in parameters], x, [c for c, _ in below], [h for _, h in below])
            states[node].append((c, x))
    return [states[node][-1][1] for node in range(len(children))]


# ---- the equations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", GATED)
@pytest.mark.parametrize("children", [TREE, [[], [0], [1]], [[1, 2, 3], [], [], []], [[]]])
@pytest.mark.parametrize("without", [(), (0, 1)])
def test_nodes_follow_the_equations(
    kind: type, children: list, without: tuple[int, ...], model: dy.ParameterCollection
) -> None:
    b = made(kind, model)
    xs = inputs(len(children), tuple(node for node in without if node < len(children) and children[node]))
    outputs = [y.value() for y in b.transduce(xs, children)]
    assert np.allclose(outputs, expected(b, xs, children), atol=1e-6)


def test_missing_children_of_an_nary_node_keep_the_places_of_the_others(model: dy.ParameterCollection) -> None:
    b = made(dy.NaryTreeLSTMBuilder, model)
    xs, children = inputs(4), [[None, 1, 2], [None, 3], [], []]
    assert np.allclose([y.value() for y in b.transduce(xs, children)], expected(b, xs, children), atol=1e-6)
    left, right = (b.transduce(inputs(2), [places, []])[0].value() for places in ([1], [None, 1]))
    assert not np.allclose(left, right)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind: type, model: dy.ParameterCollection) -> None:
    b = made(kind, model)
    loss = dy.esum([dy.squared_norm(y) for y in b.transduce(inputs(5, (1,)), TREE)])
    assert dy.gradcheck(loss, model, most=8) < 1e-6


def test_over_a_chain_it_is_an_lstm(model: dy.ParameterCollection) -> None:
    lstm = dy.VanillaLSTMBuilder(2, 4, 4, model)
    child_sum, nary = made(dy.ChildSumTreeLSTMBuilder, model), dy.NaryTreeLSTMBuilder(1, 2, 4, 4, model)
    for layer, (w_x, w_h, b) in enumerate(lstm.get_parameters()):
        b.set_value(np.sin(np.arange(16)))
        for own, p in zip(child_sum.get_parameters()[layer], (w_x, w_h, b), strict=True):
            own.set_value(p.as_array())
        for own, p in zip(nary.get_parameters()[layer], (w_x, b, w_h), strict=True):
            own.set_value(p.as_array())
    chain = [[], [0], [1], [2]]
    by_lstm = [y.value() for y in lstm.initial_state().transduce(inputs(4))]
    for b in (child_sum, nary):
        assert np.allclose([y.value() for y in b.transduce(inputs(4), chain)], by_lstm, atol=1e-6)


def test_chains_read_the_input_and_then_the_children(model: dy.ParameterCollection) -> None:
    one, two = dy.UnidirectionalTreeLSTMBuilder(2, 4, 4, model), dy.BidirectionalTreeLSTMBuilder(1, 4, 4, model)
    xs = inputs(3)
    leaves, root = one.transduce(xs, [[1, 2], [], []])[1:], one.transduce(xs, [[1, 2], [], []])[0]
    (lstm,) = one.builders
    assert np.allclose(root.value(), lstm.initial_state().transduce([xs[0], *leaves])[-1].value())
    root, *leaves = two.transduce(xs, [[1, 2], [], []])
    left, right = two.builders
    joined = [*left.initial_state().transduce([xs[0], *leaves])[-1].value(),
              *right.initial_state().transduce([xs[0], *leaves[::-1]])[-1].value()]  # fmt: skip
    assert np.allclose(root.value(), joined)


@pytest.mark.parametrize("kind", KINDS)
def test_order_counts_except_in_a_sum(kind: type, model: dy.ParameterCollection) -> None:
    b = made(kind, model)
    there, back = (b.transduce(inputs(3), [order, [], []])[0].value() for order in ([1, 2], [2, 1]))
    assert np.allclose(there, back, atol=1e-6) == (kind is dy.ChildSumTreeLSTMBuilder)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mini_batch_is_its_items(kind: type, model: dy.ParameterCollection) -> None:
    b = made(kind, model)
    items = np.array([[numbers(node + 7 * k) for k in range(2)] for node in range(5)])
    together = b.transduce([dy.inputTensor(item.T, batched=True) for item in items], TREE)[0].npvalue()
    alone = [b.transduce([dy.inputVector(item[k].tolist()) for item in items], TREE)[0].value() for k in range(2)]
    assert np.allclose(together.T, alone, atol=1e-6)


# ---- trees -----------------------------------------------------------------------------------------------------------


def test_children_come_before_their_parents() -> None:
    order = tree.bottom_up(TREE)
    assert sorted(order) == list(range(5))
    assert all(order.index(child) < order.index(node) for node in range(5) for child in TREE[node])
    assert tree.bottom_up([]) == []
    assert sorted(tree.bottom_up([[], [2, None], []])) == [0, 1, 2]  # two trees
    shared = [[1, 2], [3], [3], []]
    assert sorted(tree.bottom_up(shared)) == [0, 1, 2, 3]
    assert tree.bottom_up(shared)[0] == 3


def test_deep_trees_need_no_deep_stack(model: dy.ParameterCollection) -> None:
    count = 3000
    chain = [[node + 1] for node in range(count - 1)] + [[]]
    assert tree.bottom_up(chain) == list(range(count - 1, -1, -1))
    assert np.isfinite(made(dy.ChildSumTreeLSTMBuilder, model, 1).transduce(inputs(count), chain)[0].value()).all()


@pytest.mark.parametrize(("children", "needs"), [
    ([[1], [0]], "a tree without cycles"), ([[0]], "a tree without cycles"), ([[1], [2], [1]], "a tree without cycles"),
    ([[1]], "children from 0 to 0, got 1 as a child of 0"), ([[-1]], "children from 0 to 0, got -1 as a child of 0"),
])  # fmt: skip
def test_what_is_no_tree_is_refused(children: list[list[int]], needs: str, model: dy.ParameterCollection) -> None:
    with pytest.raises(ValueError, match=f"bottom_up: needs {needs}"):
        made(dy.ChildSumTreeLSTMBuilder, model).transduce(inputs(len(children)), children)


def test_children_of_parents() -> None:
    assert tree.children_of([-1, 0, 0, 1, None]) == [[1, 2], [3], [], [], []]
    with pytest.raises(ValueError, match="children_of: needs parents from -1 to 1, got 2"):
        tree.children_of([-1, 2])


# ---- builders --------------------------------------------------------------------------------------------------------


def test_node_by_node(model: dy.ParameterCollection) -> None:
    b = made(dy.NaryTreeLSTMBuilder, model)
    xs = inputs(3)
    leaves = [b.add_input(x) for x in xs[1:]]
    root = b.add_input(xs[0], leaves)
    assert np.allclose(root.output().value(), b.transduce(xs, [[1, 2], [], []])[0].value(), atol=1e-6)
    assert (len(root.c()), len(root.h())) == (2, 2)
    assert root.output() is root.h()[-1]
    states = b.add_inputs(xs, [[1, 2], [], []])
    for state, leaf in zip(states[1:], leaves, strict=True):
        assert np.allclose(state.output().value(), leaf.output().value(), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_specs_make_the_same_again(kind: type, model: dy.ParameterCollection) -> None:
    b = made(kind, model)
    other = dy.ParameterCollection()
    again = kind.from_spec(b.spec, other)
    assert again.spec == b.spec
    names = [p.name() for p in b.param_collection().parameters_list()]
    assert [p.name() for p in again.param_collection().parameters_list()] == names
    fill(other)
    outputs = (y.transduce(inputs(5), TREE)[0].value() for y in (b, again))
    assert np.allclose(next(outputs), next(outputs))
    assert b.whoami() == kind.__name__


@pytest.mark.parametrize(("kind", "collection", "shapes"), [
    (dy.ChildSumTreeLSTMBuilder, "child-sum-tree-lstm-builder", [(8, 3), (8, 2), (8,)]),
    (dy.NaryTreeLSTMBuilder, "nary-tree-lstm-builder", [(8, 3), (8,), (8, 2), (8, 2), (2, 2), (2, 2)]),
])  # fmt: skip
def test_parameters(kind: type, collection: str, shapes: list, model: dy.ParameterCollection) -> None:
    b = kind(*([2] if kind is dy.NaryTreeLSTMBuilder else []), 1, 3, 2, model)
    assert [[p.shape() for p in layer] for layer in b.get_parameters()] == [shapes]
    assert b.param_collection().name() == f"/{collection}/"
    b.add_input(dy.inputVector([1.0, 2.0, 3.0]))
    assert [e.dim()[0] for e in b.get_parameter_expressions()[0]] == shapes


@pytest.mark.parametrize("kind", KINDS)
def test_whether_parameters_get_gradients_is_decided_per_call(kind: type, model: dy.ParameterCollection) -> None:
    b = made(kind, model)
    for update in (False, True):
        dy.squared_norm(b.transduce(inputs(5), TREE, update=update)[0]).backward()
        assert any(p.grad_as_array().any() for p in model.parameters_list()) == update


@pytest.mark.parametrize("kind", KINDS)
def test_dropout(kind: type, model: dy.ParameterCollection) -> None:
    b = made(kind, model)
    plain = b.transduce(inputs(5), TREE)[0].value()
    b.set_dropout(0.5)
    dropped = b.transduce(inputs(5), TREE)[0].value()
    assert not np.allclose(dropped, plain)
    assert np.allclose(b.transduce(inputs(5), TREE)[0].value(), dropped)
    b.disable_dropout()
    assert np.allclose(b.transduce(inputs(5), TREE)[0].value(), plain)
    with pytest.raises(ValueError, match="needs rates from 0 to below 1, got 1, 1"):
        b.set_dropout(1)


@pytest.mark.parametrize("kind", GATED)
def test_separate_dropout_rates(kind: type, model: dy.ParameterCollection) -> None:
    b = made(kind, model)
    plain = [y.value() for y in b.transduce(inputs(5), TREE)]
    b.set_dropouts(0, 0.5)
    dropped = [y.value() for y in b.transduce(inputs(5), TREE)]
    assert np.allclose(dropped[2:], plain[2:])  # leaves
    assert not np.allclose(dropped[:2], plain[:2])


@pytest.mark.parametrize("kind", KINDS)
def test_errors(kind: type, model: dy.ParameterCollection) -> None:
    b = made(kind, model)
    with pytest.raises(ValueError, match=f"{kind.__name__}: needs an input or children, got neither"):
        b.transduce(inputs(5, (2,)), TREE)
    with pytest.raises(ValueError, match="add_inputs: needs an input for each of 5 nodes, got 4"):
        b.transduce(inputs(4), TREE)
    assert np.isfinite(b.transduce(inputs(5), TREE)[0].value()).all()


def test_sizes_are_checked(model: dy.ParameterCollection) -> None:
    with pytest.raises(ValueError, match="NaryTreeLSTMBuilder: needs 1 child or more, and less than 1000, got N = 0"):
        dy.NaryTreeLSTMBuilder(0, 1, 3, 2, model)
    with pytest.raises(ValueError, match="ChildSumTreeLSTMBuilder: needs layers, input_dim and hidden_dim of 1"):
        dy.ChildSumTreeLSTMBuilder(1, 0, 2, model)
    with pytest.raises(ValueError, match="NaryTreeLSTMBuilder: needs up to 1 children, got 2"):
        made(dy.NaryTreeLSTMBuilder, model, N=1).transduce(inputs(5), TREE)
    with pytest.raises(ValueError, match="UnidirectionalTreeLSTMBuilder: needs an input_dim equal to hidden_dim: "):
        dy.UnidirectionalTreeLSTMBuilder(1, 3, 2, model)
    with pytest.raises(ValueError, match="BidirectionalTreeLSTMBuilder: needs an input_dim equal to hidden_dim that"):
        dy.BidirectionalTreeLSTMBuilder(1, 3, 3, model)
