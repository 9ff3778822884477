"""Trainers: the rules against NumPy and against DyNet, clipping, sparse tables, frozen parameters, bad gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import dynjit as dy
from dynjit import passes, threads, trainers
from dynjit.errors import GradientError
from dynjit.space import space

# ---- the rules in NumPy ----------------------------------------------------------------------------------------------

Rule = Iterator[np.ndarray]  # yields the change, is sent the gradient


def sgd(rate: float = 0.1) -> Any:
    d = yield
    while True:
        d = yield -rate * d


def momentum(rate: float = 0.01, mom: float = 0.9) -> Any:
    d, v = (yield), 0.0
    while True:
        v = mom * v - rate * d
        d = yield v


def adagrad(rate: float = 0.1, eps: float = 1e-20) -> Any:
    d, s = (yield), 0.0
    while True:
        s = s + d * d
        d = yield -rate * d / np.sqrt(s + eps)


def adadelta(eps: float = 1e-6, rho: float = 0.95) -> Any:
    d, s, r = (yield), 0.0, 0.0
    while True:
        s = rho * s + (1 - rho) * d * d
        change = -d * np.sqrt(r + eps) / np.sqrt(s + eps)
        r = rho * r + (1 - rho) * change * change
        d = yield change


def rmsprop(rate: float = 0.001, eps: float = 1e-8, rho: float = 0.9) -> Any:
    d, s = (yield), 0.0
    while True:
        s = rho * s + (1 - rho) * d * d
        d = yield -rate * d / np.sqrt(s + eps)


def adam(rate: float = 0.001, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, ams: bool = False) -> Any:
    d, m, s, top, t = (yield), 0.0, 0.0, 0.0, 0
    while True:
        t += 1
        m, s = b1 * m + (1 - b1) * d, b2 * s + (1 - b2) * d * d
        top = np.maximum(top, s) if ams else s
        d = yield -rate * math.sqrt(1 - b2**t) / (1 - b1**t) * m / (np.sqrt(top) + eps)


RULES: list[tuple[Any, dict[str, float], Callable[[], Any]]] = [
    (dy.SimpleSGDTrainer, {}, sgd),
    (dy.SimpleSGDTrainer, {"learning_rate": 0.3}, lambda: sgd(0.3)),
    (dy.MomentumSGDTrainer, {}, momentum),
    (dy.MomentumSGDTrainer, {"learning_rate": 0.1, "mom": 0.5}, lambda: momentum(0.1, 0.5)),
    (dy.AdagradTrainer, {}, adagrad),
    (dy.AdagradTrainer, {"learning_rate": 0.2, "eps": 0.1}, lambda: adagrad(0.2, 0.1)),
    (dy.AdadeltaTrainer, {}, adadelta),
    (dy.AdadeltaTrainer, {"eps": 1e-3, "rho": 0.8}, lambda: adadelta(1e-3, 0.8)),
    (dy.RMSPropTrainer, {}, rmsprop),
    (dy.RMSPropTrainer, {"learning_rate": 0.1, "eps": 1e-3, "rho": 0.5}, lambda: rmsprop(0.1, 1e-3, 0.5)),
    (dy.AdamTrainer, {}, adam),
    (dy.AdamTrainer, {"alpha": 0.1, "beta_1": 0.5, "beta_2": 0.9, "eps": 1e-3}, lambda: adam(0.1, 0.5, 0.9, 1e-3)),
    (dy.AmsgradTrainer, {}, lambda: adam(ams=True)),
    (dy.AmsgradTrainer, {"alpha": 0.1, "beta_2": 0.5}, lambda: adam(0.1, b2=0.5, ams=True)),
]


@pytest.mark.parametrize(("kind", "options", "rule"), RULES, ids=lambda value: getattr(value, "__name__", ""))
def test_rules(model: dy.ParameterCollection, kind: Any, options: dict[str, float], rule: Callable[[], Any]) -> None:
    random = np.random.default_rng(1)
    made = [model.add_parameters(dims) for dims in ((3, 5), (100, 70), (1,), (17,))]  # more than a piece, and less
    trainer = kind(model, **options)
    trainer.set_clip_threshold(0)
    expected = [p.as_array() for p in made]
    changes = [rule() for _ in made]
    for change in changes:
        next(change)
    for step in range(8):
        for k, p in enumerate(made):
            gradient = random.normal(size=p.shape()) * (0 if step == 4 else 10.0 ** random.integers(-3, 2))
            p.gradients()[:] = gradient.ravel(order="F")
            expected[k] = expected[k] + changes[k].send(gradient)
        trainer.update()
        for k, p in enumerate(made):
            np.testing.assert_allclose(p.as_array(), expected[k], rtol=2e-4, atol=2e-5)
            assert not p.gradients().any()


# ---- DyNet -----------------------------------------------------------------------------------------------------------

# Losses at the updates of STEPS, made by running `losses` below under DyNet 2.1 (import dynet as dy), unchanged.
STEPS = (0, 1, 2, 5, 9, 10, 19, 29, 39, 48, 49)
DYNET: dict[str, tuple[dict[str, float], list[float]]] = {
    "SimpleSGDTrainer": ({}, [
        3.687303, 0.7695923, 2.123457, 1.419053, 49.48627, 3.819098, 6.745291, 18.44211, 19.86073, 0.1573293, 3.423361]),
    "MomentumSGDTrainer": ({}, [
        3.687303, 1.30547, 0.6458621, 1.267605, 48.23879, 0.9509212, 3.47409, 50.5914, 14.14764, 0.1001914, 3.579125]),
    "AdagradTrainer": ({}, [
        3.687303, 0.5636209, 2.091527, 1.04017, 54.26782, 1.175775, 3.743073, 26.38101, 34.66966, 0.4833833, 1.674371]),
    "AdadeltaTrainer": ({}, [
        3.687303, 1.328084, 0.6331965, 1.479058, 64.66659, 0.6473107, 21.9203, 35.2691, 65.12731, 1.964659, 9.638455]),
    "RMSPropTrainer": ({}, [
        3.687303, 1.344148, 0.6333565, 1.507996, 63.46923, 0.639343, 31.69086, 41.36744, 63.30997, 2.862666, 23.28879]),
    "AdamTrainer": ({"alpha": 0.02}, [
        3.687303, 1.149907, 0.7274274, 1.346789, 53.08251, 0.7439857, 3.300823, 32.18557, 38.50933, 0.4430944, 1.246812]),
    "AmsgradTrainer": ({"alpha": 0.02}, [
        3.687303, 1.149907, 0.7274274, 1.346789, 53.08253, 0.7439852, 3.301177, 32.18616, 38.50934, 0.4430323, 1.247199]),
    "CyclicalSGDTrainer": ({"step_size": 7, "gamma": 0.99}, [
        3.687303, 1.30547, 0.6396526, 1.228497, 98.02618, 2.227778, 6.381001, 34.54492, 32.10911, 0.2616371, 5.442906]),
}  # fmt: skip


def losses(name: str, options: dict[str, float], updates: int = 50) -> list[float]:
    """Losses of a tiny model: two rows of a table, a hidden layer, a class."""
    m = dy.ParameterCollection()
    table = m.lookup_parameters_from_numpy(np.cos(np.arange(12)).reshape(4, 3))
    w = m.parameters_from_numpy(np.sin(np.arange(15)).reshape(5, 3))
    b = m.parameters_from_numpy(np.zeros(5))
    v = m.parameters_from_numpy(np.cos(3.0 * np.arange(15)).reshape(3, 5))
    trainer = getattr(dy, name)(m, **options)
    found = []
    for step in range(updates):
        dy.renew_cg()
        x = table[step % 3] + table[(step * step) % 4]
        h = dy.tanh(w * x + b)
        loss = dy.pickneglogsoftmax(v * h, step % 3) * (30.0 if step % 10 == 9 else 1.0)  # every tenth is clipped
        found.append(loss.value())
        loss.backward()
        trainer.update()
    return found


@pytest.mark.parametrize("name", DYNET)
def test_losses_are_those_of_dynet(name: str) -> None:
    options, expected = DYNET[name]
    found = losses(name, options)
    assert [found[step] for step in STEPS] == pytest.approx(expected, rel=1e-4)


# ---- clipping --------------------------------------------------------------------------------------------------------


def test_clipping(model: dy.ParameterCollection) -> None:
    p, table = model.add_parameters(2, init=0), model.add_lookup_parameters((3, 2), init=0)
    trainer = dy.SimpleSGDTrainer(model, 1.0)
    assert trainer.get_clip_threshold() == 5

    def update(*numbers: float) -> list[float]:
        for stored in model.stored:
            stored.zero()
        dy.renew_cg()
        (
            dy.dot_product(p, dy.inputVector(numbers[:2])) + dy.dot_product(table[1], dy.inputVector(numbers[2:]))
        ).backward()
        trainer.update()
        return [*p.values().tolist(), *table.row_as_array(1)]

    assert update(1, 2, 2, 0) == [-1, -2, -2, 0]
    assert update(6, 0, 0, 8) == pytest.approx([-3, 0, 0, -4])
    assert (trainer.clips, trainer.updates) == (1, 2)
    trainer.set_clip_threshold(20)
    assert update(6, 0, 0, 8) == [-6, 0, 0, -8]
    trainer.set_clip_threshold(-1)
    assert trainer.get_clip_threshold() == 0
    assert update(600, 0, 0, 800) == [-600, 0, 0, -800]


def test_frozen_parameters_count_in_the_norm_and_keep_their_gradient(model: dy.ParameterCollection) -> None:
    p, frozen, table = (
        model.add_parameters(1, init=0),
        model.add_parameters(1, init=0),
        model.add_lookup_parameters((2, 1)),
    )
    before = table.as_array()
    frozen.set_updated(False)
    table.set_updated(False)
    trainer = dy.SimpleSGDTrainer(model, 1.0)
    (p * 6 + frozen * 8 + table[0] * 0).backward()
    trainer.update()
    assert p.as_array() == pytest.approx([-3])
    assert (frozen.as_array(), frozen.grad_as_array(), p.grad_as_array()) == (0, 8, 0)
    np.testing.assert_array_equal(table.as_array(), before)
    frozen.set_updated(True)
    trainer.update()
    assert frozen.as_array() == pytest.approx([-5])


def test_freezing_is_seen_whichever_parameter_it_is() -> None:
    model = dy.ParameterCollection()
    made = [model.add_parameters(1, init=1) for _ in range(130)]
    trainer = dy.SimpleSGDTrainer(model, 1.0)
    trainer.set_clip_threshold(0)
    for k in (0, 61, 122, 129):
        for p in made:
            p.set_updated(True)
        made[k].set_updated(False)
        for p in made:
            p.set_value([1])
            p.gradients()[:] = 1
        trainer.update()
        assert [i for i, p in enumerate(made) if p.as_array()[0] == 1] == [k]


def test_parameters_made_later_are_trained(model: dy.ParameterCollection) -> None:
    trainer = dy.AdamTrainer(model, 0.5)
    trainer.update()
    p = model.add_subcollection().add_parameters(1, init=1)
    dy.squared_norm(p).backward()
    trainer.update()
    assert p.as_array()[0] < 1


# ---- tables ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [dy.AdamTrainer, dy.MomentumSGDTrainer, dy.AdagradTrainer, dy.SimpleSGDTrainer])
def test_only_used_rows_move(model: dy.ParameterCollection, kind: Any) -> None:
    table = model.add_lookup_parameters((5, 2), init=1)
    trainer = kind(model)

    def moved(*rows: int) -> list[int]:
        before = table.as_array()
        dy.renew_cg()
        dy.esum([dy.squared_norm(table[row]) for row in rows]).backward()
        trainer.update()
        assert not table.marks().any()
        assert not table.gradients().any()
        return [i for i in range(5) if (table.as_array()[i] != before[i]).any()]

    assert moved(1, 3) == [1, 3]
    assert moved(2) == [2]
    dy.lookup_batch(table, [0, 0, 4]).value()  # without a gradient
    assert moved(3) == [3]
    trainer.set_sparse_updates(False)
    expected = [3] if kind in (dy.SimpleSGDTrainer, dy.AdagradTrainer) else [1, 2, 3]  # those with momentum go on
    assert moved(3) == expected
    trainer.set_sparse_updates(True)
    assert moved(0) == [0]


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 64, 65, 1000])
def test_used_rows_of_large_tables_are_found(
    model: dy.ParameterCollection, monkeypatch: pytest.MonkeyPatch, parts: int, count: int
) -> None:
    monkeypatch.setattr(passes, "SHARED", 0)
    monkeypatch.setattr(threads, "threads", lambda: parts)
    table = model.add_lookup_parameters((count, 3), init=1)
    trainer = dy.SimpleSGDTrainer(model, 0.5)
    trainer.set_clip_threshold(0)
    for rows in ((0,), (0, 63, 64, 127, 500, 959, 960, 999), (999, 5), (64,), tuple(range(count))):
        used = [row for row in rows if row < count]
        before = table.as_array()
        dy.renew_cg()
        loss = dy.sum_elems(dy.esum([dy.inputVector([0, 0, 0]), *(table[row] for row in used)]))
        loss.backward()
        assert trainer.norm() == pytest.approx((3 * len(used)) ** 0.5)
        trainer.update()
        expected = np.zeros_like(before)
        expected[used] = 0.5
        np.testing.assert_array_equal(before - table.as_array(), expected)
        assert not space.single.g[table.start : table.start + table.extent].any()  # no mark of rows or of several
    table.mark(np.arange(count) == count - 1)
    table.gradients()[-1] = 2
    assert trainer.norm() == 2


@pytest.mark.parametrize("kind", [dy.AdamTrainer, dy.AdagradTrainer])
def test_sparse_equals_dense_where_all_rows_are_used(kind: Any) -> None:
    found = []
    for sparse in (True, False):
        model = dy.ParameterCollection()
        table = model.lookup_parameters_from_numpy(np.arange(1.0, 7).reshape(3, 2))
        trainer = kind(model, 0.1)
        trainer.set_sparse_updates(sparse)
        for _ in range(5):
            dy.renew_cg()
            dy.sum_batches(dy.squared_norm(table.batch([0, 1, 2, 1]))).backward()
            trainer.update()
        found.append(table.as_array())
    np.testing.assert_array_equal(found[0], found[1])


# ---- bad gradients ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3e38])
@pytest.mark.parametrize("threshold", [5, 0])
def test_bad_gradients_change_nothing(model: dy.ParameterCollection, bad: float, threshold: float) -> None:
    p, q, table = model.add_parameters(3), model.add_parameters(3, name="Q"), model.add_lookup_parameters((3, 3))
    trainer = dy.AdamTrainer(model)
    trainer.set_clip_threshold(threshold)
    (dy.squared_norm(p) + dy.squared_norm(q) + dy.squared_norm(table[1])).backward()
    trainer.update()
    values = [stored.as_array() for stored in model.stored]
    moments = [buffer[: 1 << 12].copy() for buffer in trainer.buffers]
    for stored in (q, table):
        dy.renew_cg()
        (dy.squared_norm(p) + dy.squared_norm(q) + dy.squared_norm(table[1])).backward()
        (stored.gradients() if stored is q else table.rows(table.gradients())[1])[1] = bad
        with pytest.raises(
            GradientError, match="update: Magnitude of gradient is bad: (nan|inf); no parameter"
        ) as caught:
            trainer.update()
        if abs(bad) != 3e38:
            assert f"the first to look at: {stored.name()}" in str(caught.value)
        for kept, now in zip(values, model.stored, strict=True):
            np.testing.assert_array_equal(kept, now.as_array())
        for kept, now in zip(moments, trainer.buffers, strict=True):
            np.testing.assert_array_equal(kept, now[: 1 << 12])
        assert trainer.updates == 1
        trainer.reset_gradient()
        assert not any(stored.gradients().any() for stored in model.stored)
        assert not table.marks().any()
    dy.renew_cg()
    dy.squared_norm(p).backward()
    trainer.update()
    assert trainer.updates == 2


# ---- the rest --------------------------------------------------------------------------------------------------------


def test_update_subset(model: dy.ParameterCollection) -> None:
    dense = [model.add_parameters(1, init=1) for _ in range(3)]
    tables = [model.add_lookup_parameters((2, 1), init=1) for _ in range(2)]
    trainer = dy.SimpleSGDTrainer(model)
    for p in dense:
        p.gradients()[:] = 1
    dy.esum([t[0] for t in tables]).backward()
    trainer.update_subset([0, 2], [1])
    assert [p.as_array()[0] == 1 for p in dense] == [False, True, False]
    assert [(t.as_array() == 1).all() for t in tables] == [True, False]
    assert [p.grad_as_array()[0] for p in dense] == [0, 1, 0]
    assert all(p.is_updated() for p in model.stored)
    for chosen, text in ((([9], []), "0 to 2 of parameters, got 9"), (([0], [-1]), "0 to 1 of lookup tables, got -1")):
        with pytest.raises(IndexError, match=f"update_subset: needs positions from {text}"):
            trainer.update_subset(*chosen)
    dense[0].gradients()[:] = np.nan
    with pytest.raises(GradientError):
        trainer.update_subset([2], [0])
    assert all(p.is_updated() for p in model.stored)
    dense[0].gradients()[:] = 0
    trainer.update()
    assert [p.as_array()[0] == 1 for p in dense] == [False] * 3


def test_restart(model: dy.ParameterCollection) -> None:
    p = model.add_parameters(2, init=1)
    trainer = dy.MomentumSGDTrainer(model, 0.1)
    dy.squared_norm(p).backward()
    trainer.update()
    trainer.restart()
    before = p.as_array()
    trainer.update()  # no gradient, and no momentum
    np.testing.assert_array_equal(p.as_array(), before)
    assert (trainer.learning_rate, trainer.updates) == (0.1, 2)
    trainer.restart(0.5)
    assert trainer.learning_rate == 0.5


def test_learning_rate(model: dy.ParameterCollection) -> None:
    p = model.add_parameters(1, init=0)
    trainer = dy.SimpleSGDTrainer(model)
    assert trainer.learning_rate == 0.1
    trainer.learning_rate = 1
    p.gradients()[:] = 1
    trainer.update()
    trainer.set_learning_rate(2)
    p.gradients()[:] = 1
    trainer.update()
    trainer.update_epoch()
    assert p.as_array() == [-3]


def test_status(model: dy.ParameterCollection, capsys: pytest.CaptureFixture[str]) -> None:
    p = model.add_parameters(1, init=0)
    trainer = dy.SimpleSGDTrainer(model)
    for gradient in (1, 100, 7):
        p.gradients()[:] = gradient
        trainer.update()
    trainer.status()
    trainer.learning_rate = 0.025
    trainer.status()
    assert capsys.readouterr().err == "[lr=0.1 clips=2 updates=3] [lr=0.025 clips=0 updates=0] "
    assert trainer.whoami() == "SimpleSGDTrainer"


def test_cyclical_rate(model: dy.ParameterCollection) -> None:
    trainer = dy.CyclicalSGDTrainer(model, 0.1, 0.5, step_size=2, gamma=0.5)
    rates = [trainer.learning_rate]
    for _ in range(7):
        trainer.update()
        rates.append(trainer.learning_rate)
    assert rates == pytest.approx([0.1, 0.1, 0.1 + 0.2 * 0.5, 0.1 + 0.4 * 0.25, 0.1 + 0.2 * 0.125, 0.1,
                                   0.1 + 0.2 / 32, 0.1 + 0.4 / 64])  # fmt: skip


def test_two_trainers_do_not_share_moments(model: dy.ParameterCollection) -> None:
    p = model.add_parameters(2, init=1)
    first, second = dy.AdamTrainer(model), dy.AdamTrainer(model)
    dy.squared_norm(p).backward()
    first.update()
    before = p.as_array()
    second.update()  # no gradient, no moments
    np.testing.assert_array_equal(p.as_array(), before)


def test_a_trainer_of_a_sub_collection_leaves_the_rest_alone(model: dy.ParameterCollection) -> None:
    p = model.add_parameters(2, init=1)
    sub = model.add_subcollection()
    q, r = sub.add_parameters(2, init=1), model.add_parameters(2, init=1)
    trainer = dy.SimpleSGDTrainer(sub)
    (dy.squared_norm(p) + dy.squared_norm(q) + dy.squared_norm(r)).backward()
    trainer.update()
    assert [x.as_array()[0] == 1 for x in (p, q, r)] == [True, False, True]
    assert p.grad_as_array().tolist() == [2, 2]


def test_what_is_no_collection() -> None:
    with pytest.raises(TypeError, match="AdamTrainer: needs a ParameterCollection, got list"):
        dy.AdamTrainer([])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Trainer: needs one of its subclasses"):
        trainers.Trainer(dy.ParameterCollection(), 0.1)
