"""Parameters, lookup tables, collections: names, values, initialisers, files, copies."""

from __future__ import annotations

import copy
import gc
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dynjit as dy
from dynjit import initializers, parameters
from dynjit.errors import ModelFileError, ShapeError
from dynjit.space import space

# ---- names -----------------------------------------------------------------------------------------------------------


def test_names_count_as_in_dynet(model: dy.ParameterCollection) -> None:
    assert model.name() == "/"
    made = [model.add_parameters(2), model.add_parameters(2), model.add_lookup_parameters((2, 2))]
    made += [model.add_parameters(2, name="W"), model.add_lookup_parameters((2, 2), name="W")]
    assert [p.name() for p in made] == ["/_0", "/_1", "/_2", "/W", "/W_1"]
    subs = [model.add_subcollection(), model.add_subcollection("x"), model.add_subcollection("x")]
    assert [s.name() for s in subs] == ["/_3/", "/x/", "/x_1/"]
    assert [subs[1].add_parameters(2).name(), subs[1].add_parameters(2, name="W").name()] == ["/x/_0", "/x/W"]
    assert dy.ParameterCollection(model).name() == "/_4/"
    assert subs[1].add_subcollection("ü").add_parameters(1, name="p").name() == "/x/ü/p"
    builders = [
        dy.VanillaLSTMBuilder(1, 2, 2, model),
        dy.GRUBuilder(1, 2, 2, model),
        dy.VanillaLSTMBuilder(1, 2, 2, model),
    ]
    assert [b.param_collection().name() for b in builders] == [
        "/vanilla-lstm-builder/", "/gru-builder/", "/vanilla-lstm-builder_1/",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["a/b", "a_b", "_0", "a b", "a#b", "a\tb"])
def test_bad_names(model: dy.ParameterCollection, name: str) -> None:
    for add in (lambda: model.add_parameters(2, name=name), lambda: model.add_subcollection(name),
                lambda: model.add_lookup_parameters((2, 2), name=name)):  # fmt: skip
        with pytest.raises(RuntimeError, match=r"needs a name without / _ # and white space, got '"):
            add()
    assert model.parameters_list() == []
    assert model.add_parameters(2).name() == "/_0"


def test_collections_know_what_is_below_them(model: dy.ParameterCollection) -> None:
    first = model.add_parameters((2, 3))
    sub = model.add_subcollection("sub")
    second, table = sub.add_parameters(4), sub.add_lookup_parameters((5, 2))
    third = model.add_parameters(1)
    assert model.parameters_list() == [first, second, third]
    assert model.lookup_parameters_list() == sub.lookup_parameters_list() == [table]
    assert sub.parameters_list() == [second]
    assert (model.parameter_count(), sub.parameter_count()) == (21, 14)
    assert repr(sub) == "ParameterCollection /sub/ (2 parameters, 14 values)"


# ---- shapes and values -----------------------------------------------------------------------------------------------


def test_shapes(model: dy.ParameterCollection) -> None:
    assert model.add_parameters(3).shape() == (3,)
    assert model.add_parameters((2.0, 3)).shape() == (2, 3)
    assert model.add_parameters(np.int64(3)).shape() == (3,)
    table = model.add_lookup_parameters((5, 2, 3))
    assert (table.shape(), len(table), table.dim()) == ((5, 2, 3), 5, ((2, 3, 5), 1))
    assert model.add_lookup_parameters(4).shape() == (4, 1)
    assert table[1].dim() == ((2, 3), 1)
    assert model.add_parameters(None, init=np.ones((4, 2))).shape() == (4, 2)


@pytest.mark.parametrize("dim", ["3", 2.5, (2, 2.5), None, (2, "3"), (2, None), float("nan"), float("inf"), object()])
def test_dims_that_are_none(model: dy.ParameterCollection, dim: Any) -> None:
    with pytest.raises(TypeError, match="add_parameters: needs dimensions as an int or a tuple of ints, got"):
        model.add_parameters(dim)
    with pytest.raises(TypeError, match="add_lookup_parameters: needs dimensions as an int or a tuple of ints, got"):
        model.add_lookup_parameters(dim)


