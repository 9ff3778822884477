"""Builders of recurrent networks: the same numbers, parameters and rules as DyNet's."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import dynjit as dy
from dynjit import frontend, rnn, rnn_base
from dynjit.errors import ShapeError, StaleExpressionError

BUILDERS = (dy.SimpleRNNBuilder, dy.GRUBuilder, dy.VanillaLSTMBuilder, dy.CoupledLSTMBuilder, dy.SparseLSTMBuilder,
            dy.CompactVanillaLSTMBuilder, dy.FastLSTMBuilder)  # fmt: skip
LSTMS = BUILDERS[2:]
MASKED = (dy.SimpleRNNBuilder, dy.VanillaLSTMBuilder, dy.SparseLSTMBuilder, dy.CompactVanillaLSTMBuilder)


def fill(collection: dy.ParameterCollection) -> None:
    """Parameter k (from 1), in memory order: sin(1.7 i + k) / 2."""
    for k, p in enumerate(collection.parameters_list(), 1):
        numbers = np.sin(1.7 * np.arange(p.count) + k) / 2
        p.set_value(numbers.reshape(p.shape(), order="F"))


def made(builder: type, model: dy.ParameterCollection, *arguments: Any) -> Any:
    """A builder of 2 layers, 3 inputs and 2 hidden units with known parameters, a third of a sparse one's masked."""
    b = builder(2, 3, 2, model, *arguments)
    fill(model)
    if builder is dy.SparseLSTMBuilder:
        unmask(b)
        b.set_sparsity(0.3)
    return b


def unmask(b: dy.SparseLSTMBuilder) -> None:
    for layer in b.get_parameters():
        for mask in layer[3:]:
            mask.set_value(np.ones(mask.shape()))


def vector(*numbers: float) -> dy.Expression:
    return dy.inputVector(list(map(float, numbers)))


def inputs(steps: int, shift: int = 0) -> list[dy.Expression]:
    return [vector(*(math.cos(3 * t + i + shift) for i in range(3))) for t in range(steps)]


def replaced() -> list[dy.Expression]:
    return [vector(0.3, -0.2), vector(0.1, 0.6)]


def per_state(b: Any) -> int:
    return b.layers * b.vectors_per_layer


USES: dict[str, Callable[[Any], list[dy.Expression]]] = {
    "transduce": lambda b: b.initial_state().transduce(inputs(4)),
    "states": lambda b: [state.output() for state in b.initial_state().add_inputs(inputs(4))],
    "vecs": lambda b: b.initial_state(
        [vector(0.3 - 0.1 * k, -0.2 + 0.1 * k) for k in range(per_state(b))]
    ).transduce(inputs(2)),
    "set_h": lambda b: [
        b.initial_state().add_input(inputs(1)[0]).set_h(replaced()).add_input(inputs(1, 2)[0]).output()
    ],
    "set_s": lambda b: [
        b.initial_state().add_input(inputs(1)[0]).set_s(replaced()).add_input(inputs(1, 2)[0]).output()
    ],
    "s": lambda b: list(b.initial_state().add_inputs(inputs(3))[-1].s()),
}  # fmt: skip

