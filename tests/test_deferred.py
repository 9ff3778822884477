"""Gradients of weights: columns that lie apart become one product, and the sum is the same."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import dynjit as dy
from dynjit import graph, timing

STEPS = 30


def product(w: dy.Parameters, x: dy.Expression) -> dy.Expression:
    return w * x


def affine(w: dy.Parameters, x: dy.Expression) -> dy.Expression:
    return dy.affine_transform([x, w, x])


def added(w: dy.Parameters, x: dy.Expression) -> dy.Expression:
    return x + w * x


def gradient(w: dy.Parameters, operator: Callable, stops: bool, room: bool = True, batch: int = 1) -> np.ndarray:
    """Of a weight that each step uses; `stops`: values are asked for on the way; `room`: for copies of columns."""
    dy.renew_cg()
    x = dy.inputTensor(np.linspace(-1, 1, 5 * batch).reshape(5, batch), batched=True)
    losses = []
    for step in range(STEPS):
        x = dy.tanh(operator(w, x)) * (1 - step / 100)
        losses.append(dy.sum_batches(dy.squared_norm(x)))
        if stops:
            losses[-1].value()
    loss = dy.esum(losses)
    loss.value()
    if not room:
        graph.current.header.value_end = graph.current.header.value_top
    w.scale_gradient(0)
    loss.backward()
    graph.current.header.value_end = graph.current.storage.end
    return w.grad_as_array()


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("operator", [product, affine, added], ids=lambda operator: operator.__name__)
def test_the_sum_is_the_same(model: dy.ParameterCollection, operator: Callable, batch: int) -> None:
    w = model.add_parameters((5, 5))
    expected = gradient(w, operator, stops=False, batch=batch)
    np.testing.assert_allclose(gradient(w, operator, stops=True, batch=batch), expected, rtol=1e-4, atol=1e-5)
    found = gradient(w, operator, stops=True, room=False, batch=batch)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def weight_products(events: list[np.ndarray]) -> int:
    return sum(int((e["part"] == timing.WEIGHTS).sum()) for e in events)


def test_columns_that_lie_apart_become_one_product(model: dy.ParameterCollection) -> None:
    w, seen = model.add_parameters((5, 5)), []

    class Listener:
        def add_calls(self, events: np.ndarray) -> None:
            seen.append(events)

        def add_stretch(self, name: str, start: int, stop: int) -> None:
            pass

    with dy.profile():
        timing.listeners.append(Listener())
        try:
            gradient(w, product, stops=True)
            assert weight_products(seen) == 1
            seen.clear()
            gradient(w, product, stops=True, room=False)
            assert weight_products(seen) == STEPS
        finally:
            timing.listeners.pop()


def test_many_columns_are_not_copied(model: dy.ParameterCollection) -> None:
    w = model.add_parameters((5, 5))
    expected = gradient(w, product, stops=False, batch=100)
    np.testing.assert_allclose(gradient(w, product, stops=True, batch=100), expected, rtol=1e-4, atol=1e-3)


def test_what_is_computed_after_a_backward_pass_is_not_disturbed(model: dy.ParameterCollection) -> None:
    """The copies lie where the next values will."""
    w = model.add_parameters((5, 5))
    dy.renew_cg()
    x, losses = dy.inputVector([0.1, 0.2, 0.3, 0.4, 0.5]), []
    for _ in range(20):
        x = dy.tanh(w * x)
        losses.append(dy.squared_norm(x))
        losses[-1].value()
    for _ in range(3):
        dy.esum(losses).backward()
        losses.append(dy.squared_norm(dy.logistic(w * x)))
        assert np.isfinite(losses[-1].value())
    once = [dy.squared_norm(dy.logistic(w * x)).value(), losses[-1].value()]
    assert once[0] == once[1]
