"""Softmax layers: the probabilities of many classes, at once or in stages.

Of words, stages are cheaper: the probability of a word's class, then that of the word in its class (a tree of two
floors), or the probabilities of the turns on the way to the word in a deeper tree.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dynjit import graph, initializers
from dynjit.errors import ShapeError, located
from dynjit.expressions import Expression
from dynjit.models import ParameterCollection
from dynjit.ops import layout, leaf, loss, nary, select, softmax, unary
from dynjit.ops.binary import add
from dynjit.ops.linear import affine_transform, product
from dynjit.ops.loss import pickneglogsoftmax
from dynjit.parameters import Parameters
from dynjit.shape import as_integer, as_integers, as_number, dim_of, kind_of

__all__ = ["ClassFactoredSoftmaxBuilder", "HierarchicalSoftmaxBuilder", "SoftmaxBuilder", "StandardSoftmaxBuilder"]


class SoftmaxBuilder:
    """Base of all softmax layers over the classes 0 to n - 1 of an input x: (input_dim,) x batch.

    `update` says of each call whether the parameters get gradients.
    """

    collection_name = ""

    def __init__(self, input_dim: float, pc: ParameterCollection) -> None:
        if not self.collection_name:
            raise TypeError(located("SoftmaxBuilder: needs a builder of a kind, this is their base"))
        if not 1 <= as_number(self.whoami(), input_dim) < 1 << 40:
            raise ValueError(located(f"{self.whoami()}: needs an input_dim of 1 or more, got {input_dim}"))
        if not isinstance(pc, ParameterCollection):
            raise TypeError(located(f"{self.whoami()}: needs a ParameterCollection, got {type(pc).__name__}"))
        self.input_dim = int(input_dim)
        self.local_model = pc.add_subcollection(self.collection_name)
        self._parameters: list[tuple[Parameters, Parameters | None]] = []
        self._constants: dict[int, tuple[Any, Any]] = {}
        self._version = -1

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_constants": {}, "_version": -1}  # copies and pickles have nothing of a graph

    def whoami(self) -> str:
        """The class's name."""
        return type(self).__name__

    def __repr__(self) -> str:
        return f"{self.whoami()} {self.local_model.name()} ({self.input_dim} inputs)"

    def param_collection(self) -> ParameterCollection:
        """The builder's own sub-collection."""
        return self.local_model

    # ---- weights ----

    def _add_weights(self, size: int, bias: bool) -> int:
        """A new matrix of `size` rows with its bias; returns their number."""
        W = self.local_model.add_parameters((size, self.input_dim))
        self._parameters.append((W, self.local_model.add_parameters(size, init=0.0) if bias else None))
        return len(self._parameters) - 1

    def _scores(self, k: int, x: Expression, update: bool) -> Expression:
        """W x + b of the k-th matrix."""
        W, b = self._parameters[k] if update else self._constant(k)
        return product(W, x) if b is None else affine_transform([b, W, x])  # type: ignore[no-any-return]

    def _constant(self, k: int) -> tuple[Any, Any]:
        version = graph.here().version()
        if self._version != version:
            self._constants, self._version = {}, version
        pair = self._constants.get(k)
        if pair is None or not graph.here().has(pair[0].handle & 0xFFFFFFFF):  # dropped by `cg_revert`
            W, b = self._parameters[k]
            pair = self._constants[k] = W.expr(False), None if b is None else b.expr(False)
        return pair

    # ---- what a kind defines, or can do better ----

    def neg_log_softmax(self, x: Expression, c: int, update: bool = True) -> Expression:
        """-log P(c | x), in nats.  Raises IndexError if there is no class c."""
        raise NotImplementedError

    def full_log_distribution(self, x: Expression, update: bool = True) -> Expression:
        """log P(c | x) of all classes: (n,) x batch, in nats."""
        raise NotImplementedError

    def full_logits(self, x: Expression, update: bool = True) -> Expression:
        """Scores of all classes, whose softmax is their distribution: (n,) x batch."""
        raise NotImplementedError

    def sample(self, x: Expression) -> int:
        """A class, drawn with its probability P(c | x); x without mini-batch."""
        return draw(self.full_log_distribution(x, False))

    def neg_log_softmax_batch(self, x: Expression, c: Sequence[int], update: bool = True) -> Expression:
        """-log P(c_b | x) with a class c_b of its own for each mini-batch item, in nats.

        Raises ValueError unless there are as many classes as items, IndexError if there is no such class.
        """
        batch, chosen_classes = dim_of("neg_log_softmax_batch", x)[1], as_integers("neg_log_softmax_batch", c)
        if len(chosen_classes) != batch:
            raise ValueError(located(f"neg_log_softmax_batch: needs {batch} classes, got {len(chosen_classes)}"))
        items = [select.pick_batch_elem(x, b) for b in range(batch)]
        losses = [self.neg_log_softmax(item, chosen, update) for item, chosen in zip(items, chosen_classes)]
        return layout.concatenate_to_batch(losses)  # type: ignore[no-any-return]


