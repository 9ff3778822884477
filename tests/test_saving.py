"""save and load: all kinds of objects come back; hostile, broken and missing files are refused and change nothing."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dynjit as dy
from dynjit.errors import ModelFileError


class Scorer:
    """An object of a user's own."""

    def __init__(self, size: int, model: dy.ParameterCollection) -> None:
        self.size, self.collection = size, model.add_subcollection("scorer")
        self.w = self.collection.add_parameters((1, size))

    @property
    def spec(self) -> tuple[int]:
        return (self.size,)

    def param_collection(self) -> dy.ParameterCollection:
        return self.collection

    @classmethod
    def from_spec(cls, spec: tuple[int], model: dy.ParameterCollection) -> Scorer:
        return cls(spec[0], model)


BUILDERS: list[Callable[[dy.ParameterCollection], Any]] = [
    lambda m: dy.VanillaLSTMBuilder(2, 3, 4, m), lambda m: dy.VanillaLSTMBuilder(1, 3, 4, m, forget_bias=0.5),
    lambda m: dy.GRUBuilder(1, 3, 4, m), lambda m: dy.SimpleRNNBuilder(1, 3, 4, m),
    lambda m: dy.CoupledLSTMBuilder(1, 3, 4, m), lambda m: dy.CompactVanillaLSTMBuilder(1, 3, 4, m),
    lambda m: dy.BiRNNBuilder(1, 3, 4, m, dy.VanillaLSTMBuilder),
]  # fmt: skip


def outputs(builder: Any) -> np.ndarray:
    xs = [dy.inputVector([0.1 * i, 0.2, -0.3]) for i in range(3)]
    states = builder if isinstance(builder, dy.BiRNNBuilder) else builder.initial_state()
    return np.array([h.npvalue() for h in states.transduce(xs)])


@pytest.mark.parametrize("make", BUILDERS)
def test_builders_come_back(tmp_path: Path, model: dy.ParameterCollection, make: Callable[..., Any]) -> None:
    builder = make(model)
    for p in builder.param_collection().parameters_list():
        p.set_value(np.random.default_rng(1).normal(size=p.shape()))
    expected = outputs(builder)
    dy.save(str(tmp_path / "m"), [builder])
    target = dy.ParameterCollection()
    (loaded,) = dy.load(str(tmp_path / "m"), target)
    assert type(loaded) is type(builder)
    np.testing.assert_array_equal(outputs(loaded), expected)
    assert target.parameter_count() == builder.param_collection().parameter_count()


def test_all_kinds_together(tmp_path: Path, model: dy.ParameterCollection) -> None:
    p, table = model.add_parameters((2, 3), name="W"), model.add_lookup_parameters((4, 2), name="E")
    scorer, lstm = Scorer(3, model), dy.VanillaLSTMBuilder(1, 3, 4, model)
    base = tmp_path / "m"
    dy.save(base, (o for o in (p, scorer, table, lstm, p)))
    assert sorted(os.listdir(tmp_path)) == ["m.data", "m.meta"]
    target = dy.ParameterCollection()
    loaded = dy.load(base, target, allowed=(Scorer,))
    assert [type(o).__name__ for o in loaded] == [
        "Parameters", "Scorer", "LookupParameters", "VanillaLSTMBuilder", "Parameters",
    ]  # fmt: skip
    for new, old in ((loaded[0], p), (loaded[2], table), (loaded[1].w, scorer.w), (loaded[4], p)):
        np.testing.assert_array_equal(new.as_array(), old.as_array())
    assert loaded[0].name() == "/W"
    one_by_one = dy.load_generator(str(base), dy.ParameterCollection(), (Scorer,))
    assert next(one_by_one).shape() == (2, 3)
    dy.save(str(base), p)  # one object
    assert len(dy.load(str(base), dy.ParameterCollection())) == 1
    dy.save(str(base), lstm)
    assert len(dy.load(str(base), dy.ParameterCollection())) == 1
    dy.save(str(base), [])
    assert dy.load(str(base), dy.ParameterCollection()) == []


