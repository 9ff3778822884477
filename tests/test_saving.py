"""save and load: all kinds of objects come back; hostile, broken and missing files are refused and change nothing."""

from __future__ import annotations

import os
import pickle
import pickletools
import random
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
    module = b"c_dynet\nVanillaLSTMBuilder\n"
    assert module in text
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


# ---- both ways with DyNet --------------------------------------------------------------------------------------------

DYNET_META = {  # as DyNet 2.1 writes them, by its class
    "BiRNNBuilder": b"\x80\x04\x95J\x00\x00\x00\x00\x00\x00\x00\x8c\x06_dynet\x94\x8c\x0cBiRNNBuilder\x94\x93\x94(K\x01K\x03K\x04h\x00\x8c\x12VanillaLSTMBuilder\x94\x93\x94Nt\x94\x8c\x07/birnn/\x94\x87\x94.",
    "GRUBuilder": b"\x80\x04\x953\x00\x00\x00\x00\x00\x00\x00\x8c\x06_dynet\x94\x8c\nGRUBuilder\x94\x93\x94K\x02K\x03K\x04\x87\x94\x8c\r/gru-builder/\x94\x87\x94.",
}  # fmt: skip
NAMED = {  # kind -> what its file names
    dy.SimpleRNNBuilder: "_dynet SimpleRNNBuilder", dy.GRUBuilder: "_dynet GRUBuilder",
    dy.VanillaLSTMBuilder: "_dynet VanillaLSTMBuilder", dy.CoupledLSTMBuilder: "_dynet CoupledLSTMBuilder",
    dy.CompactVanillaLSTMBuilder: "_dynet CompactVanillaLSTMBuilder", dy.SparseLSTMBuilder: "_dynet SparseLSTMBuilder",
    dy.FastLSTMBuilder: "dynjit.rnn FastLSTMBuilder",  # DyNet cannot save it, nor load it
}  # fmt: skip


@pytest.mark.parametrize("kind", NAMED, ids=lambda kind: kind.__name__)
def test_dynet_finds_the_classes(tmp_path: Path, model: dy.ParameterCollection, kind: Any) -> None:
    dy.save(str(tmp_path / "m"), [kind(1, 3, 4, model)])
    operations = pickletools.genops((tmp_path / "m.meta").read_bytes())
    found = [(operation.name, argument) for operation, argument, _ in operations]
    module, name = NAMED[kind].split()
    assert ("GLOBAL", NAMED[kind]) in found or {("SHORT_BINUNICODE", module), ("SHORT_BINUNICODE", name)} <= {*found}
    (loaded,) = dy.load(str(tmp_path / "m"), dy.ParameterCollection())
    assert type(loaded) is kind


def test_birnns_name_their_networks_as_dynet_does(tmp_path: Path, model: dy.ParameterCollection) -> None:
    dy.save(str(tmp_path / "m"), [dy.BiRNNBuilder(1, 3, 4, model, dy.VanillaLSTMBuilder)])
    names = [arg for op, arg, _ in pickletools.genops((tmp_path / "m.meta").read_bytes()) if op.name == "GLOBAL"]
    assert names == ["_dynet BiRNNBuilder", "_dynet VanillaLSTMBuilder"]


@pytest.mark.parametrize("name", DYNET_META)
def test_meta_files_of_dynet(tmp_path: Path, model: dy.ParameterCollection, name: str) -> None:
    builder = dy.GRUBuilder(2, 3, 4, model) if name == "GRUBuilder" else dy.BiRNNBuilder(1, 3, 4, model, dy.LSTMBuilder)
    dy.save(str(tmp_path / "m"), [builder])
    (tmp_path / "m.meta").write_bytes(DYNET_META[name])
    expected = outputs(builder)
    (loaded,) = dy.load(str(tmp_path / "m"), dy.ParameterCollection())
    assert type(loaded).__name__ == name
    np.testing.assert_array_equal(outputs(loaded), expected)


# ---- damage ----------------------------------------------------------------------------------------------------------


