"""Softmax layers: right distributions in one stage and in several, and DyNet's parameters."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dynjit as dy
from dynjit.errors import ShapeError

WORDS = {word: number for number, word in enumerate("abcdef")}
CLUSTERS = "A a\nA b\nB c\nA d\nC e\n\nC f\n"
PATHS = "0 0\ta\n0 0 b\n0 1 c\n1 d\n1 e\n1 f\n"
X = [0.1, 0.2, 0.3]
BATCH = np.array([X, [0.3, 0.1, -0.4], [0.5, 0.6, 0.7]]).T
KINDS = ("standard", "standard without bias", "classes", "classes without bias", "tree")

# given by DyNet 2.1 for this file's `fill`: -log P of each class for X; of classes 0, 5, 2 for the items of BATCH; the
# norm of the gradient of the latters' sum
RECORDED = {
    "standard": ([1.386666, 2.214148, 2.262547, 1.422593, 1.590641, 2.387290],
                 [1.386666, 2.097757, 2.369569], 1.835017),
    "standard without bias": ([1.753984, 1.861899, 1.788834, 1.699747, 1.795769, 1.860112],
                              [1.753984, 1.624706, 1.874274], 1.077940),
    "classes": ([2.027162, 2.095171, 1.205924, 1.590733, 2.575000, 1.796390],
                [2.027162, 2.437900, 0.942379], 1.572342),
    "classes without bias": ([2.356078, 2.242904, 0.977787, 2.531150, 1.738412, 1.786476],
                             [2.356078, 2.176067, 0.750798], 0.966636),
}  # fmt: skip


def fill(model: dy.ParameterCollection) -> None:
    """Parameter k (from 1), in memory order: sin(1.7 i + k) / 2."""
    for k, p in enumerate(model.parameters_list(), 1):
        p.set_value((np.sin(1.7 * np.arange(p.count) + k) / 2).reshape(p.shape(), order="F"))


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], str]:
    """Writes a file of words; gives its path."""

    def write(text: str) -> str:
        path = tmp_path / "clusters.txt"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def make(model: dy.ParameterCollection, file: Callable[[str], str]) -> Callable[[str], Any]:
    """A builder of six classes with known parameters."""

    def of_kind(kind: str) -> Any:
        bias = "without" not in kind
        if kind.startswith("standard"):
            b: Any = dy.StandardSoftmaxBuilder(3, 6, model, bias)
        elif kind.startswith("classes"):
            b = dy.ClassFactoredSoftmaxBuilder(3, file(CLUSTERS), WORDS, model, bias)
        else:
            b = dy.HierarchicalSoftmaxBuilder(3, file(PATHS), WORDS, model)
        fill(model)
        return b

    return of_kind


def batch() -> dy.Expression:
    return dy.inputTensor(BATCH, batched=True)


def gradient_norm(model: dy.ParameterCollection) -> float:
    return math.sqrt(sum(float((p.grad_as_array() ** 2).sum()) for p in model.parameters_list()))


# ---- probabilities ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", RECORDED)
def test_losses_are_those_of_dynet(kind: str, make: Callable, model: dy.ParameterCollection) -> None:
    b, (alone, together, norm) = make(kind), RECORDED[kind]
    x = dy.inputVector(X)
    assert [b.neg_log_softmax(x, c).value() for c in range(6)] == pytest.approx(alone, abs=2e-6)
    losses = b.neg_log_softmax_batch(batch(), [0, 5, 2])
    assert losses.dim() == ((1,), 3)
    assert losses.npvalue().ravel() == pytest.approx(together, abs=2e-6)
    dy.sum_batches(losses).backward()
    assert gradient_norm(model) == pytest.approx(norm, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_distributions_are_whole_and_agree(kind: str, make: Callable) -> None:
    b = make(kind)
    x = dy.inputVector(X)
    alone = np.array([b.neg_log_softmax(x, c).value() for c in range(6)])
    full = b.full_log_distribution(x)
    assert full.dim() == ((6,), 1)
    assert np.exp(-alone).sum() == pytest.approx(1, abs=1e-6)
    assert np.allclose(full.value(), -alone, atol=1e-6)
    assert np.allclose(dy.log_softmax(b.full_logits(x)).value(), -alone, atol=1e-6)
    full = b.full_log_distribution(batch()).npvalue()
    assert full.shape == (6, 3)
    assert np.allclose(np.exp(full).sum(axis=0), 1, atol=1e-6)
    losses = b.neg_log_softmax_batch(batch(), [4, 0, 3]).npvalue().ravel()
    assert np.allclose(losses, [-full[4, 0], -full[0, 1], -full[3, 2]], atol=1e-6)
    logits = dy.log_softmax(b.full_logits(batch())).npvalue()
    assert np.allclose(logits, full, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_full_distributions_have_the_gradient_of_single_losses(
    kind: str, make: Callable, model: dy.ParameterCollection
) -> None:
    b = make(kind)
    b.neg_log_softmax(dy.inputVector(X), 4).backward()
    single = [p.grad_as_array() for p in model.parameters_list()]
    for p in model.parameters_list():
        p.scale_gradient(0)
    (-dy.pick(b.full_log_distribution(dy.inputVector(X)), 4)).backward()
    for p, gradient in zip(model.parameters_list(), single, strict=True):
        assert np.allclose(p.grad_as_array(), gradient, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_have_their_probabilities(kind: str, make: Callable) -> None:
    b = make(kind)
    expected = np.exp(b.full_log_distribution(dy.inputVector(X)).value())
    x = dy.inputVector(X)
    counts = np.bincount([b.sample(x) for _ in range(2000)], minlength=6)
    deviation = np.sqrt(2000 * expected * (1 - expected))
    assert (np.abs(counts - 2000 * expected) < 4.5 * deviation).all()
    with pytest.raises(ShapeError, match="sample: needs an input without mini-batch"):
        b.sample(batch())


@pytest.mark.parametrize("kind", KINDS)
def test_whether_parameters_get_gradients_is_decided_per_call(
    kind: str, make: Callable, model: dy.ParameterCollection
) -> None:
    b, x = make(kind), dy.inputVector(X)
    constant = [b.neg_log_softmax(x, 1, False), b.neg_log_softmax_batch(x, [1], update=False),
                dy.pick(b.full_log_distribution(x, False), 1), dy.pick(b.full_logits(x, False), 1)]  # fmt: skip
    dy.esum(constant).backward()
    assert gradient_norm(model) == 0
    b.neg_log_softmax(x, 1).backward()
    assert gradient_norm(model) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_graph_has_constants_of_its_own(kind: str, make: Callable) -> None:
    b = make(kind)
    before = b.neg_log_softmax(dy.inputVector(X), 1, False).value()
    dy.renew_cg()
    assert b.neg_log_softmax(dy.inputVector(X), 1, False).value() == before
    dy.renew_cg()
    dy.cg_checkpoint()
    b.neg_log_softmax(dy.inputVector(X), 1, False).value()
    dy.cg_revert()
    assert b.neg_log_softmax(dy.inputVector(X), 1, False).value() == before


# ---- parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "collection", "shapes"), [
    ("standard", "standard-softmax-builder", [(6, 3), (6,)]),
    ("standard without bias", "standard-softmax-builder", [(6, 3)]),
    ("classes", "class-factored-softmax-builder", [(3, 3), (3,), (3, 3), (3,), (2, 3), (2,)]),
    ("classes without bias", "class-factored-softmax-builder", [(3, 3), (3, 3), (2, 3)]),
    ("tree", "hierarchical-softmax-builder", [(1, 3), (1,), (1, 3), (1,), (1, 3), (1,), (3, 3), (3,)]),
])  # fmt: skip
def test_parameters(
    kind: str, collection: str, shapes: list[tuple[int, ...]], make: Callable, model: dy.ParameterCollection
) -> None:
    b = make(kind)
    assert [p.shape() for p in model.parameters_list()] == shapes
    assert [p.name() for p in model.parameters_list()] == [f"/{collection}/_{k}" for k in range(len(shapes))]
    assert b.param_collection().name() == f"/{collection}/"
    again = type(b).from_spec(b.spec, dy.ParameterCollection())
    assert [p.shape() for p in again.param_collection().parameters_list()] == shapes


def test_biases_start_at_zero(model: dy.ParameterCollection) -> None:
    dy.StandardSoftmaxBuilder(3.0, 4, model)
    assert not model.parameters_list()[1].as_array().any()


# ---- classes and forks -----------------------------------------------------------------------------------------------


def test_classes_and_their_words(make: Callable) -> None:
    b, x = make("classes"), dy.inputVector(X)
    full = b.full_log_distribution(x).value()
    classes = b.class_log_distribution(x).value()
    assert np.allclose(classes, [-0.7797206, -1.2059236, -1.4186087], atol=1e-6)  # DyNet 2.1's
    assert np.allclose(b.subclass_log_distribution(x, 0).value(), [-1.2474413, -1.3154507, -0.8110126], atol=1e-6)
    assert np.allclose(b.subclass_logits(x, 2).value(), [-0.2062228, 0.5723872], atol=1e-6)
    assert np.allclose(dy.log_softmax(b.class_logits(x)).value(), classes, atol=1e-6)
    assert (b.subclass_logits(x, 1).value(), b.subclass_log_distribution(x, 1).value()) == (0, 0)
    assert full[4] == pytest.approx(classes[2] + b.subclass_log_distribution(x, 2).value()[0], abs=1e-6)
    for classid in (-1, 3):
        with pytest.raises(IndexError, match=f"needs a class from 0 to 2, got {classid}"):
            b.subclass_logits(x, classid)


def test_the_forks_of_a_tree(make: Callable, model: dy.ParameterCollection) -> None:
    b = make("tree")
    values = [p.as_array() for p in model.parameters_list()]
    scores = [values[k] @ X + values[k + 1] for k in range(0, 8, 2)]  # root, 0, 0 0, 1
    first, second, third = (1 / (1 + np.exp(-score[0])) for score in scores[:3])
    last = np.exp(scores[3]) / np.exp(scores[3]).sum()
    expected = [first * second * third, first * second * (1 - third), first * (1 - second), *((1 - first) * last)]
    assert np.allclose(np.exp(b.full_log_distribution(dy.inputVector(X)).value()), expected, atol=1e-6)


def test_a_fork_may_hold_words_and_forks(model: dy.ParameterCollection, file: Callable[[str], str]) -> None:
    text = "x a\nx b\nx y c\nx y d\nx y z z z e\nf f\n"
    b = dy.HierarchicalSoftmaxBuilder(3, file(text), WORDS, model)
    fill(model)
    assert [p.shape() for p in model.parameters_list()][::2] == [(1, 3), (3, 3), (3, 3)]
    x = dy.inputVector(X)
    full = np.array(b.full_log_distribution(x).value())
    assert np.exp(full).sum() == pytest.approx(1, abs=1e-6)
    assert np.allclose(full, [-b.neg_log_softmax(x, c).value() for c in range(6)], atol=1e-6)


def test_deep_trees_are_copied_and_pickled(model: dy.ParameterCollection, file: Callable[[str], str]) -> None:
    words = {f"w{k}": k for k in range(400)}
    text = "".join(f"{'1 ' * k}0 w{k}\n" for k in range(400))
    b = dy.HierarchicalSoftmaxBuilder(3, file(text), words, model)
    x = dy.inputVector(X)
    expected = b.neg_log_softmax(x, 399).value()
    for other in (copy.deepcopy(b), pickle.loads(pickle.dumps(b))):
        assert other.neg_log_softmax(x, 399).value() == expected
    assert 0 <= b.sample(x) < 400


def test_a_single_word_is_certain(model: dy.ParameterCollection, file: Callable[[str], str]) -> None:
    tree = dy.HierarchicalSoftmaxBuilder(3, file("0 1 a"), {"a": 0}, model)
    classes = dy.ClassFactoredSoftmaxBuilder(3, file("0 a"), {"a": 0}, model)
    x = dy.inputVector(X)
    for b in (tree, classes):
        assert b.neg_log_softmax(x, 0).value() == 0
        assert b.full_log_distribution(x).value() == 0
        assert b.sample(x) == 0


@pytest.mark.parametrize("builder", [dy.ClassFactoredSoftmaxBuilder, dy.HierarchicalSoftmaxBuilder])
def test_words_without_class_have_no_probability(
    builder: type, model: dy.ParameterCollection, file: Callable[[str], str]
) -> None:
    b = builder(3, file("0 b\n0 c\n1 d\n"), {word: number for number, word in enumerate("abcd")}, model)
    x = dy.inputVector(X)
    for full in (b.full_log_distribution(x), dy.log_softmax(b.full_logits(x))):
        probabilities = np.exp(full.value())
        assert probabilities[0] == 0
        assert probabilities.sum() == pytest.approx(1, abs=1e-6)
    assert b.sample(x) in (1, 2, 3)
    with pytest.raises(ValueError, match="neg_log_softmax: needs a word of the cluster file, got 0"):
        b.neg_log_softmax(x, 0)


@pytest.mark.parametrize("builder", [dy.ClassFactoredSoftmaxBuilder, dy.HierarchicalSoftmaxBuilder])
@pytest.mark.parametrize(("text", "words", "needs"), [
    (CLUSTERS + "D\n", WORDS, "needs a class and a word in line 8 of .*, got 'D'"),
    (CLUSTERS + "D x\n", WORDS, "needs a word of dic in line 8 of .*, got 'D x'"),
    (CLUSTERS + "D a\n", WORDS, "needs each word once in line 8 of .*, got 'D a'"),
    ("\n", WORDS, "needs 1 word or more, got an empty file"),
    (CLUSTERS, {**WORDS, "f": 9}, "needs a dic of words to the numbers 0 to 5, each once"),
    (CLUSTERS, {**WORDS, "f": 1}, "needs a dic of words to the numbers 0 to 5, each once"),
])  # fmt: skip
def test_faulty_files_are_refused(
    builder: type, text: str, words: dict[str, int], needs: str, model: dy.ParameterCollection,
    file: Callable[[str], str],
) -> None:  # fmt: skip
    with pytest.raises(ValueError, match=needs):
        builder(3, file(text), words, model)
    with pytest.raises(FileNotFoundError):
        builder(3, "/no/such/file", WORDS, model)
    assert not model.parameters_list()


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_classes_that_are_none_are_refused(kind: str, make: Callable) -> None:
    b, x = make(kind), dy.inputVector(X)
    for c in (6, -1):
        with pytest.raises(IndexError, match="from 0 to 5"):
            b.neg_log_softmax(x, c)
    with pytest.raises(ValueError, match="3"):
        b.neg_log_softmax_batch(batch(), [0, 1])
    assert math.isfinite(b.neg_log_softmax(x, 0).value())


def test_sizes_are_checked(model: dy.ParameterCollection) -> None:
    with pytest.raises(ValueError, match="StandardSoftmaxBuilder: needs an input_dim of 1 or more, got 0"):
        dy.StandardSoftmaxBuilder(0, 3, model)
    with pytest.raises(ValueError, match="StandardSoftmaxBuilder: needs 1 class or more, got 0"):
        dy.StandardSoftmaxBuilder(3, 0, model)
    with pytest.raises(TypeError, match="StandardSoftmaxBuilder: needs a ParameterCollection, got NoneType"):
        dy.StandardSoftmaxBuilder(3, 3, None)
    with pytest.raises(TypeError, match="SoftmaxBuilder: needs a builder of a kind"):
        dy.SoftmaxBuilder(3, model)
