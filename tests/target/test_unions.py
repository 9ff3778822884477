"""The kernels of whole models: what is compiled for the operators of a training step leaves no stack and spills nothing."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from ptx import build, compile

import dynjit as dy
from dynjit import cudakernels, demo, gpu

compile.require(compile.missing(), build.missing())

from ptx import lint  # noqa: E402

from target.emulated import CAPABILITY, Device  # noqa: E402
from target.networks import computing_on  # noqa: E402


class DryDevice(Device):
    """Launches nothing: what would be launched is what the test is about."""

    def launch(self, *arguments: Any, **options: Any) -> None:
        pass


class DryExecutor(gpu.Executor):
    """Compiles nothing."""

    def load(self) -> str:
        return ""


def trees() -> dy.Expression:
    """The demo's Tree-LSTM."""
    reader, numbers = demo.Reader(8), random.Random(1)
    return dy.esum([reader.loss(demo.generate(numbers, 3, 4)) for _ in range(8)])


class LanguageModel:
    """An LSTM over mini-batches of sentences, and a tagger's loss on one sentence, word by word."""

    def __init__(self) -> None:
        dy.reset_random_seed(2)
        self.model = dy.ParameterCollection()
        self.table, self.lstm = self.model.add_lookup_parameters((20, 4)), dy.VanillaLSTMBuilder(1, 4, 5, self.model)
        self.w, self.b = self.model.add_parameters((20, 5)), self.model.add_parameters(20)

    def loss(self) -> dy.Expression:
        state, losses = self.lstm.initial_state(), []
        for position in range(6):
            state = state.add_input(dy.lookup_batch(self.table, [position, 7, 9]))
            scores = dy.affine_transform([self.b, self.w, dy.dropout(state.output(), 0.5)])
            losses.append(dy.pickneglogsoftmax_batch(scores, [1, 2, position]))
        outputs = self.lstm.initial_state().transduce([self.table[word] for word in range(9)])
        single = [dy.pickneglogsoftmax(self.w * dy.tanh(output) + self.b, 3) for output in outputs]
        return dy.sum_batches(dy.esum(losses)) + dy.esum(single)


@pytest.mark.parametrize("architecture", lint.ARCHITECTURES)
@pytest.mark.parametrize("loss", [trees, lambda: LanguageModel().loss()], ids=["trees", "language model"])
def test_machine_code_of_a_training_step(loss: Callable[[], dy.Expression], architecture: str) -> None:
    executor = DryExecutor(DryDevice())
    with computing_on(executor):
        dy.renew_cg()
        target = loss()
        target.forward()
        target.backward()
    pairs = {cudakernels.GATHER, cudakernels.SCATTER, *executor.lowering.used()}
    assert len(pairs) > 15
    ptx = cudakernels.program_ptx(pairs, CAPABILITY)
    assert ".extern" not in ptx
    assert lint.findings(ptx, () if lint.missing() else (architecture,)) == []
