"""Fifty updates from equal parameters follow DyNet's losses, with each recurrent builder and each softmax builder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dynjit as dy

WORDS, INPUTS, HIDDEN = 12, 5, 4
CLUSTERS = "".join(f"{'abc'[word % 3]} w{word}\n" for word in range(WORDS - 1)) + "d w11\n"
DIC = {f"w{word}": word for word in range(WORDS)}
NAMES = ("SimpleRNNBuilder", "GRUBuilder", "VanillaLSTMBuilder", "CompactVanillaLSTMBuilder", "CoupledLSTMBuilder",
         "FastLSTMBuilder", "SparseLSTMBuilder")  # fmt: skip


def without_dropout(builder: Any) -> Any:
    builder.set_dropout(0.0)
    return builder


def without_noise(builder: Any) -> Any:
    builder.set_weightnoise(0.0)
    return builder


BUILDERS: dict[str, Callable[[Any], Any]] = {
    **{name: lambda m, name=name: getattr(dy, name)(2, INPUTS, HIDDEN, m) for name in NAMES},
    **{f"{name}, no dropout": lambda m, name=name: without_dropout(getattr(dy, name)(2, INPUTS, HIDDEN, m))
       for name in NAMES if name != "FastLSTMBuilder"},
    **{f"BiRNNBuilder, {name}": lambda m, name=name: dy.BiRNNBuilder(2, INPUTS, HIDDEN, m, getattr(dy, name))
       for name in NAMES},
    "layer norm": lambda m: dy.VanillaLSTMBuilder(2, INPUTS, HIDDEN, m, True),
    "layer norm, sparse": lambda m: dy.SparseLSTMBuilder(2, INPUTS, HIDDEN, m, True),
    "forget bias": lambda m: dy.VanillaLSTMBuilder(2, INPUTS, HIDDEN, m, False, 0.3),
    "no weight noise": lambda m: without_noise(dy.CompactVanillaLSTMBuilder(2, INPUTS, HIDDEN, m)),
}  # fmt: skip
SOFTMAXES: dict[str, Callable[[Any, str], Any]] = {
    "standard": lambda m, file: dy.StandardSoftmaxBuilder(HIDDEN, WORDS, m),
    "standard without bias": lambda m, file: dy.StandardSoftmaxBuilder(HIDDEN, WORDS, m, False),
    "classes": lambda m, file: dy.ClassFactoredSoftmaxBuilder(HIDDEN, file, DIC, m),
    "classes without bias": lambda m, file: dy.ClassFactoredSoftmaxBuilder(HIDDEN, file, DIC, m, False),
}
STEPS = (9, 24, 49)

# Losses at the updates of STEPS, made by running `losses` below under DyNet 2.1 (import dynet as dy), unchanged.
RECORDED: dict[tuple[str, str], tuple[float, float, float]] = {
    ("SimpleRNNBuilder", "standard"): (11.5897, 11.53534, 9.202799),
    ("GRUBuilder", "standard"): (11.85477, 11.49133, 10.9562),
    ("VanillaLSTMBuilder", "standard"): (11.83565, 10.76127, 10.2735),
    ("CompactVanillaLSTMBuilder", "standard"): (11.83565, 10.76127, 10.2735),
    ("CoupledLSTMBuilder", "standard"): (12.45402, 10.74673, 10.41967),
    ("FastLSTMBuilder", "standard"): (12.45726, 10.80695, 10.5667),
    ("SparseLSTMBuilder", "standard"): (12.62132, 10.06059, 11.2614),
    ("SimpleRNNBuilder, no dropout", "standard"): (11.5897, 11.53534, 9.202799),
    ("GRUBuilder, no dropout", "standard"): (11.85477, 11.49133, 10.9562),
    ("VanillaLSTMBuilder, no dropout", "standard"): (11.83565, 10.76127, 10.2735),
    ("CompactVanillaLSTMBuilder, no dropout", "standard"): (11.83565, 10.76127, 10.2735),
    ("CoupledLSTMBuilder, no dropout", "standard"): (12.45402, 10.74673, 10.41967),
    ("SparseLSTMBuilder, no dropout", "standard"): (12.62132, 10.06059, 11.2614),
    ("BiRNNBuilder, SimpleRNNBuilder", "standard"): (11.78809, 9.960295, 9.751352),
    ("BiRNNBuilder, GRUBuilder", "standard"): (12.72589, 10.20539, 11.29618),
    ("BiRNNBuilder, VanillaLSTMBuilder", "standard"): (11.98967, 11.05184, 11.15289),
    ("BiRNNBuilder, CompactVanillaLSTMBuilder", "standard"): (11.98967, 11.05184, 11.15288),
    ("BiRNNBuilder, CoupledLSTMBuilder", "standard"): (11.70502, 11.30558, 10.42454),
    ("BiRNNBuilder, FastLSTMBuilder", "standard"): (11.69589, 11.31873, 10.38326),
    ("BiRNNBuilder, SparseLSTMBuilder", "standard"): (11.9556, 12.75957, 10.33344),
    ("layer norm", "standard"): (11.93519, 11.42, 10.75102),
    ("layer norm, sparse", "standard"): (12.04836, 10.56732, 10.16425),
    ("forget bias", "standard"): (11.87003, 10.84916, 10.29892),
    ("no weight noise", "standard"): (11.83565, 10.76127, 10.2735),
    ("GRUBuilder", "standard without bias"): (12.04931, 12.1681, 11.47103),
    ("GRUBuilder", "classes"): (10.35032, 11.07282, 9.948698),
    ("GRUBuilder", "classes without bias"): (12.26975, 11.36286, 10.01203),
}  # fmt: skip


def losses(builder: str, softmax: str, file: str) -> list[float]:
    """Losses of a tiny language model."""
    m = dy.ParameterCollection()
    network = BUILDERS[builder](m)
    table = m.add_lookup_parameters((WORDS, INPUTS))
    scores = SOFTMAXES[softmax](m, file)
    for k, p in enumerate(m.parameters_list(), 1):
        size = int(np.prod(p.shape()))
        p.set_value((np.sin(1.7 * np.arange(size) + k) / 2).reshape(p.shape(), order="F"))
    table.init_from_array((np.cos(1.3 * np.arange(WORDS * INPUTS) + 1) / 2).reshape(WORDS, INPUTS))
    if hasattr(network, "set_sparsity"):
        network.set_sparsity(0.3)
    trainer = dy.AdamTrainer(m, 0.01, eps=1e-6)  # with a smaller one rounding moves what layer norm does not depend on
    found = []
    for step in range(50):
        dy.renew_cg()
        words = [(step * (i + 1) + i * i) % WORDS for i in range(6)]
        inputs = [table[word] for word in words[:-1]]
        pairs = isinstance(network, dy.BiRNNBuilder)
        outputs = network.transduce(inputs) if pairs else network.initial_state().transduce(inputs)
        loss = dy.esum([scores.neg_log_softmax(h, word) for h, word in zip(outputs, words[1:])])
        found.append(loss.value())
        loss.backward()
        trainer.update()
    return found


@pytest.mark.parametrize(("builder", "softmax"), RECORDED)
def test_losses_are_those_of_dynet(builder: str, softmax: str, tmp_path: Path) -> None:
    file = tmp_path / "clusters"
    file.write_text(CLUSTERS)
    found = losses(builder, softmax, str(file))
    assert [found[step] for step in STEPS] == pytest.approx(RECORDED[builder, softmax], rel=1e-4)


def test_each_builder_is_compared() -> None:
    assert {builder for builder, _ in RECORDED} == set(BUILDERS)
    assert {softmax for _, softmax in RECORDED} == set(SOFTMAXES)
