"""What the tests of GPUs share: the same work on the CPU and on a GPU, and networks that learn."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

import dynjit as dy
from dynjit import gpu, graph


@contextlib.contextmanager
def computing_on(executor: gpu.Executor | None) -> Iterator[None]:
    """The current graph and the parameters are computed by an executor; None: by the CPU."""
    graph.use_executor(executor)
    try:
        yield
    finally:
        graph.use_executor(None)
        graph.current.renew()


def close(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    scale = max(1.0, float(np.abs(expected[np.isfinite(expected)]).max(initial=0)))
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * scale)


class Tagger:
    """A tagger with a bidirectional LSTM, over sentences of several lengths."""

    def __init__(self, lengths: Sequence[int] = (3, 1, 4, 2, 5)) -> None:
        dy.reset_random_seed(2)
        self.lengths = lengths
        self.model = dy.ParameterCollection()
        self.table = self.model.add_lookup_parameters((20, 4))
        self.lstm = dy.BiRNNBuilder(1, 4, 6, self.model, dy.VanillaLSTMBuilder)
        self.w, self.b = self.model.add_parameters((3, 6)), self.model.add_parameters((3,))

    def loss(self) -> dy.Expression:
        losses = []
        for length in self.lengths:
            words = [(7 * length + 3 * i) % 20 for i in range(length)]
            states = self.lstm.transduce([self.table[word] for word in words])
            losses += [dy.pickneglogsoftmax(self.w * h + self.b, word % 3) for h, word in zip(states, words)]
        return dy.esum(losses)


class Trees:
    """A Tree-LSTM over balanced and skewed trees."""

    def __init__(self, count: int = 6) -> None:
        dy.reset_random_seed(2)
        self.count = count
        self.model = dy.ParameterCollection()
        self.table = self.model.add_lookup_parameters((20, 4))
        self.w = {name: self.model.add_parameters((4, 8 if name != "leaf" else 4)) for name in ("i", "o", "u", "leaf")}

    def node(self, tree: object) -> tuple[dy.Expression, dy.Expression]:
        if isinstance(tree, int):
            x = self.w["leaf"] * self.table[tree]
            return dy.tanh(x), x
        (h1, c1), (h2, c2) = map(self.node, tree)  # type: ignore[call-overload]
        h = dy.concatenate([h1, h2])
        i, o = dy.logistic(self.w["i"] * h), dy.logistic(self.w["o"] * h)
        c = dy.cmult(i, dy.tanh(self.w["u"] * h)) + c1 + c2
        return dy.cmult(o, dy.tanh(c)), c

    def loss(self) -> dy.Expression:
        shapes = [((1, 2), (3, 4)), (1, (2, (3, 4))), (5, 6), ((1, (7, 8)), 9)]
        trees = [shapes[k % len(shapes)] for k in range(self.count)]
        return dy.esum([dy.squared_norm(self.node(tree)[0]) for tree in trees])


TRAINERS: dict[str, Callable[[dy.ParameterCollection], dy.Trainer]] = {
    "sgd": dy.SimpleSGDTrainer, "momentum": dy.MomentumSGDTrainer, "adagrad": dy.AdagradTrainer,
    "adadelta": dy.AdadeltaTrainer, "rmsprop": dy.RMSPropTrainer, "adam": dy.AdamTrainer,
    "amsgrad": dy.AmsgradTrainer, "eg": dy.EGTrainer,
}  # fmt: skip


def trained(make: Callable[[], Tagger | Trees], trainer: str, steps: int, executor: gpu.Executor | None) -> list:
    """Losses, the parameters' gradients in the first step, the parameters, and the trainer's moments."""
    with computing_on(executor):
        network = make()
        if trainer == "eg":
            for stored in network.model.stored:
                stored.values()[:] = np.abs(stored.values()) + np.float32(0.1)
        rule = TRAINERS[trainer](network.model)
        rule.set_clip_threshold(1.0)
        network.model.set_weight_decay(0.01)
        losses, gradients = [], []
        for step in range(steps):
            rule.set_sparse_updates(step != 1)
            dy.renew_cg()
            loss = network.loss()
            losses.append(np.array(loss.value()))
            loss.backward()
            if step == 0:
                gradients = [stored.gradients().copy() for stored in network.model.stored]
            rule.update()
        dy.renew_cg()
        losses.append(np.array(network.loss().value()))
        parameters = [stored.values().copy() for stored in network.model.stored]
        moments = [stored.window(moment).copy() for moment in rule.buffers for stored in network.model.stored]
        assert all((stored.gradients() == 0).all() for stored in network.model.stored)
        assert (network.table.marks() == 0).all()
        return [*losses, *gradients, *parameters, *moments]