# loss and norm of all gradients, given by DyNet 2.1 for this file's `fill`, `USES` and `loss_of`
RECORDED = {
    ("SimpleRNNBuilder", "transduce"): (0.494789, 2.402156),
    ("SimpleRNNBuilder", "states"): (0.494789, 2.402156),
    ("SimpleRNNBuilder", "vecs"): (0.389124, 1.339709),
    ("SimpleRNNBuilder", "set_h"): (0.076610, 0.755192),
    ("SimpleRNNBuilder", "set_s"): (0.076610, 0.755192),
    ("SimpleRNNBuilder", "s"): (0.750422, 3.207250),
    ("GRUBuilder", "transduce"): (0.314522, 1.365007),
    ("GRUBuilder", "states"): (0.314522, 1.365007),
    ("GRUBuilder", "vecs"): (0.052075, 0.303794),
    ("GRUBuilder", "set_h"): (0.067007, 0.316544),
    ("GRUBuilder", "set_s"): (0.067007, 0.316544),
    ("GRUBuilder", "s"): (0.320705, 0.990668),
    ("VanillaLSTMBuilder", "transduce"): (0.451177, 1.159107),
    ("VanillaLSTMBuilder", "states"): (0.451177, 1.159107),
    ("VanillaLSTMBuilder", "vecs"): (0.204177, 0.462280),
    ("VanillaLSTMBuilder", "set_h"): (0.219186, 0.409129),
    ("VanillaLSTMBuilder", "set_s"): (0.002561, 0.030736),
    ("VanillaLSTMBuilder", "s"): (0.628782, 1.782083),
    ("CoupledLSTMBuilder", "transduce"): (0.414839, 0.951333),
    ("CoupledLSTMBuilder", "states"): (0.414839, 0.951333),
    ("CoupledLSTMBuilder", "vecs"): (0.164619, 0.334518),
    ("CoupledLSTMBuilder", "set_h"): (0.063825, 0.186409),
    ("CoupledLSTMBuilder", "set_s"): (0.001785, 0.026781),
    ("CoupledLSTMBuilder", "s"): (0.487530, 1.083722),
    ("SparseLSTMBuilder", "transduce"): (0.126591, 0.361628),
    ("SparseLSTMBuilder", "states"): (0.126591, 0.361628),
    ("SparseLSTMBuilder", "vecs"): (0.075954, 0.163836),
    ("SparseLSTMBuilder", "set_h"): (0.024169, 0.087233),
    ("SparseLSTMBuilder", "set_s"): (0.022126, 0.049230),
    ("SparseLSTMBuilder", "s"): (0.844189, 2.343799),
    ("CompactVanillaLSTMBuilder", "transduce"): (0.451177, 1.159107),
    ("CompactVanillaLSTMBuilder", "states"): (0.451177, 1.159107),
    ("CompactVanillaLSTMBuilder", "vecs"): (0.204177, 0.462280),
    ("CompactVanillaLSTMBuilder", "set_h"): (0.219186, 0.409129),
    ("CompactVanillaLSTMBuilder", "set_s"): (0.002561, 0.030736),
    ("CompactVanillaLSTMBuilder", "s"): (0.628782, 1.782083),
    ("FastLSTMBuilder", "transduce"): (0.390024, 0.825643),
    ("FastLSTMBuilder", "states"): (0.390024, 0.825643),
    ("FastLSTMBuilder", "vecs"): (0.154880, 0.292952),
    ("FastLSTMBuilder", "set_h"): (0.062979, 0.182215),
    ("FastLSTMBuilder", "set_s"): (0.001202, 0.023989),
    ("FastLSTMBuilder", "s"): (0.484445, 1.072507),
}
WITH_LAYER_NORM = {  # ln_lstm=True, forget_bias=0.5
    ("VanillaLSTMBuilder", "states"): (0.836262, 2.230646),
    ("VanillaLSTMBuilder", "vecs"): (0.027089, 0.407335),
    ("VanillaLSTMBuilder", "transduce"): (0.836262, 2.230646),
    ("VanillaLSTMBuilder", "set_s"): (0.010360, 0.177043),
    ("SparseLSTMBuilder", "states"): (0.597694, 1.323062),
    ("SparseLSTMBuilder", "vecs"): (0.112470, 0.588049),
    ("SparseLSTMBuilder", "transduce"): (0.597694, 1.323062),
    ("SparseLSTMBuilder", "set_s"): (0.184678, 0.503294),
}
BOTH_WAYS = {  # BiRNNBuilder(2, 3, 4, model, builder)
    "SimpleRNNBuilder": (2.145112, 7.619065),
    "GRUBuilder": (1.214913, 2.689237),
    "VanillaLSTMBuilder": (0.905268, 1.269616),
}


def loss_of(outputs: list[dy.Expression]) -> dy.Expression:
    """Sum of the squared distances of the outputs to (0, 0.1, ...)."""
    wanted = vector(*(0.1 * i for i in range(outputs[0].dim()[0][0])))
    return dy.esum([dy.squared_distance(y, wanted) for y in outputs])


def gradient_norm(model: dy.ParameterCollection) -> float:
    return math.sqrt(sum(float((p.grad_as_array() ** 2).sum()) for p in model.parameters_list()))


def check(outputs: list[dy.Expression], model: dy.ParameterCollection, recorded: tuple[float, float]) -> None:
    loss = loss_of(outputs)
    assert loss.value() == pytest.approx(recorded[0], abs=2e-6)
    loss.backward()
    assert gradient_norm(model) == pytest.approx(recorded[1], abs=1e-5)


# ---- the same numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "use"), RECORDED)
def test_losses_and_gradients_are_those_of_dynet(name: str, use: str, model: dy.ParameterCollection) -> None:
    check(USES[use](made(getattr(dy, name), model)), model, RECORDED[name, use])


@pytest.mark.parametrize(("name", "use"), WITH_LAYER_NORM)
def test_with_layer_norm_too(name: str, use: str, model: dy.ParameterCollection) -> None:
    check(USES[use](made(getattr(dy, name), model, True, 0.5)), model, WITH_LAYER_NORM[name, use])


