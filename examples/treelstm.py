"""Classify every node of a binary tree with a Tree-LSTM (Tai, Socher and Manning 2015, section 3.2).

    python examples/treelstm.py                     # syntax trees of Python's own library: what is this a piece of?
    python examples/treelstm.py --data trees/       # files of bracketed trees: (3 (2 It) (4 (2 's) (4 lovely)))
    python examples/treelstm.py --data train.txt dev.txt
    python examples/treelstm.py --save model; python examples/treelstm.py --load model --epochs 0

The network has the shape of the tree, so each example is a graph of its own.  The code is the recursion that one would
write down on paper; that nodes of many trees are computed together is the toolkit's business.
"""

import argparse
import ast
import importlib
import inspect
import json
import random
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

if "--dynet" in sys.argv:
    import dynet as dy
else:
    import dynjit as dy

UNKNOWN = "<unknown>"
SOURCES = ["argparse", "ast", "configparser", "dataclasses", "difflib", "inspect", "pickle", "subprocess", "typing"]
MAX_DEPTH = 300  # Python's own stack is the limit


# ---- data: a tree is a leaf with a word, or has two children ---------------------------


class Tree(NamedTuple):
    label: str
    word: str = ""
    left: "Tree | None" = None
    right: "Tree | None" = None

    def nodes(self):
        """All nodes, children before their parents."""
        if self.left:
            yield from self.left.nodes()
            yield from self.right.nodes()
        yield self


def binary(label, children):
    """A node over any number of children, as a chain of nodes with two: ((a b) c) d."""
    tree = children[0]
    for child in children[1:]:
        tree = Tree(label, left=tree, right=child)
    return tree


def parse_tree(text):
    """The tree of a bracketed expression such as (3 (2 It) (4 works)); ValueError where there is none."""
    stack = [[]]  # of each open bracket its label, then its children
    for token in re.findall(
        r"[()]|[^() \t\r\n]+", text
    ):  # a word may hold a no-break space, which \s takes for a blank
        if token == "(":
            stack.append([])
            if len(stack) > MAX_DEPTH:
                raise ValueError(f"needs a depth of at most {MAX_DEPTH}")
        elif token == ")":
            label, *children = stack.pop() or [None]
            if not stack or not isinstance(label, str) or not children:
                raise ValueError("needs (LABEL WORD) or (LABEL TREE TREE)")
            if len(children) == 1 and isinstance(children[0], str):
                stack[-1].append(Tree(label, word=children[0]))
            elif all(isinstance(child, Tree) for child in children):
                stack[-1].append(binary(label, children))
            else:
                raise ValueError("needs either one word or trees in a bracket")
        else:
            stack[-1].append(token)
    if len(stack) != 1 or len(stack[0]) != 1 or not isinstance(stack[0][0], Tree):
        raise ValueError("needs one tree, all its brackets closed")
    return stack[0][0]


def read_trees(path):
    """The trees of a file, one on each line."""
    trees = []
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    trees.append(parse_tree(line))
                except ValueError as error:
                    raise SystemExit(f"{path}, line {number}: {error}, got {line[:60]!r}") from error
    return trees


def read_data(paths):
    """Trees to train and to test on: of two files the second, of a folder its test, dev or last file is the test."""
    files = [Path(path) for path in paths]
    if len(files) == 1 and files[0].is_dir():
        files = sorted(files[0].glob("*.txt"), key=lambda file: (file.stem == "test", file.stem == "dev", file.stem))
        if len(files) > 2:
            files = [file for file in files if file.stem != "dev"]
    if len(files) == 1:
        trees = read_trees(files[0])
        return trees[: len(trees) * 9 // 10], trees[len(trees) * 9 // 10 :]
    return [tree for file in files[:-1] for tree in read_trees(file)], read_trees(files[-1])


def python_trees(seed):
    """Statements of Python's own library: names and constants are leaves, the kinds of syntax node are labels."""
    trees = []
    for module in SOURCES:
        for node in ast.walk(ast.parse(inspect.getsource(importlib.import_module(module)))):
            is_simple = isinstance(node, ast.stmt) and not hasattr(node, "body")
            if is_simple and 3 <= sum(1 for _ in ast.walk(node)) <= 60:
                trees.append(syntax_tree(node))
    random.Random(seed).shuffle(trees)
    return trees[:2000]


def syntax_tree(node):
    label = type(node).__name__
    children = []
    for _, value in ast.iter_fields(node):
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, ast.AST) and not isinstance(part, ast.expr_context):
                children.append(syntax_tree(part))
            elif part is not None and not isinstance(part, ast.AST):
                children.append(Tree(label, word=str(part)))
    return binary(label, children) if children else Tree(label, word=label)


