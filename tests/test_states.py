"""States of recurrent networks as compiled code makes them: what they hold, who holds them, and what it declines."""

from __future__ import annotations

import copy
import ctypes
import gc
import inspect
import sys
import threading
import weakref
from typing import Any

import pytest

import dynjit as dy
from dynjit import frontend, rnn_base, sequence
from dynjit.errors import ShapeError, StaleExpressionError

BUILDERS = (dy.SimpleRNNBuilder, dy.GRUBuilder, dy.VanillaLSTMBuilder, dy.CoupledLSTMBuilder)
METHODS = [
    (rnn_base.RNNState, "add_input", ["self", "x"]), (rnn_base.RNNState, "add_inputs", ["self", "xs"]),
    (rnn_base.RNNState, "transduce", ["self", "xs"]), (rnn_base.RNNState, "output", ["self"]),
    (dy.RNNBuilder, "initial_state", ["self", "vecs", "update"]),
]  # fmt: skip
native = pytest.mark.skipif(not frontend.is_native, reason="this interpreter has the twins alone")


def vector(*numbers: float) -> dy.Expression:
    return dy.inputVector(list(numbers))


def trained(kind: type = dy.GRUBuilder, layers: int = 1) -> Any:
    """A builder whose steps compiled code knows, in a fresh graph."""
    dy.renew_cg()
    builder = kind(layers, 2, 2, dy.ParameterCollection())
    builder.initial_state().add_inputs([vector(1, 2)] * 3)
    return builder


