"""The workloads of the DyNet paper in DyNet's API, written once: `dy` is the module `dynet` or `dynjit`.

Source: Neubig et al. 2017, "DyNet: The Dynamic Neural Network Toolkit", section 7, and its benchmark programs
(rnnlm-batch, bilstm-tagger, bilstm-tagger-withchar, treenn); and a transition parser that looks at a value each step.
"""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np

from perf.data import LABELS, Corpus, Sentence, Tree

Expression = Any


class Workload:
    """A model with `loss(example)` and `scores(example)`: both build a graph, the second one for prediction only."""

    def __init__(self, dy: Any, corpus: Corpus, builder: str, **sizes: int) -> None:
        self.dy = dy
        self.model = dy.ParameterCollection()
        self.builder = builder
        self.value_seconds = 0.0  # spent in values that were asked for while the graph was being built
        self.make(corpus, **sizes)

    def lstm(self, inputs: int, hidden: int) -> Any:
        """LSTM of one layer."""
        return getattr(self.dy, self.builder)(1, inputs, hidden, self.model)

    def make(self, corpus: Corpus, *args: Any, **sizes: Any) -> None:
        """Adds the parameters."""
        raise NotImplementedError

    def loss(self, example: Any) -> Expression:
        """Loss of one example, a scalar."""
        raise NotImplementedError

    def scores(self, example: Any) -> list[Expression]:
        """What a prediction for one example is made from."""
        raise NotImplementedError

    def total_loss(self, examples: list) -> Expression:
        """Sum of the examples' losses, in one graph."""
        losses = [self.loss(example) for example in examples]
        return losses[0] if len(losses) == 1 else self.dy.esum(losses)

    def all_scores(self, examples: list) -> Expression:
        """All scores of the examples as the columns of one matrix."""
        return self.dy.concatenate_cols([column for example in examples for column in self.scores(example)])


class LanguageModel(Workload):
    """LSTM language model; an example is a minibatch, a list of sentences of falling length."""

    def make(self, corpus: Corpus, embedding: int = 128, hidden: int = 256) -> None:
        self.words = self.model.add_lookup_parameters((corpus.words, embedding))
        self.rnn = self.lstm(embedding, hidden)
        self.weights = self.model.add_parameters((corpus.words, hidden))
        self.bias = self.model.add_parameters(corpus.words)

    def loss(self, example: list[list[int]]) -> Expression:
        return self.sentence_loss(example[0]) if len(example) == 1 else self.minibatch_loss(example)

    def sentence_loss(self, sentence: list[int]) -> Expression:
        """Negative log likelihood of one sentence; word 0 starts it."""
        dy = self.dy
        outputs = self.rnn.initial_state().transduce([self.words[word] for word in [0, *sentence[:-1]]])
        return dy.esum(
            [
                dy.pickneglogsoftmax(dy.affine_transform([self.bias, self.weights, output]), word)
                for output, word in zip(outputs, sentence)
            ]
        )

    def minibatch_loss(self, sentences: list[list[int]]) -> Expression:
        """Negative log likelihood of a minibatch; what lies behind the end of a sentence is masked."""
        dy = self.dy
        state = self.rnn.initial_state()
        words = [0] * len(sentences)
        losses = []
        for position in range(len(sentences[0])):
            state = state.add_input(dy.lookup_batch(self.words, words))
            words = [sentence[position] if position < len(sentence) else 0 for sentence in sentences]
            score = dy.affine_transform([self.bias, self.weights, state.output()])
            loss = dy.pickneglogsoftmax_batch(score, words)
            if position >= len(sentences[-1]):
                mask = dy.inputVector([float(position < len(sentence)) for sentence in sentences])
                loss = dy.cmult(loss, dy.reshape(mask, (1,), len(sentences)))
            losses.append(loss)
        return dy.sum_batches(dy.esum(losses))

    def all_scores(self, examples: list) -> Expression:
        """A language model predicts by giving likelihoods: its scores are the loss."""
        return self.total_loss(examples)