@pytest.mark.parametrize("name", BOTH_WAYS)
def test_and_in_both_directions(name: str, model: dy.ParameterCollection) -> None:
    b = dy.BiRNNBuilder(2, 3, 4, model, getattr(dy, name))
    fill(model)
    check(b.transduce(inputs(3)), model, BOTH_WAYS[name])
    pairs = b.add_inputs(inputs(3))
    joined = [dy.concatenate([f.output(), r.output()]).value() for f, r in pairs]
    assert np.allclose(joined, [y.value() for y in b.transduce(inputs(3))], atol=1e-6)


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("rate", [0, 0.5])
def test_a_mini_batch_is_its_items(builder: type, rate: float, model: dy.ParameterCollection) -> None:
    b = made(builder, model)
    items = [[[math.cos(t + i + 5 * k) for i in range(3)] for k in range(4)] for t in range(3)]
    xs = [dy.inputTensor(np.array(item).T, batched=True) for item in items]
    assert b.initial_state().transduce(xs)[-1].dim() == ((2,), 4)
    together = b.initial_state().transduce(xs)[-1].npvalue()
    alone = [b.initial_state().transduce([vector(*item[k]) for item in items])[-1].value() for k in range(4)]
    assert np.allclose(together.T, alone, atol=1e-6)
    b.set_dropout(rate)
    assert np.isfinite(b.initial_state().transduce(xs)[-1].npvalue()).all()


# ---- parameters ------------------------------------------------------------------------------------------------------

GATE = [(2, 3), (2, 2), (2,)]
COUPLED = [(2, 3), (2, 2), (2, 2), (2,)]
FAST = [(2, 3), (2, 2), (2, 1), (2,)]
WIDE = [(8, 3), (8, 2), (8,)]
LAYOUT = {
    "SimpleRNNBuilder": ("simple-rnn-builder", GATE),
    "GRUBuilder": ("gru-builder", GATE * 3),
    "VanillaLSTMBuilder": ("vanilla-lstm-builder", WIDE),
    "CoupledLSTMBuilder": ("lstm-builder", COUPLED * 2 + GATE),
    "SparseLSTMBuilder": ("vanilla-lstm-builder", [*WIDE, (8, 3), (8, 2)]),
    "CompactVanillaLSTMBuilder": ("compact-vanilla-lstm-builder", WIDE),
    "FastLSTMBuilder": ("fast-lstm-builder", FAST * 2 + GATE),
}


@pytest.mark.parametrize("name", LAYOUT)
def test_parameters_lie_as_in_dynet(name: str, model: dy.ParameterCollection) -> None:
    b = getattr(dy, name)(2, 3.7, 2, model)
    collection, shapes = LAYOUT[name]
    deeper = [(shape[0], 2) if shape[1:] == (3,) else shape for shape in shapes]
    assert [[p.shape() for p in layer] for layer in b.get_parameters()] == [shapes, deeper]
    assert b.param_collection().name() == f"/{collection}/"
    stored = [p.name() for p in model.parameters_list()]
    assert stored == [f"/{collection}/_{k}" for k in range(2 * len(shapes))]
    assert sorted(p.name() for layer in b.get_parameters() for p in layer) == sorted(stored)
    assert all(not p.as_array().any() for p in model.parameters_list() if len(p.shape()) == 1)
    assert b.whoami() == name


def test_masks_of_a_sparse_lstm_come_before_its_bias(model: dy.ParameterCollection) -> None:
    (layer,) = dy.SparseLSTMBuilder(1, 3, 2, model).get_parameters()
    assert [p.name().rpartition("_")[2] for p in layer] == ["0", "1", "4", "2", "3"]


def test_gains_of_layer_norm_lie_in_the_collection_that_was_given(model: dy.ParameterCollection) -> None:
    dy.VanillaLSTMBuilder(1, 3, 2, model, 1)
    own = [p for p in model.parameters_list() if p.name().count("/") == 1]
    assert [(p.name(), p.shape(), p.as_array()[0]) for p in own] == [
        ("/_0", (8,), 1), ("/_1", (8,), 0), ("/_2", (8,), 1), ("/_3", (8,), 0), ("/_4", (2,), 1), ("/_5", (2,), 0),
    ]  # fmt: skip


def test_names_of_pairs(model: dy.ParameterCollection) -> None:
    dy.BiRNNBuilder(1, 3, 4, model, dy.LSTMBuilder)
    names = [p.name() for p in model.parameters_list()]
    assert names[::3] == ["/birnn/vanilla-lstm-builder/_0", "/birnn/vanilla-lstm-builder_1/_0"]


@pytest.mark.parametrize("builder", BUILDERS)
def test_parameter_expressions(builder: type, model: dy.ParameterCollection) -> None:
    b = made(builder, model)
    with pytest.raises(ValueError, match=r"get_parameter_expressions: needs initial_state\(\) in the current graph"):
        b.get_parameter_expressions()
    b.initial_state()
    own = [p.shape() for p in b.get_parameters()[0]]
    shapes = [e.dim()[0] for e in b.get_parameter_expressions()[0]]
    assert shapes == own[: len(shapes)]
    assert len(shapes) == (3 if builder is dy.SparseLSTMBuilder else len(own))


