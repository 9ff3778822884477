"""The cases that are measured: a workload, its sizes, how many examples make a step, training or inference."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from perf.data import Corpus, Sentence

TAGGERS = ("tagger", "chartagger")


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    model: str
    examples: int = 1  # summed into one graph
    minibatch: int = 0  # sentences in a minibatch; language model only
    sizes: dict[str, int] = field(default_factory=dict)
    is_training: bool = True
    items: int = 64  # trees or sentences in one pass
    length: int = 0  # words of each sentence, which are then cut from running text; taggers only; 0: as they are

    @property
    def name(self) -> str:
        """A short name, the same in all tables: tree-128-sum64, lm-mb16, tagger-sum32-infer."""
        parts = [self.model, *(str(size) for size in self.sizes.values())]
        if self.minibatch:
            parts.append(f"mb{self.minibatch}")
        if self.length:
            parts.append(f"len{self.length}")
        if self.examples > 1:
            parts.append(f"sum{self.examples}")
        if not self.is_training:
            parts.append("infer")
        return "-".join(parts)

    @property
    def memory_mib(self) -> int:
        """What DyNet is given to start with: its default, or more, because it cannot batch and enlarge its memory."""
        return 2048 if self.examples > 100 or max(self.sizes.values(), default=0) > 512 else 512

    def steps(self, corpus: Corpus) -> list[list[Any]]:
        """What one pass goes through: a list of steps, each a list of examples."""
        if self.model == "lm":
            examples = spread(minibatches(corpus.by_length, self.minibatch), self.items // self.minibatch)
        elif self.model in TAGGERS:
            examples = (recut(corpus.sentences, self.length) if self.length else corpus.sentences)[: self.items]
        else:
            examples = corpus.trees[: self.items]
        return [examples[start : start + self.examples] for start in range(0, len(examples), self.examples)]


def minibatches(sentences: list[list[int]], size: int) -> list[list[list[int]]]:
    """Sentences in groups of equal size; a rest that fills no group is left out."""
    return [sentences[start : start + size] for start in range(0, len(sentences) - size + 1, size)]


def spread(things: list, count: int) -> list:
    """`count` of the things, evenly spread."""
    return [things[int((index + 0.5) * len(things) / count)] for index in range(count)]


def recut(sentences: list[Sentence], length: int) -> list[Sentence]:
    """The text of the sentences in pieces of equal length."""
    tokens = [token for s in sentences for token in zip(s.words, s.tags, s.characters, strict=True)]
    pieces = [tokens[start : start + length] for start in range(0, len(tokens) - length + 1, length)]
    return [Sentence(*map(list, zip(*piece, strict=True))) for piece in pieces]


def training_and_inference(*cases: Case) -> list[Case]:
    """The cases, then the same without training."""
    return [*cases, *(Case(c.model, c.examples, c.minibatch, c.sizes, False, c.items) for c in cases)]


TREE = {"hidden": 128}

CASES = [
    *training_and_inference(
        Case("lm", minibatch=1, items=16),
        Case("lm", minibatch=4, items=32),
        Case("lm", minibatch=16, items=64),
        Case("lm", minibatch=64, items=192),
        Case("lm", minibatch=1, examples=32, items=32),
        Case("tagger"),
        Case("tagger", examples=32, items=128),
        Case("chartagger", items=32),
        Case("chartagger", examples=32),
        Case("tree", sizes=TREE),
        Case("tree", examples=64, sizes=TREE, items=128),
    ),
    Case("tree", sizes={"hidden": 64}),
    Case("tree", examples=64, sizes={"hidden": 64}, items=128),
    Case("tree", sizes={"hidden": 256}),
    Case("tree", examples=64, sizes={"hidden": 256}, items=64),
    *training_and_inference(Case("bag"), Case("parser", items=32)),
]

# title of a plot: what varies, and the cases
SWEEPS: dict[str, list[tuple[int, Case]]] = {
    "Tree-LSTM, 64 trees summed, by hidden units": [
        (hidden, Case("tree", examples=64, sizes={"hidden": hidden}, items=64))
        for hidden in (32, 64, 128, 256, 512, 1024)
    ],
    "language model, minibatch 16, by hidden units": [
        (hidden, Case("lm", minibatch=16, sizes={"hidden": hidden}, items=32))
        for hidden in (32, 64, 128, 256, 512, 1024)
    ],
    "tagger, one sentence, by its words": [
        (length, Case("tagger", length=length, items=max(2, 1000 // length)))
        for length in (5, 10, 20, 50, 100, 200, 500)
    ],
    "Tree-LSTM 128, by trees summed": [
        (trees, Case("tree", examples=trees, sizes=TREE, items=max(trees, 50))) for trees in (1, 10, 100, 1000)
    ],
}


def case_named(name: str) -> Case:
    """The case of that name."""
    return next(case for case in CASES if case.name == name)