# ---- model -------------------------------------------------------------------------------


class Vocabulary:
    """Words and labels, and their numbers."""

    def __init__(self, words, labels):
        self.words, self.labels = words, labels
        self.word_index = {word: i for i, word in enumerate(words)}
        self.label_index = {label: i for i, label in enumerate(labels)}

    @classmethod
    def of(cls, trees, min_count):
        counts = Counter(node.word for tree in trees for node in tree.nodes() if node.word)
        words = sorted(word for word in counts if counts[word] >= min_count)
        return cls([UNKNOWN, *words], sorted({node.label for tree in trees for node in tree.nodes()}))


SIZES = ("embedding", "hidden")  # the options that a saved model brings along


class TreeLSTM:
    """Each node has a state h and a memory c, made from its word or from its two children's."""

    def __init__(self, vocabulary, options):
        self.vocabulary = vocabulary
        self.parameters = parameters = dy.ParameterCollection()
        hidden, embedding, n_labels = options.hidden, options.embedding, len(vocabulary.labels)
        self.word_vectors = parameters.add_lookup_parameters((len(vocabulary.words), embedding))
        # of a leaf: input gate, output gate, update; of an inner node also a forget gate for each child
        self.leaf = {gate: parameters.add_parameters((hidden, embedding)) for gate in "iou"}
        self.left = {gate: parameters.add_parameters((hidden, hidden)) for gate in "iouLR"}
        self.right = {gate: parameters.add_parameters((hidden, hidden)) for gate in "iouLR"}
        self.bias = {gate: parameters.add_parameters(hidden, init=float(gate in "LR")) for gate in "iouLR"}
        self.W_label = parameters.add_parameters((n_labels, hidden))
        self.b_label = parameters.add_parameters(n_labels, init=0)

    def states(self, tree):
        """The (node, h) of all nodes, children before their parents."""
        found = []

        def visit(node):
            if node.left:
                h, c = self.compose(visit(node.left), visit(node.right))
            else:
                h, c = self.read(node.word)
            found.append((node, h))
            return h, c

        visit(tree)
        return found

    def read(self, word):
        x = self.word_vectors[self.vocabulary.word_index.get(word, 0)]

        def gate(name):
            return dy.affine_transform([self.bias[name], self.leaf[name], x])

        c = dy.cmult(dy.logistic(gate("i")), dy.tanh(gate("u")))
        h = dy.cmult(dy.logistic(gate("o")), dy.tanh(c))
        return h, c

    def compose(self, left, right):
        (h_left, c_left), (h_right, c_right) = left, right

        def gate(name):
            return dy.affine_transform([self.bias[name], self.left[name], h_left, self.right[name], h_right])

        update = dy.cmult(dy.logistic(gate("i")), dy.tanh(gate("u")))
        kept = dy.cmult(dy.logistic(gate("L")), c_left) + dy.cmult(dy.logistic(gate("R")), c_right)
        c = update + kept
        h = dy.cmult(dy.logistic(gate("o")), dy.tanh(c))
        return h, c

    def scores(self, h):
        return dy.affine_transform([self.b_label, self.W_label, h])

    def loss(self, tree):
        """Sum over the nodes of -log P(label), in nats."""
        index = self.vocabulary.label_index
        return dy.esum([dy.pickneglogsoftmax(self.scores(h), index[node.label]) for node, h in self.states(tree)])


def save_model(model, options):
    """Write the parameters, and beside them as JSON what is needed to make such a model again."""
    model.parameters.save(options.save)
    vocabulary = [model.vocabulary.words, model.vocabulary.labels]
    description = {"sizes": {name: getattr(options, name) for name in SIZES}, "vocabulary": vocabulary}
    Path(f"{options.save}.json").write_text(json.dumps(description), encoding="utf-8")


def load_model(options):
    """The saved model; its sizes replace those of the command line."""
    description = json.loads(Path(f"{options.load}.json").read_text(encoding="utf-8"))
    vars(options).update(description["sizes"])
    model = TreeLSTM(Vocabulary(*description["vocabulary"]), options)
    model.parameters.populate(options.load)
    return model