@pytest.mark.parametrize("builder", BUILDERS)
def test_specs_make_the_same_again(builder: type, model: dy.ParameterCollection) -> None:
    b = builder(2, 3, 2, model)
    again = builder.from_spec(b.spec, dy.ParameterCollection())
    assert again.spec == b.spec
    assert b.spec[:3] == (2, 3, 2)
    assert pickle.loads(pickle.dumps(builder)) is builder
    assert builder.__module__ == "dynjit.rnn"


def test_specs_of_others(model: dy.ParameterCollection) -> None:
    b = dy.VanillaLSTMBuilder(1, 3, 2, model, True, 0.5)
    assert b.spec == (1, 3, 2, True, 0.5)
    assert dy.VanillaLSTMBuilder.from_spec(b.spec, model).spec == b.spec
    both = dy.BiRNNBuilder(1, 3, 2, model, dy.LSTMBuilder)
    assert both.spec == (1, 3, 2, dy.VanillaLSTMBuilder, None)
    assert dy.BiRNNBuilder.from_spec(both.spec, model).spec == both.spec
    assert both.whoami() == "BiRNNBuilder"
    assert both.param_collection().name() == "/birnn/"
    assert dy.LSTMBuilder is dy.VanillaLSTMBuilder


def test_given_builders_are_used(model: dy.ParameterCollection) -> None:
    pair = dy.LSTMBuilder(1, 3, 1, model), dy.GRUBuilder(1, 3, 1, model)
    b = dy.BiRNNBuilder(1, 3, 2, model, None, [pair])
    assert b.builder_layers == [pair]
    left, right = (p.initial_state().transduce(x) for p, x in zip(pair, (inputs(2), inputs(2)[::-1]), strict=True))
    assert np.allclose(b.transduce(inputs(2))[0].value(), [left[0].value(), right[1].value()])


# ---- states ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("builder", BUILDERS)
def test_states(builder: type, model: dy.ParameterCollection) -> None:
    b = made(builder, model)
    start = b.initial_state()
    assert start is b.initial_state()
    assert (start.output(), start.h(), start.s(), start.prev(), start.b()) == (None, (), (), None, b)
    first, second = start.add_inputs(inputs(2))
    assert (len(second.h()), len(second.s())) == (2, per_state(b))
    assert second.output() is second.h()[-1] is second.s()[-1]
    assert second.prev().output() is first.output()
    assert first.prev() is start
    assert start.transduce([]) == start.add_inputs([]) == []
    assert np.allclose([y.value() for y in start.transduce(x for x in inputs(2))],
                       [first.output().value(), second.output().value()], atol=1e-6)  # fmt: skip


@pytest.mark.parametrize("builder", BUILDERS)
def test_states_are_immutable(builder: type, model: dy.ParameterCollection) -> None:
    b = made(builder, model)
    first = b.initial_state().add_input(inputs(1)[0])
    before = first.add_input(inputs(1, 1)[0]).output().value()
    b.initial_state([vector(1, 1)] * per_state(b)).add_input(inputs(1)[0])
    assert first.add_input(inputs(1, 1)[0]).output().value() == pytest.approx(before)


@pytest.mark.parametrize("builder", LSTMS)
def test_vectors_of_a_started_lstm_that_are_not_given_are_zero(builder: type, model: dy.ParameterCollection) -> None:
    b = made(builder, model)
    given = [[0.3, -0.2], [0.1, 0.6]]
    given_vectors = [vector(*numbers) for numbers in given]
    for state, expected in (
        (b.initial_state().set_h(given_vectors), [[0, 0], [0, 0], *given]),
        (b.initial_state().set_s(given_vectors), [*given, [0, 0], [0, 0]]),
        (b.initial_state(given_vectors), [*given, [0, 0], [0, 0]]),
    ):
        assert np.allclose([e.value() for e in state.s()], expected)
        assert state.output() is state.h()[-1]
        assert state.prev() is b.initial_state()


