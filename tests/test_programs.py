"""DyNet's public idioms: programs of examples/ learn, and follow DyNet's losses from equal parameters."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import programs
import pytest

import dynjit as dy
from dynjit.ops import recurrent

# every tenth loss of 50 updates and the answers after them, by `python tests/programs.py --dynet` with DyNet 2.1
EXPECTED: dict[str, tuple[list[float], list[float]]] = {
    "attention": (
        [53.44925, 44.91846, 38.53918, 40.42736, 40.22063],
        [6.0, 6.0, 1.0, -6.31135, 4.0, 4.0, 4.0, 4.0, 4.0, -6.73999, 6.0, 6.0, 6.0, 6.0, -5.12352],
    ),
    "stackparser": (
        [23.9566, 20.55284, 20.63671, 18.22705, 29.63822],
        [-1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0, 16.0, 17.0, 18.0, 19.0, 20.0, 21.0, 22.0, 23.0, 24.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0],
    ),
    "crf": (
        [15.10686, 12.12376, 10.21115, 10.99661, 5.587618],
        [2.0, 2.0, 2.0, 2.0, 0.0, 1.0, 1.0, 2.0, 2.0, 2.0, 0.0, 1.0, 1.0, 2.0, 44.76631],
    ),
    "rnnlm": (
        [18.66953, 11.14776, 18.1174, 15.4476, 15.91813],
        [0.31122, -0.8497, -0.05042, 0.02722, 0.06509, 0.10059, 0.08931, 0.04043, 0.06636, -0.01541, -0.15841, 0.01006, -0.04298, -0.23309, -0.06268, -0.15685, 0.02953, 0.09617, 0.00849, -0.13159],
    ),
    "textcnn": (
        [8.892894, 5.8563, 3.190343, 1.938998, 1.682527],
        [1.0, 0.0, 0.0, 0.0, 2.0, 0.0, 1.0, 0.0, 2.0, 2.0, 1.0, 1.0],
    ),
    "textcnn --narrow": (
        [9.131231, 8.23435, 8.267687, 6.640638, 6.69843],
        [2.0, 0.0, 1.0, 0.0, 0.0, 2.0, 2.0, 2.0, 1.0, 0.0, 2.0, 1.0],
    ),
}  # fmt: skip


@pytest.mark.parametrize("autobatch", [1, 0])
@pytest.mark.parametrize("name", EXPECTED)
def test_losses_and_answers_are_those_of_dynet(name: str, autobatch: int) -> None:
    dy.graph.set_autobatch(autobatch)
    program = programs.PROGRAMS[name]()
    losses, answer = EXPECTED[name]
    np.testing.assert_allclose(list(programs.losses(program))[9::10], losses, rtol=1e-4)
    np.testing.assert_allclose(program.answer(), answer, rtol=1e-4, atol=1e-4)


def test_every_program_is_compared() -> None:
    assert list(EXPECTED) == list(programs.PROGRAMS)


LEARNS = {
    "attention": ["--train", 600, "--epochs", 10],
    "stackparser": ["--train", 60, "--epochs", 4],
    "crf": ["--train", 100, "--epochs", 6],
    "textcnn": ["--train", 300, "--epochs", 15],
    "textcnn --narrow": ["--train", 300, "--epochs", 25],
}


@pytest.mark.parametrize("name", LEARNS)
def test_learns_and_comes_back_from_its_file(name: str, tmp_path, capsys) -> None:
    module, *switches = name.split()
    run: Callable = programs.example(module).main
    arguments = [*switches, *map(str, LEARNS[name])]
    accuracy = run([*arguments, "--save", str(tmp_path / "model")])
    assert accuracy > 0.8
    assert run([*arguments, "--load", str(tmp_path / "model"), "--epochs", "0"]) == accuracy
    assert f"accuracy {accuracy:.1%}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["attention", "stackparser", "crf", "textcnn"])
def test_options_are_explained(name: str, capsys) -> None:
    with pytest.raises(SystemExit, match="0"):
        programs.example(name).main(["--help"])
    text = capsys.readouterr().out
    for option in ["--epochs", "--batch", "--seed", "--load", "--save", "--dynet"]:
        assert option in text


# ---- a column is a vector: attention's weights and contexts are (n, 1) in programs of DyNet ---------------------------

x, b, W, M = ([1.0, 2, 3, 4], [0.1, 0.2, 0.3], np.arange(12.0).reshape(3, 4) / 10, np.arange(20.0).reshape(4, 5) / 10)


def column() -> dy.Expression:
    return dy.reshape(dy.inputVector(x), (4, 1))


DIMS: dict[str, tuple[Callable[[], dy.Expression], tuple[int, ...]]] = {  # the dims are DyNet's
    "affine_transform, x": (lambda: dy.affine_transform([dy.inputVector(b), dy.inputTensor(W), column()]), (3,)),
    "affine_transform, b": (
        lambda: dy.affine_transform([dy.inputTensor(np.c_[b]), dy.inputTensor(W), dy.inputVector(x)]), (3,)),
    "affine_transform, both": (
        lambda: dy.affine_transform([dy.inputVector(b), *[dy.inputTensor(W), column(), dy.inputTensor(W), dy.inputVector(x)]]), (3,)),
    "product": (lambda: dy.inputTensor(W) * column(), (3, 1)),
    "concatenate, column first": (lambda: dy.concatenate([column(), dy.inputVector(x)]), (8, 1)),
    "concatenate, column last": (lambda: dy.concatenate([dy.inputVector(x), column()]), (8,)),
    "concatenate_cols": (lambda: dy.concatenate_cols([dy.inputVector(x), column()]), (4, 2)),
    "concatenate axis 1": (
        lambda: dy.concatenate([dy.inputVector(x), dy.reshape(column(), (4, 1, 1))], 1), (4, 2)),
    "contract3d_1d": (lambda: dy.contract3d_1d(dy.inputTensor(np.ones((2, 3, 4))), column()), (2, 3)),
}  # fmt: skip


@pytest.mark.parametrize(("make", "dims"), DIMS.values(), ids=DIMS)
def test_dims_with_a_column(make, dims) -> None:
    result = make()
    assert result.dim() == (dims, 1)
    assert np.isfinite(result.npvalue()).all()


BUILDERS = ["LSTMBuilder", "SimpleRNNBuilder", "GRUBuilder", "CoupledLSTMBuilder", "FastLSTMBuilder",
            "CompactVanillaLSTMBuilder", "SparseLSTMBuilder"]  # fmt: skip


@pytest.mark.parametrize("name", BUILDERS)
def test_builders_take_columns(name: str, model: dy.ParameterCollection) -> None:
    builder = getattr(dy, name)(2, 4, 3, model)
    for make in (column, lambda: dy.inputVector(x)):
        dy.renew_cg()
        outputs = builder.initial_state().transduce([make(), make()])
        assert [output.dim() for output in outputs] == [((3,), 1), ((3,), 1)]
        if make is column:
            expected = outputs[-1].value()
    assert outputs[-1].value() == expected


def test_a_decoder_starts_from_columns(model: dy.ParameterCollection) -> None:
    builder = dy.LSTMBuilder(1, 4, 4, model)
    flat = builder.initial_state([dy.inputVector(x), dy.inputVector(x)]).add_input(dy.inputVector(x)).output().value()
    for vectors in ([column(), dy.inputVector(x)], [dy.inputVector(x), column()], [column(), column()]):
        assert builder.initial_state(vectors).add_input(dy.inputVector(x)).output().value() == flat
    with pytest.raises(ValueError, match=r"lstm_c: needs gates \(4h,\) and a state \(h,\)"):
        recurrent.lstm_c(dy.inputVector(x), dy.inputTensor(M))


@pytest.mark.parametrize("dims", [(4, 1), (1, 1), (2, 1, 1), (1, 4)])
@pytest.mark.parametrize("batch", [1, 2])
def test_values_of_columns_are_arrays(dims: tuple[int, ...], batch: int) -> None:
    e = dy.reshape(dy.inputVector(np.arange(float(np.prod(dims)) * batch)), dims, batch)
    for value in (e.value(), e.value(recalculate=True), e.npvalue()):
        assert isinstance(value, np.ndarray)
        assert value.shape == (*dims, *([batch] if batch > 1 else []))


# ---- labels out of NumPy -----------------------------------------------------------------------------------------------

ONES = [1.0, np.float64(1), np.float32(1), np.array(1), np.array([1]), np.array([1.0]), np.bool_(True), np.uint8(1)]
BAD = [1.7, np.nan, np.inf, "1", None, np.array([1, 2]), np.float32(0.5)]
CALLS: dict[str, Callable] = {
    "table[i]": lambda table, e, i: table[i], "lookup": lambda table, e, i: dy.lookup(table, i),
    "lookup_batch": lambda table, e, i: dy.lookup_batch(table, [i, 2]), "pick": lambda table, e, i: dy.pick(e, i),
    "pickneglogsoftmax": lambda table, e, i: dy.pickneglogsoftmax(e, i),
    "pickneglogsoftmax_batch": lambda table, e, i: dy.pickneglogsoftmax_batch(dy.concatenate_to_batch([e, e]), [2, i]),
    "hinge": lambda table, e, i: dy.hinge(e, i),
}  # fmt: skip


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_indices_as_numpy_gives_them(call: Callable, model: dy.ParameterCollection) -> None:
    table, e = model.add_lookup_parameters((5, 4)), dy.inputVector(x)
    expected = call(table, e, 1).value()
    for one in ONES:
        assert call(table, e, one).value() == expected, repr(one)
    for bad in BAD:
        with pytest.raises(TypeError, match="needs an int, got"):
            call(table, e, bad)