def draw(log_probabilities: Expression) -> int:
    """An index, drawn with the probabilities of a vector of logarithms."""
    values = log_probabilities.npvalue()
    if values.ndim != 1:
        raise ShapeError("sample", "an input without mini-batch", values.shape)
    bounds = np.cumsum(np.exp(values - values.max()))
    drawn = np.searchsorted(bounds, initializers.generator.random() * bounds[-1], side="right")
    return min(int(drawn), values.size - 1)


class StandardSoftmaxBuilder(SoftmaxBuilder):
    """softmax(W x + b): W (num_classes, input_dim), and if `bias` b (num_classes,), which starts at 0.

    Raises ValueError for sizes below 1.
    """

    collection_name = "standard-softmax-builder"

    def __init__(self, input_dim: float, num_classes: float, pc: ParameterCollection, bias: bool = True) -> None:
        super().__init__(input_dim, pc)
        if not 1 <= as_number(self.whoami(), num_classes) < 1 << 40:
            raise ValueError(located(f"StandardSoftmaxBuilder: needs 1 class or more, got {num_classes}"))
        self._add_weights(int(num_classes), bool(bias))
        self.spec = self.input_dim, int(num_classes), bool(bias)

    @classmethod
    def from_spec(cls, spec: tuple[int, int, bool], pc: ParameterCollection) -> StandardSoftmaxBuilder:
        """A builder of the same sizes with parameters of its own."""
        return cls(spec[0], spec[1], pc, spec[2])

    def neg_log_softmax(self, x: Expression, c: int, update: bool = True) -> Expression:
        return pickneglogsoftmax(self._scores(0, x, update), c)  # type: ignore[no-any-return]

    def neg_log_softmax_batch(self, x: Expression, c: Sequence[int], update: bool = True) -> Expression:
        return loss.pickneglogsoftmax_batch(self._scores(0, x, update), as_integers("neg_log_softmax_batch", c))  # type: ignore[no-any-return]

    def full_log_distribution(self, x: Expression, update: bool = True) -> Expression:
        return softmax.log_softmax(self._scores(0, x, update))  # type: ignore[no-any-return]

    def full_logits(self, x: Expression, update: bool = True) -> Expression:
        return self._scores(0, x, update)


# ---- in stages -------------------------------------------------------------------------------------------------------


