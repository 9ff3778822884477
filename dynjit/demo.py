"""`dynjit demo`: a network that learns to compute nested lists such as [MAX 2 9 [MIN 4 7] 0].

The task is ListOps (Nangia and Bowman 2018, section 3): an operator and its arguments, digits or again such lists; the
answer is a digit.  Every example is a tree of its own, and the network has the shape of the example.  A list is read by
a binary Tree-LSTM from left to right: the operator takes in its first argument, the result takes in the second, ...
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

import dynjit as dy

OPERATORS: dict[str, Callable[[list[int]], int]] = {
    "MAX": max,
    "MIN": min,
    "MED": lambda digits: int(statistics.median(digits)),
    "SUM_MOD": lambda digits: sum(digits) % 10,
}
SYMBOLS = [*map(str, range(10)), *OPERATORS]
CHANCE = 0.1

State = tuple[Any, Any]  # h and c of a Tree-LSTM, two expressions


# ---- data --------------------------------------------------------------------------------


@dataclass
class Nested:
    """A list of an operator and its arguments, or a digit alone, which has no arguments."""

    symbol: str
    arguments: list[Nested] = field(default_factory=list)
    value: int = 0

    def __str__(self) -> str:
        if not self.arguments:
            return self.symbol
        return f"[{self.symbol} {' '.join(map(str, self.arguments))}]"


def generate(randomness: random.Random, depth: int, max_arguments: int) -> Nested:
    """A random list of 2 to max_arguments arguments, with lists in lists down to `depth`."""
    arguments = []
    for _ in range(randomness.randint(2, max_arguments)):
        if depth > 1 and randomness.random() < 0.3:
            arguments.append(generate(randomness, depth - 1, max_arguments))
        else:
            digit = randomness.randrange(10)
            arguments.append(Nested(str(digit), value=digit))
    symbol = randomness.choice(list(OPERATORS))
    return Nested(symbol, arguments, OPERATORS[symbol]([argument.value for argument in arguments]))


def generate_split(options: argparse.Namespace) -> tuple[list[Nested], list[Nested]]:
    """Examples to train and to test on, none of them twice.

    Raises ValueError where there are not as many lists of that depth and length.
    """
    randomness = random.Random(options.seed)
    wanted = options.examples + options.held_out
    examples: dict[str, Nested] = {}
    for _ in range(20 * wanted):
        example = generate(randomness, options.depth, options.max_arguments)
        examples[str(example)] = example
        if len(examples) == wanted:
            unique = list(examples.values())
            return unique[options.held_out :], unique[: options.held_out]
    raise ValueError(f"needs {wanted} different lists, found {len(examples)}: allow more --depth or --max-arguments")


# ---- model -------------------------------------------------------------------------------


class Reader:
    """A binary Tree-LSTM (Tai, Socher and Manning 2015, equations 9 to 14) over lists, and a classifier of digits."""

    def __init__(self, hidden: int) -> None:
        self.parameters = parameters = dy.ParameterCollection()
        self.symbols_h = parameters.add_lookup_parameters((len(SYMBOLS), hidden))
        self.symbols_c = parameters.add_lookup_parameters((len(SYMBOLS), hidden))
        # input gate, output gate, update, and a forget gate for each of the two that are joined
        self.left = {gate: parameters.add_parameters((hidden, hidden)) for gate in "iouLR"}
        self.right = {gate: parameters.add_parameters((hidden, hidden)) for gate in "iouLR"}
        self.bias = {gate: parameters.add_parameters(hidden, init=float(gate in "LR")) for gate in "iouLR"}
        self.W_digit = parameters.add_parameters((10, hidden))
        self.b_digit = parameters.add_parameters(10, init=0.0)

    def read(self, example: Nested, losses: list[Any] | None = None) -> State:
        """The state of a list; with `losses`, -log P(value) of the list and of each list in it is added to these."""
        index = SYMBOLS.index(example.symbol)
        state = self.symbols_h[index], self.symbols_c[index]
        for argument in example.arguments:
            state = self.join(state, self.read(argument, losses))
        if losses is not None and example.arguments:
            losses.append(dy.pickneglogsoftmax(self.scores(state), example.value))
        return state

    def join(self, left: State, right: State) -> State:
        (h_left, c_left), (h_right, c_right) = left, right

        def gate(name: str) -> Any:
            return dy.affine_transform([self.bias[name], self.left[name], h_left, self.right[name], h_right])

        update = dy.cmult(dy.logistic(gate("i")), dy.tanh(gate("u")))
        c = update + dy.cmult(dy.logistic(gate("L")), c_left) + dy.cmult(dy.logistic(gate("R")), c_right)
        h = dy.cmult(dy.logistic(gate("o")), dy.tanh(c))
        return h, c

    def scores(self, state: State) -> Any:
        return dy.affine_transform([self.b_digit, self.W_digit, state[0]])

    def loss(self, example: Nested) -> Any:
        losses: list[Any] = []
        self.read(example, losses)
        return dy.esum(losses) / len(losses)

    def predict(self, examples: list[Nested], batch: int = 64) -> list[int]:
        """The digit that is most probable for each example."""
        digits: list[int] = []
        for start in range(0, len(examples), batch):
            dy.renew_cg()
            scores = [self.scores(self.read(example)) for example in examples[start : start + batch]]
            dy.forward(scores)
            digits += [int(expression.npvalue().argmax()) for expression in scores]
        return digits

    def accuracy(self, examples: list[Nested]) -> float:
        return statistics.mean(
            digit == example.value for digit, example in zip(self.predict(examples), examples, strict=True)
        )


# ---- training ----------------------------------------------------------------------------


@dataclass
class Curve:
    """What is plotted: loss (nats) and held-out accuracy (0 to 1) after so many examples."""

    losses: list[tuple[int, float]] = field(default_factory=list)
    accuracies: list[tuple[int, float]] = field(default_factory=list)


def train(reader: Reader, training: list[Nested], held_out: list[Nested], options: argparse.Namespace) -> Curve:
    trainer = dy.AdamTrainer(reader.parameters, alpha=options.learning_rate)
    randomness = random.Random(options.seed)
    curve, seen, n_all = Curve(), 0, options.epochs * len(training)
    with tqdm(total=n_all, unit="example", disable=options.quiet, smoothing=0.1) as progress:
        for epoch in range(1, options.epochs + 1):
            randomness.shuffle(training)
            epoch_loss = 0.0
            for start in range(0, len(training), options.batch):
                batch = training[start : start + options.batch]
                trainer.learning_rate = options.learning_rate * (1 - seen / n_all)
                dy.renew_cg()
                loss = dy.esum([reader.loss(example) for example in batch]) / len(batch)
                mean = loss.value()
                loss.backward()
                trainer.update()
                seen += len(batch)
                epoch_loss += mean * len(batch)
                curve.losses.append((seen, mean))
                progress.update(len(batch))
                progress.set_postfix(loss=f"{epoch_loss / (start + len(batch)):.3f}", refresh=False)
            accuracy = reader.accuracy(held_out)
            curve.accuracies.append((seen, accuracy))
            message = f"epoch {epoch}: loss {epoch_loss / len(training):.3f}, held-out accuracy {accuracy:.1%}"
            progress.write(message)
    return curve


def plot(curve: Curve, path: str) -> None:
    """Write the learning curve as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # an extra, and no window is wanted
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    width = max(1, len(curve.losses) // 100)
    groups = [curve.losses[start : start + width] for start in range(0, len(curve.losses), width)]
    means = [statistics.mean(loss for _, loss in group) for group in groups]
    axes.plot([group[-1][0] for group in groups], means, color="tab:blue", label="training loss")
    axes.set_xlabel("examples seen")
    axes.set_ylabel("loss (nats)")
    axes.set_ylim(bottom=0)
    right = axes.twinx()
    seen, accuracies = zip(*curve.accuracies, strict=True)
    right.plot(seen, [100 * accuracy for accuracy in accuracies], "o-", color="tab:orange", label="held-out accuracy")
    right.axhline(100 * CHANCE, color="gray", linestyle=":", label="chance")
    right.set_ylabel("accuracy (%)")
    right.set_ylim(0, 100)
    figure.legend(loc="outside upper center", ncols=3)
    figure.savefig(path, format="png", dpi=120)


# ---- the command -------------------------------------------------------------------------


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"needs a number from 1, got {number}")
    return number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `dynjit demo`."""

    def number(name: str, default: int, what: str) -> None:
        parser.add_argument(name, type=positive, default=default, metavar="N", help=f"{what} (default {default})")

    number("--examples", 30_000, "lists to train on")
    number("--held-out", 1000, "lists to test on")
    number("--depth", 3, "lists in lists, at most")
    number("--max-arguments", 4, "arguments of a list, 2 to N")
    number("--hidden", 64, "size of a state")
    number("--epochs", 5, "passes over the lists")
    number("--batch", 32, "lists summed into one step")
    parser.add_argument("--learning-rate", type=float, default=0.007, help="of Adam, at first (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the random numbers (default %(default)s)")
    parser.add_argument("--model", metavar="FILE", help="keep the trained model here")
    parser.add_argument("--plot", metavar="FILE", help="write the learning curve as PNG (needs matplotlib)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def problem_with(options: argparse.Namespace) -> str:
    """What would fail only after the training, empty if nothing."""
    if options.max_arguments < 2:
        return "--max-arguments needs a number from 2"
    for path in (options.model, options.plot):
        if path and not Path(path).absolute().parent.is_dir():
            return f"there is no folder {Path(path).absolute().parent} to write {path}"
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        return "--plot needs matplotlib: pip install 'dynjit[plot]'"
    return ""


def run(options: argparse.Namespace) -> int:
    """Train, test, save and load; 0 if the network has learned and its copy agrees, 1 if not, 2 for bad options."""
    try:
        if problem := problem_with(options):
            raise ValueError(problem)
        training, held_out = generate_split(options)
    except ValueError as error:
        print(f"dynjit demo: {error}", file=sys.stderr)
        return 2
    print(f"{len(training)} lists to learn from, {len(held_out)} held out, such as")
    for example in held_out[:3]:
        print(f"  {example} = {example.value}")

    dy.reset_random_seed(options.seed)
    reader = Reader(options.hidden)
    start = time.perf_counter()
    curve = train(reader, training, held_out, options)
    seconds = time.perf_counter() - start
    n_examples = options.epochs * len(training)
    print(f"trained in {seconds:.1f} s, {n_examples / seconds:.0f} examples per second, tests and compilation included")

    accuracy = curve.accuracies[-1][1]
    digit, count = Counter(example.value for example in held_out).most_common(1)[0]
    majority = count / len(held_out)
    print(f"held-out accuracy {accuracy:.1%}; by chance {CHANCE:.1%}, saying {digit} each time {majority:.1%}")
    agrees = save_and_load(reader, held_out, options)
    if options.plot:
        plot(curve, options.plot)
        print(f"learning curve in {options.plot}")
    return 0 if agrees and accuracy > max(CHANCE, majority) else 1


def save_and_load(reader: Reader, held_out: list[Nested], options: argparse.Namespace) -> bool:
    """Whether a new network, filled from the saved model, predicts the same."""
    with tempfile.TemporaryDirectory() as folder:
        path = options.model or str(Path(folder) / "listops.model")
        reader.parameters.save(path)
        nbytes = Path(path).stat().st_size
        fresh = Reader(options.hidden)
        fresh.parameters.populate(path)
    pairs = zip(reader.predict(held_out), fresh.predict(held_out), strict=True)
    n_same = sum(digit == again for digit, again in pairs)
    print(f"saved ({nbytes / 1e6:.1f} MB) and loaded into a new network: {n_same} of {len(held_out)} predictions agree")
    return n_same == len(held_out)