def test_meta_is_that_of_dynet(tmp_path: Path, model: dy.ParameterCollection) -> None:
    dy.save(str(tmp_path / "m"), [model.add_parameters(2, name="W"), model.add_lookup_parameters((2, 2), name="E")])
    with open(tmp_path / "m.meta", "rb") as file:
        assert [pickle.load(file), pickle.load(file)] == [("Parameters", "/W"), ("LookupParameters", "/E")]
    # classes as DyNet names them
    lstm = dy.VanillaLSTMBuilder(1, 2, 1, model)
    dy.save(str(tmp_path / "m"), [lstm])
    text = (tmp_path / "m.meta").read_bytes()
    own = pickle.dumps(dy.VanillaLSTMBuilder)[11:-1]
    assert own in text
    module = b"c_dynet\nVanillaLSTMBuilder\n"
    (tmp_path / "m.meta").write_bytes(
        b"(" + module + b"(I1\nI2\nI1\nI00\nF1.0\ntV/vanilla-lstm-builder/\nt."
    )  # protocol 0
    (loaded,) = dy.load(str(tmp_path / "m"), dy.ParameterCollection())
    assert loaded.spec == lstm.spec
    np.testing.assert_array_equal(loaded.get_parameters()[0][0].as_array(), lstm.get_parameters()[0][0].as_array())


# ---- files that are refused ------------------------------------------------------------------------------------------


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