# ---- training and testing ------------------------------------------------------------------


def batches(items, size):
    return [items[start : start + size] for start in range(0, len(items), size)]


def train(model, trainer, trees, options):
    """One pass over the trees; prints loss and speed."""
    start, total, n_nodes = time.perf_counter(), 0.0, 0
    with tqdm(total=len(trees), unit="tree", disable=options.quiet) as progress:
        for batch in batches(trees, options.batch):
            dy.renew_cg()
            loss = dy.esum([model.loss(tree) for tree in batch])
            total += loss.value()
            loss.backward()
            trainer.update()
            n_nodes += sum(1 for tree in batch for _ in tree.nodes())
            progress.set_postfix(loss=f"{total / n_nodes:.4f}", refresh=False)
            progress.update(len(batch))
    seconds = time.perf_counter() - start
    print(
        f"  training: loss {total / n_nodes:.4f} per node, {seconds:.2f} s, {len(trees) / seconds:.0f} trees per second"
    )


def test(model, trees, options):
    """Print the share of right labels, of all nodes and of roots, and return that of all nodes, 0 to 1."""
    start = time.perf_counter()
    right, n_nodes, right_roots = 0, 0, 0
    for batch in batches(trees, options.batch):
        dy.renew_cg()
        scored = [[(node, model.scores(h)) for node, h in model.states(tree)] for tree in batch]
        dy.forward([scores for nodes in scored for _, scores in nodes])
        for nodes in scored:
            for node, scores in nodes:
                is_right = model.vocabulary.labels[scores.npvalue().argmax()] == node.label
                right += is_right
            right_roots += is_right  # the last node is the root
            n_nodes += len(nodes)
    seconds = time.perf_counter() - start
    print(
        f"  test: accuracy {right / n_nodes:.2%} of {n_nodes} nodes, {right_roots / len(trees):.2%} of "
        f"{len(trees)} roots, {seconds:.2f} s, {len(trees) / seconds:.0f} trees per second"
    )
    return right / n_nodes


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--data", metavar="PATH", nargs="+", help="files of trees, or a folder (default: Python's code)"
    )
    parser.add_argument("--train", type=int, help="train on this many trees only (default: all)")
    parser.add_argument(
        "--min-count", type=int, default=2, help="words seen less often are unknown (default %(default)s)"
    )
    parser.add_argument("--embedding", type=int, default=64, help="size of a word's vector (default %(default)s)")
    parser.add_argument("--hidden", type=int, default=64, help="size of a node's state (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=3, help="passes over the trees (default %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="trees summed into one step (default %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=0.002, help="of Adam (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the random numbers (default %(default)s)")
    parser.add_argument("--load", metavar="FILE", help="start from a saved model, with its sizes and its vocabulary")
    parser.add_argument("--save", metavar="FILE", help="save the model, its sizes and vocabulary as FILE.json")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--dynet", action="store_true", help="use DyNet instead of dynjit")
    parser.add_argument("--dynet-autobatch", metavar="N", help="read by the toolkit itself: 0 groups no operations")
    options = parser.parse_args(arguments)

    if options.data:
        training, testing = read_data(options.data)
    else:
        trees = python_trees(options.seed)
        training, testing = trees[: len(trees) * 9 // 10], trees[len(trees) * 9 // 10 :]
    training = training[: options.train]
    if not training or not testing:
        raise SystemExit(f"needs trees to train and to test, got {len(training)} and {len(testing)}")

    dy.reset_random_seed(options.seed)
    if options.load:
        model = load_model(options)
    else:
        model = TreeLSTM(Vocabulary.of(training, options.min_count), options)
    trainer = dy.AdamTrainer(model.parameters, alpha=options.learning_rate)
    n_known, n_labels = len(model.vocabulary.words), len(model.vocabulary.labels)
    print(f"{len(training)} trees to train, {len(testing)} to test, {n_known} known words, {n_labels} labels")

    shuffler = random.Random(options.seed)
    for epoch in range(1, options.epochs + 1):
        shuffler.shuffle(training)
        print(f"epoch {epoch}")
        train(model, trainer, training, options)
        accuracy = test(model, testing, options)
    if not options.epochs:
        accuracy = test(model, testing, options)
    if options.save:
        save_model(model, options)
    return accuracy


if __name__ == "__main__":
    main()
