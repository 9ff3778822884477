"""Every builder in files, copies and pickles: the same outputs, the links kept, nothing of a graph, nothing shared."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dynjit as dy
from dynjit.errors import ModelFileError

WORDS = {f"w{i}": i for i in range(5)}
CLASSES = "a w0\na w1\nb w2\nb w3\nc w4\n"
TREE = "0 0 w0\n0 1 w1\n1 0 w2\n1 1 0 w3\n1 1 1 w4\n"
BUILDERS: dict[str, Callable[[dy.ParameterCollection, Path], Any]] = {
    "SimpleRNN": lambda m, folder: dy.SimpleRNNBuilder(2, 4, 4, m),
    "GRU": lambda m, folder: dy.GRUBuilder(2, 4, 4, m),
    "VanillaLSTM": lambda m, folder: dy.VanillaLSTMBuilder(2, 4, 4, m, forget_bias=0.3),
    "VanillaLSTM, layer norm": lambda m, folder: dy.VanillaLSTMBuilder(2, 4, 4, m, True),
    "CompactVanillaLSTM": lambda m, folder: dy.CompactVanillaLSTMBuilder(2, 4, 4, m),
    "CoupledLSTM": lambda m, folder: dy.CoupledLSTMBuilder(2, 4, 4, m),
    "FastLSTM": lambda m, folder: dy.FastLSTMBuilder(2, 4, 4, m),
    "SparseLSTM": lambda m, folder: dy.SparseLSTMBuilder(2, 4, 4, m),
    "SparseLSTM, layer norm": lambda m, folder: dy.SparseLSTMBuilder(2, 4, 4, m, True, 0.5),
    "BiRNN": lambda m, folder: dy.BiRNNBuilder(2, 4, 4, m, dy.GRUBuilder),
    "ChildSumTreeLSTM": lambda m, folder: dy.ChildSumTreeLSTMBuilder(2, 4, 4, m),
    "NaryTreeLSTM": lambda m, folder: dy.NaryTreeLSTMBuilder(2, 2, 4, 4, m),
    "UnidirectionalTreeLSTM": lambda m, folder: dy.UnidirectionalTreeLSTMBuilder(1, 4, 4, m),
    "BidirectionalTreeLSTM": lambda m, folder: dy.BidirectionalTreeLSTMBuilder(1, 4, 4, m),
    "StandardSoftmax": lambda m, folder: dy.StandardSoftmaxBuilder(4, 5, m),
    "StandardSoftmax, no bias": lambda m, folder: dy.StandardSoftmaxBuilder(4, 5, m, False),
    "ClassFactoredSoftmax": lambda m, folder: dy.ClassFactoredSoftmaxBuilder(4, written(folder, CLASSES), WORDS, m),
    "HierarchicalSoftmax": lambda m, folder: dy.HierarchicalSoftmaxBuilder(4, written(folder, TREE), WORDS, m),
}
every_builder = pytest.mark.parametrize("name", BUILDERS)


def written(folder: Path, text: str) -> str:
    (folder / "clusters").write_text(text)
    return str(folder / "clusters")


def made(name: str, folder: Path, m: dy.ParameterCollection) -> Any:
    """A builder with random parameters, gains of layer normalisation included, a third of a sparse one's masked."""
    builder, random = BUILDERS[name](m, folder), np.random.default_rng(1)
    for p in m.parameters_list():
        if p.is_updated():
            p.set_value(random.normal(size=p.shape()))
    if name.startswith("Sparse"):
        builder.set_sparsity(0.3)
    return builder


def outputs(builder: Any) -> np.ndarray:
    xs = [dy.inputVector([0.1 * i, 0.2, 0.3, -0.4]) for i in range(3)]
    if isinstance(builder, dy.SoftmaxBuilder):
        return np.array([builder.full_log_distribution(xs[1], update).npvalue() for update in (True, False)])
    if isinstance(builder, dy.TreeBuilder):
        return np.array([h.npvalue() for h in builder.transduce(xs, [[1, 2], [], []])])
    reader = builder if isinstance(builder, dy.BiRNNBuilder) else builder.initial_state()
    return np.array([h.npvalue() for h in reader.transduce(xs)])


WAYS: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda o: pickle.loads(pickle.dumps(o)),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@every_builder
def test_copies(name: str, way: str, tmp_path: Path, model: dy.ParameterCollection) -> None:
    builder = made(name, tmp_path, model)
    if hasattr(builder, "set_dropout"):
        builder.set_dropout(0.5)
        outputs(builder)  # masks of this graph
        builder.set_dropout(0)
    expected = outputs(builder)
    twin = WAYS[way](builder)
    np.testing.assert_array_equal(outputs(twin), expected)  # in the same graph
    dy.renew_cg()
    np.testing.assert_array_equal(outputs(twin), expected)
    if way != "copy":
        for p in twin.param_collection().parameters_list():
            p.zero()
        np.testing.assert_array_equal(outputs(builder), expected)


