"""Builders of recurrent networks, as DyNet has them: states are immutable, a sequence is a chain of states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dynjit.errors import located
from dynjit.expressions import Expression
from dynjit.models import ParameterCollection
from dynjit.ops import noise
from dynjit.ops.binary import add, cmult, subtract
from dynjit.ops.layout import concatenate
from dynjit.ops.linear import add_product, affine_transform
from dynjit.ops.unary import logistic, tanh
from dynjit.rnn_base import (
    MaskedRNNBuilder,
    RNNBuilder,
    RNNState,
    Run,
    StackedRNNState,
    Vectors,
    checked_sizes,
    masked,
)
from dynjit.rnn_lstm import (
    CompactVanillaLSTMBuilder,
    CoupledLSTMBuilder,
    FastLSTMBuilder,
    LSTMBuilder,
    SparseLSTMBuilder,
    VanillaLSTMBuilder,
)
from dynjit.shape import as_list, as_number, kind_of

__all__ = ["BiRNNBuilder", "CompactVanillaLSTMBuilder", "CoupledLSTMBuilder", "FastLSTMBuilder", "GRUBuilder",
           "LSTMBuilder", "RNNBuilder", "RNNState", "SimpleRNNBuilder", "SparseLSTMBuilder", "StackedRNNState",
           "VanillaLSTMBuilder"]  # fmt: skip

for _builder in (CompactVanillaLSTMBuilder, CoupledLSTMBuilder, FastLSTMBuilder, SparseLSTMBuilder, VanillaLSTMBuilder):
    _builder.__module__ = __name__  # saved models name the builders by the module that users know


class SimpleRNNBuilder(MaskedRNNBuilder):
    """Recurrent network h' = tanh(Wx x + Wh h + b), without the term of h at the first step.

    Per layer Wx (hidden, inputs), Wh (hidden, hidden), b (hidden,).  Source: Elman 1990.
    """

    collection_name = "simple-rnn-builder"

    def __init__(self, layers: float, input_dim: float, hidden_dim: float, model: ParameterCollection) -> None:
        super().__init__(layers, input_dim, hidden_dim, model)
        hidden = self.hidden_dim
        for layer in range(self.layers):
            inputs = hidden if layer else self.input_dim
            self._parameters.append(self._add((hidden, inputs), (hidden, hidden), (hidden,)))

    def _step(self, run: Run, others: Vectors, h: Vectors, x: Expression) -> tuple[Vectors, Vectors, Expression]:
        masks = run.masks
        new_h = []
        for layer, (w_x, w_h, b) in enumerate(run.parameters):
            mask_x, mask_h = masks[layer] if masks else (None, None)
            pre = affine_transform([b, w_x, masked(x, mask_x)])
            if h:
                pre = add_product(pre, w_h, masked(h[layer], mask_h))
            x = tanh(pre)
            new_h.append(x)
        return (), tuple(new_h), x


class GRUBuilder(RNNBuilder):
    """Gated recurrent unit: with gates z and r, logistic(Wx x + Wh h + b) each with parameters of its own,

    h' = (1 - z) h + z tanh(Wx x + Wh (r h) + b);  without the terms of h at the first step.
    Per layer Wx (hidden, inputs), Wh (hidden, hidden), b (hidden,) of z, of r, of the candidate.
    Source: Cho et al. 2014.
    """

    collection_name = "gru-builder"
    dropout_kinds = 1
    _is_masked = False

    def __init__(self, layers: float, input_dim: float, hidden_dim: float, model: ParameterCollection) -> None:
        super().__init__(layers, input_dim, hidden_dim, model)
        hidden = self.hidden_dim
        for layer in range(self.layers):
            inputs = hidden if layer else self.input_dim
            self._parameters.append(self._add(*[(hidden, inputs), (hidden, hidden), (hidden,)] * 3))

    def set_dropout(self, f: float) -> None:
        """Sets the dropout rate (0 to below 1) of each layer's inputs and of the output; drawn anew at each step.

        The state keeps its h as it is.  Raises ValueError for other rates.
        """
        self._set_rates(f)

    def _step(self, run: Run, others: Vectors, h: Vectors, x: Expression) -> tuple[Vectors, Vectors, Expression]:
        (rate,) = self._rates
        new_h = []
        for layer, (w_xz, w_hz, b_z, w_xr, w_hr, b_r, w_xc, w_hc, b_c) in enumerate(run.parameters):
            if rate:
                x = noise.dropout(x, rate)
            z, candidate = affine_transform([b_z, w_xz, x]), affine_transform([b_c, w_xc, x])
            if h:
                before = h[layer]
                r = logistic(add_product(affine_transform([b_r, w_xr, x]), w_hr, before))
                z = logistic(add_product(z, w_hz, before))
                candidate = tanh(add_product(candidate, w_hc, cmult(r, before)))
                x = add(before, cmult(z, subtract(candidate, before)))
            else:
                x = cmult(logistic(z), tanh(candidate))
            new_h.append(x)
        return (), tuple(new_h), noise.dropout(x, rate) if rate else x


class BiRNNBuilder:
    """Pairs of networks that read a sequence forwards and backwards; each pair's outputs, joined, feed the next pair.

    num_layers: pairs;  hidden_dim: of a joined output, so it must be even;  rnn_builder_factory: a builder class,
    called with (1, inputs, hidden_dim / 2, collection);  builder_layers: pairs of builders to use instead.
    Raises ValueError for other sizes.  Source: Schuster and Paliwal 1997.
    """

    def __init__(
        self, num_layers: float, input_dim: float, hidden_dim: float, model: ParameterCollection,
        rnn_builder_factory: Callable[..., Any], builder_layers: Sequence[tuple[Any, Any]] | None = None,
    ) -> None:  # fmt: skip
        given = as_number("BiRNNBuilder", num_layers), as_number("BiRNNBuilder", hidden_dim)
        if given[0] < 1 or given[1] < 2 or given[1] % 2:
            raise ValueError(located(
                f"BiRNNBuilder: needs 1 layer or more and an even hidden_dim, got {num_layers} and {hidden_dim}"
            ))  # fmt: skip
        num_layers, input_dim, hidden_dim = checked_sizes("BiRNNBuilder", num_layers, input_dim, hidden_dim, model)
        if not callable(rnn_builder_factory) and builder_layers is None:
            raise TypeError(located(f"BiRNNBuilder: needs a builder class, got {kind_of(rnn_builder_factory)}"))
        self.model = model.add_subcollection("birnn")
        self._spec = num_layers, input_dim, hidden_dim, rnn_builder_factory
        self._has_own_layers = builder_layers is None
        self.builder_layers = list(builder_layers) if builder_layers is not None else [
            tuple(
                rnn_builder_factory(1, hidden_dim if layer else input_dim, hidden_dim // 2, self.model)
                for _ in range(2)
            )
            for layer in range(num_layers)
        ]  # fmt: skip

    def whoami(self) -> str:
        """The class's name."""
        return "BiRNNBuilder"

    def __repr__(self) -> str:
        layers, inputs, hidden, _ = self._spec
        return f"BiRNNBuilder {self.model.name()} ({layers} x {inputs} to {hidden})"

    @classmethod
    def from_spec(cls, spec: tuple[Any, ...], model: ParameterCollection) -> BiRNNBuilder:
        """A builder of the same sizes with parameters of its own."""
        layers, inputs, hidden, factory, builders = spec
        return cls(layers, inputs, hidden, model, factory, builders)

    @property
    def spec(self) -> tuple[Any, ...]:
        """The constructor's arguments (but for the collection); for saving.

        Raises TypeError for a builder that was made of `builder_layers`: these are saved one by one.
        """
        if not self._has_own_layers:
            raise TypeError(located("save: needs the builders of a BiRNNBuilder with builder_layers one by one"))
        return *self._spec, None

    def param_collection(self) -> ParameterCollection:
        """The builder's own sub-collection."""
        return self.model

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
            es = [concatenate([f, b]) for f, b in zip(left, reversed(right))]
        return es

    def transduce(self, es: Sequence[Expression]) -> list[Expression]:
        """The joined outputs of the last pair, one per input."""
        return self._through(as_list("transduce", "expressions", es), self.builder_layers)

    def add_inputs(self, es: Sequence[Expression]) -> list[tuple[RNNState, RNNState]]:
        """The last pair's states (forwards, backwards), one pair per input."""
        es = self._through(as_list("add_inputs", "expressions", es), self.builder_layers[:-1])
        forwards, backwards = self.builder_layers[-1]
        left = forwards.initial_state().add_inputs(es)
        right = backwards.initial_state().add_inputs(es[::-1])
        return list(zip(left, reversed(right)))
