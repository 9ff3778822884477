"""The life of a graph: values when they are asked for, gradients, renewing, marks, changed inputs, errors."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import dynjit as dy
from dynjit import graph, initializers
from dynjit.errors import ShapeError, StaleExpressionError


def vector(*numbers: float) -> dy.Expression:
    return dy.inputVector(list(numbers))


# ---- values ----------------------------------------------------------------------------------------------------------


def test_values_in_all_forms() -> None:
    matrix, batch = np.arange(6.0).reshape(2, 3), np.arange(12.0).reshape(2, 3, 2)
    e, b = dy.inputTensor(matrix), dy.inputTensor(batch, batched=True)
    assert e.dim() == ((2, 3), 1)
    assert b.dim() == ((2, 3), 2)
    np.testing.assert_array_equal(e.npvalue(), matrix)
    np.testing.assert_array_equal(e.value(), matrix)
    np.testing.assert_array_equal(b.npvalue(), batch)
    assert e.vec_value() == [0, 3, 1, 4, 2, 5]
    assert b.vec_value() == batch.ravel(order="F").tolist()
    assert e[1][2:].vec_value() == [5]
    assert dy.reshape(dy.scalarInput(2.5), (1, 1)).scalar_value() == 2.5
    assert e.npvalue().dtype == np.float64
    assert vector(1, 2).value() == [1, 2]
    assert dy.scalarInput(2.5).value() == dy.scalarInput(2.5).scalar_value() == 2.5
    np.testing.assert_array_equal(dy.scalarInput(2.5).npvalue(), [2.5])
    assert dy.sum_elems(e).value() == 15


def test_a_vector_is_no_scalar_and_is_not_computed() -> None:
    y = dy.tanh(vector(1, 2))
    with pytest.raises(ValueError, match=r"scalar_value: needs one element, got \(2,\)"):
        y.scalar_value()
    assert graph.current.header.call_count == 0


def test_values_are_copies() -> None:
    e = vector(1, 2)
    e.npvalue()[:] = 7
    assert e.value() == [1, 2]


def test_a_value_is_computed_once_and_grows_with_the_graph() -> None:
    x = vector(1, 2)
    y = dy.tanh(x)
    before = y.value()
    for _ in range(3):
        assert y.value() == before
    calls = graph.current.header.call_count
    z = y + 1
    assert z.value() == pytest.approx([v + 1 for v in before])
    assert graph.current.header.call_count == calls + 1


def test_only_what_is_needed_is_computed() -> None:
    x = vector(1, 2)
    other = dy.exp(x)
    wanted = dy.tanh(x)
    wanted.value()
    assert graph.current.nodes[other._node()]["value"] < 0
    assert other.value() == pytest.approx(np.exp([1, 2]))


def test_forward_of_a_list() -> None:
    x = vector(1, 2)
    some = [dy.tanh(x), dy.exp(x), x]
    dy.forward(some)
    assert graph.current.nodes[some[1]._node()]["value"] >= 0
    assert dy.values([dy.sum_elems(x), x]) == [3.0, [1.0, 2.0]]
    np.testing.assert_array_equal(dy.npvalues([x])[0], [1, 2])
    dy.forward([])


def test_recalculate(model: dy.ParameterCollection) -> None:
    p = model.add_parameters((2,), init=1)
    y = dy.tanh(p * dy.scalarInput(1))
    before = y.value()
    p.set_value([2, 3])
    assert y.value() == before
    assert y.value(recalculate=True) == pytest.approx(np.tanh([2, 3]))
    assert y.npvalue() == pytest.approx(np.tanh([2, 3]))


@pytest.mark.parametrize("autobatching", [True, False])
def test_many_values_mid_graph_equal_one_run(autobatching: bool) -> None:
    found = []
    for stops in (False, True):
        dy.renew_cg(autobatching=autobatching)
        h = vector(0.1, 0.2)
        for step in range(30):
            h = dy.tanh(h + dy.scalarInput(step / 10))
            if stops and step % 7 == 3:
                h.value()
        found.append(h.value())
    assert found[0] == found[1]


# ---- changed inputs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2])
def test_an_affine_transform_of_nothing_is_its_bias(batch: int, model: dy.ParameterCollection) -> None:
    bias, weights = model.parameters_from_numpy(np.array([1.0, 2.0, 3.0])), model.add_parameters((3, 0))
    (dy.inputVector([7.0] * 300) * 3).value()
    dy.renew_cg()  # the numbers stay where results will lie
    made = dy.affine_transform([bias, weights, dy.zeros((0,), batch_size=batch)])
    np.testing.assert_array_equal(made.npvalue().reshape(3, batch), np.array([[1, 2, 3]] * batch).T)


def test_set_of_inputs() -> None:
    s, v = dy.scalarInput(1), dy.vecInput(2)
    v.set([3, 4])
    y = v * s + 1
    assert y.value() == [4, 5]
    s.set(2)
    assert y.value() == [7, 9]
    assert v.value() == [3, 4]
    v.set(np.array([0, 1]))
    assert y.npvalue().tolist() == [1, 3]
    v.set((5, 5))
    z = y + v
    assert z.value() == [16, 16]
    m = dy.inputTensor(np.zeros((2, 3)))
    m.set(np.arange(6).reshape(2, 3))
    np.testing.assert_array_equal(m.npvalue(), np.arange(6).reshape(2, 3))
    m.set([0, 1, 2, 3, 4, 5])  # flat: in memory order
    assert m.vec_value() == [0, 1, 2, 3, 4, 5]


def test_set_of_lookups(model: dy.ParameterCollection) -> None:
    table = model.lookup_parameters_from_numpy(np.arange(8.0).reshape(4, 2))
    rows = [table[0] for _ in range(9)]  # enough to be computed as a group
    batch = dy.lookup_batch(table, [0, 1])
    total = dy.esum(rows)
    total.value()
    batch.value()
    rows[3].set(2)
    batch.set([3, 2])
    assert total.value() == [4, 5 + 8]
    np.testing.assert_array_equal(batch.npvalue(), [[6, 4], [7, 5]])
    dy.sum_elems(total).backward()
    assert table.grad_as_array().sum(axis=1).tolist() == [16, 0, 2, 0]
    rows[3].set_index(1)
    assert total.value() == [2, 3 + 8]


def test_set_errors_change_nothing(model: dy.ParameterCollection) -> None:
    table, p = model.add_lookup_parameters((3, 2), init=1), model.add_parameters((2,), init=1)
    v, row, rows = vector(1, 2), table[1], dy.lookup_batch(table, [1, 2])
    y = v + row
    y.value()
    for node, value, error, text in [
        (v, [1, 2, 3], ShapeError, r"set: needs numbers of shape \(2,\), got \(3,\)"),
        (v, [[1], [2]], ShapeError, r"set: needs numbers of shape \(2,\), got \(2, 1\)"),
        (v, ["a", "b"], TypeError, "set: needs numbers, got list"),
        (row, 3, IndexError, "lookup: needs indices from 0 to 2, got 3"),
        (row, -1, IndexError, "lookup: needs indices from 0 to 2, got -1"),
        (row, 1.5, TypeError, "lookup: needs an int, got float"),
        (rows, [1], ValueError, "set: needs 2 indices, got 1"),
        (rows, [1, 3], IndexError, "lookup_batch: needs indices from 0 to 2, got 3"),
        (y, [1, 2], TypeError, "set: needs an input or a row of a lookup table, got add"),
        (p, [1, 2], TypeError, "set: needs an input or a row of a lookup table, got parameter"),
    ]:
        with pytest.raises(error, match=text):
            node.set(value)
    assert y.value() == [2, 3]


# ---- gradients -------------------------------------------------------------------------------------------------------


def test_backward_adds_up_over_runs_and_graphs(model: dy.ParameterCollection) -> None:
    p = model.add_parameters((2,), init=3)
    loss = dy.squared_norm(p)
    loss.backward()
    assert p.grad_as_array().tolist() == [6, 6]
    loss.backward()
    assert p.grad_as_array().tolist() == [12, 12]
    dy.renew_cg()
    dy.sum_elems(p).backward()
    assert p.grad_as_array().tolist() == [13, 13]
    assert p.gradient().tolist() == [13, 13]


def test_gradients_of_nodes_are_those_of_the_last_backward() -> None:
    x = vector(1, 2)
    y = x * 3
    first, second = dy.sum_elems(y), dy.squared_norm(y)
    first.backward(full=True)
    assert x.gradient().tolist() == [3, 3]
    assert y.gradient().tolist() == [1, 1]
    second.backward(full=True)
    assert x.gradient().tolist() == [18, 36]


def test_without_full_inputs_have_no_gradient(model: dy.ParameterCollection) -> None:
    p, x = model.add_parameters((2,), init=1), vector(1, 2)
    loss = dy.dot_product(p, dy.tanh(x))
    loss.backward()
    assert x.gradient().tolist() == [0, 0]
    assert p.grad_as_array() == pytest.approx(np.tanh([1, 2]))
    loss.backward(full=True)
    assert x.gradient() == pytest.approx(1 - np.tanh([1, 2]) ** 2)


def test_gradient_needs_backward(model: dy.ParameterCollection) -> None:
    x = vector(1, 2)
    with pytest.raises(RuntimeError, match=r"gradient: needs backward\(\) first"):
        x.gradient()
    dy.sum_elems(x).backward(full=True)
    newer = x + 1
    with pytest.raises(RuntimeError, match=r"gradient: needs a node up to that of backward \(1\), got node 2"):
        newer.gradient()
    dy.renew_cg()
    with pytest.raises(RuntimeError, match="gradient: needs backward"):
        vector(1).gradient()


def test_gradient_of_what_the_target_does_not_need_is_zero() -> None:
    x = vector(1, 2)
    aside, never = dy.exp(x), dy.tanh(x)
    loss = dy.sum_elems(x)
    loss.backward(full=True)
    aside.value()  # lies where a gradient of an older graph may have been
    assert aside.gradient().tolist() == never.gradient().tolist() == [0, 0]


@pytest.mark.parametrize("node", [lambda: vector(1, 2), lambda: dy.zeros((1,), batch_size=3), lambda: dy.zeros((1, 2))])
def test_backward_needs_a_scalar(node) -> None:
    with pytest.raises(ValueError, match=r"backward: needs a scalar \(one element, batch 1\), got \(") as caught:
        node().backward()
    assert __file__ in str(caught.value)
    dy.sum_elems(vector(1)).backward()


def test_constants_stop_gradients(model: dy.ParameterCollection) -> None:
    p, q = model.add_parameters((2,), init=2), model.add_parameters((2,), init=3)
    table = model.add_lookup_parameters((3, 2), init=1)
    loss = dy.dot_product(p.expr(), q) + dy.dot_product(dy.const_parameter(p), q)
    loss += dy.sum_elems(dy.lookup(table, 1, update=False)) + dy.sum_elems(dy.lookup(table, 2))
    loss.backward()
    assert p.grad_as_array().tolist() == [0, 0]
    assert q.grad_as_array().tolist() == [4, 4]
    assert table.grad_as_array().tolist() == [[0, 0], [0, 0], [1, 1]]
    dy.sum_elems(p.expr(True)).backward()
    assert p.grad_as_array().tolist() == [1, 1]


# ---- renewing --------------------------------------------------------------------------------------------------------


def test_renewed_graphs_have_stale_expressions() -> None:
    old, other = vector(1, 2), vector(3, 4)
    version = dy.cg_version()
    dy.renew_cg()
    new = vector(5, 6)
    assert dy.cg_version() > version
    stale = "Stale Expression"
    for use in (
        old.value, old.npvalue, old.vec_value, old.scalar_value, old.dim, old.forward, old.backward, old.gradient,
        lambda: old + other, lambda: old + 1, lambda: new + old, lambda: old * new, lambda: -old, lambda: old[0],
        lambda: dy.tanh(old), lambda: dy.esum([new, old]), lambda: dy.affine_transform([new, new, old]),
        lambda: dy.pick(old, 0), lambda: old.set([1, 2]), lambda: len(old), lambda: dy.forward([new, old]),
    ):  # fmt: skip
        with pytest.raises(StaleExpressionError, match=stale):
            use()
    assert "(stale)" in repr(old)
    assert new.value() == [5, 6]


def test_memory_of_ten_thousand_graphs_does_not_grow() -> None:
    def size() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    def run(count: int) -> None:
        for i in range(count):
            dy.renew_cg()
            x = dy.inputVector([1.0] * (1 + i % 50))
            for _ in range(i % 5 + 1):
                x = dy.tanh(x)
            dy.sum_elems(x).value()

    run(500)
    before = size()
    run(10_000)
    assert size() - before < 4 << 20


# ---- marks -----------------------------------------------------------------------------------------------------------


def test_revert_drops_what_came_after_the_mark(model: dy.ParameterCollection) -> None:
    p, late = model.add_parameters((2,), init=2), model.add_parameters((2,), init=5)
    x = vector(1, 2)
    kept = dy.cmult(x, p)
    dy.cg_checkpoint()
    dropped = kept + late
    assert dropped.value() == [7, 9]
    assert kept.value() == [2, 4]
    dy.cg_revert()
    for _ in range(5):
        kept + 1
    with pytest.raises(StaleExpressionError, match="Stale Expression"):
        dropped.value()
    with pytest.raises(StaleExpressionError, match="Stale Expression"):
        dropped + kept
    with pytest.raises(StaleExpressionError, match="Stale Expression"):
        dy.tanh(dropped)
    assert "(stale)" in repr(dropped)
    assert kept.value() == [2, 4]
    assert (kept + late).value() == [7, 9]  # the parameter joins the graph again
    assert dy.cmult(late, kept).value() == [10, 20]
    dy.sum_elems(kept + late).backward()
    assert late.grad_as_array().tolist() == [1, 1]
    assert p.grad_as_array().tolist() == [1, 2]


def test_marks_are_a_stack() -> None:
    x = vector(1, 2)
    dy.cg_checkpoint()
    y = x + 1
    dy.cg_checkpoint()
    z = y + 1
    assert z.value() == [3, 4]
    dy.cg_revert()
    assert (y + 2).value() == [4, 5]
    dy.cg_revert()
    with pytest.raises(StaleExpressionError):
        y.value()
    assert (x + 5).value() == [6, 7]
    dy.cg_revert()  # without a mark: nothing
    assert x.value() == [1, 2]
    dy.renew_cg()
    dy.cg_checkpoint()  # of an empty graph
    vector(1)
    dy.cg_revert()
    assert vector(2).value() == 2


def test_builders_outlive_a_revert(model: dy.ParameterCollection) -> None:
    lstm, x = dy.VanillaLSTMBuilder(1, 2, 3, model), vector(1, 2)
    dy.cg_checkpoint()
    expected = lstm.initial_state().add_input(x).output().value()
    dy.cg_revert()
    assert lstm.initial_state().add_input(x).output().value() == expected


def test_reverting_a_thousand_times_takes_no_memory() -> None:
    x = dy.inputVector([1.0] * 1000)
    tops = set()
    for _ in range(1000):
        dy.cg_checkpoint()
        y = x
        for _ in range(8):
            y = dy.tanh(y)
        assert len(y.value()) == 1000
        dy.cg_revert()
        tops.add(graph.current.header.value_top)
    assert len(tops) == 1


# ---- errors leave the graph usable -----------------------------------------------------------------------------------


def test_errors_leave_the_graph_as_it_was(model: dy.ParameterCollection) -> None:
    table = model.add_lookup_parameters((3, 2), init=1)
    x, m = vector(1, 2), dy.inputTensor(np.ones((3, 2)))
    loss = dy.sum_elems(m * x)
    before = [getattr(graph.current.header, name) for name in ("node_count", "arg_count", "data_count", "value_top")]
    for use, error in [
        (lambda: x * m, ShapeError), (lambda: x + vector, TypeError), (lambda: x / 0, ZeroDivisionError),
        (lambda: x @ 3, TypeError), (lambda: dy.tanh("x"), TypeError), (lambda: dy.esum([]), ValueError),
        (lambda: dy.esum([x, m]), ShapeError), (lambda: dy.pick(x, 2), IndexError), (lambda: x[5], IndexError),
        (lambda: table[3], IndexError), (lambda: dy.lookup_batch(table, [0, 7]), IndexError),
        (lambda: dy.concatenate([]), ValueError), (lambda: dy.inputVector([]), ValueError),
        (lambda: dy.inputTensor("abc"), TypeError), (lambda: dy.pickneglogsoftmax(x, 9), IndexError),
        (lambda: dy.reshape(x, (3,)), ShapeError), (lambda: dy.affine_transform([x, m, x]), ShapeError),
        (lambda: x.backward(), ValueError), (lambda: m.scalar_value(), ValueError),
    ]:  # fmt: skip
        with pytest.raises(error):
            use()
    after = [getattr(graph.current.header, name) for name in ("node_count", "arg_count", "data_count", "value_top")]
    assert [a - b for a, b in zip(after, before, strict=True)][1:] == [0, 0, 0]
    assert after[0] - before[0] <= 1  # the table may have joined
    assert loss.value() == 9
    loss.backward(full=True)
    assert x.gradient().tolist() == [3, 3]


def test_no_room_for_values(model: dy.ParameterCollection) -> None:
    x = dy.inputVector([1.0] * 100)
    y = dy.tanh(x)
    many = [dy.exp(y) for _ in range(20)]
    header = graph.current.header
    end = header.value_end
    header.value_end = header.value_top + 1000
    try:
        with pytest.raises(MemoryError, match="the graph has no room for its values"):
            dy.forward(many)
        assert y.npvalue() == pytest.approx(np.tanh(np.ones(100)))
        with pytest.raises(MemoryError, match="the graph has no room for 5000 more numbers"):
            dy.inputVector([1.0] * 5000)
    finally:
        header.value_end = end
    dy.forward(many)
    assert many[19].npvalue() == pytest.approx(np.exp(np.tanh(np.ones(100))))


def test_no_room_for_nodes() -> None:
    x = vector(1, 2)
    header = graph.current.header
    capacity = header.node_capacity
    header.node_capacity = 2
    try:
        y = x + 1
        for use in (lambda: y + 1, lambda: dy.tanh(y), lambda: vector(1), lambda: dy.esum([x, y])):
            with pytest.raises(MemoryError, match="the graph has reached its limit of 2 nodes"):
                use()
    finally:
        header.node_capacity = capacity
    assert (y + 1).value() == [3, 4]


def test_check_validity() -> None:
    dy.renew_cg(check_validity=True)
    y = dy.log(vector(0, 1))
    with pytest.raises(RuntimeError, match=r"log: needs a finite result \(check_validity\), got NaN or infinity"):
        y.value()
    assert dy.tanh(vector(1)).value() == pytest.approx(np.tanh(1))
    dy.renew_cg()
    assert dy.log(vector(0, 1)).value() == [-np.inf, 0]


# ---- an expression as an object --------------------------------------------------------------------------------------


def test_length_iteration_and_indices() -> None:
    x = dy.inputTensor(np.arange(6.0).reshape(3, 2))
    assert len(x) == 3
    assert [row.value() for row in x] == [[0, 1], [2, 3], [4, 5]]
    assert x[-1].value() == [4, 5]
    assert x[2].value() == [4, 5]
    np.testing.assert_array_equal(x[0:2].npvalue(), [[0, 1], [2, 3]])
    np.testing.assert_array_equal(x[1:].npvalue(), [[2, 3], [4, 5]])
    with pytest.raises(IndexError):
        x[3]
    with pytest.raises(IndexError):
        x[-4]


def test_truth_and_repr(model: dy.ParameterCollection) -> None:
    x = dy.scalarInput(0)
    assert x  # whatever its value is: it is not computed
    version = dy.cg_version()
    assert repr(x) == f"expression 0/{version} (input (1,))"
    assert repr(dy.zeros((2, 3), batch_size=4) * 2) == f"expression 2/{version} (scale (2, 3) x 4)"
    assert repr(model.add_parameters((2, 3), name="W")) == "Parameters /W (2, 3)"
    assert x == x
    assert x != dy.scalarInput(0)
    assert len({x, dy.scalarInput(0)}) == 2


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_expressions_are_not_copied(copied) -> None:
    with pytest.raises(TypeError, match="expressions belong to their graph: they cannot be pickled or copied"):
        copied(vector(1))


def test_operators_with_numbers() -> None:
    x = vector(1, 4)
    for found, expected in [
        (x + 1, [2, 5]), (1 + x, [2, 5]), (x - 1, [0, 3]), (1 - x, [0, -3]), (2 * x, [2, 8]), (x * 2.5, [2.5, 10]),
        (x / 2, [0.5, 2]), (4 / x, [4, 1]), (-x, [-1, -4]), (x**2, [1, 16]), (x**0.5, [1, 2]), (x + x, [2, 8]),
        (x - x, [0, 0]), (x / x, [1, 1]), (x + np.float32(1), [2, 5]), (np.int64(3) - x, [2, -1]),
        (x + np.array(2), [3, 6]),
    ]:  # fmt: skip
        assert found.value() == pytest.approx(expected)
    m = dy.inputTensor(np.array([[1.0, 2], [3, 4]]))
    assert (m * x).value() == (m @ x).value() == [9, 19]


# ---- immediate_compute -----------------------------------------------------------------------------------------------


def test_immediate_compute(model: dy.ParameterCollection) -> None:
    p = model.add_parameters((3, 3), init=0.5)
    lstm = dy.VanillaLSTMBuilder(1, 3, 3, model)
    dy.renew_cg(immediate_compute=True)
    x = p * dy.inputVector([1, 2, 3])
    assert graph.current.nodes[x._node()]["value"] >= 0  # nobody has asked for it
    outputs = lstm.initial_state().transduce([x, dy.tanh(x), x + 1])
    assert all(graph.current.nodes[y._node()]["value"] >= 0 for y in outputs)
    loss = dy.squared_norm(dy.esum(outputs))
    loss.backward()
    found = loss.value(), p.grad_as_array()
    dy.SimpleSGDTrainer(model, 0.0).update()
    dy.renew_cg()  # and now as always
    x = p * dy.inputVector([1, 2, 3])
    assert graph.current.nodes[x._node()]["value"] < 0
    loss = dy.squared_norm(dy.esum(lstm.initial_state().transduce([x, dy.tanh(x), x + 1])))
    loss.backward()
    assert loss.value() == pytest.approx(found[0])
    np.testing.assert_allclose(p.grad_as_array(), found[1], rtol=1e-5, atol=1e-6)  # a row of it nearly cancels out


def test_immediate_compute_finds_the_line() -> None:
    dy.renew_cg(immediate_compute=True, check_validity=True)
    x = dy.inputVector([1, 0])
    with pytest.raises(
        RuntimeError, match=r"log: needs a finite result \(check_validity\), got NaN or infinity"
    ) as caught:
        dy.log(x)
    assert str(caught.value).endswith(f"(at {__file__}:{caught.traceback[0].lineno + 1})")
    assert dy.exp(x).value() == pytest.approx([np.e, 1])
    dy.renew_cg(check_validity=True)
    y = dy.log(dy.inputVector([1, 0]))  # without it the line is where the value is asked for
    with pytest.raises(RuntimeError, match="log: needs a finite result"):
        y.value()


def test_immediate_graphs_beside_others() -> None:
    with dy.new_graph() as other:
        other.renew(immediate_compute=True)
        x = dy.tanh(dy.ones(2))
        assert other.nodes[x._node()]["value"] >= 0
    y = dy.tanh(dy.ones(2))
    assert graph.current.nodes[y._node()]["value"] < 0
    with other:
        assert other.nodes[dy.exp(x)._node()]["value"] >= 0


def test_a_new_seed_leaves_the_noise_of_a_graph_as_it_is(model: dy.ParameterCollection) -> None:
    p = model.add_parameters(50, init=1.0)
    initializers.reset_random_seed(3)
    kept = dy.dropout(p, 0.5)
    before = kept.npvalue()
    initializers.reset_random_seed(4)
    dy.sum_elems(kept).backward()
    np.testing.assert_array_equal(p.grad_as_array(), before)  # 2 where an element was kept, else 0
    initializers.reset_random_seed(3)
    dy.renew_cg()
    again = dy.dropout(p, 0.5)
    initializers.reset_random_seed(2**40 + 3)
    np.testing.assert_array_equal(again.npvalue(), before)
    assert (dy.dropout(p, 0.5).npvalue() != before).any()
