"""Several graphs alive at once, nodes without gradients, nodes by number, and graphs as text."""

from __future__ import annotations

import functools
import gc
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import dynjit as dy
from dynjit import graph
from dynjit.errors import ShapeError, StaleExpressionError


def loss_of(p: dy.Parameters, *numbers: float) -> dy.Expression:
    return dy.dot_product(p, dy.inputVector(list(numbers)))


def test_an_inner_graph_leaves_the_outer_one_alone(model: dy.ParameterCollection) -> None:
    p = model.add_parameters(2, init=1.0)
    outer = loss_of(p, 1, 2)
    before = dy.cg()
    with dy.new_graph() as inner:
        assert dy.cg() is inner
        found = loss_of(p, 3, 4)
        assert found.value() == 7
        assert outer.value() == 3  # of a graph that is not current
        dy.renew_cg()
        again = loss_of(p, 5, 6)
    assert dy.cg() is before
    assert outer.value() == 3
    assert (outer * 2).value() == 6
    assert again.value() == 11
    again.backward()
    outer.backward()
    np.testing.assert_array_equal(p.grad_as_array(), [6, 8])
    np.testing.assert_array_equal(again.gradient(), [1])
    assert again.dim() == ((1,), 1)
    assert "dot_product" in repr(again)
    with pytest.raises(StaleExpressionError, match="Stale Expression"):
        found.value()


def test_a_graph_can_be_entered_again() -> None:
    first, second = dy.new_graph(), dy.new_graph()
    with first:
        x = dy.inputVector([1, 2])
        with second:
            y = dy.inputVector([3, 4])
        a = x + 1
    with second:
        b = y * 2
    with first:
        assert (a + x).value() == [3, 5]
    assert b.value() == [6, 8]
    x.set([5, 6])
    assert a.value() == [6, 7]


@pytest.mark.parametrize("call", [lambda x, y: x + y, lambda x, y: y + x, lambda x, y: dy.tanh(y), lambda x, y: y[0],
                                  lambda x, y: dy.esum([x, y]), lambda x, y: dy.concatenate([x, y])])  # fmt: skip
def test_operands_are_of_the_current_graph(call) -> None:
    x = dy.inputVector([1, 2])
    with dy.new_graph() as other:
        y = dy.inputVector([3, 4])
    with pytest.raises(RuntimeError, match="Expression of another graph than the current one"):
        call(x, y)
    assert other.version() != dy.cg_version()
    assert x.value() == [1, 2]


def test_expressions_of_a_dropped_graph_are_stale() -> None:
    with dy.new_graph():
        x = dy.inputVector([1, 2])
    gc.collect()
    with pytest.raises(StaleExpressionError, match="Stale Expression"):
        x.value()
    assert "stale" in repr(x)


def test_the_current_graph_comes_back_after_an_error() -> None:
    before = dy.cg()
    with pytest.raises(KeyError), dy.new_graph():
        raise KeyError
    assert dy.cg() is before
    assert dy.inputVector([1]).value() == 1


def test_a_hundred_graphs_one_after_another(model: dy.ParameterCollection) -> None:
    p = model.add_parameters(2, init=1.0)
    for i in range(100):
        with dy.new_graph(autobatching=i % 2 == 0):
            assert loss_of(p, i, 1).value() == i + 1


def test_too_many_graphs_at_once() -> None:
    kept = []
    with pytest.raises(MemoryError, match="too many graphs alive at once"):
        for _ in range(100):
            kept.append(dy.new_graph(autobatching=True))
    kept.clear()
    assert dy.inputVector([1, 2]).value() == [1, 2]


def test_builders_in_two_graphs(model: dy.ParameterCollection) -> None:
    builder = dy.LSTMBuilder(1, 2, 2, model)
    first = builder.initial_state().add_input(dy.inputVector([1, 2]))
    with dy.new_graph():
        second = builder.initial_state().add_input(dy.inputVector([1, 2]))
        found = second.output().value()
    assert first.output().value() == pytest.approx(found)
    first.add_input(dy.inputVector([1, 2]))


# ---- nodes without gradients -----------------------------------------------------------------------------------------


def test_no_grad(model: dy.ParameterCollection) -> None:
    p, q = model.add_parameters(2, init=1.0), model.add_parameters(2, init=2.0)
    outside = dy.tanh(p)
    with dy.no_grad():
        inside = dy.cmult(outside, q)
        inside.value()
    loss = dy.dot_product(inside, q)
    loss.backward(full=True)
    np.testing.assert_array_equal(p.grad_as_array(), [0, 0])
    np.testing.assert_allclose(q.grad_as_array(), inside.npvalue())
    np.testing.assert_array_equal(inside.gradient(), [0, 0])
    loss = dy.dot_product(outside, q)  # as always again
    loss.backward()
    assert (p.grad_as_array() != 0).all()


