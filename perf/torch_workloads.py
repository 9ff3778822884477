"""The same workloads in PyTorch, in two styles.

`eager` goes word by word and node by node as the DyNet programs do; `fused` is what PyTorch is best at: its own
`nn.LSTM` over whole (packed) sequences, all gates in one product, one output layer over everything at the end.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softmax
from torch.nn.utils.rnn import pack_sequence, unpack_sequence

from perf.data import LABELS, Corpus, Sentence, Tree
from perf.workloads import SHIFT, transitions, tree_words


def embedding(count: int, size: int) -> nn.Embedding:
    """Table of vectors whose gradient is sparse."""
    return nn.Embedding(count, size, sparse=True)


def numbers(values: list[int]) -> Tensor:
    """Integer tensor."""
    return torch.tensor(values)


class TorchWorkload(nn.Module):
    """A model with `total_loss(examples)` and `all_scores(examples)`."""

    def __init__(self, corpus: Corpus, is_fused: bool, **sizes: int) -> None:
        super().__init__()
        self.is_fused = is_fused
        self.make(corpus, **sizes)

    def make(self, corpus: Corpus, *args: Any, **sizes: Any) -> None:
        """Adds the parameters."""
        raise NotImplementedError

    def all_scores(self, examples: list) -> Tensor:
        """Scores of all words or nodes of the examples, one a row."""
        raise NotImplementedError

    def targets(self, examples: list) -> list[int]:
        """The right class of each row of scores."""
        raise NotImplementedError

    def total_loss(self, examples: list) -> Tensor:
        """Sum of the losses of the examples."""
        return cross_entropy(self.all_scores(examples), numbers(self.targets(examples)), reduction="sum")


def run_cell(cell: nn.LSTMCell, inputs: Tensor) -> Tensor:
    """Outputs of an LSTM that goes step by step along the first dimension."""
    state = None
    outputs = []
    for vector in inputs:
        state = cell(vector, state)
        outputs.append(state[0])
    return torch.stack(outputs)


class LanguageModel(TorchWorkload):
    """LSTM language model; an example is a minibatch."""

    def make(self, corpus: Corpus, width: int = 128, hidden: int = 256) -> None:
        self.words = embedding(corpus.words, width)
        self.rnn = nn.LSTM(width, hidden) if self.is_fused else nn.LSTMCell(width, hidden)
        self.output = nn.Linear(hidden, corpus.words)

    def minibatch_loss(self, sentences: list[list[int]]) -> Tensor:
        """Negative log likelihood of a minibatch; what lies behind the end of a sentence is masked."""
        length = len(sentences[0])
        padded = torch.tensor([sentence + [-100] * (length - len(sentence)) for sentence in sentences]).T
        start = torch.zeros(1, len(sentences), dtype=torch.int64)
        vectors = self.words(torch.cat([start, padded[:-1].clamp(min=0)]))
        outputs = self.rnn(vectors)[0] if self.is_fused else run_cell(self.rnn, vectors)
        scores = self.output(outputs.flatten(0, 1))
        return cross_entropy(scores, padded.flatten(), ignore_index=-100, reduction="sum")

    def packed_loss(self, sentences: list[list[int]]) -> Tensor:
        """The same for sentences of any length, without padding."""
        inputs = pack_sequence([torch.tensor([0, *sentence[:-1]]) for sentence in sentences], enforce_sorted=False)
        targets = pack_sequence([torch.tensor(sentence) for sentence in sentences], enforce_sorted=False)
        outputs, _ = self.rnn(inputs._replace(data=self.words(inputs.data)))
        return cross_entropy(self.output(outputs.data), targets.data, reduction="sum")

    def total_loss(self, examples: list) -> Tensor:
        if self.is_fused and len(examples) > 1:
            return self.packed_loss([sentence for example in examples for sentence in example])
        return torch.stack([self.minibatch_loss(example) for example in examples]).sum()

    def all_scores(self, examples: list) -> Tensor:
        return self.total_loss(examples)


class Tagger(TorchWorkload):
    """Bidirectional LSTM, a layer with tanh, an output layer; an example is a sentence."""

    def make(self, corpus: Corpus, width: int = 128, hidden: int = 50, mlp: int = 32) -> None:
        self.words = embedding(corpus.words, width)
        if self.is_fused:
            self.rnn = nn.LSTM(width, hidden, bidirectional=True)
        else:
            self.forward_rnn, self.backward_rnn = nn.LSTMCell(width, hidden), nn.LSTMCell(width, hidden)
        self.hidden = nn.Linear(2 * hidden, mlp, bias=False)
        self.output = nn.Linear(mlp, corpus.tags, bias=False)

    def represent(self, examples: list[Sentence]) -> Tensor:
        """A vector for each word of all sentences, one a row."""
        return self.words(numbers([word for sentence in examples for word in sentence.words]))

    def all_scores(self, examples: list[Sentence]) -> Tensor:
        vectors = self.represent(examples).split([len(sentence.words) for sentence in examples])
        if not self.is_fused:
            outputs = [self.both_ways(sentence) for sentence in vectors]
        elif len(vectors) == 1:
            outputs = [self.rnn(vectors[0])[0]]
        else:
            outputs = unpack_sequence(self.rnn(pack_sequence(vectors, enforce_sorted=False))[0])
        return self.output(torch.tanh(self.hidden(torch.cat(outputs))))

    def both_ways(self, vectors: Tensor) -> Tensor:
        """Outputs of both LSTMs, side by side."""
        backward = run_cell(self.backward_rnn, vectors.flip(0)).flip(0)
        return torch.cat([run_cell(self.forward_rnn, vectors), backward], 1)

    def targets(self, examples: list[Sentence]) -> list[int]:
        return [tag for sentence in examples for tag in sentence.tags]


class CharacterTagger(Tagger):
    """A tagger that reads rare words with a bidirectional LSTM over their characters."""

    def make(self, corpus: Corpus, width: int = 128, hidden: int = 50, mlp: int = 32, characters: int = 20) -> None:
        super().make(corpus, width, hidden, mlp)
        self.characters = embedding(corpus.characters, characters)
        if self.is_fused:
            self.speller = nn.LSTM(characters, width // 2, bidirectional=True)
        else:
            self.forward_speller = nn.LSTMCell(characters, width // 2)
            self.backward_speller = nn.LSTMCell(characters, width // 2)

    def represent(self, examples: list[Sentence]) -> Tensor:
        vectors = super().represent(examples)
        spelled = [letters for sentence in examples for letters in sentence.characters]
        rare = {index: letters for index, letters in enumerate(spelled) if letters is not None}
        if not rare:
            return vectors
        spell = self.spell_together if self.is_fused else self.spell_each
        return vectors.index_put((numbers(list(rare)),), spell(list(rare.values())))

    def spell_together(self, words: list[list[int]]) -> Tensor:
        """Vectors of the words from their letters, all at once."""
        vectors = self.characters(numbers([letter for word in words for letter in word]))
        packed = pack_sequence(vectors.split([len(word) for word in words]), enforce_sorted=False)
        _, (last, _) = self.speller(packed)
        return torch.cat([last[0], last[1]], 1)

    def spell_each(self, words: list[list[int]]) -> Tensor:
        """Vectors of the words from their letters, one after the other."""
        rows = []
        for word in words:
            vectors = self.characters(numbers(word))
            backward = run_cell(self.backward_speller, vectors.flip(0))[-1]
            rows.append(torch.cat([run_cell(self.forward_speller, vectors)[-1], backward]))
        return torch.stack(rows)


class TreeLSTM(TorchWorkload):
    """Binary Tree-LSTM with a loss at each node; an example is a tree."""

    def make(self, corpus: Corpus, hidden: int = 128) -> None:
        self.words = embedding(corpus.tree_words, hidden)
        if self.is_fused:
            self.leaf_gates, self.join_gates = nn.Linear(hidden, 3 * hidden), nn.Linear(2 * hidden, 5 * hidden)
        else:
            self.Wi, self.Wo, self.Wu = (nn.Linear(hidden, hidden) for _ in "iou")
            self.Ui, self.Uo, self.Uu, self.Uf1, self.Uf2 = (nn.Linear(2 * hidden, hidden) for _ in "iouff")
        self.output = nn.Linear(hidden, LABELS, bias=False)

    def leaf(self, e: Tensor) -> tuple[Tensor, Tensor]:
        """Output and memory of a word vector."""
        i, o, u = self.leaf_gates(e).chunk(3) if self.is_fused else (self.Wi(e), self.Wo(e), self.Wu(e))
        c = torch.sigmoid(i) * torch.tanh(u)
        return torch.sigmoid(o) * torch.tanh(c), c

    def join(self, h1: Tensor, c1: Tensor, h2: Tensor, c2: Tensor) -> tuple[Tensor, Tensor]:
        """Output and memory of a node from those of its children."""
        e = torch.cat([h1, h2])
        if self.is_fused:
            i, o, f1, f2, u = self.join_gates(e).chunk(5)
        else:
            i, o, f1, f2, u = self.Ui(e), self.Uo(e), self.Uf1(e), self.Uf2(e), self.Uu(e)
        c = torch.sigmoid(i) * torch.tanh(u) + torch.sigmoid(f1) * c1 + torch.sigmoid(f2) * c2
        return torch.sigmoid(o) * torch.tanh(c), c

    def visit(self, tree: Tree, vectors: Any, outputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Output and memory of a tree; takes the word vectors one by one, appends the outputs of all nodes."""
        if tree.children:
            left, right = tree.children
            h, c = self.join(*self.visit(left, vectors, outputs), *self.visit(right, vectors, outputs))
        else:
            h, c = self.leaf(next(vectors))
        outputs.append(h)
        return h, c

    def all_scores(self, examples: list[Tree]) -> Tensor:
        vectors = iter(self.words(numbers([word for tree in examples for word in tree_words(tree)])).unbind())
        outputs: list[Tensor] = []
        for tree in examples:
            self.visit(tree, vectors, outputs)
        if self.is_fused:
            return self.output(torch.stack(outputs))
        return torch.stack([self.output(h) for h in outputs])

    def targets(self, examples: list[Tree]) -> list[int]:
        return [label for tree in examples for label in node_labels(tree)]