@pytest.mark.parametrize("dim", [-1, (2, -3), (1,) * 8])
def test_dims_out_of_range(model: dy.ParameterCollection, dim: Any) -> None:
    with pytest.raises(ValueError, match="add_parameters: needs up to 7 sizes of 0 or more, got"):
        model.add_parameters(dim)


def test_more_values_than_there_is_room_for(model: dy.ParameterCollection) -> None:
    with pytest.raises(MemoryError, match="no room for 1152921504606846976 more parameters"):
        model.add_parameters((1 << 30, 1 << 30), init=0)
    assert model.add_parameters(2, init=1).as_array().tolist() == [1, 1]


def test_setting_values(model: dy.ParameterCollection) -> None:
    p = model.add_parameters((2, 3), init=1)
    p.set_value(np.arange(6).reshape(2, 3))
    np.testing.assert_array_equal(p.as_array(), [[0, 1, 2], [3, 4, 5]])
    p.as_array()[:] = 9  # a copy
    assert p.npvalue()[1, 0] == 3
    p.set_value([[1, 2, 3], [4, 5, 6]])
    assert p.values().tolist() == [1, 4, 2, 5, 3, 6]  # first axis fastest
    p.scale(2)
    p.clip_inplace(3, 8)
    np.testing.assert_array_equal(p.as_array(), [[3, 4, 6], [8, 8, 8]])
    dy.squared_norm(p).backward()
    p.scale_gradient(0.5)
    np.testing.assert_array_equal(p.grad_as_array(), p.as_array())
    p.zero()
    assert not p.as_array().any()
    for wrong in ([1, 2], np.ones((3, 2)), 3):
        with pytest.raises(ShapeError, match=r"set_value: needs an array of shape \(2, 3\), got \("):
            p.set_value(wrong)
    with pytest.raises(TypeError, match="set_value: needs numbers, got list"):
        p.set_value([["a", "b", "c"], ["d", "e", "f"]])
    assert not p.as_array().any()


def test_rows(model: dy.ParameterCollection) -> None:
    table = model.lookup_parameters_from_numpy(np.arange(24.0).reshape(4, 2, 3))
    np.testing.assert_array_equal(table.as_array(), np.arange(24).reshape(4, 2, 3))
    np.testing.assert_array_equal(table[2].npvalue(), np.arange(12, 18).reshape(2, 3))
    np.testing.assert_array_equal(table.npvalue(), np.moveaxis(np.arange(24).reshape(4, 2, 3), 0, -1))
    np.testing.assert_array_equal(table.row_as_array(1), [[6, 7, 8], [9, 10, 11]])
    assert table.rows_as_array([3, 0]).shape == (2, 2, 3)
    assert [row.npvalue()[0, 0] for row in table] == [0, 6, 12, 18]
    table.init_row(0, np.ones((2, 3)))
    table.init_row(1, [1, 2, 3, 4, 5, 6])
    np.testing.assert_array_equal(table.row_as_array(1), [[1, 3, 5], [2, 4, 6]])
    table.init_from_array(np.zeros((2, 2, 3)))
    assert not table.rows_as_array([0, 1]).any()
    assert table.row_as_array(2).any()
    dy.sum_elems(table[2] * 2).backward()
    assert table.row_grad_as_array(2).tolist() == [[2] * 3] * 2
    assert not table.rows_grad_as_array([0, 1, 3]).any()
    assert not table.grad_as_array()[[0, 1, 3]].any()
    assert (table.marks() != 0).tolist() == [False, False, True, False]
    dy.sum_batches(dy.sum_elems(table.batch([1, 1]))).backward()
    assert table.row_grad_as_array(1).tolist() == [[2] * 3] * 2
    vector = model.lookup_parameters_from_numpy(np.arange(3.0))
    assert (vector.shape(), vector[2].value()) == ((3, 1), 2)