def python_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets an entry for each step that is taken in Python from now on."""
    taken, step = [], rnn_base.Run.step
    monkeypatch.setattr(rnn_base.Run, "step", lambda run, *given: taken.append(1) or step(run, *given))
    return taken


@native
def test_slots_lie_where_compiled_code_looks() -> None:
    builder = trained()
    state = builder.initial_state().add_input(vector(1, 2))
    run = state._run
    for thing, slots in ((builder, sequence.BUILDER_SLOTS), (run, sequence.RUN_SLOTS), (state, sequence.STATE_SLOTS)):
        for i, name in enumerate(slots):
            place = id(thing) + object.__basicsize__ + 8 * i
            assert ctypes.c_void_p.from_address(place).value == id(getattr(thing, name))


@native
@pytest.mark.parametrize(("owner", "name", "parameters"), METHODS)
def test_methods_look_like_their_twins(owner: type, name: str, parameters: list[str]) -> None:
    method = getattr(owner, name)
    assert not inspect.isfunction(method) and method.__name__ == name and method.__doc__
    assert list(inspect.signature(method).parameters) == parameters


@pytest.mark.parametrize("kind", BUILDERS)
@pytest.mark.parametrize("layers", [1, 2])
def test_states_know_their_vectors_and_their_past(kind: type, layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = trained(kind, layers)
    taken = python_steps(monkeypatch)
    state, xs = builder.initial_state(), [vector(0.1 * i, 1) for i in range(4)]
    one_by_one = [state := state.add_input(x) for x in xs]
    together, outputs = builder.initial_state().add_inputs(xs), builder.initial_state().transduce(tuple(xs))
    for i, (first, second) in enumerate(zip(one_by_one, together, strict=True)):
        assert type(first) is type(second) is dy.RNNState and first.b() is second.b() is builder
        assert first.output() is first.h()[-1] is first.s()[-1]
        assert [e.value() for e in first.s()] == [e.value() for e in second.s()]
        assert len(first.s()) == layers * builder.vectors_per_layer and len(first.h()) == layers
        assert first.output().value() == outputs[i].value()
        assert first.prev() is (one_by_one[i - 1] if i else builder.initial_state())
        assert second.prev() is (together[i - 1] if i else builder.initial_state())
    assert not frontend.is_native or not taken


def test_inputs_may_be_named_and_come_from_anywhere() -> None:
    builder, x = trained(), vector(1, 2)
    start = builder.initial_state(update=True)
    expected = start.add_input(x).add_input(x).output().value()
    for use in (
        lambda: start.add_input(x=x).add_input(x=x).output(), lambda: start.add_inputs(xs=[x, x])[1].output(),
        lambda: start.transduce(xs=(x, x))[1], lambda: start.transduce(x for _ in range(2))[1],
        lambda: start.add_inputs(iter([x, x]))[1].output(), lambda: dy.RNNState.add_input(start, x).add_input(x).output(),
    ):  # fmt: skip
        assert use().value() == expected
    assert builder.initial_state(None, True) is builder.initial_state(vecs=None) is start


@pytest.mark.parametrize("given", [(), (1, 2)])
def test_a_wrong_number_of_arguments_is_refused(given: tuple[int, ...]) -> None:
    state = trained().initial_state()
    for name in ("add_input", "add_inputs", "transduce"):
        with pytest.raises(TypeError, match=rf"{name}\(\)"):
            getattr(state, name)(*given)
    with pytest.raises(TypeError, match=r"output\(\)"):
        state.output(1)
    with pytest.raises((TypeError, AttributeError)):
        dy.RNNState.add_input(3, vector(1, 2))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"nonsense"):
        state.add_input(nonsense=1)


def test_nothing_is_kept_alive_and_nothing_freed_too_early() -> None:
    builder, x, wrong = trained(dy.VanillaLSTMBuilder), vector(1, 2), vector(1, 2, 3)
    dy.renew_cg()
    stale, x, wrong = x, vector(1, 2), vector(1, 2, 3)
    start = builder.initial_state()
    state = start.add_input(x).add_input(x)
    held = [
        start,
        state,
        state._run,
        state.output(),
        state.s(),
        x,
        wrong,
        stale,
        builder,
        dy.RNNState,
        dy.Expression,
        None,
    ]

    def use() -> None:
        for first in (start, state):
            first.add_input(x).add_input(x).output(), first.transduce([x, x]), first.add_inputs([x, x])
            first.add_input(x).prev().s(), first.output(), builder.initial_state()
            for other, error in ((wrong, ShapeError), (stale, StaleExpressionError)):
                for bad in (lambda: first.add_input(other), lambda: first.add_inputs([x, other])):
                    with pytest.raises(error):
                        bad()
            with pytest.raises(TypeError):
                first.transduce(3)

    counts = []
    for _ in range(3):
        for _ in range(20):
            use()
        gc.collect()
        counts.append([sys.getrefcount(thing) for thing in held])
    assert max(abs(a - b) for a, b in zip(*counts[1:], strict=True)) < 20


def test_long_chains_are_freed() -> None:
    builder, x = trained(dy.SimpleRNNBuilder), vector(1, 2)
    gc.collect()
    run = builder.initial_state()._run
    before = sys.getrefcount(run)
    state = builder.initial_state()
    for _ in range(100_000):
        state = state.add_input(x)
    assert sys.getrefcount(run) == before + 100_000
    del state
    assert sys.getrefcount(run) == before
    states = builder.initial_state().add_inputs([x] * 100_000)
    state = states[-1]
    del states
    gc.collect()
    del state
    assert sys.getrefcount(run) == before


def test_builders_are_collected_with_their_states() -> None:
    builder = trained()
    seen = weakref.ref(builder)
    states = builder.initial_state().add_inputs([vector(1, 2)] * 3)
    builder.itself = states  # a cycle
    del builder, states
    gc.collect()
    assert seen() is None


def test_states_without_their_attributes_say_so() -> None:
    x, empty = vector(1, 2), dy.RNNState.__new__(dy.RNNState)
    for use in (lambda: empty.add_input(x), lambda: empty.add_inputs([x]), lambda: empty.transduce([x]), empty.output):
        with pytest.raises(AttributeError):
            use()
    with pytest.raises(AttributeError):
        dy.RNNState(3).add_input(x)  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        dy.GRUBuilder.__new__(dy.GRUBuilder).initial_state()


def test_vectors_that_are_none_are_refused() -> None:
    state, x = trained(dy.VanillaLSTMBuilder).initial_state().add_input(vector(1, 2)), vector(1, 2)
    c, h = state.s()
    for strange in ([c, h], (c, h)):
        assert dy.RNNState(state._run, strange).add_input(x).output().value()  # type: ignore[arg-type]
    for strange in ((c, 3), (None, h), {1: 2, 3: 4}, "ab"):
        with pytest.raises((TypeError, AttributeError, KeyError)):
            dy.RNNState(state._run, strange).add_input(x)  # type: ignore[arg-type]


def test_a_subclass_may_change_what_an_input_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Doubling(dy.RNNState):
        __slots__ = ()

        def add_input(self, x: dy.Expression) -> dy.RNNState:
            return super().add_input(x + x)

    start, x = trained().initial_state(), vector(1, 2)
    expected = start.add_input(2.0 * x).output().value()
    state = Doubling(start._run)
    taken = python_steps(monkeypatch)
    for made in (state.add_input(x).output(), state.add_inputs([x])[0].output(), state.transduce([x])[0]):
        assert made.value() == pytest.approx(expected)
    assert not frontend.is_native or not taken


def test_a_subclass_may_change_where_a_sequence_starts() -> None:
    class Own:
        def initial_state(self, vecs: Any = None, update: bool = True) -> Any:
            return "own", super().initial_state(vecs, update)  # type: ignore[misc]

    class Mixed(Own, dy.GRUBuilder):
        pass

    class Plain(dy.GRUBuilder):
        pass

    class Changed(Plain):
        def initial_state(self, vecs: Any = None, update: bool = True) -> Any:
            return "changed", super().initial_state()

    class Deeper(Changed):
        pass

    for kind, word in ((Mixed, "own"), (Changed, "changed"), (Deeper, "changed")):
        builder = kind(1, 2, 2, dy.ParameterCollection())
        for _ in range(2):
            assert builder.initial_state() == (word, dy.RNNBuilder.initial_state(builder))
    plain = Plain(1, 2, 2, dy.ParameterCollection())
    assert plain.initial_state() is plain.initial_state(update=True) is dy.RNNBuilder.initial_state(plain)


def test_states_can_be_copied() -> None:
    state, x = trained().initial_state().add_input(vector(1, 2)), vector(1, 2)
    assert copy.copy(state).add_input(x).output().value() == state.add_input(x).output().value()


def test_a_state_of_another_graph_is_refused_and_so_is_one_of_another_thread() -> None:
    builder, x = trained(), vector(1, 2)
    start, errors = builder.initial_state(), []
    state = start.add_input(x)

    def use() -> None:
        for call in (lambda: start.add_input(x), lambda: state.add_input(x), lambda: start.transduce([x])):
            try:
                call()
            except ValueError as error:
                errors.append(str(error))
        assert builder.initial_state() is not start

    with dy.new_graph():
        use()
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert len(errors) == 6 and all("Using stale builder" in error for error in errors)
    assert builder.initial_state().add_input(x).output().value() == state.output().value()


def test_initial_states_are_new_after_going_back() -> None:
    builder = trained()
    dy.cg_checkpoint()
    start = builder.initial_state()
    assert start is builder.initial_state()
    dy.cg_revert()
    again = builder.initial_state()
    assert again is builder.initial_state() and again.add_input(vector(1, 2)).output().value()
    dy.renew_cg()
    assert builder.initial_state() is not again