HOSTILE: list[tuple[str, Callable[[Path], bytes]]] = [
    (r"asks for (posix|nt)\.mkdir: only dynjit's builders are loaded", lambda p: pickle.dumps(Evil(p))),
    (r"asks for (posix|nt)\.mkdir", lambda p: pickle.dumps(("Parameters", Evil(p)))),
    ("asks for builtins.eval", lambda p: b"cbuiltins\neval\n(V__import__('os').mkdir('" + str(p).encode() + b"')\ntR."),
    ("asks for dynjit.rnn.RNNBuilder", lambda p: b"(cdynjit.rnn\nRNNBuilder\n(tV/x/\nt."),
    ("asks for dynjit.jit.os", lambda p: b"cdynjit.jit\nos\n."),
    ("asks for dynjit.ParameterCollection", lambda p: b"cdynjit\nParameterCollection\n."),
    ("not a list of saved objects", lambda p: b""[:0] + b"garbage"),
    ("not a list of saved objects", lambda p: pickle.dumps(("Parameters", "/W"))[:-3]),
    ("not a list of saved objects", lambda p: pickle.dumps(("Parameters", "/W")) + b"\x80"),
    ("not a list of saved objects", lambda p: pickle.dumps(("Parameters",))),
    ("not a list of saved objects", lambda p: pickle.dumps(("Parameters", 3))),
    ("not a list of saved objects", lambda p: pickle.dumps(("Nonsense", "/W"))),
    ("not a list of saved objects", lambda p: pickle.dumps("Parameters")),
    ("not a list of saved objects", lambda p: pickle.dumps((dy.GRUBuilder, 3, "/x/"))),
    ("not a list of saved objects", lambda p: pickle.dumps((dy.GRUBuilder, (1, 2, 3), None))),
    ("not a list of saved objects", lambda p: b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f"),
    ("0 blocks for 9 parameters of /gru-builder/", lambda p: pickle.dumps((dy.GRUBuilder, (1, 2, 3), "/gru-builder/"))),
    ("Could not find key /X in the model file", lambda p: pickle.dumps(("Parameters", "/X"))),
    ("/W is a Parameter, not a LookupParameter", lambda p: pickle.dumps(("LookupParameters", "/W"))),
]


@pytest.mark.parametrize(("text", "content"), HOSTILE, ids=[str(i) for i in range(len(HOSTILE))])
def test_hostile_meta_files(
    tmp_path: Path, model: dy.ParameterCollection, text: str, content: Callable[..., bytes]
) -> None:
    base, trap = str(tmp_path / "m"), tmp_path / "trap"
    dy.save(base, [model.add_parameters(2, name="W")])
    Path(base + ".meta").write_bytes(pickle.dumps(("Parameters", "/W")) + content(trap))
    target = dy.ParameterCollection()
    kept = target.add_parameters(3, name="mine")
    with pytest.raises(ModelFileError, match=text):
        dy.load(base, target)
    assert not trap.exists()
    assert target.stored == [kept]
    assert target.add_subcollection("gru-builder").name() == "/gru-builder/"


def test_classes_must_be_allowed(tmp_path: Path, model: dy.ParameterCollection) -> None:
    dy.save(str(tmp_path / "m"), Scorer(3, model))
    with pytest.raises(
        ModelFileError, match=r"asks for \S*\.Scorer: only dynjit's builders .* classes named in `allowed`"
    ):
        dy.load(str(tmp_path / "m"), dy.ParameterCollection())


def test_builders_that_fail_leave_no_parameters(tmp_path: Path, model: dy.ParameterCollection) -> None:
    base = str(tmp_path / "m")
    dy.save(base, [model.add_parameters(2), dy.GRUBuilder(1, 2, 3, model)])
    data = Path(base + ".data").read_text().split("#Parameter# ")
    Path(base + ".data").write_text("#Parameter# ".join(data[:-1]))
    target = dy.ParameterCollection()
    sub = target.add_subcollection("sub")
    with pytest.raises(ModelFileError, match="8 blocks for 9 parameters of /sub/gru-builder/"):
        dy.load(base, sub)
    assert target.stored == sub.stored == []
    assert dy.GRUBuilder(1, 2, 3, sub).param_collection().name() == "/sub/gru-builder/"
    Path(base + ".data").write_text("#Parameter# ".join(data).replace("{3,2}", "{2,3}"))
    with pytest.raises(ModelFileError, match="Dimensions of /gru-builder/_0 in the file"):
        dy.load(base, target)


@pytest.mark.parametrize("keep", [0, 1, 30, 60, 100, -1])
def test_truncated_data(tmp_path: Path, model: dy.ParameterCollection, keep: int) -> None:
    base = str(tmp_path / "m")
    dy.save(base, [model.add_parameters((2, 3), name="W")])
    data = Path(base + ".data").read_bytes()
    Path(base + ".data").write_bytes(data[:keep])
    target = dy.ParameterCollection()
    with pytest.raises(ModelFileError):
        dy.load(base, target)
    assert target.stored == []


def test_missing_files(tmp_path: Path, model: dy.ParameterCollection) -> None:
    base = str(tmp_path / "m")
    with pytest.raises(FileNotFoundError, match=r"m\.meta"):
        dy.load(base, model)
    dy.save(base, [model.add_parameters(2)])
    os.unlink(base + ".data")
    with pytest.raises(ModelFileError, match="Could not read model from .*m.data: No such file"):
        dy.load(base, model)
    with pytest.raises(FileNotFoundError):
        dy.save("/nowhere/m", [model.add_parameters(2)])


# ---- saves that fail leave the old files -----------------------------------------------------------------------------


def test_what_cannot_be_saved(tmp_path: Path, model: dy.ParameterCollection) -> None:
    base, p = str(tmp_path / "m"), model.add_parameters(2)
    dy.save(base, [p])
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}

    class Local(Scorer):
        pass

    for objects, error, text in [
        (
            [p, 3],
            TypeError,
            r"save: needs parameters, lookup tables or objects with param_collection\(\) and spec, got int",
        ),
        ([p, model], TypeError, "got ParameterCollection"),
        ([p, dy.inputVector([1])], TypeError, "got Expression"),
        ([p, Local(3, model)], (pickle.PicklingError, AttributeError), "Local"),
    ]:
        with pytest.raises(error, match=text):
            dy.save(base, objects)
        assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before


@pytest.mark.parametrize("protected", ["m.meta", "m.data"])
def test_both_files_or_none(
    tmp_path: Path, model: dy.ParameterCollection, monkeypatch: pytest.MonkeyPatch, protected: str
) -> None:
    base, p = str(tmp_path / "m"), model.add_parameters(2)
    dy.save(base, [p])
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    may = os.access  # (root may write to protected files)
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith(protected) and may(path, mode))
    p.set_value([5, 6])
    with pytest.raises(PermissionError):
        dy.save(base, [p, p])
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before