def test_row_errors(model: dy.ParameterCollection) -> None:
    table = model.add_lookup_parameters((3, 2), init=1, name="E")
    for use in (
        lambda: table.row_as_array(3), lambda: table.row_as_array(-1), lambda: table.rows_as_array([0, 3]),
        lambda: table.row_grad_as_array(3), lambda: table.rows_grad_as_array([3]), lambda: table.init_row(3, [1, 2]),
    ):  # fmt: skip
        with pytest.raises(IndexError, match=r"/E: needs a row from 0 to 2, got (3|-1)"):
            use()
    for wrong in ([1], [1, 2, 3], [[1], [2]]):
        with pytest.raises(ShapeError, match=r"init_row: needs a row of shape \(2,\), got \("):
            table.init_row(0, wrong)
    for wrong in (np.ones((4, 2)), np.ones((2, 3)), np.ones(2), 1.0):
        with pytest.raises(ShapeError, match=r"init_from_array: needs up to 3 rows of shape \(2,\), got \("):
            table.init_from_array(wrong)
    with pytest.raises(IndexError, match="lookup: needs indices from 0 to 2, got 3"):
        table[3]
    with pytest.raises(ValueError, match="lookup_batch: needs one index or more, got none"):
        table.batch([])
    with pytest.raises(TypeError, match="scalar_value: a lookup table is no scalar"):
        table.scalar_value()
    assert (table.as_array() == 1).all()


def test_frozen(model: dy.ParameterCollection) -> None:
    p, table = model.add_parameters(2), model.add_lookup_parameters((2, 2))
    assert p.is_updated()
    p.set_updated(False)
    table.set_updated(False)
    assert not p.is_updated()
    assert not table.is_updated()
    p.set_updated(True)
    assert p.is_updated()


def test_expressions_of_parameters(model: dy.ParameterCollection) -> None:
    p = model.add_parameters((2,), init=3)
    assert (p + 1).value() == [4, 4]
    assert p.value() == p.vec_value() == [3, 3]
    assert p.dim() == ((2,), 1)
    assert len(p) == 2
    assert isinstance(p, dy.Expression)
    constant, itself = p.expr(), p.expr(update=True)
    dy.sum_elems(constant).backward()
    assert not p.grad_as_array().any()
    dy.sum_elems(itself).backward()
    assert p.grad_as_array().tolist() == [1, 1]
    assert dy.parameter(p) is p
    assert dy.parameter(p, p) == [p, p]
    dy.renew_cg()
    assert p.value() == [3, 3]  # joins the new graph


def test_memory_of_dropped_parameters_is_used_again() -> None:
    def make() -> int:
        collection = dy.ParameterCollection()
        table = collection.add_lookup_parameters((10, 7), init=1)
        dy.sum_elems(table[3]).backward()
        assert table.as_array().min() == 1
        assert (table.grad_as_array().sum(), table.marks().sum()) == (7, 1)
        dy.renew_cg()
        return table.start

    starts = set()
    for _ in range(20):
        starts.add(make())
        gc.collect()
    assert len(starts) == 1


def test_used_memory_is_zero_whatever_was_brought_back_there() -> None:
    first = dy.ParameterCollection().add_parameters(3)
    start, end = first.start, first.start + 3
    del first
    gc.collect()
    space.single.g[start:end] = [1, 2, 3]  # as a GPU does whose copy of the gradients is older
    second = dy.ParameterCollection().add_parameters(3)
    assert second.start == start
    assert second.grad_as_array().tolist() == [0, 0, 0]


# ---- initialisers ----------------------------------------------------------------------------------------------------


def values_of(init: Any, dim: Any = (40, 50), **options: float) -> np.ndarray:
    return dy.ParameterCollection().add_parameters(dim, init=init, **options).as_array()


@pytest.mark.parametrize(
    ("init", "low", "high", "deviation"),
    [
        (None, -np.sqrt(6 / 90), np.sqrt(6 / 90), np.sqrt(2 / 90)),
        ("glorot", -np.sqrt(6 / 90), np.sqrt(6 / 90), np.sqrt(2 / 90)),
        (dy.GlorotInitializer(gain=2.0), -2 * np.sqrt(6 / 90), 2 * np.sqrt(6 / 90), 2 * np.sqrt(2 / 90)),
        (dy.UniformInitializer(0.5), -0.5, 0.5, 0.5 / np.sqrt(3)),
        ("uniform", -1, 1, 1 / np.sqrt(3)),
        (dy.NormalInitializer(0, 4), -12, 12, 2),
        ("normal", -6, 6, 1),
        ("he", -6 * np.sqrt(2 / 50), 6 * np.sqrt(2 / 50), np.sqrt(2 / 50)),
    ],
    ids=str,
)
def test_random_initialisers(init: Any, low: float, high: float, deviation: float) -> None:
    values = values_of(init)
    assert low <= values.min() < values.max() <= high
    assert values.std() == pytest.approx(deviation, rel=0.08)
    assert abs(values.mean()) < 5 * deviation / np.sqrt(values.size)