@pytest.mark.parametrize("builder", BUILDERS)
def test_initial_vectors_from_numbers(builder: type, model: dy.ParameterCollection) -> None:
    b = made(builder, model)
    numbers = [[0.1 * k, -0.2] for k in range(per_state(b))]
    raw = b.initial_state_from_raw_vectors(numbers)
    given = b.initial_state([vector(*row) for row in numbers])
    x = inputs(1)[0]
    assert raw.add_input(x).output().value() == given.add_input(x).output().value()


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("count", [0, 1, 3, 5])
def test_a_wrong_number_of_vectors_is_refused(builder: type, count: int, model: dy.ParameterCollection) -> None:
    b = made(builder, model)
    vectors = [vector(0, 0)] * count
    with pytest.raises(ValueError, match=rf"set_h: needs as many expressions as layers, 2, got {count}"):
        b.initial_state().set_h(vectors)
    counts = "2 or 4" if builder in LSTMS else "2"
    for use in (b.initial_state().set_s, b.initial_state):
        with pytest.raises(ValueError, match=rf"set_s: needs {counts} expressions for 2 layers, got {count}"):
            use(vectors)


@pytest.mark.parametrize("builder", BUILDERS)
def test_a_builder_is_stale_after_renewing(builder: type, model: dy.ParameterCollection) -> None:
    state = made(builder, model).initial_state()
    dy.renew_cg()
    for use in (
        lambda: state.add_input(inputs(1)[0]), lambda: state.transduce(inputs(1)),
        lambda: state.set_h([vector(0, 0)] * 2), lambda: state.set_s([vector(0, 0)] * 2),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="Using stale builder"):
            use()


@pytest.mark.parametrize("builder", BUILDERS)
def test_expressions_of_an_earlier_graph_are_refused(builder: type, model: dy.ParameterCollection) -> None:
    x, b = inputs(1)[0], made(builder, model)
    dy.renew_cg()
    with pytest.raises(StaleExpressionError):
        b.initial_state().add_input(x)
    assert np.isfinite(b.initial_state().add_input(inputs(1)[0]).output().value()).all()


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("update", [True, False])
def test_after_going_back_to_a_mark_a_builder_starts_anew(
    builder: type, update: bool, model: dy.ParameterCollection
) -> None:
    b = made(builder, model)
    expected = b.initial_state(update=update).add_input(inputs(1)[0]).output().value()
    dy.renew_cg()
    dy.cg_checkpoint()
    b.initial_state(update=update).add_input(inputs(1)[0]).output().value()
    dy.cg_revert()
    assert b.initial_state(update=update).add_input(inputs(1)[0]).output().value() == pytest.approx(expected)


@pytest.mark.parametrize("builder", BUILDERS)
def test_whether_parameters_get_gradients_is_decided_per_call(builder: type, model: dy.ParameterCollection) -> None:
    b = made(builder, model)
    constant = dy.squared_norm(b.initial_state(update=False).transduce(inputs(3))[-1])
    trained = dy.squared_norm(b.initial_state().transduce(inputs(3))[-1])
    assert constant.value() == pytest.approx(trained.value())
    constant.backward()
    assert gradient_norm(model) == 0
    trained.backward()
    assert gradient_norm(model) > 0


def test_gains_of_layer_norm_are_constants_too(model: dy.ParameterCollection) -> None:
    b = made(dy.VanillaLSTMBuilder, model, True)
    dy.squared_norm(b.initial_state(update=False).transduce(inputs(3))[-1]).backward()
    assert gradient_norm(model) == 0


def test_stacked_states_feed_each_other(model: dy.ParameterCollection) -> None:
    lower, upper = dy.LSTMBuilder(1, 3, 2, model), dy.GRUBuilder(1, 2, 2, model)
    fill(model)
    start = dy.StackedRNNState([lower.initial_state(), upper.initial_state()])
    expected = upper.initial_state().transduce(lower.initial_state().transduce(inputs(3)))
    states = start.add_inputs(inputs(3))
    assert np.allclose([s.output().value() for s in states], [y.value() for y in expected])
    assert [len(vectors) for vectors in states[-1].s()] == [2, 1]
    assert [len(vectors) for vectors in states[-1].h()] == [1, 1]
    assert states[0].prev() is start
    assert start.output() is None


# ---- dropout and noise -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("rate", [-0.1, 1, 2, math.nan])
def test_dropout_rates_are_checked(builder: type, rate: float, model: dy.ParameterCollection) -> None:
    b = builder(1, 3, 2, model)
    with pytest.raises(ValueError, match="set_dropout: needs rates from 0 to below 1"):
        b.set_dropout(rate)


@pytest.mark.parametrize("builder", (*MASKED, dy.CoupledLSTMBuilder))
def test_one_mask_serves_all_steps_and_sequences_of_a_graph(builder: type, model: dy.ParameterCollection) -> None:
    b = made(builder, model)
    b.set_dropout(0.5)
    x = inputs(1)[0]
    first = b.initial_state().transduce([x, x, x])
    assert [y.value() for y in b.initial_state().transduce([x, x, x])] == [y.value() for y in first]
    b.set_dropout(0)
    plain = b.initial_state().transduce([x, x, x])[-1].value()
    assert not np.allclose(plain, first[-1].value())


