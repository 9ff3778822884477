"""EGTrainer: each column stays a distribution; against NumPy in float64 (against DyNet's C++: test_averages.py)."""

from __future__ import annotations

import numpy as np
import pytest

import dynjit as dy


def expected(w: np.ndarray, v: np.ndarray) -> np.ndarray:
    """w exp(v), each column divided by its sum."""
    found = w * np.exp(v - v.max())
    return found / found.sum(axis=0)


def test_columns(model: dy.ParameterCollection) -> None:
    random = np.random.default_rng(1)
    arrays = [random.random(dims) + 0.1 for dims in ((5,), (4, 3), (2, 3, 2), (5000,))]
    made = [model.parameters_from_numpy(array) for array in arrays]
    trainer = dy.EGTrainer(model, 0.5, 0.8)
    trainer.set_clip_threshold(0)
    momenta = [np.zeros(array.shape) for array in arrays]
    for _ in range(5):
        for k, p in enumerate(made):
            gradient = random.normal(size=p.shape())
            p.gradients()[:] = gradient.ravel(order="F")
            momenta[k] = 0.8 * momenta[k] - 0.5 * gradient
            arrays[k] = expected(arrays[k], momenta[k])
        trainer.update()
        for p, array in zip(made, arrays):
            np.testing.assert_allclose(p.as_array(), array, rtol=1e-4)
            np.testing.assert_allclose(p.as_array().sum(axis=0), 1, rtol=1e-5)


def test_rows_of_tables(model: dy.ParameterCollection) -> None:
    table = model.lookup_parameters_from_numpy(np.ones((4, 2, 3)))
    trainer = dy.EGTrainer(model, 1.0, 0.0)
    trainer.set_clip_threshold(0)
    dy.sum_elems(dy.cmult(table[2], dy.inputTensor(np.array([[1, 0, 2], [0, 0, 0]])))).backward()
    trainer.update()
    assert (table.as_array()[[0, 1, 3]] == 1).all()
    wanted = np.array([[np.exp(-1), 1, np.exp(-2)], [1, 1, 1]])
    np.testing.assert_allclose(table.row_as_array(2), wanted / wanted.sum(axis=0), rtol=1e-6)
    trainer.set_sparse_updates(False)
    trainer.update()
    np.testing.assert_allclose(table.as_array().sum(axis=1), 1, rtol=1e-6)


def test_extremes(model: dy.ParameterCollection) -> None:
    p = model.parameters_from_numpy(np.array([0.0, 1.0, 1e-30, 0.5]))
    trainer = dy.EGTrainer(model, 1.0, 0.0)
    trainer.set_clip_threshold(0)
    p.gradients()[:] = [-1e4, 1e3, 0, 2e3]  # exp would overflow
    trainer.update()
    assert p.as_array().tolist() == [0, 0, 1, 0]
    trainer.update()
    assert p.as_array().tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize("values", [[0.5, -0.1], [0, 0], [np.nan, 1], [np.inf, 1], [-1, -1]])
def test_other_numbers_are_refused(model: dy.ParameterCollection, values: list[float]) -> None:
    good, frozen = model.parameters_from_numpy(np.array([0.5, 0.5])), model.parameters_from_numpy(np.array([-1.0, 0]))
    frozen.set_updated(False)
    p = model.add_parameters(2, init=0, name="W")
    p.values()[:] = values
    trainer = dy.EGTrainer(model)
    good.gradients()[:] = 1
    text = (
        "EGTrainer.update: needs columns of numbers of 0 or more, not all 0, got others in /W; no parameter was changed"
    )
    with pytest.raises(ValueError, match=text):
        trainer.update()
    assert (trainer.updates, good.as_array().tolist()) == (0, [0.5, 0.5])
    p.set_value([1, 3])
    trainer.update()
    assert p.as_array() == pytest.approx([0.25, 0.75])
    assert frozen.as_array().tolist() == [-1, 0]


def test_it_finds_the_best_mixture(model: dy.ParameterCollection) -> None:
    w = model.add_parameters(3, init=1 / 3)
    trainer = dy.EGTrainer(model)
    for _ in range(200):
        dy.renew_cg()
        dy.squared_distance(w, dy.inputVector([0.7, 0.3, 0.0])).backward()
        trainer.update()
    assert w.as_array() == pytest.approx([0.7, 0.3, 0], abs=0.01)