def test_other_initialisers(tmp_path: Path) -> None:
    assert (values_of(1.5) == 1.5).all()
    assert (values_of(dy.ConstInitializer(2)) == 2).all()
    assert (values_of(np.int32(3)) == 3).all()
    np.testing.assert_array_equal(values_of("identity", (3, 3)), np.eye(3))
    np.testing.assert_array_equal(values_of(dy.IdentityInitializer(), (3, 3)), np.eye(3))
    for init in ("saxe", dy.SaxeInitializer()):
        q = values_of(init, (20, 20))
        np.testing.assert_allclose(q @ q.T, np.eye(20), atol=1e-5)
    q = values_of(dy.SaxeInitializer(3), (5, 5))
    np.testing.assert_allclose(q @ q.T, 9 * np.eye(5), atol=1e-5)
    array = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(values_of(array), array)
    np.testing.assert_array_equal(values_of(dy.NumpyInitializer(array), (2, 3)), array)
    np.testing.assert_array_equal(dy.ParameterCollection().parameters_from_numpy(array).as_array(), array)
    (tmp_path / "numbers").write_text("1 2 3\n4 5")
    for name in (str(tmp_path / "numbers"), os.fsencode(tmp_path / "numbers")):
        np.testing.assert_array_equal(values_of(dy.FromFileInitializer(name), (2, 3)), [[1, 3, 5], [2, 4, 0]])
    assert values_of("uniform", scale=0.01).max() <= 0.01
    assert values_of("normal", mean=5.0, std=0.1).mean() == pytest.approx(5, abs=0.05)


def test_glorot_counts_as_dynet_does() -> None:
    def bound(dims: Any, init: Any = None, table: bool = False) -> float:
        m = dy.ParameterCollection()
        made = m.add_lookup_parameters(dims, init=init) if table else m.add_parameters(dims, init=init)
        return float(np.abs(made.as_array()).max())

    assert bound(10_000) == pytest.approx(np.sqrt(3 / 10_000), rel=0.01)
    assert bound((10, 20, 30)) == pytest.approx(np.sqrt(9 / 60), rel=0.01)
    assert bound((5, 5, 20, 30)) == pytest.approx(np.sqrt(6 / (50 * 25)), rel=0.01)
    assert bound((500, 20), table=True) == pytest.approx(np.sqrt(6 / 520), rel=0.01)
    assert bound((500, 20), dy.GlorotInitializer(is_lookup=True), table=True) == pytest.approx(
        np.sqrt(3 / 20), rel=0.01
    )


