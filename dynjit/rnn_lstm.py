"""Builders of long short-term memories (LSTM): the vectors of a state are c of each layer, then h of each layer."""

from __future__ import annotations

from typing import Any

import numpy as np

from dynjit.errors import located
from dynjit.expressions import Expression
from dynjit.models import ParameterCollection
from dynjit.ops import noise
from dynjit.ops.binary import add, cmult, subtract
from dynjit.ops.linear import add_product, affine_transform, product
from dynjit.ops.norm import layer_norm
from dynjit.ops.recurrent import lstm_activation, lstm_c, lstm_h, vanilla_lstm_c, vanilla_lstm_h
from dynjit.ops.unary import logistic, tanh
from dynjit.parameters import Parameters
from dynjit.rnn_base import MaskedRNNBuilder, RNNBuilder, Run, Vectors, in_graph, masked
from dynjit.shape import as_finite, as_number

__all__ = ["CompactVanillaLSTMBuilder", "CoupledLSTMBuilder", "FastLSTMBuilder", "LSTMBuilder", "SparseLSTMBuilder",
           "VanillaLSTMBuilder"]  # fmt: skip


class VanillaLSTMBuilder(MaskedRNNBuilder):
    """Long short-term memory: with [i f o g] = Wx x + Wh h + b,

    c' = logistic(f + forget_bias) c + logistic(i) tanh(g),  h' = logistic(o) tanh(c').
    Per layer Wx (4 hidden, inputs), Wh (4 hidden, hidden), b (4 hidden,); b starts at 0.

    ln_lstm: normalise both products, and c for h' (Ba, Kiros and Hinton 2016); gains and biases lie in `model` itself.
    Source: Hochreiter and Schmidhuber 1997; Gers, Schmidhuber and Cummins 2000.
    """

    collection_name = "vanilla-lstm-builder"
    vectors_per_layer = 2
    starts_at_zero = True

    def __init__(
        self, layers: float, input_dim: float, hidden_dim: float, model: ParameterCollection, ln_lstm: Any = False,
        forget_bias: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__(layers, input_dim, hidden_dim, model)
        self.ln_lstm, self.forget_bias = bool(ln_lstm), as_finite(self.whoami(), forget_bias)
        wide, narrow = 4 * self.hidden_dim, self.hidden_dim
        for layer in range(self.layers):
            self._parameters.append(self._add_layer((wide, narrow if layer else self.input_dim), (wide, narrow)))
            if self.ln_lstm:
                sizes = (wide, wide, narrow)
                self._norms.append([model.add_parameters(size, init=value) for size in sizes for value in (1.0, 0.0)])

    def set_dropouts(self, d: float, d_r: float) -> None:  # DyNet's names differ from those of its other builders
        """Sets the dropout rates of inputs and of recurrent outputs; raises ValueError outside of 0 to below 1."""
        self._set_rates(d, d_r)

    def _add_layer(self, inputs: tuple[int, int], recurrence: tuple[int, int]) -> list[Parameters]:
        return self._add(inputs, recurrence, inputs[:1])

    @property
    def spec(self) -> tuple[Any, ...]:
        return self.layers, self.input_dim, self.hidden_dim, self.ln_lstm, self.forget_bias

    def _step(self, run: Run, others: Vectors, h: Vectors, x: Expression) -> tuple[Vectors, Vectors, Expression]:
        new_c, new_h = [], []
        for layer, weights in enumerate(run.parameters):
            mask_x, mask_h = run.masks[layer] if run.masks else (None, None)
            x = masked(x, mask_x)
            before = masked(h[layer], mask_h) if h else None
            c = others[layer] if others else run.zero
            if self.ln_lstm:
                c, x = normalised_step(weights, run.norms[layer], x, c, before, self.forget_bias)
            else:
                c, x = plain_step(weights, x, c, before, self.forget_bias)
            new_c.append(c)
            new_h.append(x)
        return tuple(new_c), tuple(new_h), x


Pair = tuple[Expression, Expression]


def plain_step(weights: list[Any], x: Expression, c: Expression, before: Expression | None, forget_bias: float) -> Pair:
    """c and h of one layer, after an input and its output `before`."""
    w_x, w_h, b = weights
    pre = affine_transform([b, w_x, x])
    if before is not None:
        pre = add_product(pre, w_h, before)
    c = lstm_c(pre, c, forget_bias)
    return c, lstm_h(pre, c)


def normalised_step(
    weights: list[Any], norms: list[Any], x: Expression, c: Expression, before: Expression | None, forget_bias: float
) -> Pair:
    """`plain_step` with both products normalised, and c where h is made from it."""
    w_x, w_h, b = weights
    gain_h, bias_h, gain_x, bias_x, gain_c, bias_c = norms
    pre = add(layer_norm(product(w_x, x), gain_x, bias_x), b)
    if before is not None:
        pre = add(pre, layer_norm(product(w_h, before), gain_h, bias_h))
    gates = lstm_activation(pre, forget_bias)
    c = vanilla_lstm_c(c, gates)
    return c, vanilla_lstm_h(layer_norm(c, gain_c, bias_c), gates)


LSTMBuilder = VanillaLSTMBuilder


class SparseLSTMBuilder(VanillaLSTMBuilder):
    """A `VanillaLSTMBuilder` whose small weights can be masked away, ever more of them while it is trained.

    Per layer Wx, Wh, b, and for Wx and Wh masks of 0 and 1: parameters that are saved but not trained.
    Source: Narang, Elsen, Diamos and Sengupta 2017.
    """

    def _add_layer(self, inputs: tuple[int, int], recurrence: tuple[int, int]) -> list[Parameters]:
        w_x, w_h = self._add(inputs, recurrence)
        masks = [self.local_model.add_parameters(shape, init=1.0) for shape in (inputs, recurrence)]
        for parameter in masks:
            parameter.set_updated(False)
        return [w_x, w_h, *self._add(inputs[:1]), *masks]

    def _in_graph(self, update: bool) -> list[list[Any]]:
        layers = []
        for *layer, mask_x, mask_h in self._parameters:
            w_x, w_h, b = in_graph(layer, update)
            layers.append([cmult(w_x, mask_x.expr(False)), cmult(w_h, mask_h.expr(False)), b])
        return layers

    def set_sparsity(self, sparsity: float) -> None:
        """Masks the share `sparsity` (0 to 1) of all weights: first those that are masked, then the smallest ones.

        Biases stay.  Raises ValueError for other shares.
        """
        if not 0 <= as_number("set_sparsity", sparsity) <= 1:
            raise ValueError(located(f"set_sparsity: needs a share from 0 to 1, got {sparsity}"))
        pairs = [(w, m) for w_x, w_h, _, mask_x, mask_h in self._parameters for w, m in ((w_x, mask_x), (w_h, mask_h))]
        sizes = np.concatenate([np.abs(weights.values() * mask.values()) for weights, mask in pairs])
        keep = np.ones(sizes.size, np.float32)
        keep[np.argsort(sizes, kind="stable")[: int(sizes.size * sparsity + 1e-6)]] = 0
        start = 0
        for _, parameter in pairs:
            parameter.values()[:] = keep[start : start + parameter.count]
            start += parameter.count


class CompactVanillaLSTMBuilder(VanillaLSTMBuilder):
    """A `VanillaLSTMBuilder` with a forget bias of 1, and with weight noise if wanted."""

    collection_name = "compact-vanilla-lstm-builder"

    def __init__(self, layers: float, input_dim: float, hidden_dim: float, model: ParameterCollection) -> None:
        super().__init__(layers, input_dim, hidden_dim, model)
        self.weightnoise_std = 0.0

    @property
    def spec(self) -> tuple[Any, ...]:
        return self.layers, self.input_dim, self.hidden_dim

    def set_weightnoise(self, std: float) -> None:
        """Adds normal noise of standard deviation `std` to all weights and biases, drawn anew for each graph.

        It acts from the next `initial_state` on.  Raises ValueError for a negative deviation.
        Source: Graves, Mohamed and Hinton 2013, section 3 (noise per sequence, not per step).
        """
        if not as_finite("set_weightnoise", std) >= 0:
            raise ValueError(located(f"set_weightnoise: needs a deviation of 0 or more, got {std}"))
        self.weightnoise_std = float(std)
        self._runs = [None, None]

    def _in_graph(self, update: bool) -> list[list[Any]]:
        layers = super()._in_graph(update)
        if self.weightnoise_std:
            layers = [[noise.noise(weight, self.weightnoise_std) for weight in layer] for layer in layers]
        return layers


class CoupledLSTMBuilder(RNNBuilder):
    """LSTM whose forget gate is 1 - i, with dense matrices from c to the gates ("peepholes"):

    i = logistic(Wxi x + Whi h + Wci c + bi),  c' = (1 - i) c + i tanh(Wxc x + Whc h + bc),
    o = logistic(Wxo x + Who h + Wco c' + bo),  h' = o tanh(c');  terms of c and h are absent at the first step.
    Per layer Wxi Whi Wci bi, Wxo Who Wco bo, Wxc Whc bc.  Source: Greff et al. 2015 (coupled gates).
    """

    collection_name = "lstm-builder"
    vectors_per_layer = 2
    dropout_kinds = 3  # of inputs, of recurrent outputs, of what the gates see of c
    has_peepholes = True

    def __init__(self, layers: float, input_dim: float, hidden_dim: float, model: ParameterCollection) -> None:
        super().__init__(layers, input_dim, hidden_dim, model)
        hidden = self.hidden_dim
        peephole = (hidden, hidden if self.has_peepholes else 1)
        for layer in range(self.layers):
            inputs, recurrence = (hidden, hidden if layer else self.input_dim), (hidden, hidden)
            gate = (inputs, recurrence, peephole, (hidden,))
            self._parameters.append(self._add(*gate, *gate, inputs, recurrence, (hidden,)))

    def set_dropouts(self, d: float, d_h: float, d_c: float) -> None:
        """Sets the dropout rates of inputs, of recurrent outputs, and of what the gates see of c.

        Raises ValueError outside of 0 to below 1.
        """
        self._set_rates(d, d_h, d_c)

    def _step(self, run: Run, others: Vectors, h: Vectors, x: Expression) -> tuple[Vectors, Vectors, Expression]:
        masks = run.masks
        new_c, new_h = [], []
        for layer, (w_xi, w_hi, w_ci, b_i, w_xo, w_ho, w_co, b_o, w_xc, w_hc, b_c) in enumerate(run.parameters):
            mask_x, mask_h, mask_c = masks[layer] if masks else (None, None, None)
            x = masked(x, mask_x)
            i, candidate, o = affine_transform([b_i, w_xi, x]), affine_transform([b_c, w_xc, x]), [b_o, w_xo, x]
            if h:
                before, c = masked(h[layer], mask_h), others[layer]
                i, candidate = add_product(i, w_hi, before), add_product(candidate, w_hc, before)
                o += w_ho, before
                if self.has_peepholes:
                    i = add_product(i, w_ci, masked(c, mask_c))
                c = add(c, cmult(logistic(i), subtract(tanh(candidate), c)))
            else:
                c = cmult(logistic(i), tanh(candidate))
            if self.has_peepholes:
                o += w_co, masked(c, mask_c)
            x = cmult(logistic(affine_transform(o)), tanh(c))
            new_c.append(c)
            new_h.append(x)
        return tuple(new_c), tuple(new_h), x


class FastLSTMBuilder(CoupledLSTMBuilder):
    """A `CoupledLSTMBuilder` without peepholes, Wci and Wco being (hidden, 1) parameters that have no effect.

    They are kept because model files hold them.  Dropout rates are accepted, and have no effect either, as in DyNet.
    """

    collection_name = "fast-lstm-builder"
    has_peepholes = False

    _is_masked = False