@pytest.mark.parametrize("builder", MASKED)
def test_masks_are_what_they_should_be(builder: type, model: dy.ParameterCollection) -> None:
    b = builder(1, 2000, 2000, model)
    b.set_dropouts(0.25, 0.75)
    with pytest.raises(ValueError, match=r"set_dropout_masks: needs initial_state\(\) in the current graph first"):
        b.set_dropout_masks()
    b.initial_state()
    b.set_dropout_masks(2)
    ((mask_x, mask_h),) = b._runs[True].masks
    for mask, rate in ((mask_x, 0.25), (mask_h, 0.75)):
        values = mask.npvalue()
        assert values.shape == (2000, 2)
        assert set(np.round(np.unique(values), 5)) == {0, np.round(1 / (1 - rate), 5)}
        assert np.mean(values == 0) == pytest.approx(rate, abs=0.05)
    b.disable_dropout()
    assert b._masks(b._runs[True], mask_x) is None


def test_masks_act_on_inputs_and_recurrence(model: dy.ParameterCollection) -> None:
    b = made(dy.SimpleRNNBuilder, model)
    b.set_dropouts(0.5, 0.5)
    b.initial_state()
    b.set_dropout_masks()
    (mask_x, mask_h), (deeper_x, deeper_h) = b._runs[True].masks
    xs = inputs(2)
    h = [np.zeros(2), np.zeros(2)]
    for x in xs:
        below, by_layer = np.array(x.value()), []
        for layer, (m_x, m_h) in enumerate(((mask_x, mask_h), (deeper_x, deeper_h))):
            w_x, w_h, bias = (p.as_array() for p in b.get_parameters()[layer])
            below = np.tanh(w_x @ (below * m_x.value()) + w_h @ (h[layer] * m_h.value()) + bias)
            by_layer.append(below)
        h = by_layer
    assert np.allclose(b.initial_state().transduce(xs)[-1].value(), h[-1], atol=1e-6)


def test_a_gru_drops_its_output_and_keeps_its_state(model: dy.ParameterCollection) -> None:
    b = dy.GRUBuilder(1, 3, 200, model)
    b.set_dropout(0.5)
    first, second = b.initial_state().add_inputs([inputs(1)[0]] * 2)
    assert np.count_nonzero(first.h()[0].npvalue()) == 200
    dropped = first.output().npvalue()
    assert 50 < np.count_nonzero(dropped) < 150
    kept = dropped != 0
    assert np.allclose(dropped[kept], 2 * first.h()[0].npvalue()[kept])
    assert ((second.output().npvalue() != 0) != kept).any()
    assert len(b.initial_state().transduce([inputs(1)[0]])) == 1
    b.disable_dropout()
    state = b.initial_state().add_input(inputs(1)[0])
    assert state.output() is state.h()[-1]


def test_coupled_rates_are_three_and_fast_has_none(model: dy.ParameterCollection) -> None:
    b = made(dy.CoupledLSTMBuilder, model)
    b.set_dropouts(0, 0, 0.5)
    b.initial_state().transduce(inputs(2))
    assert [[by is None for by in layer] for layer in b._runs[True].masks] == [[True, True, False]] * 2
    fast = made(dy.FastLSTMBuilder, model)
    plain = fast.initial_state().transduce(inputs(2))[-1].value()
    fast.set_dropout(0.5)
    assert fast.initial_state().transduce(inputs(2))[-1].value() == plain


def test_dropout_of_both_directions(model: dy.ParameterCollection) -> None:
    b = dy.BiRNNBuilder(1, 3, 4, model, dy.LSTMBuilder)
    plain = b.transduce(inputs(2))[0].value()
    b.set_dropout(0.5)
    assert b.transduce(inputs(2))[0].value() != plain
    b.disable_dropout()
    assert b.transduce(inputs(2))[0].value() == plain


def test_weight_noise(model: dy.ParameterCollection) -> None:
    b = made(dy.CompactVanillaLSTMBuilder, model)
    plain = b.initial_state().transduce(inputs(3))[-1].value()
    b.set_weightnoise(0.01)
    noisy = b.initial_state().transduce(inputs(3))[-1].value()
    assert noisy != plain
    assert np.allclose(noisy, plain, atol=0.05)
    assert b.initial_state().transduce(inputs(3))[-1].value() == noisy
    assert b.initial_state().transduce(inputs(3, 1))[-1].value() != noisy  # DyNet's output ignores the input here
    difference = b.get_parameter_expressions()[0][0].npvalue() - b.get_parameters()[0][0].as_array()
    assert 0.005 < difference.std() < 0.02
    dy.squared_norm(b.initial_state().transduce(inputs(3))[-1]).backward()
    assert all(p.grad_as_array().any() for p in model.parameters_list())
    b.set_weightnoise(0)
    assert b.initial_state().transduce(inputs(3))[-1].value() == plain
    with pytest.raises(ValueError, match="set_weightnoise: needs a deviation of 0 or more, got -1"):
        b.set_weightnoise(-1)