def test_a_seed_gives_the_same_values() -> None:
    found = []
    for seed in (5, 5, 6):
        initializers.reset_random_seed(seed)
        found.append(values_of(None))
    assert (found[0] == found[1]).all()
    assert (found[0] != found[2]).any()


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: dy.UniformInitializer(0), ValueError, "UniformInitializer: needs a scale above 0, got 0"),
        (lambda: dy.UniformInitializer(float("nan")), ValueError, "UniformInitializer: needs a scale above 0, got nan"),
        (lambda: dy.NormalInitializer(0, -1), ValueError, "NormalInitializer: needs a variance of 0 or more, got -1"),
        (lambda: values_of("nonsense"), ValueError, "needs an initialiser, a number, an array or one of .*, got 'nonsense'"),
        (lambda: values_of([1, 2]), ValueError, "needs an initialiser, a number, an array or one of"),
        (lambda: values_of("identity", (2, 3)), RuntimeError, r"IdentityInitializer: needs a square matrix, got \(2, 3\)"),
        (lambda: values_of("saxe", (2, 3)), RuntimeError, r"SaxeInitializer: needs a square matrix, got \(2, 3\)"),
        (lambda: values_of(dy.NumpyInitializer(np.ones(3)), 2), ShapeError,
         r"NumpyInitializer: needs an array of shape \(2,\), got \(3,\)"),
        (lambda: values_of(dy.FromFileInitializer("/nowhere/x"), 2), FileNotFoundError, "/nowhere/x"),
        (lambda: values_of(dy.PyInitializer(), 2), TypeError, "PyInitializer: needs one of its subclasses"),
    ],
)  # fmt: skip
def test_initialiser_errors(make: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make()


def test_errors_leave_the_collection_as_it_was(model: dy.ParameterCollection) -> None:
    top = parameters.space.parameter_top
    for init in ("nonsense", dy.IdentityInitializer(), dy.NumpyInitializer(np.ones(9))):
        with pytest.raises((ValueError, RuntimeError)):
            model.add_parameters((2, 3), init=init)
    assert model.parameter_count() == 0
    assert parameters.space.parameter_top == top
    assert model.add_parameters((2, 3)).name() == "/_0"


# ---- weight decay ----------------------------------------------------------------------------------------------------


def test_weight_decay(model: dy.ParameterCollection) -> None:
    p, table = model.add_parameters(2, init=1), model.add_lookup_parameters((2, 2), init=1)
    sub = model.add_subcollection()
    assert model.get_weight_decay() == 0
    model.set_weight_decay(0.5)
    assert sub.get_weight_decay() == 0.5
    dy.SimpleSGDTrainer(model).update()
    assert p.as_array().tolist() == [0.5, 0.5]
    assert table.as_array().tolist() == [[0.5] * 2] * 2
    model.set_weight_decay_lambda(0)
    for wrong in (-0.1, 1, float("nan")):
        with pytest.raises(ValueError, match="set_weight_decay: needs a number from 0 to below 1, got"):
            model.set_weight_decay(wrong)
    assert model.get_weight_decay() == 0


# ---- files -----------------------------------------------------------------------------------------------------------


def filled(seed: int = 0) -> dy.ParameterCollection:
    """A collection with parameters of all kinds."""
    initializers.reset_random_seed(seed + 1)
    m = dy.ParameterCollection()
    m.add_parameters((2, 3), name="W")
    m.add_lookup_parameters((4, 2), name="E")
    m.add_subcollection("sub").add_parameters(3)
    return m


def contents(m: dy.ParameterCollection) -> list[list[float]]:
    return [stored.values().tolist() + stored.gradients().tolist() for stored in m.stored]


def test_save_and_populate(tmp_path: Path) -> None:
    first, second = filled(1), filled(2)
    dy.squared_norm(first.parameters_list()[0]).backward()
    assert contents(first) != contents(second)
    first.save(str(tmp_path / "m"))
    text = (tmp_path / "m").read_text()
    assert [line.split()[1] for line in text.splitlines() if line.startswith("#")] == ["/W", "/sub/_0", "/E"]
    second.populate(str(tmp_path / "m"))
    assert contents(first) == contents(second)
    first.save(str(tmp_path / "m"), name="/other", append=True)
    third = filled(3)
    with pytest.raises(ModelFileError, match="Too many parameters to load in populated model at /other/W"):
        third.populate(str(tmp_path / "m"))
    third.populate(str(tmp_path / "m"), "/other")
    assert contents(third) == contents(first)
    third.parameters_list()[0].populate(str(tmp_path / "m"), "/other/W")
    one = dy.ParameterCollection()
    loaded, table = one.load_param(str(tmp_path / "m"), "/sub/_0"), one.load_lookup_param(str(tmp_path / "m"), "/E")
    assert (loaded.name(), loaded.shape(), table.shape()) == ("/sub/_0", (3,), (4, 2))
    np.testing.assert_array_equal(table.as_array(), first.lookup_parameters_list()[0].as_array())
    loaded.write_to_textfile(str(tmp_path / "one"), "key")
    loaded.zero()
    loaded.populate_from_textfile(str(tmp_path / "one"), "key")
    assert loaded.as_array().all()


def test_files_that_do_not_fit_change_nothing(tmp_path: Path) -> None:
    path, m = str(tmp_path / "m"), filled(1)
    before = contents(m)
    other = dy.ParameterCollection()
    other.add_parameters((2, 3), init=7)
    other.save(path)
    other.add_lookup_parameters((4, 2), init=7, name="E")
    other.add_parameters(4, init=7)
    cases: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (
            lambda: m.populate(path),
            ModelFileError,
            r"loaded from file \(1/0\) did not match number to be populated \(2/1\)",
        ),
        (lambda: m.populate(path, "/nothing"), ModelFileError, "Could not find key /nothing in the model file"),
        (lambda: m.populate("/nowhere/m"), ModelFileError, "Could not read model from /nowhere/m: No such file"),
        (lambda: m.parameters_list()[0].populate(path, ""), ValueError, "needs the name of a block in the file"),
        (
            lambda: m.parameters_list()[0].populate(path, "/x"),
            ModelFileError,
            "Could not find key /x in the model file",
        ),
        (lambda: m.load_param(path, "/x"), ModelFileError, "Could not find key /x"),
        (lambda: m.load_lookup_param(path, "/_0"), ModelFileError, "/_0 is a Parameter, not a LookupParameter"),
        (lambda: m.save(path, name="x"), ValueError, "save: needs a name that starts with / and is longer, got 'x'"),
        (lambda: m.save(path, name="/"), ValueError, "save: needs a name that starts with / and is longer, got '/'"),
        (lambda: m.save("/nowhere/m"), FileNotFoundError, "/nowhere/m"),
    ]
    saved = Path(path).read_bytes()
    for call, error, text in cases:
        with pytest.raises(error, match=text):
            call()
        assert contents(m) == before
        assert len(m.stored) == 3
    assert Path(path).read_bytes() == saved
    other.save(path)
    with pytest.raises(
        ModelFileError, match=r"Dimensions of /_1 in the file, \(4,\), do not match those of /sub/_0, \(3,\)"
    ):
        m.populate(path)
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelFileError):
        m.populate(path)
    assert contents(m) == before