@every_builder
def test_files(name: str, tmp_path: Path, model: dy.ParameterCollection) -> None:
    builder = made(name, tmp_path, model)
    expected = outputs(builder)
    dy.save(tmp_path / "m", [builder])
    target = dy.ParameterCollection()
    reading_clusters = (dy.ClassFactoredSoftmaxBuilder, dy.HierarchicalSoftmaxBuilder)
    (loaded,) = dy.load(tmp_path / "m", target, reading_clusters)
    assert type(loaded) is type(builder)
    assert (loaded.spec, target.parameter_count()) == (builder.spec, model.parameter_count())
    np.testing.assert_array_equal(outputs(loaded), expected)


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_a_model_is_copied_whole(way: str, model: dy.ParameterCollection) -> None:
    lstm = dy.VanillaLSTMBuilder(1, 4, 4, dy.ParameterCollection(model, "sub"), ln_lstm=True)
    softmax, table = dy.StandardSoftmaxBuilder(4, 5, model), model.add_lookup_parameters((6, 4))
    trainer = dy.AdamTrainer(model)

    def learn(parts: Any) -> float:
        _, lstm, softmax, table, trainer = parts
        dy.renew_cg()
        h = lstm.initial_state().transduce([table[0], table[3]])[-1]
        loss = softmax.neg_log_softmax(h, 2)
        value = loss.value()
        loss.backward()
        trainer.update()
        return value

    parts = model, lstm, softmax, table, trainer
    learn(parts)
    twins = WAYS[way](parts)
    collection, other = twins[0], twins[1]
    assert twins[4].model is collection
    assert other.param_collection().root is collection
    assert [p for layer in other.get_parameters() for p in layer] == other.param_collection().parameters_list()
    assert {*other.outer_parameters(), twins[3]} <= set(collection.stored)
    assert [p.name() for p in collection.stored] == [p.name() for p in model.stored]
    before = [p.as_array() for p in model.stored]
    losses = [learn(twins) for _ in range(5)]
    assert losses[-1] < losses[0]
    for p, values in zip(model.stored, before):
        np.testing.assert_array_equal(p.as_array(), values)
    assert [learn(parts) for _ in range(5)] == losses


def test_states_are_not_copied(model: dy.ParameterCollection) -> None:
    state = dy.GRUBuilder(1, 2, 2, model).initial_state().add_input(dy.inputVector([1, 2]))
    with pytest.raises(TypeError, match="expressions belong to their graph"):
        copy.deepcopy(state)


# ---- layer normalisation in files ------------------------------------------------------------------------------------


def test_gains_lie_outside_of_the_builders_names(tmp_path: Path, model: dy.ParameterCollection) -> None:
    made("VanillaLSTM, layer norm", tmp_path, model)
    lstm = dy.VanillaLSTMBuilder(1, 4, 4, dy.ParameterCollection(model, "sub"), True)
    dy.save(tmp_path / "m", [lstm])
    names = re.findall(r"#Parameter# (\S+)", (tmp_path / "m.data").read_text())
    own, outer = "/sub/vanilla-lstm-builder/_", "/sub/vanilla-lstm-builder_outer/"
    assert names == [f"{own}{k}" for k in range(3)] + [f"{outer}{k}" for k in range(6)]


def test_files_of_dynet_have_no_gains(tmp_path: Path, model: dy.ParameterCollection) -> None:
    lstm = made("VanillaLSTM, layer norm", tmp_path, model)
    dy.save(tmp_path / "m", [lstm])
    text = (tmp_path / "m.data").read_text()
    (tmp_path / "m.data").write_text(text[: text.index("#Parameter# /vanilla-lstm-builder_outer")])
    (loaded,) = dy.load(tmp_path / "m", dy.ParameterCollection())
    assert [set(p.values().tolist()) for p in loaded.outer_parameters()] == [{1.0}, {0.0}] * 6
    np.testing.assert_array_equal(loaded.get_parameters()[1][2].as_array(), lstm.get_parameters()[1][2].as_array())
    (tmp_path / "m.data").write_text(text[: text.rindex("#Parameter#")])
    target = dy.ParameterCollection()
    with pytest.raises(ModelFileError, match="11 blocks for 12 parameters of /vanilla-lstm-builder/ outside of it"):
        dy.load(tmp_path / "m", target)
    assert target.stored == []


# ---- names in files --------------------------------------------------------------------------------------------------


def test_the_same_builder_twice(tmp_path: Path, model: dy.ParameterCollection) -> None:
    gru = made("GRU", tmp_path, model)
    dy.save(tmp_path / "m", [gru, gru])
    for loaded in dy.load(tmp_path / "m", dy.ParameterCollection()):
        np.testing.assert_array_equal(outputs(loaded), outputs(gru))


def test_two_parameters_of_one_name(tmp_path: Path, model: dy.ParameterCollection) -> None:
    other = dy.ParameterCollection()
    for first, second in (
        (dy.GRUBuilder(1, 2, 2, model), dy.GRUBuilder(1, 2, 2, other)),
        (model.add_parameters(2, name="W"), other.add_parameters(2, name="W")),
    ):
        with pytest.raises(ValueError, match="save: needs parameters of different names, got two of the name /"):
            dy.save(tmp_path / "m", [first, second])
    assert not (tmp_path / "m.data").exists()


def test_builders_of_given_builders(tmp_path: Path, model: dy.ParameterCollection) -> None:
    pair = dy.GRUBuilder(1, 4, 2, model), dy.GRUBuilder(1, 4, 2, model)
    birnn = dy.BiRNNBuilder(1, 4, 4, model, None, [pair])
    expected = outputs(birnn)
    np.testing.assert_array_equal(outputs(copy.deepcopy(birnn)), expected)
    with pytest.raises(TypeError, match="save: needs the builders of a BiRNNBuilder with builder_layers one by one"):
        dy.save(tmp_path / "m", [birnn])
    dy.save(tmp_path / "m", pair)
    target = dy.ParameterCollection()
    loaded = dy.BiRNNBuilder(1, 4, 4, target, None, [tuple(dy.load(tmp_path / "m", target))])
    np.testing.assert_array_equal(outputs(loaded), expected)