class Tagger(Workload):
    """Bidirectional LSTM, a layer with tanh, an output layer; an example is a sentence."""

    def make(self, corpus: Corpus, embedding: int = 128, hidden: int = 50, mlp: int = 32) -> None:
        self.words = self.model.add_lookup_parameters((corpus.words, embedding))
        self.forward_rnn = self.lstm(embedding, hidden)
        self.backward_rnn = self.lstm(embedding, hidden)
        self.hidden_weights = self.model.add_parameters((mlp, 2 * hidden))
        self.output_weights = self.model.add_parameters((corpus.tags, mlp))

    def represent(self, sentence: Sentence) -> list[Expression]:
        """A vector for each word."""
        return [self.words[word] for word in sentence.words]

    def scores(self, example: Sentence) -> list[Expression]:
        dy = self.dy
        vectors = self.represent(example)
        forward = self.forward_rnn.initial_state().transduce(vectors)
        backward = self.backward_rnn.initial_state().transduce(vectors[::-1])
        return [
            self.output_weights * dy.tanh(self.hidden_weights * dy.concatenate([left, right]))
            for left, right in zip(forward, backward[::-1])
        ]

    def loss(self, example: Sentence) -> Expression:
        dy = self.dy
        return dy.esum([dy.pickneglogsoftmax(score, tag) for score, tag in zip(self.scores(example), example.tags)])