def read_lines(operator: str, file: str, dic: Mapping[str, int]) -> Iterator[tuple[list[str], int]]:
    """Path and number of the word of each line of a file of words in classes.

    Raises ValueError for a line that is none, a word that `dic` lacks or that stands there twice, a file without words,
    and a `dic` whose numbers are not 0, 1, ...
    """
    if not isinstance(dic, Mapping):
        raise TypeError(located(f"{operator}: needs a dic of words to numbers, got {kind_of(dic)}"))
    if sorted(as_integers(operator, list(dic.values()))) != list(range(len(dic))):
        raise ValueError(located(f"{operator}: needs a dic of words to the numbers 0 to {len(dic) - 1}, each once"))
    seen: set[str] = set()
    with open(os.fspath(file), encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            *path, word = line.split() or [""]
            if not word:
                continue
            fault = (
                "a class and a word" if not path else "a word of dic" if word not in dic
                else "each word once" if word in seen else ""
            )  # fmt: skip
            if fault:
                raise ValueError(located(f"{operator}: needs {fault} in line {number} of {file}, got {line.strip()!r}"))
            seen.add(word)
            yield path, dic[word]
    if not seen:
        raise ValueError(located(f"{operator}: needs 1 word or more, got an empty file {file}"))


def found(table: Mapping[int, Any], word: int, count: int) -> Any:
    """What a table has of a word; IndexError for a number that no word has, ValueError for a word without class."""
    word = as_integer("neg_log_softmax", word)
    if not 0 <= word < count:
        raise IndexError(located(f"neg_log_softmax: needs a word from 0 to {count - 1}, got {word}"))
    if word not in table:
        raise ValueError(located(f"neg_log_softmax: needs a word of the cluster file, got {word}"))
    return table[word]


def in_order(x: Expression, rows: Sequence[int]) -> Expression:
    """Entries of a vector by their numbers; one more than there are stands for -inf."""
    if max(rows) == x.dim()[0][0]:
        x = layout.concatenate([x, leaf.constant((1,), -np.inf)])
    return select.select_rows(x, rows)  # type: ignore[no-any-return]


class ClassFactoredSoftmaxBuilder(SoftmaxBuilder):
    """P(word | x) = P(class | x) P(word | class, x): with many small classes a word's two softmaxes cost little.

    cluster_file: lines "class word", each word once;  dic: the words' numbers, 0 to n - 1.  Classes are numbered in the
    order in which the file first names them, as are the words of a class.  A class of one word has no weights.
    A word of `dic` that the file lacks has no probability: -inf in full distributions, ValueError as a target.
    Raises ValueError for other files and numbers, FileNotFoundError for a missing file.  Source: Goodman 2001.
    """

    collection_name = "class-factored-softmax-builder"

    def __init__(
        self, input_dim: float, cluster_file: str, dic: Mapping[str, int], pc: ParameterCollection, bias: bool = True
    ) -> None:
        classes: dict[str, list[int]] = {}
        for path, word in read_lines(self.whoami(), cluster_file, dic):
            classes.setdefault(" ".join(path), []).append(word)
        super().__init__(input_dim, pc)
        self.spec = self.input_dim, cluster_file, dict(dic), bool(bias)
        self.words = list(classes.values())
        self.place = {word: (c, i) for c, words in enumerate(self.words) for i, word in enumerate(words)}
        self._add_weights(len(self.words), bias)
        self._weights_of = [self._add_weights(len(words), bias) if len(words) > 1 else -1 for words in self.words]
        self._classes = [c for c, words in enumerate(self.words) for _ in words]
        at = {word: i for i, word in enumerate(word for words in self.words for word in words)}
        self._order = [at.get(word, len(at)) for word in range(len(dic))]  # where each stands, class after class

    @classmethod
    def from_spec(cls, spec: tuple[Any, ...], pc: ParameterCollection) -> ClassFactoredSoftmaxBuilder:
        """A builder of the same words with parameters of its own."""
        return cls(*spec[:3], pc, *spec[3:])  # type: ignore[call-arg]

    def _class(self, classid: int) -> int:
        classid = as_integer(self.whoami(), classid)
        if not 0 <= classid < len(self.words):
            raise IndexError(located(
                f"{self.whoami()}: needs a class from 0 to {len(self.words) - 1}, got {classid}"
            ))  # fmt: skip
        return classid

    def class_logits(self, x: Expression, update: bool = True) -> Expression:
        """Scores of the classes."""
        return self._scores(0, x, update)

    def class_log_distribution(self, x: Expression, update: bool = True) -> Expression:
        """log P(class | x) of all classes, in nats."""
        return softmax.log_softmax(self.class_logits(x, update))  # type: ignore[no-any-return]

    def subclass_logits(self, x: Expression, classid: int, update: bool = True) -> Expression:
        """Scores of the words of a class; of a single word 0.  Raises IndexError if there is no such class."""
        k = self._weights_of[self._class(classid)]
        return leaf.zeros((1,)) if k < 0 else self._scores(k, x, update)  # type: ignore[no-any-return]

    def subclass_log_distribution(self, x: Expression, classid: int, update: bool = True) -> Expression:
        """log P(word | class, x) of the words of a class, in nats.  Raises IndexError if there is no such class."""
        scores = self.subclass_logits(x, classid, update)
        return softmax.log_softmax(scores) if self._weights_of[self._class(classid)] >= 0 else scores  # type: ignore[no-any-return]

    def neg_log_softmax(self, x: Expression, c: int, update: bool = True) -> Expression:
        classid, index = found(self.place, c, len(self._order))
        of_class = pickneglogsoftmax(self.class_logits(x, update), classid)
        if self._weights_of[classid] < 0:
            return of_class  # type: ignore[no-any-return]
        of_word = pickneglogsoftmax(self.subclass_logits(x, classid, update), index)
        return add(of_class, of_word)  # type: ignore[no-any-return]

    def _joined(self, of_classes: Expression, x: Expression, update: bool) -> Expression:
        """Entries of the classes plus log P(word | class, x), in the order of the words' numbers."""
        of_words = [self.subclass_log_distribution(x, classid, update) for classid in range(len(self.words))]
        total = add(select.select_rows(of_classes, self._classes), layout.concatenate(of_words))
        return in_order(total, self._order)

    def full_log_distribution(self, x: Expression, update: bool = True) -> Expression:
        return self._joined(self.class_log_distribution(x, update), x, update)

    def full_logits(self, x: Expression, update: bool = True) -> Expression:
        return self._joined(self.class_logits(x, update), x, update)

    def sample(self, x: Expression) -> int:
        classid = draw(self.class_log_distribution(x, False))
        return self.words[classid][draw(self.subclass_log_distribution(x, classid, False))]


@dataclass
class Fork:
    """A node of the tree: its branches are words, or ~k for the k-th fork, in the order in which the file names them.

    Forks know each other by number, so that copies and pickles of deep trees need no deep stack.
    """

    branches: list[int] = field(default_factory=list)
    further: dict[str, int] = field(default_factory=dict)  # numbers of the forks below, by symbol
    weights: int = -1  # number of its weight matrix; -1 if it has one branch


def fork_at(forks: list[Fork], path: Sequence[str]) -> Fork:
    """The fork at the end of a path from the first one; the missing ones are made."""
    fork = forks[0]
    for symbol in path:
        if symbol not in fork.further:
            fork.further[symbol] = len(forks)
            fork.branches.append(~len(forks))
            forks.append(Fork())
        fork = forks[fork.further[symbol]]
    return fork


class HierarchicalSoftmaxBuilder(SoftmaxBuilder):
    """P(word | x) = product over the forks on the way to the word in a tree of P(branch taken | x).

    cluster_file: a line per word, the symbols of its path from the root and then the word, with white space between,
    such as "0 1 1 apple".  Paths that start with the same symbols share these forks; words with the same path hang on
    the same fork.  dic: the words' numbers, 0 to n - 1; one that the file lacks has no probability.
    A fork of two branches has W (1, input_dim) and b (1,), the first branch the probability logistic(W x + b); one of
    k > 2 branches W (k, input_dim) and b (k,), and a softmax; one of a single branch nothing.
    Raises ValueError for other files and numbers, FileNotFoundError for a missing file.  Source: Morin and Bengio 2005.
    """

    collection_name = "hierarchical-softmax-builder"

    def __init__(self, input_dim: float, cluster_file: str, dic: Mapping[str, int], pc: ParameterCollection) -> None:
        self.forks = [Fork()]
        for path, word in read_lines(self.whoami(), cluster_file, dic):
            fork_at(self.forks, path).branches.append(word)
        super().__init__(input_dim, pc)
        self.spec = self.input_dim, cluster_file, dict(dic)
        self.turns: dict[int, list[tuple[int, int]]] = {}  # of each word: numbers of weights and branch
        self._sizes: list[int] = []  # branches of each fork that has weights
        self._words = len(dic)
        self._grow()
        # full distribution: where the turns stand among the branches of all forks; behind these a 0, and then -inf
        *starts, zero = np.cumsum([0, *self._sizes]).tolist()
        rows = [[starts[k] + branch for k, branch in self.turns.get(word, ())] for word in range(len(dic))]
        for word in set(range(len(dic))) - set(self.turns):
            rows[word] = [zero + 1]
        depth = max(map(len, rows))
        self._columns = [[turns[d] if d < len(turns) else zero for turns in rows] for d in range(depth)]

    @classmethod
    def from_spec(cls, spec: tuple[Any, ...], pc: ParameterCollection) -> HierarchicalSoftmaxBuilder:
        """A builder of the same tree with parameters of its own."""
        return cls(*spec, pc)  # type: ignore[call-arg]

    def _grow(self) -> None:
        """Gives all forks their weights, and finds the turns to all words; a fork comes before its branches."""
        open_forks: list[tuple[Fork, list[tuple[int, int]]]] = [(self.forks[0], [])]
        while open_forks:
            fork, turns = open_forks.pop()
            size = len(fork.branches)
            if size > 1:
                fork.weights = self._add_weights(1 if size == 2 else size, True)
                self._sizes.append(size)
            further = []
            for i, branch in enumerate(fork.branches):
                path = [*turns, (fork.weights, i)] if size > 1 else turns
                if branch < 0:
                    further.append((self.forks[~branch], path))
                else:
                    self.turns[branch] = path
            open_forks += reversed(further)

    def _branches(self, k: int, x: Expression, update: bool) -> Expression:
        """log P(branch | x) of the branches of a fork."""
        scores = self._scores(k, x, update)
        if self._sizes[k] == 2:
            return unary.log_sigmoid(layout.concatenate([scores, unary.negate(scores)]))  # type: ignore[no-any-return]
        return softmax.log_softmax(scores)  # type: ignore[no-any-return]

    def neg_log_softmax(self, x: Expression, c: int, update: bool = True) -> Expression:
        terms = []
        for k, branch in found(self.turns, c, self._words):
            scores = self._scores(k, x, update)
            if self._sizes[k] == 2:
                terms.append(unary.negate(unary.log_sigmoid(unary.negate(scores) if branch else scores)))
            else:
                terms.append(pickneglogsoftmax(scores, branch))
        return nary.esum(terms) if terms else leaf.zeros((1,))  # type: ignore[no-any-return]

    def full_log_distribution(self, x: Expression, update: bool = True) -> Expression:
        of_forks = [self._branches(k, x, update) for k in range(len(self._sizes))]
        if not self._columns:  # a single word
            return leaf.zeros((1,))  # type: ignore[no-any-return]
        branches = layout.concatenate([*of_forks, leaf.zeros((1,))])
        return nary.esum([in_order(branches, column) for column in self._columns])  # type: ignore[no-any-return]

    def full_logits(self, x: Expression, update: bool = True) -> Expression:
        return self.full_log_distribution(x, update)

    def sample(self, x: Expression) -> int:
        branch = ~0
        while branch < 0:
            fork = self.forks[~branch]
            branch = fork.branches[0 if fork.weights < 0 else draw(self._branches(fork.weights, x, False))]
        return branch
