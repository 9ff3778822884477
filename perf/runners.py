"""Runs a case step by step and says where the time went: one runner for DyNet's API, one for PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any, Protocol

import numpy as np

from perf.cases import Case
from perf.data import Corpus
from perf.workloads import MODELS

PARTS = ("build", "forward", "backward", "update")


class Runner(Protocol):
    """A model that is trained, or used, step by step."""

    workload: Any
    trainer: Any

    def train(self, examples: list) -> tuple[float, list[float]]:
        """One step; returns the loss and the seconds of each of PARTS."""

    def infer(self, examples: list) -> tuple[float, list[float]]:
        """The same for a prediction."""


class DynetRunner:
    """For a module with DyNet's API."""

    def __init__(self, dy: Any, case: Case, corpus: Corpus, builder: str) -> None:
        self.dy = dy
        self.workload = MODELS[case.model](dy, corpus, builder, **case.sizes)
        self.trainer = dy.AdamTrainer(self.workload.model)

    def train(self, examples: list) -> tuple[float, list[float]]:
        """Builds the loss, computes it and its gradients, updates."""
        self.workload.value_seconds = 0.0
        start = perf_counter()
        self.dy.renew_cg()
        loss = self.workload.total_loss(examples)
        built = perf_counter()
        value = loss.value()
        computed = perf_counter()
        loss.backward()
        derived = perf_counter()
        self.trainer.update()
        seconds = [built - start, computed - built, derived - computed, perf_counter() - derived]
        return value, moved(seconds, self.workload.value_seconds)

    def infer(self, examples: list) -> tuple[float, list[float]]:
        """Builds the scores, computes them, takes the best."""
        self.workload.value_seconds = 0.0
        start = perf_counter()
        self.dy.renew_cg()
        scores = self.workload.all_scores(examples)
        built = perf_counter()
        if scores is not None:
            np.argmax(scores.npvalue(), 0)
        return 0.0, moved([built - start, perf_counter() - built, 0.0, 0.0], self.workload.value_seconds)


def moved(seconds: list[float], value_seconds: float) -> list[float]:
    """Counts values that were asked for during the build as forward."""
    build, forward, *rest = seconds
    return [build - value_seconds, forward + value_seconds, *rest]


class TorchRunner:
    """For PyTorch; building is part of its forward."""

    def __init__(self, case: Case, corpus: Corpus, is_fused: bool) -> None:
        import torch

        from perf import torch_workloads

        self.torch = torch
        self.workload = torch_workloads.MODELS[case.model](corpus, is_fused, **case.sizes)
        tables = torch.nn.Embedding, torch.nn.EmbeddingBag
        sparse = [module.weight for module in self.workload.modules() if isinstance(module, tables)]
        dense = [weight for weight in self.workload.parameters() if all(weight is not other for other in sparse)]
        self.trainer = [torch.optim.Adam(dense, fused=True), torch.optim.SparseAdam(sparse)]

    def train(self, examples: list) -> tuple[float, list[float]]:
        """Computes the loss and its gradients, updates."""
        start = perf_counter()
        loss = self.workload.total_loss(examples)
        value = loss.item()
        computed = perf_counter()
        loss.backward()
        derived = perf_counter()
        for trainer in self.trainer:
            trainer.step()
            trainer.zero_grad()
        return value, [0.0, computed - start, derived - computed, perf_counter() - derived]

    def infer(self, examples: list) -> tuple[float, list[float]]:
        """Computes the scores, takes the best."""
        start = perf_counter()
        with self.torch.inference_mode():
            self.workload.all_scores(examples).argmax(-1).cpu().numpy()
        return 0.0, [0.0, perf_counter() - start, 0.0, 0.0]


def run_pass(step: Callable[[list], tuple[float, list[float]]], steps: list[list]) -> tuple[float, np.ndarray]:
    """Goes through all steps once; returns the sum of the losses and the seconds of each of PARTS."""
    seconds = np.zeros(len(PARTS))
    total = 0.0
    for examples in steps:
        loss, parts = step(examples)
        total += loss
        seconds += parts
    return total, seconds
