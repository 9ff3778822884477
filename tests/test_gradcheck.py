"""gradcheck: right gradients pass, wrong ones are found, and nothing is changed."""

from __future__ import annotations

import numpy as np
import pytest

import dynjit as dy
from dynjit import graph
from dynjit.gradcheck import gradcheck


def network(model: dy.ParameterCollection) -> dy.Expression:
    table, lstm = model.add_lookup_parameters((5, 3)), dy.VanillaLSTMBuilder(1, 3, 4, model)
    w, b = model.add_parameters((3, 4)), model.add_parameters(3)
    outputs = lstm.initial_state().transduce([table[i] for i in (0, 2, 0, 4)])
    scores = [dy.affine_transform([b, w, dy.dropout(h, 0.3)]) for h in outputs]
    return dy.average([dy.pickneglogsoftmax(s, i % 3) for i, s in enumerate(scores)]) + 0.1 * dy.squared_norm(w)


@pytest.mark.parametrize("autobatching", [True, False])
def test_a_network_has_right_gradients(model: dy.ParameterCollection, autobatching: bool) -> None:
    dy.renew_cg(autobatching=autobatching)
    loss = network(model)
    assert gradcheck(loss, model) < 1e-8
    assert gradcheck(loss, model, most=3, step=1e-4) < 1e-6


def test_nothing_is_changed(model: dy.ParameterCollection) -> None:
    loss = network(model)
    loss.backward()
    values, gradients = [p.as_array() for p in model.stored], [p.grad_as_array() for p in model.stored]
    marks = model.lookup_parameters_list()[0].marks().copy()
    nodes, value = graph.current.header.node_count, loss.value()
    inner = loss.gradient()
    gradcheck(loss, model)
    for p, v, g in zip(model.stored, values, gradients, strict=True):
        np.testing.assert_array_equal(p.as_array(), v)
        np.testing.assert_array_equal(p.grad_as_array(), g)
    np.testing.assert_array_equal(model.lookup_parameters_list()[0].marks(), marks)
    assert (graph.current.header.node_count, loss.value(), loss.gradient()) == (nodes, value, inner)
    loss.backward()
    for p, g in zip(model.stored, gradients, strict=True):
        np.testing.assert_allclose(p.grad_as_array(), 2 * g, rtol=1e-6)
    assert gradcheck(loss, model) < 1e-8  # again


def test_a_wrong_gradient_is_found(model: dy.ParameterCollection) -> None:
    p = model.add_parameters(3, init=0.5)
    assert gradcheck(dy.sum_elems(dy.tanh(p)), model) < 1e-9
    assert gradcheck(dy.sum_elems(dy.flip_gradient(p)), model) > 0.5
    assert gradcheck(dy.sum_elems(dy.cmult(dy.nobackprop(p), p)), model) > 0.1
    assert gradcheck(dy.sum_elems(dy.scale_gradient(p, 1.001)), model) > 1e-4
    assert gradcheck(dy.sum_elems(dy.log(p - 0.5)), model) == float("inf")


def test_after_a_revert(model: dy.ParameterCollection) -> None:
    p = model.add_parameters(2, init=0.5)
    loss = dy.squared_norm(p)
    dy.cg_checkpoint()
    dy.exp(loss).value()
    dy.cg_revert()
    assert gradcheck(dy.log(loss), model) < 1e-9


def test_errors(model: dy.ParameterCollection) -> None:
    p = model.add_parameters(2)
    with pytest.raises(ValueError, match=r"gradcheck: needs a scalar \(one element, batch 1\), got \(2,\)"):
        gradcheck(p * 2, model)
    dy.renew_cg()
    with pytest.raises(ValueError, match="gradcheck: needs an expression of parameters of the collection, got none"):
        gradcheck(dy.scalarInput(1) * 2, model)
    old = dy.squared_norm(p)
    dy.renew_cg()
    with pytest.raises(dy.StaleExpressionError):
        gradcheck(old, model)


def test_memory_is_given_back(model: dy.ParameterCollection) -> None:
    p = model.add_parameters(20_000, init=1)
    gradcheck(dy.squared_norm(p), model, most=2)
    for buffer in (graph.space.double.v, graph.space.double.g):
        assert not buffer[p.start + 1000 : p.start + 19_000].any()