def test_damaged_meta_files_never_do_more_than_fail(tmp_path: Path, model: dy.ParameterCollection) -> None:
    base, rng = str(tmp_path / "m"), random.Random(1)
    p, table = model.add_parameters((2, 3), name="W"), model.add_lookup_parameters((4, 2), name="E")
    dy.save(base, [p, table, dy.GRUBuilder(1, 2, 2, model), dy.BiRNNBuilder(1, 2, 2, model, dy.LSTMBuilder)])
    whole, target = Path(base + ".meta").read_bytes(), dy.ParameterCollection()
    kept = target.add_parameters(2, init=1.0)
    failed = 0
    for _ in range(1500):
        text = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            start = rng.randrange(len(text))
            kind = rng.randrange(4)
            if kind == 0:
                text[start] ^= 1 << rng.randrange(8)
            elif kind == 1:
                del text[start:]
                text += b"."
            elif kind == 2:
                text[start:start] = rng.randbytes(3)
            else:
                text[start : start + 2] = rng.choice(
                    (b"r\xff\xff\xff\x7f", b"\x8e" + b"\xff" * 7 + b"\x0f", b"J\xff\xff\xff\x7f", b"\0")
                )
        Path(base + ".meta").write_bytes(text)
        before = target.contents()
        try:
            dy.load(base, target)
        except ModelFileError as error:
            assert base in str(error)
            failed += 1
        target.restore(before)
        assert target.stored == [kept]
    assert failed > 750
    assert kept.as_array().tolist() == [1, 1]


NASTY: list[tuple[str, bytes, str]] = [
    ("memo", b"\x80\x04N" + b"r\xff\xff\xff\xff" + b".", "not a list of saved objects"),
    ("long string", b"\x80\x04\x8d" + (1 << 40).to_bytes(8, "little") + b"x", "not a list of saved objects"),
    ("deep", b"\x80\x04" + b"(" * 100_000 + b"t" * 100_000 + b".", "not a list of saved objects"),
    ("call", b"(c_dynet\nGRUBuilder\nI1\nI2\nI3\no.", "not a list of saved objects"),
    ("instance", b"c_dynet\nGRUBuilder\n)\x81.", "not a list of saved objects"),
    ("huge builder", pickle.dumps((dy.GRUBuilder, (1, 40_000, 40_000), "/gru-builder/")), "GRUBuilder can be made of .* there is room for"),
    ("layers", pickle.dumps((dy.GRUBuilder, (10**9, 2, 2), "/gru-builder/")), "GRUBuilder can be made of .* at most 1000 layers"),
    ("words", pickle.dumps((dy.GRUBuilder, ("x", 2, 2), "/gru-builder/")), "GRUBuilder can be made of .* needs a number, got str"),
    ("short", pickle.dumps((dy.GRUBuilder, (1,), "/gru-builder/")), "GRUBuilder can be made of"),
    ("factory", pickle.dumps((dy.BiRNNBuilder, (1, 2, 2, 3, None), "/birnn/")), "BiRNNBuilder can be made of"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "text"), [n[1:] for n in NASTY], ids=[n[0] for n in NASTY])
def test_nasty_meta_files(tmp_path: Path, model: dy.ParameterCollection, content: bytes, text: str) -> None:
    base, target = str(tmp_path / "m"), dy.ParameterCollection()
    dy.save(base, [model.add_parameters(2, name="W")])
    Path(base + ".meta").write_bytes(content)
    with pytest.raises(ModelFileError, match=text):
        dy.load(base, target)
    assert target.stored == []
    assert target.add_parameters((100, 100)).shape() == (100, 100)  # there is room again


def test_numbers_of_open_files_are_no_names(model: dy.ParameterCollection) -> None:
    for call in (
        lambda: model.load_param(0, "/W"),  # type: ignore[arg-type]
        lambda: model.populate(0),  # type: ignore[arg-type]
        lambda: dy.ClassFactoredSoftmaxBuilder(3, 0, {}, model),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError, match="expected str, bytes or os.PathLike object, not int"):
            call()
    os.fstat(0)  # still open