# ---- sparsity --------------------------------------------------------------------------------------------------------


def test_sparsity_masks_the_smallest_weights_of_all_layers(model: dy.ParameterCollection) -> None:
    b = dy.SparseLSTMBuilder(2, 1, 1, model)
    fill(model)
    unmask(b)
    weights = np.concatenate([p.as_array().ravel() for layer in b.get_parameters() for p in layer[:2]])
    for share, zeros in ((0.25, 4), (0.3, 4), (0.99, 15), (1, 16), (0, 0), (0.5, 8)):  # as DyNet counts
        b.set_sparsity(share)
        kept = np.concatenate([p.as_array().ravel() for layer in b.get_parameters() for p in layer[3:]])
        assert np.count_nonzero(kept == 0) == zeros
        if 0 < zeros < 16:
            assert np.abs(weights[kept == 0]).max() <= np.abs(weights[kept == 1]).min()
    for share in (-0.1, 1.1):
        with pytest.raises(ValueError, match=f"set_sparsity: needs a share from 0 to 1, got {share}"):
            b.set_sparsity(share)


def test_masked_weights_stay_masked_however_large_they_become(model: dy.ParameterCollection) -> None:
    b = dy.SparseLSTMBuilder(1, 1, 1, model)
    w_x, w_h, _, *masks = b.get_parameters()[0]
    w_x.set_value([[0.1], [0.2], [0.3], [0.4]])
    w_h.set_value([[0.5], [0.6], [0.7], [0.8]])
    kept = []
    for share in (0.5, 0.25, 0.5, 0.625):  # as in DyNet
        b.set_sparsity(share)
        kept.append([p.as_array().ravel().tolist() for p in masks])
        w_x.set_value([[1.1], [0.2], [0.3], [0.4]])
    assert kept == [
        [[0, 0, 0, 0], [1, 1, 1, 1]], [[0, 0, 1, 1], [1, 1, 1, 1]], [[0, 0, 0, 0], [1, 1, 1, 1]],
        [[0, 0, 0, 0], [0, 1, 1, 1]],
    ]  # fmt: skip


def test_masks_stay_as_they_are_when_training(model: dy.ParameterCollection) -> None:
    b = made(dy.SparseLSTMBuilder, model)
    masks = [p for layer in b.get_parameters() for p in layer[3:]]
    before = [p.as_array() for p in masks]
    weight, mask = b.get_parameters()[0][0], before[0]
    trainer = dy.AdamTrainer(model)
    for _ in range(3):
        dy.renew_cg()
        dy.squared_norm(b.initial_state().transduce(inputs(3))[-1]).backward()
        assert not weight.grad_as_array()[mask == 0].any()
        trainer.update()
    assert all(np.array_equal(p.as_array(), values) for p, values in zip(masks, before, strict=True))


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("builder", BUILDERS)
def test_sizes_are_checked(builder: type, model: dy.ParameterCollection) -> None:
    for sizes in ((0, 3, 2), (1, 0, 2), (1, 3, 0), (-1, 3, 2), (1, 3, 0.5)):
        with pytest.raises(ValueError, match="needs layers, input_dim and hidden_dim of 1 or more"):
            builder(*sizes, model)
    with pytest.raises(TypeError, match="needs a ParameterCollection, got int"):
        builder(1, 3, 2, 4)
    assert builder(1, 64 / 2, 7 / 2, model).spec[:3] == (1, 32, 3)


def test_sizes_of_pairs_are_checked(model: dy.ParameterCollection) -> None:
    for layers, hidden in ((0, 4), (1, 3), (1, 0)):
        with pytest.raises(ValueError, match="BiRNNBuilder: needs 1 layer or more and an even hidden_dim"):
            dy.BiRNNBuilder(layers, 3, hidden, model, dy.LSTMBuilder)


def test_the_base_is_no_network(model: dy.ParameterCollection) -> None:
    with pytest.raises(TypeError, match="RNNBuilder: needs a builder of a network"):
        rnn.RNNBuilder(1, 3, 2, model)


@pytest.mark.parametrize("builder", BUILDERS)
def test_inputs_of_another_size_are_refused_and_the_graph_stays_usable(
    builder: type, model: dy.ParameterCollection
) -> None:
    b = made(builder, model)
    for use in (b.initial_state().add_input, lambda x: b.initial_state().transduce([x])):
        with pytest.raises(ShapeError):
            use(vector(1, 2))
    with pytest.raises(TypeError, match="needs expressions, got list"):
        b.initial_state().add_input([1, 2, 3])
    assert np.isfinite(b.initial_state().transduce(inputs(2))[-1].value()).all()