class CharacterTagger(Tagger):
    """A tagger that reads rare words with a bidirectional LSTM over their characters."""

    def make(self, corpus: Corpus, embedding: int = 128, hidden: int = 50, mlp: int = 32, characters: int = 20) -> None:
        super().make(corpus, embedding, hidden, mlp)
        self.characters = self.model.add_lookup_parameters((corpus.characters, characters))
        self.forward_speller = self.lstm(characters, embedding // 2)
        self.backward_speller = self.lstm(characters, embedding // 2)

    def represent(self, sentence: Sentence) -> list[Expression]:
        return [
            self.words[word] if letters is None else self.spell(letters)
            for word, letters in zip(sentence.words, sentence.characters)
        ]

    def spell(self, letters: list[int]) -> Expression:
        """Vector of a word from its letters."""
        vectors = [self.characters[letter] for letter in letters]
        forward = self.forward_speller.initial_state().transduce(vectors)
        backward = self.backward_speller.initial_state().transduce(vectors[::-1])
        return self.dy.concatenate([forward[-1], backward[-1]])


class TreeLSTM(Workload):
    """Binary Tree-LSTM, operator by operator, with a loss at each node; an example is a tree.

    Source: Tai, Socher, Manning 2015, "Improved Semantic Representations From Tree-Structured LSTMs", equations 9-14.
    """

    def make(self, corpus: Corpus, hidden: int = 128) -> None:
        add = self.model.add_parameters
        self.words = self.model.add_lookup_parameters((corpus.tree_words, hidden))
        self.Wi, self.Wo, self.Wu = (add((hidden, hidden)) for _ in "iou")
        self.Ui, self.Uo, self.Uu, self.Uf1, self.Uf2 = (add((hidden, 2 * hidden)) for _ in "iouff")
        self.bi, self.bo, self.bu, self.bf = (add(hidden) for _ in "iouf")
        self.output_weights = add((LABELS, hidden))

    def leaf(self, word: int) -> tuple[Expression, Expression]:
        """Output and memory of a word."""
        dy = self.dy
        e = self.words[word]
        i = dy.logistic(self.bi + self.Wi * e)
        o = dy.logistic(self.bo + self.Wo * e)
        u = dy.tanh(self.bu + self.Wu * e)
        c = dy.cmult(i, u)
        return dy.cmult(o, dy.tanh(c)), c

    def join(self, h1: Expression, c1: Expression, h2: Expression, c2: Expression) -> tuple[Expression, Expression]:
        """Output and memory of a node from those of its children."""
        dy = self.dy
        e = dy.concatenate([h1, h2])
        i = dy.logistic(self.bi + self.Ui * e)
        o = dy.logistic(self.bo + self.Uo * e)
        f1 = dy.logistic(self.bf + self.Uf1 * e)
        f2 = dy.logistic(self.bf + self.Uf2 * e)
        u = dy.tanh(self.bu + self.Uu * e)
        c = dy.cmult(i, u) + dy.cmult(f1, c1) + dy.cmult(f2, c2)
        return dy.cmult(o, dy.tanh(c)), c

    def visit(self, tree: Tree, scored: list[tuple[Expression, int]]) -> tuple[Expression, Expression]:
        """Output and memory of a tree; appends the scores and the label of each of its nodes."""
        if tree.children:
            left, right = tree.children
            h, c = self.join(*self.visit(left, scored), *self.visit(right, scored))
        else:
            h, c = self.leaf(tree.word)
        scored.append((self.output_weights * h, tree.label))
        return h, c

    def scored_nodes(self, tree: Tree) -> list[tuple[Expression, int]]:
        """Scores and label of each node of the tree."""
        scored: list[tuple[Expression, int]] = []
        self.visit(tree, scored)
        return scored

    def scores(self, example: Tree) -> list[Expression]:
        return [score for score, _ in self.scored_nodes(example)]

    def loss(self, example: Tree) -> Expression:
        dy = self.dy
        return dy.esum([dy.pickneglogsoftmax(score, label) for score, label in self.scored_nodes(example)])


SHIFT = 0


def transitions(tree: Tree) -> list[int]:
    """Actions that build the tree: 0 shifts a word, 1 + label joins the two topmost subtrees under that label."""
    if not tree.children:
        return [SHIFT]
    left, right = tree.children
    return [*transitions(left), *transitions(right), 1 + tree.label]


def tree_words(tree: Tree) -> list[int]:
    """Words of the leaves, from left to right."""
    if not tree.children:
        return [tree.word]
    return [word for child in tree.children for word in tree_words(child)]


class BagOfWords(Workload):
    """The mean of a sentence's word vectors, a layer with tanh, an output layer: a graph of a few nodes.

    An example is a tree, of which the words and the label count.
    """

    def make(self, corpus: Corpus, hidden: int = 64) -> None:
        add = self.model.add_parameters
        self.words = self.model.add_lookup_parameters((corpus.tree_words, hidden))
        self.hidden_weights, self.hidden_bias = add((hidden, hidden)), add(hidden)
        self.output_weights, self.output_bias = add((LABELS, hidden)), add(LABELS)

    def scores(self, example: Tree) -> list[Expression]:
        dy = self.dy
        mean = dy.average([self.words[word] for word in tree_words(example)])
        hidden = dy.tanh(dy.affine_transform([self.hidden_bias, self.hidden_weights, mean]))
        return [dy.affine_transform([self.output_bias, self.output_weights, hidden])]

    def loss(self, example: Tree) -> Expression:
        return self.dy.pickneglogsoftmax(*self.scores(example), example.label)


class Parser(Workload):
    """Shift-reduce parser that looks at its probabilities before each action; an example is a tree.

    Its state is an LSTM over the actions so far, the two topmost subtrees, and the next word.  It follows the tree's
    own actions, so that all toolkits build the same graph, and counts how often the likeliest action was the right one.
    """

    def make(self, corpus: Corpus, hidden: int = 64) -> None:
        add = self.model.add_parameters
        self.words = self.model.add_lookup_parameters((corpus.tree_words, hidden))
        self.actions = self.model.add_lookup_parameters((LABELS + 1, 20))
        self.history = self.lstm(20, hidden)
        self.empty = add(hidden)
        self.join_weights, self.join_bias = add((hidden, 2 * hidden)), add(hidden)
        self.hidden_weights, self.hidden_bias = add((hidden, 4 * hidden)), add(hidden)
        self.output_weights, self.output_bias = add((LABELS + 1, hidden)), add(LABELS + 1)
        self.right = 0

    def walk(self, tree: Tree, losses: list[Expression] | None) -> None:
        """Takes the actions of the tree one by one and asks for the probabilities at each; appends the losses."""
        dy = self.dy
        buffer = [self.words[word] for word in reversed(tree_words(tree))]
        stack = [self.empty, self.empty]
        state = self.history.initial_state().add_input(self.actions[SHIFT])
        for action in transitions(tree):
            features = dy.concatenate([stack[-1], stack[-2], buffer[-1] if buffer else self.empty, state.output()])
            hidden = dy.tanh(dy.affine_transform([self.hidden_bias, self.hidden_weights, features]))
            scores = dy.affine_transform([self.output_bias, self.output_weights, hidden])
            self.right += int(np.argmax(self.ask(dy.softmax(scores)))) == action
            if losses is not None:
                losses.append(dy.pickneglogsoftmax(scores, action))
            if action == SHIFT:
                stack.append(buffer.pop())
            else:
                right, left = stack.pop(), stack.pop()
                both = dy.concatenate([left, right])
                stack.append(dy.tanh(dy.affine_transform([self.join_bias, self.join_weights, both])))
            state = state.add_input(self.actions[action])

    def ask(self, expression: Expression) -> np.ndarray:
        """Value of the expression; the time that it takes counts as forward, not as build."""
        start = perf_counter()
        value = expression.npvalue()
        self.value_seconds += perf_counter() - start
        return value

    def loss(self, example: Tree) -> Expression:
        losses: list[Expression] = []
        self.walk(example, losses)
        return self.dy.esum(losses)

    def all_scores(self, examples: list) -> None:
        """Parses; the values have been looked at on the way, so that nothing is left to compute."""
        for example in examples:
            self.walk(example, None)


MODELS: dict[str, type[Workload]] = {
    "lm": LanguageModel,
    "tagger": Tagger,
    "chartagger": CharacterTagger,
    "tree": TreeLSTM,
    "bag": BagOfWords,
    "parser": Parser,
}
