"""Weight decay with every trainer, a restart in between, against DyNet; of sub-collections, and of frozen parameters."""

from __future__ import annotations

import numpy as np
import pytest

import dynjit as dy

# Losses at STEPS, made by running `losses` below under DyNet 2.1 (import dynet as dy), unchanged.
STEPS = (0, 1, 5, 9, 30, 60, 65, 80, 99)
DYNET: dict[str, tuple[dict[str, float], list[float]]] = {
    "SimpleSGDTrainer": ({}, [3.6873, 0.785077, 1.27944, 43.4325, 0.526336, 0.656211, 0.601302, 0.688291, 28.5741]),
    "MomentumSGDTrainer": ({}, [3.6873, 1.29446, 1.20985, 38.0256, 0.36863, 0.546307, 0.969073, 1.06316, 32.3468]),
    "AdagradTrainer": ({}, [3.6873, 0.586189, 1.04679, 44.5931, 0.735048, 0.916025, 1.09023, 0.439528, 31.3604]),
    "AdadeltaTrainer": ({}, [3.6873, 1.31573, 1.34435, 50.4003, 1.31763, 1.10635, 1.09014, 1.08837, 33.0677]),
    "RMSPropTrainer": ({}, [3.6873, 1.3308, 1.35656, 49.6627, 1.44455, 1.13785, 1.09749, 1.09227, 33.0651]),
    "AdamTrainer": (
        {"alpha": 0.02},
        [3.6873, 1.14814, 1.25822, 43.027, 0.670064, 0.806246, 1.04243, 0.634447, 31.7173],
    ),
    "AmsgradTrainer": (
        {"alpha": 0.02},
        [3.6873, 1.14814, 1.25822, 43.027, 0.670079, 0.806283, 1.04244, 0.634542, 31.718],
    ),
    "CyclicalSGDTrainer": (
        {"step_size": 7, "gamma": 0.99},
        [3.6873, 1.29446, 1.17399, 72.49, 0.533927, 0.787632, 1.03971, 1.09492, 33.7672],
    ),
}


def losses(name: str, options: dict[str, float], is_sub: bool = False) -> list[float]:
    """Losses of a tiny model: two rows of a table, a hidden layer, a class; every tenth gradient is clipped."""
    root = dy.ParameterCollection()
    root.set_weight_decay(0.02)
    m = root.add_subcollection() if is_sub else root
    table = m.lookup_parameters_from_numpy(np.cos(np.arange(12)).reshape(4, 3))
    w = m.parameters_from_numpy(np.sin(np.arange(15)).reshape(5, 3))
    b = m.parameters_from_numpy(np.zeros(5))
    v = m.parameters_from_numpy(np.cos(3.0 * np.arange(15)).reshape(3, 5))
    trainer = getattr(dy, name)(m, **options)
    found = []
    for step in range(100):
        dy.renew_cg()
        x = table[step % 3] + table[(step * step) % 4]
        h = dy.tanh(w * x + b)
        loss = dy.pickneglogsoftmax(v * h, step % 3) * (30.0 if step % 10 == 9 else 1.0)
        found.append(loss.value())
        loss.backward()
        trainer.update()
        if step == 60:
            trainer.restart()
    return [found[step] for step in STEPS]


@pytest.mark.parametrize("name", DYNET)
def test_losses_are_those_of_dynet(name: str) -> None:
    options, expected = DYNET[name]
    assert losses(name, options) == pytest.approx(expected, rel=1e-4)


def test_a_trainer_of_a_sub_collection_decays_too() -> None:
    assert losses("SimpleSGDTrainer", {}, is_sub=True) == losses("SimpleSGDTrainer", {})


def test_what_shrinks(model: dy.ParameterCollection) -> None:
    p, frozen, table = (
        model.add_parameters(1, init=1), model.add_parameters(1, init=1), model.add_lookup_parameters((2, 1), init=1)
    )  # fmt: skip
    frozen.set_updated(False)
    model.set_weight_decay(0.25)
    trainer = dy.SimpleSGDTrainer(model)
    trainer.update()
    assert (p.as_array(), frozen.as_array()) == (0.75, 1)
    assert table.as_array().ravel().tolist() == [0.75, 0.75]  # rows that were not used, too
    trainer.update_subset([0], [])
    assert (p.as_array(), table.as_array()[0]) == (0.5625, 0.75)