# ---- steps in compiled code ------------------------------------------------------------------------------------------

REPEATED = {
    "simple": lambda m: dy.SimpleRNNBuilder(2, 3, 3, m), "gru": lambda m: dy.GRUBuilder(2, 3, 3, m),
    "vanilla": lambda m: dy.VanillaLSTMBuilder(2, 3, 3, m), "norm": lambda m: dy.VanillaLSTMBuilder(1, 3, 3, m, True),
    "compact": lambda m: dy.CompactVanillaLSTMBuilder(1, 3, 3, m), "coupled": lambda m: dy.CoupledLSTMBuilder(2, 3, 3, m),
    "fast": lambda m: dy.FastLSTMBuilder(1, 3, 3, m), "sparse": lambda m: dy.SparseLSTMBuilder(1, 3, 3, m),
}  # fmt: skip


def walk(builder: Any, rate: float) -> list[Any]:
    """Values along several ways through a network, in several graphs."""
    found = []
    for batch in (1, 2, 1):
        dy.renew_cg()
        dy.reset_random_seed(5)
        builder.set_dropout(rate if batch == 1 else 0.0)
        xs = [dy.inputTensor(np.full((3, batch), 0.1 * i), batched=True) for i in range(4)]
        state = builder.initial_state()
        found += [e.npvalue() for e in state.transduce(xs)]
        for x in xs[:3]:
            state = state.add_input(x)
        state = state.add_input(state.output())  # the input is a vector of the state, too
        state = state.add_input(state.output()).add_input(state.output())
        found += [e.npvalue() for e in state.s()]
        same = builder.initial_state([xs[1]] * len(state.s())).add_input(xs[1]).add_input(xs[1])
        found += [e.npvalue() for e in (*same.s(), same.output(), *same.transduce(xs))]
        dy.cg_checkpoint()
        builder.initial_state().add_input(xs[0])
        dy.cg_revert()
        found.append(builder.initial_state().add_input(xs[0]).add_input(xs[2]).output().npvalue())
    return found


@pytest.mark.parametrize("rate", [0.0, 0.4])
@pytest.mark.parametrize("name", REPEATED)
def test_repeated_steps_equal_those_in_python(name: str, rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model = dy.ParameterCollection()
    dy.reset_random_seed(3)
    builder = REPEATED[name](model)
    compiled = walk(builder, rate)
    monkeypatch.setattr(frontend, "is_native", False)  # then no programs are made
    in_python = walk(builder, rate)
    assert builder._programs == [None, None]
    for ours, theirs in zip(compiled, in_python, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not frontend.is_native, reason="this interpreter has the twins alone")
def test_steps_are_taken_in_python_once(model: dy.ParameterCollection, monkeypatch: pytest.MonkeyPatch) -> None:
    builder, taken, step = dy.GRUBuilder(1, 2, 2, model), [], rnn_base.Run.step
    monkeypatch.setattr(rnn_base.Run, "step", lambda run, *given: taken.append(1) or step(run, *given))
    for _ in range(3):
        dy.renew_cg()
        xs = [dy.inputVector([1.0, 2.0]) for _ in range(5)]
        builder.initial_state().transduce(xs)
        builder.initial_state().add_inputs(xs)
    assert len(taken) == 2


def test_a_used_builder_can_be_copied(model: dy.ParameterCollection) -> None:
    builder = dy.GRUBuilder(1, 2, 2, model)
    x = dy.inputVector([1.0, 2.0])
    expected = builder.initial_state().add_input(x).output().npvalue()
    other = copy.deepcopy(builder)
    np.testing.assert_array_equal(other.initial_state().add_input(x).output().npvalue(), expected)


def test_representations_show_sizes(model: dy.ParameterCollection) -> None:
    b = dy.LSTMBuilder(1, 3, 2, model)
    assert repr(b) == "VanillaLSTMBuilder /vanilla-lstm-builder/ (1 x 3 to 2)"
    assert repr(b.initial_state()) == f"RNNState of {b!r}, no output yet"
    state = b.initial_state().add_input(dy.ones(3))
    assert repr(state) == f"RNNState of {b!r}, output {state.output()!r}"
    assert repr(dy.BiRNNBuilder(1, 3, 4, model, dy.GRUBuilder)) == "BiRNNBuilder /birnn/ (1 x 3 to 4)"
    assert repr(dy.StandardSoftmaxBuilder(3, 5, model)) == (
        "StandardSoftmaxBuilder /standard-softmax-builder/ (3 inputs)"
    )
