"""Moving averages of parameters: against NumPy and against DyNet's C++, swapping, parameters made later."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import dynjit as dy
from dynjit import MovingAverage


def walk(model: dy.ParameterCollection, trainer: dy.Trainer, steps: int, seed: int = 1) -> list[list[np.ndarray]]:
    """The values after each update with random gradients."""
    random, found = np.random.default_rng(seed), []
    for _ in range(steps):
        for item in model.stored:
            item.gradients()[:] = random.normal(size=item.count)
            if isinstance(item, dy.LookupParameters):
                item.mark(np.arange(len(item)) == 0)
        trainer.update()
        found.append([item.as_array() for item in model.stored])
    return found


def filled(model: dy.ParameterCollection) -> dy.ParameterCollection:
    model.add_parameters((70, 100))  # more than a piece
    model.add_parameters(3).set_updated(False)
    model.add_lookup_parameters((4, 2))
    return model


def averages(trainer: dy.Trainer, **options: bool) -> list[np.ndarray]:
    trainer.swap_params_to_moving_average(**options)
    found = [item.as_array() for item in trainer.model.stored]
    trainer.swap_params_to_weights()
    return found


@pytest.mark.parametrize("update_freq", [1, 3])
@pytest.mark.parametrize("late", [0, 2])
def test_averages(model: dy.ParameterCollection, update_freq: int, late: int) -> None:
    trainer = dy.MomentumSGDTrainer(filled(model), 0.3)
    trainer.set_clip_threshold(0)
    assert trainer.moving_average() is MovingAverage.NONE
    walk(model, trainer, late)
    trainer.exponential_moving_average(0.9, update_freq)
    assert trainer.moving_average() is MovingAverage.EXPONENTIAL
    taken = walk(model, trainer, 8)[::update_freq]
    last = [item.as_array() for item in model.stored]
    expected = [np.zeros(item.as_array().shape) for item in model.stored]
    for values in taken:
        expected = [0.9 * old + 0.1 * new for old, new in zip(expected, values)]
    for found, wanted in zip(averages(trainer), expected):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    for found, wanted in zip(averages(trainer, bias_correction=True), expected):
        np.testing.assert_allclose(found, wanted / (1 - 0.9 ** len(taken)), rtol=1e-5, atol=1e-6)
    trainer.cumulative_moving_average(update_freq)
    assert trainer.moving_average() is MovingAverage.CUMULATIVE
    taken = walk(model, trainer, 8, seed=2)[::update_freq]
    for correct in (False, True):
        for found, *values in zip(averages(trainer, bias_correction=correct), *taken):
            np.testing.assert_allclose(found, np.mean(values, axis=0), rtol=1e-5, atol=1e-6)
    assert not any((new == old).all() for k, (new, old) in enumerate(zip(taken[-1], last)) if k != 1)


# Made by DyNet 2.1's C++ with EGTrainer(m, 0.2, 0.6) and exponential_moving_average(0.8, 2): `run` below, step for step.
DYNET = {
    0: [0.07616033, 0.1669889, 0.3032879, 0.4535628, 0.2, 0.8, 0.4242221, 0.5757779, 2.0, 3.0],
    6: [0.07331433, 0.189201, 0.3317333, 0.4057515, 0.2, 0.8, 0.5522462, 0.4477539, 0.4668747, 0.5331252],
    7: [0.02905, 0.1216697, 0.3631017, 0.4861786, 0.2, 0.8, 0.5522462, 0.4477539, 0.4899353, 0.5100647],
    11: [0.02075332, 0.1432182, 0.4497899, 0.3862386, 0.2, 0.8, 0.6338656, 0.3661344, 0.5930504, 0.4069496],
}
DYNET_AVERAGE = [0.0405946, 0.1531372, 0.3922896, 0.4139786, 0.2, 0.8, 0.5421987, 0.4578013, 0.5994896, 0.7557883]


def test_exponentiated_gradient_and_its_average_are_those_of_dynet(model: dy.ParameterCollection) -> None:
    p = model.parameters_from_numpy(np.array([0.1, 0.2, 0.3, 0.4]))
    table = model.lookup_parameters_from_numpy(np.array([[0.2, 0.8], [0.4, 0.6], [2.0, 3]]))
    trainer = dy.EGTrainer(model, 0.2, 0.6)
    trainer.exponential_moving_average(0.8, 2)

    def values() -> list[float]:
        return [*p.as_array(), *table.as_array().ravel()]

    for step in range(12):
        dy.renew_cg()
        factor = 4.0 if step == 7 else 1.0  # clipped
        of_p = dy.dot_product(p, dy.inputVector(np.cos(np.arange(4) + step) * factor))
        row = dy.dot_product(table[step % 2 + 1], dy.inputVector([np.sin(step), 0.5]))
        (of_p + row * factor).backward()
        trainer.update()
        if step in DYNET:
            assert values() == pytest.approx(DYNET[step], rel=1e-5)
    trainer.swap_params_to_moving_average(True, True)
    assert values() == pytest.approx(DYNET_AVERAGE, rel=1e-5)
    trainer.swap_params_to_weights()
    assert values() == pytest.approx(DYNET[11], rel=1e-5)


def test_weights_come_back_exactly(model: dy.ParameterCollection) -> None:
    trainer = dy.AdamTrainer(filled(model))
    trainer.swap_params_to_weights()  # nothing to do
    trainer.exponential_moving_average()
    before = walk(model, trainer, 3)[-1]
    assert any((found != weights).any() for found, weights in zip(averages(trainer), before))
    trainer.swap_params_to_weights()  # again nothing
    for item, weights in zip(model.stored, before):
        np.testing.assert_array_equal(item.as_array(), weights)
    walk(model, trainer, 1)


def test_parameters_made_later_count_as_if_they_had_not_changed(model: dy.ParameterCollection) -> None:
    trainer = dy.SimpleSGDTrainer(model, 1.0)
    model.add_parameters(1, init=1)
    for start in (lambda: trainer.exponential_moving_average(0.5), trainer.cumulative_moving_average):
        start()
        trainer.update()
        trainer.update()
        late = model.add_parameters(1, init=8)
        unseen = averages(trainer, bias_correction=True)[-1]
        assert unseen == pytest.approx([8])
        trainer.update()
        assert averages(trainer, bias_correction=True)[-1] == pytest.approx([8])
        late.gradients()[:] = 3
        trainer.update()
        assert 5 < averages(trainer, bias_correction=True)[-1][0] < 8


def test_what_cannot_be_asked_for(model: dy.ParameterCollection) -> None:
    p = model.add_parameters(2, init=1)
    trainer = dy.SimpleSGDTrainer(model)

    def refused(error: Any, text: str, call: Any, *arguments: Any, **options: Any) -> None:
        before = p.as_array()
        with pytest.raises(error, match=text):
            call(*arguments, **options)
        np.testing.assert_array_equal(p.as_array(), before)

    none = r"needs exponential_moving_average\(\) or cumulative_moving_average\(\), and an update after it"
    refused(RuntimeError, none, trainer.swap_params_to_moving_average)
    for beta in (-0.1, 1.0, np.nan):
        refused(ValueError, "needs a beta from 0 to below 1", trainer.exponential_moving_average, beta)
    refused(ValueError, "needs an update_freq of 1 or more, got 0", trainer.cumulative_moving_average, 0)
    assert trainer.moving_average() is MovingAverage.NONE
    trainer.exponential_moving_average(0.5)
    refused(RuntimeError, none, trainer.swap_params_to_moving_average)
    trainer.update()
    trainer.swap_params_to_moving_average()
    refused(RuntimeError, "hold the average already", trainer.swap_params_to_moving_average)
    refused(RuntimeError, "moving average: needs the weights", trainer.cumulative_moving_average)
    p.gradients()[:] = 1
    refused(RuntimeError, "update: needs the weights, but the parameters hold their moving average", trainer.update)
    assert trainer.updates == 1
    trainer.swap_params_to_weights()
    trainer.swap_params_to_moving_average(save_weights=False)
    refused(RuntimeError, "the weights were not saved", trainer.swap_params_to_weights)
