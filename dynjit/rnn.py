"""Builders of recurrent networks, as DyNet has them: states are immutable, a sequence is a chain of states."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from dynjit import graph
from dynjit.errors import StaleExpressionError, located
from dynjit.graph import Expression
from dynjit.ops import binary, layout, leaf, linear, noise, recurrent, reduce
from dynjit.parameters import ParameterCollection, Parameters
from dynjit.sequence import record_lstm

Vectors = tuple[Expression, ...]


class RNNState:
    """A position in a sequence; obtained from a builder.

    A state holds the builder's vectors `s` (an LSTM's c of each layer, then h of each layer; of other networks h alone).
    """

    __slots__ = ("_builder", "_h", "_others", "_prev", "_run")

    def __init__(
        self, builder: RNNBuilder, run: Run, others: Vectors = (), h: Vectors = (), prev: RNNState | None = None
    ) -> None:
        self._builder, self._run, self._others, self._h, self._prev = builder, run, others, h, prev

    def add_input(self, x: Expression) -> RNNState:
        """The state after one more input.  x: (input_dim,) x batch."""
        self._run.check()
        others, h = self._builder._step(self._run, self._others, self._h, x)
        return RNNState(self._builder, self._run, others, h, self)

    def add_inputs(self, xs: Iterable[Expression]) -> list[RNNState]:
        """The states after each input."""
        states, state = [], self
        for x in xs:
            state = state.add_input(x)
            states.append(state)
        return states

    def transduce(self, xs: Iterable[Expression]) -> list[Expression]:
        """The outputs of the top layer after each input; cheaper than `add_inputs`."""
        self._run.check()
        return self._builder._transduce(self._run, self._others, self._h, list(xs))

    def output(self) -> Expression | None:
        """The top layer's output; None before any input."""
        return self._h[-1] if self._prev is not None and self._h else None

    def h(self) -> Vectors:
        """Each layer's output; () before any input."""
        return self._h

    def s(self) -> Vectors:
        """All vectors of the state: for an LSTM (c of each layer, h of each layer)."""
        return self._others + self._h

    def set_h(self, es: Sequence[Expression] | None = None) -> RNNState:
        """A state with other outputs, one per layer; an LSTM keeps its c.  Raises ValueError for another number."""
        vectors = tuple(es or ())
        if vectors and len(vectors) != self._builder.layers:
            raise ValueError(located(f"set_h: needs {self._builder.layers} expressions, got {len(vectors)}"))
        return RNNState(self._builder, self._run, self._others, vectors, self)

    def set_s(self, es: Sequence[Expression] | None = None) -> RNNState:
        """A state with other vectors: all of them, or (of an LSTM) the c alone.  Raises ValueError for another number."""
        others, h = self._builder._split(tuple(es or ()))
        return RNNState(self._builder, self._run, others, h or self._h, self)

    def prev(self) -> RNNState | None:
        """The state before the last input."""
        return self._prev

    def b(self) -> RNNBuilder:
        """The builder."""
        return self._builder


class StackedRNNState:
    """Several states, each fed by the output of the one before."""

    def __init__(self, states: Sequence[RNNState], prev: StackedRNNState | None = None) -> None:
        self.states, self._prev = list(states), prev

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
        for x in xs:
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


class Run:
    """What a builder has in one graph: its parameters as expressions, and its dropout masks."""

    __slots__ = ("flat", "masks", "parameters", "version", "zero")

    def __init__(self, builder: RNNBuilder, update: bool) -> None:
        self.version = graph.current.version()
        self.parameters = [
            [p if update else p.expr(False) for p in layer] for layer in builder.get_parameters()
        ]  # fmt: skip
        self.flat = [p for layer in self.parameters for p in layer]
        self.masks: list[tuple[Expression | None, ...]] | None = None
        self.zero = leaf.zeros((builder.hidden_dim,))

    def check(self) -> None:
        """Raises StaleExpressionError if the graph has been renewed since."""
        if self.version != graph.current.version():
            raise StaleExpressionError(located("Using stale builder: call initial_state() after renewing the graph"))