def test_backward_inside_no_grad(model: dy.ParameterCollection) -> None:
    p = model.add_parameters(2, init=1.0)
    before = dy.squared_norm(p)
    with dy.no_grad():
        inside = dy.squared_norm(p)
        with pytest.raises(RuntimeError, match=r"backward: .* got one made inside no_grad\(\)"):
            inside.backward()
        with dy.no_grad():
            pass
        before.backward()
        np.testing.assert_array_equal(p.grad_as_array(), [2, 2])
        dy.renew_cg()
        loss = dy.squared_norm(p)
    with pytest.raises(RuntimeError, match="no_grad"):
        loss.backward()
    dy.squared_norm(p).backward()
    np.testing.assert_array_equal(p.grad_as_array(), [4, 4])


def test_no_grad_for_rows_of_tables(model: dy.ParameterCollection) -> None:
    table = model.add_lookup_parameters((3, 2), init=1.0)
    with dy.no_grad():
        row = table[1]
    dy.dot_product(row, table[2]).backward()
    assert table.grad_as_array().tolist() == [[0, 0], [0, 0], [1, 1]]


# ---- nodes by number -------------------------------------------------------------------------------------------------


def test_nodes_by_number() -> None:
    x = dy.inputTensor(np.array([[1.0, 2], [3, 4]]))
    y = dy.sum_elems(x)
    g = dy.cg()
    assert g.inc_forward(1) is None
    assert g.forward(1) is None
    assert g.forward_scalar(1) == g.inc_forward_scalar(1) == 10
    assert g.forward_vec(0) == g.inc_forward_vec(0) == [1, 3, 2, 4]
    g.backward(1, True)
    np.testing.assert_array_equal(x.gradient(), np.ones((2, 2)))
    assert y.value() == 10
    np.testing.assert_array_equal(g.inputMatrixLiteral([1, 2, 3, 4], (2, 2)).npvalue(), [[1, 3], [2, 4]])
    sparse = g.inputSparseTensor([0, 5], [1.0, 2.0], (2, 3), 1, 0.5)
    np.testing.assert_array_equal(sparse.npvalue(), [[1, 0.5, 0.5], [0.5, 0.5, 2]])
    assert g.inputSparseTensor([3], [1.0], (2,), 2).dim() == ((2,), 2)


@pytest.mark.parametrize("name", ["forward", "inc_forward", "forward_scalar", "inc_forward_scalar", "forward_vec",
                                  "inc_forward_vec", "backward"])  # fmt: skip
@pytest.mark.parametrize("index", [-1, 1, 1 << 40])
def test_nodes_that_are_not_there(name: str, index: int) -> None:
    dy.inputVector([1, 2])
    with pytest.raises(IndexError, match=f"{name}: needs the number of a node, got {index}"):
        getattr(dy.cg(), name)(index)


def test_errors_of_nodes_by_number() -> None:
    dy.inputVector([1, 2])
    g = dy.cg()
    with pytest.raises(ValueError, match="forward_scalar: needs a node of one element, got one of 2"):
        g.forward_scalar(0)
    with pytest.raises(ValueError, match="inputSparseTensor: needs lists of one length, got 1 and 2"):
        g.inputSparseTensor([0], [1, 2], (3,))
    with pytest.raises(IndexError, match="inputSparseTensor: needs positions below 3, got 3"):
        g.inputSparseTensor([3], [1], (3,))
    with pytest.raises(ShapeError, match="inputTensorTranspose: needs 4 elements"):
        g.inputMatrixLiteral([1, 2, 3], (2, 2))
    assert g.header.node_count == 1


# ---- graphs as text --------------------------------------------------------------------------------------------------


def test_dot(model: dy.ParameterCollection, capsys) -> None:
    p = model.add_parameters((2, 2), name="W")
    table = model.add_lookup_parameters((3, 2))
    x = table[1]
    y = dy.tanh(p * x)
    dy.print_text_graphviz()
    plain = capsys.readouterr().out.splitlines()
    assert plain[0] == "digraph G {"
    assert plain[-1] == "}"
    assert '  N4 [label="v4 = tanh(v3) (2,)"];' in plain
    assert "  N3 -> N4;" in plain
    dy.cg().print_graphviz()
    assert capsys.readouterr().out.splitlines() == plain
    other = model.add_parameters(3)
    dy.print_graphviz(
        compact=True, show_dims=False, expression_names={p: 'my "W"', y: "out", other: "unused"},
        lookup_names={table: {1: "dog"}}, collapse_birnns=True,
    )  # fmt: skip
    named = capsys.readouterr().out
    assert "// collapse_birnns is not supported" in named
    assert '[label="my \\"W\\": parameter"]' in named
    assert '[label="out: tanh"]' in named
    assert "lookup [dog]" in named
    assert "unused" not in named