def node_labels(tree: Tree) -> list[int]:
    """Labels of the nodes, children before their parent."""
    return [label for child in tree.children for label in node_labels(child)] + [tree.label]


class BagOfWords(TorchWorkload):
    """The mean of a sentence's word vectors, a layer with tanh, an output layer; an example is a tree."""

    def make(self, corpus: Corpus, hidden: int = 64) -> None:
        if self.is_fused:
            self.mean = nn.EmbeddingBag(corpus.tree_words, hidden, sparse=True)
        else:
            self.words = embedding(corpus.tree_words, hidden)
        self.hidden = nn.Linear(hidden, hidden)
        self.output = nn.Linear(hidden, LABELS)

    def all_scores(self, examples: list[Tree]) -> Tensor:
        bags = [tree_words(tree) for tree in examples]
        if self.is_fused:
            starts = [sum(map(len, bags[:i])) for i in range(len(bags))]
            means = self.mean(numbers([word for bag in bags for word in bag]), numbers(starts))
        else:
            means = torch.stack([self.words(numbers(bag)).mean(0) for bag in bags])
        return self.output(torch.tanh(self.hidden(means)))

    def targets(self, examples: list[Tree]) -> list[int]:
        return [tree.label for tree in examples]


class Parser(TorchWorkload):
    """Shift-reduce parser that looks at its probabilities before each action; an example is a tree."""

    def make(self, corpus: Corpus, hidden: int = 64) -> None:
        self.words = embedding(corpus.tree_words, hidden)
        self.actions = embedding(LABELS + 1, 20)
        self.history = nn.LSTMCell(20, hidden)
        self.empty = nn.Parameter(torch.zeros(hidden))
        self.join = nn.Linear(2 * hidden, hidden)
        self.hidden = nn.Linear(4 * hidden, hidden)
        self.output = nn.Linear(hidden, LABELS + 1)
        self.right = 0

    def walk(self, tree: Tree) -> Tensor:
        """Scores of all actions of the tree; asks for the probabilities at each."""
        buffer = list(self.words(numbers(tree_words(tree))).unbind())[::-1]
        actions = transitions(tree)
        history = iter(self.actions(numbers([SHIFT, *actions])).unbind())
        stack = [self.empty, self.empty]
        state = self.history(next(history))
        scored = []
        for action in actions:
            features = torch.cat([stack[-1], stack[-2], buffer[-1] if buffer else self.empty, state[0]])
            scores = self.output(torch.tanh(self.hidden(features)))
            self.right += int(softmax(scores.detach(), 0).argmax()) == action
            scored.append(scores)
            if action == SHIFT:
                stack.append(buffer.pop())
            else:
                right, left = stack.pop(), stack.pop()
                stack.append(torch.tanh(self.join(torch.cat([left, right]))))
            state = self.history(next(history), state)
        return torch.stack(scored)

    def all_scores(self, examples: list[Tree]) -> Tensor:
        return torch.cat([self.walk(tree) for tree in examples])

    def targets(self, examples: list[Tree]) -> list[int]:
        return [action for tree in examples for action in transitions(tree)]


MODELS: dict[str, type[TorchWorkload]] = {
    "lm": LanguageModel,
    "tagger": Tagger,
    "chartagger": CharacterTagger,
    "tree": TreeLSTM,
    "bag": BagOfWords,
    "parser": Parser,
}
