"""The programs of examples/ that stand for DyNet's public idioms, from equal parameters: their losses and answers.

python tests/programs.py --dynet         # in a Python with DyNet and tqdm: the figures of test_programs.py
"""

from __future__ import annotations

import importlib
import random
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FOLDER = Path(__file__).parent.parent / "examples"
UPDATES = 50


class Program(NamedTuple):
    """A model, its trainer, the mini-batches of its updates, and what it answers in the end, as numbers."""

    model: Any
    trainer: Any
    batches: list[Any]
    loss: Callable[[Any], Any]
    answer: Callable[[], list[float]]


def example(name: str) -> Any:
    """A program of examples/ as a module."""
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    return importlib.import_module(name)


def cut(items: list[Any], size: int) -> list[Any]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def attention() -> Program:
    module = example("attention")
    dy = module.dy
    model = module.Translator(Namespace(embedding=8, hidden=12))
    pairs = module.make_pairs(4 * UPDATES, 6, 1)

    def answer() -> list[float]:
        found = [model.translate(word, 3) for word, _ in pairs[:3]]
        return [number for output, total in found for number in (*output, total)]

    trainer = dy.AdamTrainer(model.parameters, alpha=0.03)
    return Program(model, trainer, cut(pairs, 4), lambda batch: dy.esum([model.loss(pair) for pair in batch]), answer)


def stackparser() -> Program:
    module = example("stackparser")
    dy = module.dy
    model = module.Parser(Namespace(embedding=8, hidden=12, layers=2))
    sentences = module.make_sentences(2 * UPDATES, 1)

    def answer() -> list[float]:
        dy.renew_cg()
        return [head for words, _ in sentences[:2] for head in model.parse(words)[0]]

    trainer = dy.MomentumSGDTrainer(model.parameters, 0.02, 0.8)
    return Program(model, trainer, cut(sentences, 2), lambda batch: dy.average([model.loss(s) for s in batch]), answer)


def crf() -> Program:
    module = example("crf")
    dy = module.dy
    model = module.Tagger(Namespace(embedding=8, hidden=8))
    sentences = module.make_sentences(2 * UPDATES, 1)

    def answer() -> list[float]:
        found = [model.best(words) for words, _ in sentences[:1]]
        return [number for tags, score in found for number in (*tags, score)]

    trainer = dy.SimpleSGDTrainer(model.parameters, 0.1)
    return Program(model, trainer, cut(sentences, 2), lambda batch: dy.esum([model.loss(s) for s in batch]), answer)


def rnnlm() -> Program:
    module = example("rnnlm")
    dy = module.dy
    words = [f"word{i}" for i in range(20)]
    model = module.LanguageModel(words, Namespace(embedding=8, hidden=12, layers=2))
    randomness = random.Random(1)
    sentences = []
    for _ in range(8 * UPDATES):
        first, step = randomness.randint(2, 19), randomness.randint(1, 3)
        sentences.append([0, *((first + i * step) % 18 + 2 for i in range(randomness.randint(2, 8))), 0])

    def answer() -> list[float]:
        dy.renew_cg()
        return model.scores(model.lstm.initial_state().add_input(model.word_vectors[0])).npvalue().tolist()

    trainer = dy.AdamTrainer(model.parameters, 0.01)
    return Program(model, trainer, cut(sentences, 8), lambda batch: model.loss(batch) / len(batch), answer)


def textcnn(narrow: bool = False) -> Program:
    module = example("textcnn")
    options = Namespace(embedding=8, filters=8, windows=[2, 3], narrow=narrow, dropout=0.0)
    model = module.Classifier(options)
    sentences = module.make_sentences(100 * UPDATES, 1)
    if narrow:  # no word twice: where values are equal, DyNet's kmax_pooling may miss the largest
        sentences = [(words, answer) for words, answer in sentences if 4 < len(words) == len(set(words))]
    sentences = sentences[: 8 * UPDATES]
    trainer = (
        module.dy.RMSPropTrainer(model.parameters, 0.01) if narrow else module.dy.AdagradTrainer(model.parameters, 0.1)
    )
    return Program(
        model,
        trainer,
        cut(sentences, 8),
        model.loss,
        lambda: list(model.answers([words for words, _ in sentences[:12]])),
    )


PROGRAMS: dict[str, Callable[[], Program]] = {
    "attention": attention, "stackparser": stackparser, "crf": crf, "rnnlm": rnnlm, "textcnn": textcnn,
    "textcnn --narrow": lambda: textcnn(narrow=True),
}  # fmt: skip


def set_parameters(parameters: Any, seed: int = 1) -> None:
    """Values from NumPy, equal under both toolkits."""
    randomness = np.random.default_rng(seed)
    for p in parameters.parameters_list():
        p.set_value(randomness.uniform(-0.3, 0.3, p.shape()))
    for table in parameters.lookup_parameters_list():
        table.init_from_array(randomness.uniform(-0.3, 0.3, table.shape()))


def losses(program: Program) -> Iterator[float]:
    """The loss before each update."""
    dy = sys.modules[type(program.model).__module__].dy
    set_parameters(program.model.parameters)
    for batch in program.batches:
        dy.renew_cg()
        loss = program.loss(batch)
        yield loss.value()
        loss.backward()
        program.trainer.update()


def main() -> None:
    """Print every tenth loss and the answers of each program, and the seconds to stderr."""
    for name, make in PROGRAMS.items():
        program = make()
        start = time.perf_counter()
        found = list(losses(program))
        middle = time.perf_counter()
        answer = [round(float(number), 5) for number in program.answer()]
        end = time.perf_counter()
        print(f'    "{name}": (\n        {[float(f"{loss:.7g}") for loss in found[9::10]]},\n        {answer},\n    ),')
        print(f"{name}: {middle - start:.3f} s {end - middle:.3f} s", file=sys.stderr)
        if "--all" in sys.argv:
            print("ALL", name, found)


if __name__ == "__main__":
    main()
