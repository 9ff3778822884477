"""Trainers in files, pickles and copies: training goes on bit for bit; what does not fit is refused and changes nothing."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dynjit as dy
from dynjit.errors import ModelFileError

KINDS: list[tuple[Any, dict[str, float]]] = [
    (dy.SimpleSGDTrainer, {"learning_rate": 0.3}),
    (dy.CyclicalSGDTrainer, {"learning_rate_min": 0.02, "learning_rate_max": 0.3, "step_size": 3, "gamma": 0.9}),
    (dy.MomentumSGDTrainer, {"learning_rate": 0.02, "mom": 0.7}),
    (dy.AdagradTrainer, {"learning_rate": 0.3, "eps": 1e-3}),
    (dy.AdadeltaTrainer, {"eps": 1e-4, "rho": 0.8}),
    (dy.RMSPropTrainer, {"learning_rate": 0.02, "eps": 1e-4, "rho": 0.8}),
    (dy.AdamTrainer, {"alpha": 0.02, "beta_1": 0.8, "beta_2": 0.99, "eps": 1e-4}),
    (dy.AmsgradTrainer, {"alpha": 0.02, "beta_1": 0.8, "beta_2": 0.9, "eps": 1e-4}),
    (dy.EGTrainer, {"learning_rate": 0.2, "mom": 0.5}),
]
every_kind = pytest.mark.parametrize(("kind", "options"), KINDS, ids=[kind.__name__ for kind, _ in KINDS])


def small_model(seed: int = 1) -> dy.ParameterCollection:
    """A table, a matrix, a frozen vector, and a matrix of a sub-collection; positive numbers."""
    m, random = dy.ParameterCollection(), np.random.default_rng(seed)
    m.lookup_parameters_from_numpy(random.random((6, 3)) + 0.1, "E")
    m.parameters_from_numpy(random.random((5, 3)) + 0.1, "W")
    m.parameters_from_numpy(random.random(5)).set_updated(False)
    m.add_subcollection("top").parameters_from_numpy(random.random((4, 5)) + 0.1)
    return m


def train(m: dy.ParameterCollection, trainer: dy.Trainer, first: int, updates: int) -> list[float]:
    """Losses; each update uses two rows of the table, the fourth is clipped."""
    (table,), (w, b, v) = m.lookup_parameters_list(), m.parameters_list()
    losses = []
    for step in range(first, first + updates):
        dy.renew_cg()
        h = dy.tanh(w * (table[step % 3] + table[step * step % 5]) + b)
        loss = dy.pickneglogsoftmax(v * h, step % 4) * (50.0 if step % 4 == 3 else 1.0)
        losses.append(loss.value())
        loss.backward()
        trainer.update()
    return losses


def everything(m: dy.ParameterCollection, trainer: dy.Trainer) -> list[Any]:
    """All bits of a model and its trainer."""
    windows = [item.window(buffer).tolist() for buffer in trainer._state().values() for item in m.stored]
    average = dataclasses.asdict(trainer.averages) if trainer.averages else None
    return [item.values().tolist() for item in m.stored] + windows + [trainer._settings(), average]


def through_files(m: dy.ParameterCollection, trainer: dy.Trainer, folder: Path) -> tuple[Any, Any]:
    m.save(str(folder / "model"))
    trainer.save(folder / "trainer")
    twin = small_model(2)
    twin.populate(str(folder / "model"))
    other = type(trainer)(twin)
    other.populate(str(folder / "trainer"))
    return twin, other


WAYS: dict[str, Callable[[Any, Any, Path], tuple[Any, Any]]] = {
    "files": through_files,
    "pickle": lambda m, trainer, folder: pickle.loads(pickle.dumps((m, trainer))),
    "deepcopy": lambda m, trainer, folder: copy.deepcopy((m, trainer)),
}


@pytest.mark.parametrize("way", WAYS)
@every_kind
def test_training_goes_on_bit_for_bit(kind: Any, options: dict[str, float], way: str, tmp_path: Path) -> None:
    m = small_model()
    trainer = kind(m, **options)
    trainer.set_clip_threshold(2)
    trainer.exponential_moving_average(0.9)
    train(m, trainer, 0, 7)
    twin, other = WAYS[way](m, trainer, tmp_path)
    assert other.model is twin
    assert everything(twin, other) == everything(m, trainer)
    expected = train(m, trainer, 7, 9)
    assert train(twin, other, 7, 9) == expected
    assert everything(twin, other) == everything(m, trainer)
    train(twin, other, 16, 1)
    assert everything(twin, other) != everything(m, trainer)  # nothing is shared


@pytest.mark.parametrize("seed", range(5))
def test_it_does_not_count_where_parameters_lie(seed: int, tmp_path: Path) -> None:
    random = np.random.default_rng(seed)
    m = small_model()
    trainer = dy.RMSPropTrainer(m)
    trainer.set_clip_threshold(0.1)  # always clipped, by the norm of all
    train(m, trainer, 0, 3)
    others = [dy.ParameterCollection() for _ in range(20)]
    for other in others:
        other.add_parameters(int(random.integers(1, 40)))
    others = [others[k] for k in random.permutation(20)[:10]]  # the rest leaves holes
    twin, copied = through_files(m, trainer, tmp_path)
    assert train(twin, copied, 3, 20) == train(m, trainer, 3, 20)
    assert everything(twin, copied) == everything(m, trainer)
    assert len(others) == 10


def test_dense_updates_and_a_restart_go_on_too(tmp_path: Path) -> None:
    m = small_model()
    trainer = dy.AdamTrainer(m)
    trainer.set_sparse_updates(False)
    train(m, trainer, 0, 3)
    trainer.restart(0.05)
    train(m, trainer, 3, 2)
    twin, other = through_files(m, trainer, tmp_path)
    assert (other.learning_rate, other.sparse, other.updates, other.clips) == (0.05, False, 5, trainer.clips)
    assert train(twin, other, 5, 5) == train(m, trainer, 5, 5)


@pytest.mark.parametrize("way", WAYS)
def test_an_average_in_the_parameters(way: str, tmp_path: Path) -> None:
    m = small_model()
    trainer = dy.SimpleSGDTrainer(m)
    trainer.cumulative_moving_average()
    train(m, trainer, 0, 3)
    weights = everything(m, trainer)
    trainer.swap_params_to_moving_average()
    twin, other = WAYS[way](m, trainer, tmp_path)
    with pytest.raises(RuntimeError, match="update: needs the weights"):
        other.update()
    other.swap_params_to_weights()
    assert everything(twin, other) == weights
    trainer.swap_params_to_weights()
    assert everything(m, trainer) == weights


@pytest.mark.parametrize("way", WAYS)
def test_gradients_that_wait(way: str, tmp_path: Path) -> None:
    m = small_model()
    trainer = dy.AdamTrainer(m)
    (table,), (w, *_) = m.lookup_parameters_list(), m.parameters_list()
    dy.squared_norm(w * table[2]).backward()
    twin, other = WAYS[way](m, trainer, tmp_path)
    trainer.update()
    other.update()
    assert everything(twin, other) == everything(m, trainer)


def test_a_shallow_copy_has_moments_of_its_own() -> None:
    m = small_model()
    trainer = dy.AdamTrainer(m)
    trainer.cumulative_moving_average()
    train(m, trainer, 0, 3)
    twin = copy.copy(trainer)
    assert twin.model is m
    before = everything(m, twin)
    trainer.restart()
    trainer.swap_params_to_moving_average()
    trainer.swap_params_to_weights()
    assert everything(m, twin) == before


def test_a_trainer_of_a_sub_collection(tmp_path: Path) -> None:
    m = small_model()
    sub = dy.ParameterCollection(m, "lstm")
    lstm = dy.VanillaLSTMBuilder(1, 2, 3, sub)
    trainer = dy.AdamTrainer(sub)
    for p in lstm.get_parameters()[0]:
        p.gradients()[:] = 0.1
    trainer.update()
    trainer.save(tmp_path / "t")
    other = dy.AdamTrainer(dy.VanillaLSTMBuilder(1, 2, 3, dy.ParameterCollection()).param_collection())
    other.populate(tmp_path / "t")
    windows = [[item.window(t.buffers[0]).tolist() for item in t.model.stored] for t in (trainer, other)]
    assert windows[0] == windows[1]
    assert any(map(any, windows[0]))


def test_the_file_is_read_by_people(tmp_path: Path, model: dy.ParameterCollection) -> None:
    p = model.add_parameters(2, init=0, name="b")
    trainer = dy.MomentumSGDTrainer(model, 0.1)
    p.gradients()[:] = [1, 2]
    trainer.update()
    trainer.save(tmp_path / "t")
    first, *rest = (tmp_path / "t").read_text().splitlines()
    assert rest == ["#Parameter# /moment0/b {2} 33 ZERO_GRAD", "-1.00000001e-01 -2.00000003e-01 "]
    words = first.split(" ", 2)
    assert words[:2] == ["#Trainer#", "MomentumSGDTrainer"]
    settings = {"learning_rate": 0.1, "threshold": 5.0, "sparse": True, "clips": 0, "clips_since_status": 0,
                "updates": 1, "updates_since_status": 1, "mom": 0.9}  # fmt: skip
    assert json.loads(words[2]) == {"settings": settings, "average": None}


# ---- files that are refused ------------------------------------------------------------------------------------------


def changed(old: str, new: str) -> Callable[[str], str]:
    return lambda text: text.replace(old, new, 1)


REFUSED: list[tuple[str, Callable[[str], str]]] = [
    ("a trainer's file starts with `#Trainer# CLASS", lambda text: ""),
    ("a trainer's file starts with", lambda text: "#Trainer# 2 1\n+1.0e-01 +1 +5.0e+00\n"),  # of DyNet's C++
    ("a trainer's file starts with", lambda text: text.partition("\n")[2]),  # a model's file
    ("a trainer's file starts with", changed('"average"', '"averages"')),
    ("a trainer's file starts with .*: Expecting", changed('"sparse": true', '"sparse": tru')),
    ("a trainer's file starts with", changed('{"settings": {', '{"settings": ' + "[" * 9999)),
    ("a trainer's file starts with", changed("AdamTrainer", "\0")),
    (
        "this is the state of a trainer of class MomentumSGDTrainer, not AdamTrainer",
        changed("AdamTrainer", "MomentumSGDTrainer"),
    ),
    (r"line 1: needs learning_rate \(float\), .* beta_1 \(float\)", changed('"beta_1"', '"beta"')),
    (r"needs learning_rate \(float\)", changed('"learning_rate": 0.001', '"learning_rate": 1')),
    (r"needs learning_rate \(float\)", changed('"sparse": true', '"sparse": 1')),
    (r"needs learning_rate \(float\)", changed('"sparse": true', '"sparse": [1]')),
    ("needs a count of 0 or more for updates, got -2", changed('"updates": 2', '"updates": -2')),
    ("needs a count of 0 or more for updates", changed('"updates": 2', '"updates": 2' + "0" * 30)),
    (r"needs is_cumulative \(bool\), beta \(float\)", changed('"average": {', '"average": {"more": 1, ')),
    (r"needs is_cumulative \(bool\), beta \(float\)", lambda text: re.sub(r'"average": \{.*?\}', '"average": 3', text)),
    ("needs a beta from 0 to below 1, got 1.5", changed('"beta": 0.5', '"beta": 1.5')),
    ("needs an update_freq of 1 or more, got 0", changed('"update_freq": 1', '"update_freq": 0')),
    ("11 blocks, where this trainer has 12", lambda text: text[: text.rindex("#LookupParameter#")]),
    ("12 blocks, where this trainer has 8", lambda text: re.sub(r'"average": \{.*?\}', '"average": null', text)),
    ("Parameter /moment1/W stands where moment0 of /W is needed", changed("/moment0/W", "/moment1/W")),
    ("LookupParameter /moment0/W stands where", changed("#Parameter# /moment0/W", "#LookupParameter# /moment0/W")),
    (r"Dimensions of /moment0/W in the file, \(3, 5\), do not match", changed("{5,3}", "{3,5}")),
    ("the file ends in the middle of", lambda text: text[:-1]),
    ("are numbers with a blank between them", changed(" +", " *")),
]


@pytest.mark.parametrize(("text", "change"), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_files_that_are_refused(tmp_path: Path, text: str, change: Callable[[str], str]) -> None:
    m = small_model()
    trainer = dy.AdamTrainer(m)
    trainer.exponential_moving_average(0.5)
    train(m, trainer, 0, 2)
    path = tmp_path / "t"
    trainer.save(path)
    train(m, trainer, 2, 2)
    before = everything(m, trainer)
    content = path.read_text()
    assert change(content) != content
    path.write_text(change(content))
    with pytest.raises(ModelFileError, match=text):
        trainer.populate(path)
    assert everything(m, trainer) == before
    path.write_text(content)
    trainer.populate(path)
    assert trainer.updates == 2


def test_cut_and_flipped_files(tmp_path: Path) -> None:
    """Each is refused, or differs in a number alone; none is half read."""
    m = small_model()
    trainer = dy.AmsgradTrainer(m)
    train(m, trainer, 0, 2)
    path, random = tmp_path / "t", np.random.default_rng(1)
    trainer.save(path)
    content = path.read_bytes()
    before = everything(m, trainer)
    for _ in range(100):
        place = int(random.integers(len(content)))
        path.write_bytes(content[:place])
        with pytest.raises(ModelFileError):
            trainer.populate(path)
        assert everything(m, trainer) == before
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << random.integers(8)]) + content[place + 1 :])
        try:
            trainer.populate(path)
        except ModelFileError:
            assert everything(m, trainer) == before
        path.write_bytes(content)
        trainer.populate(path)
        assert everything(m, trainer) == before


def test_files_that_cannot_be_opened(tmp_path: Path, model: dy.ParameterCollection) -> None:
    trainer = dy.AdamTrainer(model)
    with pytest.raises(ModelFileError, match="Could not read model from .*nothing"):
        trainer.populate(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError):
        trainer.save(tmp_path / "no folder" / "t")


def test_repr(model: dy.ParameterCollection) -> None:
    trainer = dy.AdamTrainer(model)
    trainer.update()
    assert repr(trainer) == "AdamTrainer of / (learning rate 0.001, 1 updates)"