# ---- pickles and copies ----------------------------------------------------------------------------------------------

WAYS = [copy.copy, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))]


@pytest.mark.parametrize("way", WAYS, ids=["copy", "deepcopy", "pickle"])
def test_parameters_are_copied(model: dy.ParameterCollection, way: Callable[[Any], Any]) -> None:
    p, table = model.add_parameters((2, 3), name="W"), model.add_lookup_parameters((4, 2))
    p.set_updated(False)
    for original in (p, table):
        twin = way(original)
        assert (type(twin), twin.name(), twin.shape()) == (type(original), original.name(), original.shape())
        assert twin.is_updated() == original.is_updated()
        np.testing.assert_array_equal(twin.as_array(), original.as_array())
        twin.zero()
        assert original.as_array().any()
        dy.squared_norm(twin).backward()
        assert not original.grad_as_array().any()
    assert model.stored == [p, table]


@pytest.mark.parametrize("way", WAYS[1:], ids=["deepcopy", "pickle"])
def test_collections_are_copied_whole(way: Callable[[Any], Any]) -> None:
    m = filled(1)
    m.set_weight_decay(0.25)
    bag = {"collection": m, "W": m.parameters_list()[0], "E": m.lookup_parameters_list()[0]}
    twin = way(bag)
    other = twin["collection"]
    assert contents(other) == contents(m)
    assert [p.name() for p in other.stored] == [p.name() for p in m.stored]
    assert twin["W"] is other.parameters_list()[0]
    assert twin["E"] is other.lookup_parameters_list()[0]
    assert other.get_weight_decay() == 0.25
    assert other.add_parameters(2, name="W").name() == "/W_1"
    trainer = dy.SimpleSGDTrainer(other)
    before = contents(m)
    (dy.squared_norm(twin["W"]) + dy.squared_norm(twin["E"][1])).backward()
    trainer.update()
    assert contents(m) == before
    assert contents(other)[0] != before[0]