def test_dump(tmp_path, capsys) -> None:
    x = dy.inputTensor(np.arange(8.0).reshape(2, 2, 2), batched=True)
    y = dy.log(dy.sum_batches(x) - 1)
    y.forward()
    dy.dump_cg()
    text = capsys.readouterr().out
    assert text.startswith("Node 0 input (2, 2) x 2\nValue: \n[[[0. 1.]")
    assert "Gradient: (not computed)" in text
    dy.sum_elems(y).backward(full=True)
    dy.dump_cg(str(tmp_path / "all"))
    assert "Gradient: \n[[[" in (tmp_path / "all").read_text()
    dy.cg().dump(os.fsencode(tmp_path / "values"), True, False, False)
    assert "Gradient" not in (tmp_path / "values").read_text()
    dy.log(-x).forward()
    tmp_path.joinpath("old").write_text("old")
    dy.dump_cg(tmp_path / "old", nan_check_only=True)
    found = (tmp_path / "old").read_text()
    assert "Value: valid" in found
    assert "Value: invalid" in found
    with pytest.raises(FileNotFoundError):
        dy.dump_cg(tmp_path / "missing" / "file")


def test_dropped_nodes_are_left_out(capsys) -> None:
    dy.inputVector([1, 2])
    dy.cg_checkpoint()
    dy.scalarInput(3)
    dy.cg_revert()
    dy.print_text_graphviz()
    assert "N1" not in capsys.readouterr().out


# ---- threads ---------------------------------------------------------------------------------------------------------


def in_threads(functions: list[Callable[[], Any]]) -> list[Any]:
    """What functions return that run side by side, each in a thread of its own."""
    with ThreadPoolExecutor(len(functions)) as pool:
        return [future.result() for future in [pool.submit(function) for function in functions]]


def test_each_thread_has_a_graph_of_its_own(model: dy.ParameterCollection) -> None:
    w = model.parameters_from_numpy(np.eye(3, dtype=np.float32))
    before = dy.cg_version()
    barrier = threading.Barrier(3)

    def chain(factor: float) -> tuple[int, list[list[float]]]:
        barrier.wait()
        values = []
        for turn in range(30):
            dy.renew_cg()
            x = dy.inputVector([factor, 1, turn])
            for _ in range(30):
                x = w * x + 0.0
                if turn % 3 == 0:
                    time.sleep(1e-6)  # lets another thread in
            values.append(x.value())
        return dy.cg_version(), values

    found = in_threads([functools.partial(chain, factor) for factor in (1.0, 2.0, 3.0)])
    assert len({version for version, _ in found} | {before}) == 4
    assert dy.cg_version() == before
    for factor, (_, values) in zip((1.0, 2.0, 3.0), found, strict=True):
        assert values == [[factor, 1, turn] for turn in range(30)]


def test_gradients_of_threads_add_up(model: dy.ParameterCollection) -> None:
    w = model.parameters_from_numpy(np.ones((40, 40), dtype=np.float32))

    def run(factor: float) -> None:
        for _ in range(50):
            dy.renew_cg()
            dy.sum_elems(w * dy.inputVector([factor] * 40)).backward()

    in_threads([functools.partial(run, factor) for factor in (1.0, 2.0, 4.0)])
    np.testing.assert_array_equal(w.grad_as_array(), np.full((40, 40), 350))


def test_expressions_stay_in_the_thread_of_their_graph() -> None:
    x = dy.inputVector([1, 2])

    def use() -> Any:
        with pytest.raises(dy.StaleExpressionError, match="Expression of another graph than the current one"):
            dy.tanh(x)
        return x.value()  # a living graph's values are at hand everywhere

    assert in_threads([use]) == [[1, 2]]
    assert dy.tanh(x).dim() == ((2,), 1)


def test_the_module_has_nothing_else_by_thread() -> None:
    with pytest.raises(AttributeError, match="module 'dynjit.graph' has no attribute 'previous'"):
        _ = graph.previous  # type: ignore[attr-defined]