class RNNBuilder:
    """Base of all builders: `layers` networks on top of each other, the first with `input_dim` inputs.

    The parameters lie in a sub-collection of `model`.  Raises ValueError for sizes below 1.
    """

    collection_name = ""
    vectors_per_layer = 1

    def __init__(self, layers: float, input_dim: float, hidden_dim: float, model: ParameterCollection) -> None:
        self.layers, self.input_dim, self.hidden_dim = int(layers), int(input_dim), int(hidden_dim)
        if min(self.layers, self.input_dim, self.hidden_dim) < 1:
            raise ValueError(located(
                f"{type(self).__name__}: needs layers, input_dim and hidden_dim of 1 or more, "
                f"got {layers}, {input_dim}, {hidden_dim}"
            ))  # fmt: skip
        if not isinstance(model, ParameterCollection):
            raise TypeError(located(f"{type(self).__name__}: needs a ParameterCollection, got {type(model).__name__}"))
        self.local_model = model.add_subcollection(self.collection_name)
        self._parameters: list[list[Parameters]] = []
        self._runs: dict[bool, Run] = {}
        self._initial: dict[bool, RNNState] = {}
        self.dropout_x = self.dropout_h = 0.0

    # ---- what a network defines ----

    def _step(self, run: Run, others: Vectors, h: Vectors, x: Expression) -> tuple[Vectors, Vectors]:
        """The vectors after an input."""
        raise TypeError(located(f"{type(self).__name__}: needs a builder of a network"))

    @property
    def spec(self) -> tuple[Any, ...]:
        """The constructor's arguments (but for the collection); for saving."""
        return self.layers, self.input_dim, self.hidden_dim

    # ---- what all share ----

    @classmethod
    def from_spec(cls, spec: tuple[Any, ...], model: ParameterCollection) -> RNNBuilder:
        """A builder of the same sizes with parameters of its own."""
        return cls(*spec[:3], model, *spec[3:])

    def _split(self, vectors: Vectors) -> tuple[Vectors, Vectors]:
        """A list of a state's vectors as (c of each layer, h of each layer)."""
        count = len(vectors)
        if count in (0, self.layers * self.vectors_per_layer):
            middle = count - self.layers if count else 0
            return vectors[:middle], vectors[middle:]
        if count == self.layers:
            return vectors, ()
        raise ValueError(located(
            f"{type(self).__name__}: needs {self.layers * self.vectors_per_layer} state vectors, got {count}"
        ))  # fmt: skip

    def _run(self, update: bool) -> Run:
        run = self._runs.get(update)
        if run is None or run.version != graph.current.version():
            self._initial.clear()
            run = self._runs[update] = Run(self, update)
        return run

    def initial_state(self, vecs: Sequence[Expression] | None = None, update: bool = True) -> RNNState:
        """The state before any input.

        vecs: initial vectors (an LSTM: c of each layer, then h of each layer);  update: whether the parameters get
        gradients.  Without `vecs` the same state is given again in the same graph, with the same dropout masks.
        """
        run = self._run(bool(update))
        if vecs is not None:
            run.masks = None
            others, h = self._split(tuple(vecs))
            return RNNState(self, run, others, h)
        state = self._initial.get(bool(update))
        if state is None:
            state = self._initial[bool(update)] = RNNState(self, run)
        return state

    def initial_state_from_raw_vectors(self, vecs: Sequence[Sequence[float]], update: bool = True) -> RNNState:
        """The state before any input, with initial vectors given as lists of numbers."""
        return self.initial_state([leaf.inputVector(vector) for vector in vecs], update)

    def _transduce(self, run: Run, others: Vectors, h: Vectors, xs: list[Expression]) -> list[Expression]:
        outputs = []
        for x in xs:
            others, h = self._step(run, others, h, x)
            outputs.append(h[-1])
        return outputs

    def get_parameters(self) -> list[list[Parameters]]:
        """The parameters of each layer."""
        return self._parameters

    def get_parameter_expressions(self) -> list[list[Expression]]:
        """The parameters of each layer in the current graph; raises ValueError before `initial_state` in this graph."""
        run = next((run for run in self._runs.values() if run.version == graph.current.version()), None)
        if run is None:
            raise ValueError(located("get_parameter_expressions: needs initial_state() in the current graph first"))
        return [[p.expr(True) if isinstance(p, Parameters) else p for p in layer] for layer in run.parameters]

    def param_collection(self) -> ParameterCollection:
        """The builder's own sub-collection."""
        return self.local_model

    def whoami(self) -> str:
        """The class's name."""
        return type(self).__name__

    # ---- dropout ----

    def set_dropout(self, f: float) -> None:
        """Sets all dropout rates (0 to below 1); one mask serves a whole sequence.

        Source: Gal and Ghahramani 2016.
        """
        self.set_dropouts(f, f)

    def set_dropouts(self, d: float, d_h: float) -> None:
        """Sets the dropout rates of inputs and of recurrent outputs; raises ValueError outside of 0 to below 1."""
        if not (0 <= d < 1 and 0 <= d_h < 1):
            raise ValueError(located(f"set_dropouts: needs rates from 0 to below 1, got {d} and {d_h}"))
        self.dropout_x, self.dropout_h = float(d), float(d_h)
        for run in self._runs.values():
            run.masks = None

    def disable_dropout(self) -> None:
        """Sets all dropout rates to 0."""
        self.set_dropouts(0.0, 0.0)

    def set_dropout_masks(self, batch_size: int = 1) -> None:
        """Draws new masks for a mini-batch size; raises ValueError before `initial_state` in this graph."""
        runs = [run for run in self._runs.values() if run.version == graph.current.version()]
        if not runs:
            raise ValueError(located("set_dropout_masks: needs initial_state() in the current graph first"))
        for run in runs:
            run.masks = self._draw_masks(batch_size)

    def _draw_masks(self, batch: int) -> list[tuple[Expression | None, ...]]:
        """Per layer a mask of its inputs and one of its recurrent outputs; None where the rate is 0."""
        masks: list[tuple[Expression | None, ...]] = []
        for layer in range(self.layers):
            size = self.hidden_dim if layer else self.input_dim
            masks.append((mask(size, self.dropout_x, batch), mask(self.hidden_dim, self.dropout_h, batch)))
        return masks

    def _masks(self, run: Run, x: Expression) -> list[tuple[Expression | None, ...]] | None:
        """The masks of a sequence, drawn at its first input; None without dropout."""
        if self.dropout_x == 0 and self.dropout_h == 0:
            return None
        if run.masks is None:
            run.masks = self._draw_masks(x.dim()[1])
        return run.masks


