"""Dense updates of lookup tables, made row by row as late as possible: bit by bit those that are made in time."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable

import numpy as np
import pytest

import dynjit as dy
from dynjit import late
from dynjit.space import space

ROWS, SIZE = 40, 6
TRAINERS: dict[str, Callable[[dy.ParameterCollection], dy.Trainer]] = {
    "sgd": dy.SimpleSGDTrainer, "momentum": dy.MomentumSGDTrainer, "adagrad": dy.AdagradTrainer,
    "adadelta": dy.AdadeltaTrainer, "rmsprop": dy.RMSPropTrainer, "adam": dy.AdamTrainer,
    "amsgrad": dy.AmsgradTrainer, "eg": dy.EGTrainer, "cyclical": dy.CyclicalSGDTrainer,
}  # fmt: skip


class Model:
    """A matrix and two tables, and a trainer with dense updates, of which an infinite momentum of noise is kept."""

    def __init__(self, trainer: str, waits: bool) -> None:
        dy.reset_random_seed(4)
        self.model = dy.ParameterCollection()
        self.w = self.model.add_parameters((SIZE, SIZE))
        self.tables = [self.model.add_lookup_parameters((ROWS, SIZE), init="uniform", scale=0.5) for _ in range(2)]
        for stored in self.model.stored if trainer == "eg" else ():
            stored.values()[:] = np.abs(stored.values()) + np.float32(0.1)
        self.trainer = TRAINERS[trainer](self.model)
        self.trainer.set_sparse_updates(False)
        if not waits:
            self.trainer.late_rule = None  # type: ignore[misc]

    def step(self, rows: list[int], update: bool = True) -> float:
        dy.renew_cg()
        vectors = [dy.tanh(self.w * self.tables[0][row] + self.tables[1][row // 2]) for row in rows]
        loss = dy.esum([dy.squared_norm(x) for x in vectors])
        value = loss.value()
        if update:
            loss.backward()
            self.trainer.update()
        return value

    def all(self) -> list[np.ndarray]:
        values = [stored.values().copy() for stored in self.model.stored]
        return values + [stored.window(b).copy() for b in self.trainer.buffers for stored in self.model.stored]


def rows_of_steps(count: int) -> list[list[int]]:
    random = np.random.default_rng(0)
    return [sorted({int(row) for row in random.zipf(1.5, 8) if row < ROWS}) or [1] for _ in range(count)]


def same(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_numbers_are_those_of_updates_in_time(trainer: str) -> None:
    models = [Model(trainer, waits) for waits in (True, False)]
    for number, rows in enumerate(rows_of_steps(40)):
        for m in models:
            m.trainer.learning_rate = 0.1 / (1 + number)
        assert models[0].step(rows) == models[1].step(rows)
        if number % 9 == 4:
            assert models[0].step(rows[:1], update=False) == models[1].step(rows[:1], update=False)
        assert bool(models[0].trainer._late) == (trainer not in ("sgd", "cyclical", "eg"))
        assert models[1].trainer._late is None
    same(models[0].all(), models[1].all())
    for rows in rows_of_steps(5):
        assert models[0].step(rows) == models[1].step(rows)
    same(models[0].all(), models[1].all())


def rows_behind(m: Model) -> int:
    found = m.trainer._late
    return sum(int(((taken >= 0) & (taken < found.count)).sum()) for taken in found.taken) if found else 0


def after_steps(trainer: str = "adam") -> tuple[Model, Model]:
    """Two models with equal histories; rows of the first are behind."""
    models = Model(trainer, True), Model(trainer, False)
    for m in models:
        for rows in rows_of_steps(20):
            m.step(rows)
    assert rows_behind(models[0]) > 0
    return models


READS: dict[str, Callable[[Model], object]] = {
    "as_array": lambda m: m.tables[0].as_array(),
    "npvalue": lambda m: m.tables[0].npvalue(),
    "vec_value": lambda m: m.tables[0].vec_value(),
    "row": lambda m: m.tables[0].row_as_array(3),
    "expression": lambda m: m.tables[0][3].npvalue(),
    "copy": lambda m: [stored.values().copy() for stored in copy.deepcopy(m.model).stored],
    "norm": lambda m: m.model.parameters_list()[0].values(),
}


@pytest.mark.parametrize("read", READS)
def test_what_is_read_is_up_to_date(read: str) -> None:
    first, second = after_steps()
    dy.renew_cg()
    found, expected = READS[read](first), READS[read](second)
    np.testing.assert_array_equal(np.concatenate([np.ravel(x) for x in found]),  # type: ignore[attr-defined]
                                  np.concatenate([np.ravel(x) for x in expected]))  # type: ignore[attr-defined]  # fmt: skip


CHANGES: dict[str, Callable[[Model], object]] = {
    "sparse": lambda m: m.trainer.set_sparse_updates(True),
    "weight decay": lambda m: m.model.set_weight_decay(0.01),
    "average": lambda m: m.trainer.exponential_moving_average(0.9),
    "restart": lambda m: m.trainer.restart(),
    "frozen": lambda m: m.tables[0].set_updated(False),
    "new table": lambda m: m.tables.append(m.model.add_lookup_parameters((ROWS, SIZE), init=0.5)),
    "another trainer": lambda m: dy.SimpleSGDTrainer(m.model).update(),
    "subset": lambda m: m.trainer.update_subset([0], [1]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_of_settings(change: str) -> None:
    models = after_steps()
    for m in models:
        CHANGES[change](m)
        for rows in rows_of_steps(6):
            m.step(rows)
    same(models[0].all(), models[1].all())


def test_files_and_copies_of_trainers(tmp_path) -> None:  # type: ignore[no-untyped-def]
    first, second = after_steps()
    first.trainer.save(tmp_path / "late")
    second.trainer.save(tmp_path / "in-time")
    assert (tmp_path / "late").read_bytes() == (tmp_path / "in-time").read_bytes()
    for m in (first, second):
        m.step([5])
        m.trainer.populate(tmp_path / "late")
        for rows in rows_of_steps(4):
            m.step(rows)
    same(first.all(), second.all())


def test_long_histories_come_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(late, "LONGEST", 7)
    first, second = after_steps("momentum")
    assert first.trainer._late.count < 7  # type: ignore[union-attr]
    same(first.all(), second.all())


def test_a_trainer_that_is_gone_has_done_its_work() -> None:
    first, second = after_steps()
    gc.collect()  # trainers of other tests
    count = len(space.late)
    del first.trainer
    gc.collect()
    assert len(space.late) == count - 1
    for a, b in zip(first.model.stored, second.model.stored):
        np.testing.assert_array_equal(a.values(), b.values())


def test_processes_that_share_parameters_see_updates_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = after_steps()
    monkeypatch.setattr(space, "is_shared", True)
    for m in (first, second):
        m.step([2])
    assert first.trainer._late is None
    same(first.all(), second.all())


def test_rows_without_moments_take_no_steps() -> None:
    m = Model("adam", True)
    for _ in range(5):
        m.step([1])
    assert [int((taken >= 0).sum()) for taken in m.trainer._late.taken] == [1, 1]  # type: ignore[union-attr]
