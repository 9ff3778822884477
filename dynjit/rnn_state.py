"""States of recurrent networks: immutable positions in sequences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from dynjit import frontend
from dynjit.errors import located
from dynjit.expressions import Expression
from dynjit.sequence import (
    STATE_SLOTS,
    native_add_input,
    native_add_inputs,
    native_output,
    native_transduce,
)
from dynjit.shape import as_list, kind_of

Vectors = tuple[Expression, ...]


@frontend.native_methods(
    add_input=native_add_input, add_inputs=native_add_inputs, transduce=native_transduce, output=native_output
)
class RNNState:
    """A position in a sequence; obtained from a builder.

    It holds the builder's vectors `s`: an LSTM's c of each layer, then h of each layer; of other networks h alone.
    """

    __slots__ = STATE_SLOTS

    def __init__(self, run: Any, vectors: Vectors = (), output: Any = None, prev: RNNState | None = None) -> None:
        self._run, self._vectors, self._output, self._prev = run, vectors, output, prev

    def add_input(self, x: Expression) -> RNNState:
        """The state after one more input.

        x: (input_dim,) x batch.  Raises ValueError for a state of an earlier graph, ShapeError for another shape.
        """
        vectors, output = self._run.step(self._vectors, x)
        return RNNState(self._run, vectors, output, self)

    def add_inputs(self, xs: Iterable[Expression]) -> list[RNNState]:
        """The states after each input."""
        states, state = [], self
        for x in as_list("add_inputs", "expressions", xs):
            state = state.add_input(x)
            states.append(state)
        return states

    def transduce(self, xs: Iterable[Expression]) -> list[Expression]:
        """The outputs of the top layer after each input; cheaper than `add_inputs`."""
        self._run.check()
        return [state._output for state in self.add_inputs(as_list("transduce", "expressions", xs))]

    def output(self) -> Expression | None:
        """The top layer's output; None before any input."""
        return self._output

    def h(self) -> Vectors:
        """Each layer's output; () before any input."""
        return self.s()[-self._run.builder.layers :]

    def s(self) -> Vectors:
        """All vectors of the state: for an LSTM (c of each layer, h of each layer)."""
        return self._vectors

    def set_h(self, es: Sequence[Expression] | None = None) -> RNNState:
        """A state with other outputs, one per layer; an LSTM keeps its c (at first 0).

        Raises ValueError for another number of them, and for a state of an earlier graph.
        """
        self._run.check()
        builder = self._run.builder
        h = vectors_of(f"{builder.whoami()}.set_h", es)
        if len(h) != builder.layers:
            raise ValueError(located(
                f"{builder.whoami()}.set_h: needs as many expressions as layers, {builder.layers}, got {len(h)}"
            ))  # fmt: skip
        size = builder.layers * builder.vectors_per_layer
        others = self.s()[: size - builder.layers] or self._run.zeros(size - builder.layers)
        return RNNState(self._run, (*others, *h), h[-1], self)

    def set_s(self, es: Sequence[Expression] | None = None) -> RNNState:
        """A state with other vectors: all of them, or of an LSTM the c of each layer alone; h stays then (at first 0).

        Raises ValueError for another number of them, and for a state of an earlier graph.
        """
        self._run.check()
        builder = self._run.builder
        vectors = vectors_of(f"{builder.whoami()}.set_s", es)
        layers, whole = builder.layers, builder.layers * builder.vectors_per_layer
        if len(vectors) not in (layers, whole):
            raise ValueError(located(
                f"{builder.whoami()}.set_s: needs {' or '.join(map(str, sorted({layers, whole})))} expressions "
                f"for {layers} layers, got {len(vectors)}"
            ))  # fmt: skip
        if len(vectors) < whole:
            vectors += self.h() or self._run.zeros(layers)
        return RNNState(self._run, vectors, vectors[-1], self)

    def prev(self) -> RNNState | None:
        """The state before the last input."""
        return self._prev

    def b(self) -> Any:
        """The builder."""
        return self._run.builder

    def __repr__(self) -> str:
        output = self.output()
        return f"RNNState of {self._run.builder!r}, {'no output yet' if output is None else f'output {output!r}'}"


def vectors_of(operator: str, es: Any) -> Vectors:
    """Expressions of the current graph, given as a list; None counts as none."""
    vectors = () if es is None else tuple(as_list(operator, "expressions", es))
    for vector in vectors:
        if not isinstance(vector, Expression):
            raise TypeError(located(f"{operator}: needs expressions, got {kind_of(vector)}"))
        vector._node()
    return vectors


class StackedRNNState:
    """Several states, each fed by the output of the one before."""

    def __init__(self, states: Sequence[RNNState], prev: StackedRNNState | None = None) -> None:
        self.states, self._prev = as_list("StackedRNNState", "states", states), prev
        if not self.states or not all(isinstance(state, RNNState) for state in self.states):
            raise TypeError(located("StackedRNNState: needs a list of one RNNState or more"))

    def add_input(self, x: Expression) -> StackedRNNState:
        """The states after one more input."""
        following = []
        for state in self.states:
            following.append(state.add_input(x))
            x = following[-1].output()  # type: ignore[assignment]
        return StackedRNNState(following, self)

    def add_inputs(self, xs: Iterable[Expression]) -> list[StackedRNNState]:
        """The states after each input."""
        states, state = [], self
        for x in as_list("add_inputs", "expressions", xs):
            state = state.add_input(x)
            states.append(state)
        return states

    def output(self) -> Expression | None:
        """The last state's output."""
        return self.states[-1].output()

    def h(self) -> list[Vectors]:
        """Each state's h."""
        return [state.h() for state in self.states]

    def s(self) -> list[Vectors]:
        """Each state's s."""
        return [state.s() for state in self.states]

    def prev(self) -> StackedRNNState | None:
        """The states before the last input."""
        return self._prev