def mask(size: int, rate: float, batch: int) -> Expression | None:
    """A dropout mask: 0, or 1 / (1 - rate)."""
    return noise.random_bernoulli((size,), 1 - rate, 1 / (1 - rate), batch) if rate > 0 else None  # type: ignore[no-any-return]


def masked(x: Expression, by: Expression | None) -> Expression:
    return x if by is None else binary.cmult(x, by)  # type: ignore[no-any-return]


class VanillaLSTMBuilder(RNNBuilder):
    """Long short-term memory: with [i f o g] = Wx x + Wh h + b,

    c' = logistic(f + forget_bias) c + logistic(i) tanh(g),  h' = logistic(o) tanh(c').
    Per layer Wx (4 hidden, inputs), Wh (4 hidden, hidden), b (4 hidden,); b starts at 0.

    ln_lstm: normalise both products and c (Ba, Kiros and Hinton 2016).  Source: Hochreiter and Schmidhuber 1997.
    """

    collection_name = "vanilla-lstm-builder"
    vectors_per_layer = 2

    def __init__(
        self, layers: float, input_dim: float, hidden_dim: float, model: ParameterCollection, ln_lstm: Any = False,
        forget_bias: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__(layers, input_dim, hidden_dim, model)
        self.ln_lstm, self.forget_bias = bool(ln_lstm), float(forget_bias)
        self._norms: list[list[Parameters]] = []
        for layer in range(self.layers):
            inputs = self.hidden_dim if layer else self.input_dim
            add = self.local_model.add_parameters
            self._parameters.append(
                [add((4 * self.hidden_dim, inputs)), add((4 * self.hidden_dim, self.hidden_dim)),
                 add(4 * self.hidden_dim, init=0.0)]
            )  # fmt: skip
            if self.ln_lstm:
                wide, narrow = 4 * self.hidden_dim, self.hidden_dim
                self._norms.append([
                    model.add_parameters(size, init=value)
                    for size in (wide, wide, narrow) for value in (1.0, 0.0)
                ])  # fmt: skip

    @property
    def spec(self) -> tuple[Any, ...]:
        return self.layers, self.input_dim, self.hidden_dim, self.ln_lstm, self.forget_bias

    def _step(self, run: Run, others: Vectors, h: Vectors, x: Expression) -> tuple[Vectors, Vectors]:
        masks = self._masks(run, x)
        if masks is None and not self.ln_lstm:
            vectors = record_lstm(run.flat, run.zero, others, h, [x], self.forget_bias, True)
            return vectors[: self.layers], vectors[self.layers :]
        new_c, new_h = [], []
        for layer, (w_x, w_h, b) in enumerate(run.parameters):
            mask_x, mask_h = masks[layer] if masks else (None, None)
            x = masked(x, mask_x)
            before = masked(h[layer], mask_h) if h else None
            if self.ln_lstm:
                gain_h, bias_h, gain_x, bias_x, gain_c, bias_c = self._norms[layer]
                pre = binary.add(b, reduce.layer_norm(linear.product(w_x, x), gain_x, bias_x))
                if before is not None:
                    pre = binary.add(pre, reduce.layer_norm(linear.product(w_h, before), gain_h, bias_h))
            else:
                pre = linear.affine_transform([b, w_x, x] if before is None else [b, w_x, x, w_h, before])
            gates = recurrent.lstm_activation(pre, self.forget_bias)
            c = recurrent.vanilla_lstm_c(others[layer] if others else run.zero, gates)
            seen = reduce.layer_norm(c, gain_c, bias_c) if self.ln_lstm else c
            x = recurrent.vanilla_lstm_h(seen, gates)
            new_c.append(c)
            new_h.append(x)
        return tuple(new_c), tuple(new_h)

    def _transduce(self, run: Run, others: Vectors, h: Vectors, xs: list[Expression]) -> list[Expression]:
        if not xs or self.ln_lstm or self._masks(run, xs[0]) is not None:
            return super()._transduce(run, others, h, xs)
        return list(record_lstm(run.flat, run.zero, others, h, xs, self.forget_bias, False))


LSTMBuilder = VanillaLSTMBuilder


class BiRNNBuilder:
    """Pairs of networks that read a sequence forwards and backwards; each pair's outputs, joined, feed the next pair.

    num_layers: pairs;  hidden_dim: of a joined output, so it must be even;  rnn_builder_factory: a builder class, called
    with (1, inputs, hidden_dim / 2, collection).  Raises ValueError for other sizes.
    """

    def __init__(
        self, num_layers: float, input_dim: float, hidden_dim: float, model: ParameterCollection,
        rnn_builder_factory: Callable[..., Any], builder_layers: Sequence[tuple[Any, Any]] | None = None,
    ) -> None:  # fmt: skip
        num_layers, input_dim, hidden_dim = int(num_layers), int(input_dim), int(hidden_dim)
        if num_layers < 1 or hidden_dim % 2 or hidden_dim < 2:
            raise ValueError(located(
                f"BiRNNBuilder: needs 1 layer or more and an even hidden_dim, got {num_layers} and {hidden_dim}"
            ))  # fmt: skip
        self.local_model = model.add_subcollection("birnn")
        self.spec = num_layers, input_dim, hidden_dim, rnn_builder_factory, builder_layers
        self.builder_layers = list(builder_layers) if builder_layers is not None else [
            tuple(
                rnn_builder_factory(1, hidden_dim if layer else input_dim, hidden_dim // 2, self.local_model)
                for _ in range(2)
            )
            for layer in range(num_layers)
        ]  # fmt: skip

    def whoami(self) -> str:
        """The class's name."""
        return "BiRNNBuilder"

    @classmethod
    def from_spec(cls, spec: tuple[Any, ...], model: ParameterCollection) -> BiRNNBuilder:
        """A builder of the same sizes with parameters of its own."""
        layers, inputs, hidden, factory, builders = spec
        return cls(layers, inputs, hidden, model, factory, builders)

    def param_collection(self) -> ParameterCollection:
        """The builder's own sub-collection."""
        return self.local_model

    def set_dropout(self, p: float) -> None:
        """Sets the dropout rates of all networks."""
        for pair in self.builder_layers:
            for builder in pair:
                builder.set_dropout(p)

    def disable_dropout(self) -> None:
        """Sets all dropout rates to 0."""
        for pair in self.builder_layers:
            for builder in pair:
                builder.disable_dropout()

    def _through(self, es: list[Expression], pairs: Sequence[tuple[Any, Any]]) -> list[Expression]:
        for forwards, backwards in pairs:
            left = forwards.initial_state().transduce(es)
            right = backwards.initial_state().transduce(es[::-1])
            es = [layout.concatenate([f, b]) for f, b in zip(left, reversed(right))]
        return es

    def transduce(self, es: Sequence[Expression]) -> list[Expression]:
        """The joined outputs of the last pair, one per input."""
        return self._through(list(es), self.builder_layers)

    def add_inputs(self, es: Sequence[Expression]) -> list[tuple[RNNState, RNNState]]:
        """The last pair's states (forwards, backwards), one pair per input."""
        es = self._through(list(es), self.builder_layers[:-1])
        forwards, backwards = self.builder_layers[-1]
        left = forwards.initial_state().add_inputs(es)
        right = backwards.initial_state().add_inputs(es[::-1])
        return list(zip(left, reversed(right)))
