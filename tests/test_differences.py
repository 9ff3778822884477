"""The items of docs/differences.md: where DyNet is wrong or ends the process, dynjit is right or says what is wrong."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import dynjit as dy
from dynjit.errors import NoCudaError, ShapeError, StaleExpressionError

random = np.random.default_rng(1)


def tensor(*dims: int, batched: bool = False) -> dy.Expression:
    return dy.inputTensor(random.uniform(0.2, 0.8, dims), batched=batched)


# ---- grouping keeps unlike nodes apart -------------------------------------------------------------------------------

VECTORS, MATRICES = random.normal(size=(5, 4)), random.normal(size=(4, 4, 4))
GATES, CUBES = random.uniform(size=(5, 16)), random.normal(size=(3, 3, 3, 3))
FILTER = random.normal(size=(2, 2, 4, 1))
ELU, SILU = (lambda x: dy.elu(x, 2.0)), (lambda x: dy.silu(x, 2.0))
UNLIKE: dict[str, Callable[[], list[dy.Expression]]] = {
    "constants": lambda: [f(dy.inputVector(x)) for x in VECTORS for f in (dy.rectify, dy.elu, ELU, dy.silu, SILU)],
    "softmax": lambda: [dy.softmax(dy.inputTensor(x), d) for x in MATRICES for d in (0, 1)],
    "pick_range": lambda: [dy.pick_range(dy.inputTensor(x), 1, 3, d) for x in MATRICES for d in (0, 1)],
    "concatenate": lambda: [dy.concatenate([dy.inputTensor(x)] * 2, d) for x in MATRICES for d in (0, 1)],
    "transpose": lambda: [
        dy.transpose(dy.inputTensor(x), order) for x in CUBES for order in ([0, 2, 1], [2, 1, 0], [1, 0, 2])
    ],
    "lstm": lambda: [
        f(dy.inputVector(c), dy.inputVector(gates))
        for c, gates in zip(VECTORS, GATES, strict=True)
        for f in (dy.vanilla_lstm_c, dy.vanilla_lstm_h)
    ],
    "conv2d_bias": lambda: [
        dy.conv2d_bias(dy.inputTensor(MATRICES), dy.inputTensor(FILTER), dy.inputVector([b]), [1, 1]) for b in (1, 2)
    ],
}  # fmt: skip


@pytest.mark.parametrize("make", UNLIKE.values(), ids=UNLIKE)
def test_unlike_nodes(make) -> None:
    found = []
    for autobatching in (True, False):
        dy.renew_cg(autobatching=autobatching)
        found.append(dy.npvalues(make()))
    for grouped, single in zip(*found, strict=True):
        np.testing.assert_allclose(grouped, single, atol=1e-6)


def test_many_operators_and_few_nodes() -> None:
    x = y = dy.inputVector([0.5, 0.25])
    chain = (
        dy.tanh,
        dy.exp,
        dy.log,
        dy.sqrt,
        dy.square,
        dy.cube,
        dy.erf,
        dy.logistic,
        dy.sin,
        dy.cos,
        dy.abs,
        dy.rectify,
    )
    for function in chain:
        y = function(y)
    dy.sum_elems(y).backward(full=True)
    expected = np.array([0.5, 0.25])
    for function in (np.tanh, np.abs):  # log undoes exp, square undoes sqrt
        expected = function(expected)
    expected = np.array([math.erf(v**3) for v in expected])
    expected = np.abs(np.cos(np.sin(1 / (1 + np.exp(-expected)))))
    np.testing.assert_allclose(y.npvalue(), expected, atol=1e-5)
    assert np.isfinite(x.gradient()).all()


def test_gradients_of_sparse_lstms_do_not_depend_on_grouping(model) -> None:
    builder = dy.SparseLSTMBuilder(2, 3, 4, model)
    builder.set_sparsity(0.4)
    found = []
    for autobatching in (True, False):
        dy.renew_cg(autobatching=autobatching)
        outputs = [builder.initial_state().transduce([dy.constant((3,), 0.1 * k)] * k)[-1] for k in (1, 2, 3)]
        dy.esum([dy.squared_norm(y) for y in outputs]).backward()
        found.append([p.grad_as_array() for p in model.parameters_list()])
        for p in model.parameters_list():
            p.scale_gradient(0)
    for grouped, single in zip(*found, strict=True):
        np.testing.assert_allclose(grouped, single, atol=1e-6)
    assert any(gradient.any() for gradient in found[0])


# ---- gradients and values --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "at"),
    [
        (lambda x: dy.sum_elems(dy.silu(x, 2.0)), [0.3, -0.4, 0.7]),
        (lambda x: dy.poisson_loss(x, 3) * 5, [0.3]),
        (lambda x: dy.binary_log_loss(dy.inputVector([0.3, 0.6]), x), [0.4, 0.7]),
        (lambda x: dy.l2_norm(x), [0.0, 0.0]),
    ],
)
def test_gradients(function, at) -> None:
    x = dy.inputVector(at)
    function(x).backward(full=True)
    found, step = x.gradient(), 1e-2
    for i in range(len(at)):
        moved = [function(dy.inputVector([v + sign * step * (i == j) for j, v in enumerate(at)])) for sign in (1, -1)]
        assert found[i] == pytest.approx((moved[0].value() - moved[1].value()) / (2 * step), abs=2e-3)


def test_gradients_of_equal_numbers_are_zero() -> None:
    x, y = dy.inputTensor(np.ones((2, 3)), batched=True), dy.inputVector([0.1] * 3)
    normal = dy.layer_norm(y, dy.ones(3), dy.zeros(3))
    loss = dy.sum_elems(dy.std_batches(x)) + dy.dot_product(normal, dy.inputVector([1, 2, 3]))
    loss.backward(full=True)
    assert np.abs(x.gradient()).max() == np.abs(y.gradient()).max() == np.abs(normal.npvalue()).max() == 0


def test_values() -> None:
    matrix = np.arange(8.0).reshape(4, 2)
    found = dy.logsumexp_dim(dy.inputTensor(matrix), 1)
    np.testing.assert_allclose(found.npvalue(), np.log(np.exp(matrix).sum(1)), rtol=1e-5)
    found = dy.cdiv(dy.inputVector([1, 2]), dy.inputTensor(np.full((2, 3), 2.0)))
    np.testing.assert_array_equal(found.npvalue(), [[0.5] * 3, [1] * 3])
    found = dy.contract3d_1d(dy.inputTensor(CUBES[0]), dy.inputVector([1, 2, 3]))
    np.testing.assert_allclose(found.npvalue(), CUBES[0] @ [1, 2, 3], rtol=1e-4, atol=1e-5)
    assert dy.to_device(dy.inputVector([1, 2]), "CPU").value() == [1, 2]
    assert dy.kmax_pooling(dy.inputTensor([[3, 3, 5]]), 2).npvalue().tolist() == [[3, 5]]


def test_average_with_and_without_minibatch() -> None:
    x, batch = dy.inputVector([1, 2]), dy.inputTensor(np.ones((2, 3)), batched=True)
    dy.sum_batches(dy.sum_elems(dy.average([x, batch]))).backward(full=True)
    assert x.gradient().tolist() == [1.5, 1.5]


@pytest.mark.parametrize("function", [dy.round, dy.ceil, dy.floor])
@pytest.mark.parametrize("dims", [(5,), (3, 4), (5, 3)])
def test_gradient_modes(function, dims) -> None:
    for mode, slope in (("zero_gradient", 0), ("straight_through_gradient", 2)):
        x = tensor(*dims)
        dy.sum_elems(function(x, mode) * 2).backward(full=True)
        assert np.unique(x.gradient()).tolist() == [slope]


def test_restricted_log_softmax_counts_an_index_once() -> None:
    assert dy.log_softmax(dy.inputVector([1, 2, 3]), [0, 0]).value() == [0, -math.inf, -math.inf]


def test_shapes_as_in_dynet() -> None:
    column, batch = tensor(3, 1), tensor(3, 1, 2, batched=True)
    for exponent in (2, 3, 0.5, dy.ones(1), dy.ones((1, 1))):
        assert (column**exponent).dim() == ((3,), 1)
        assert (batch**exponent).dim() == ((3,), 2)
    assert dy.logsumexp([column]).dim() == dy.logsumexp([column, dy.ones(3)]).dim() == ((3,), 1)
    assert dy.fold_rows(dy.ones(6), 2).dim() == ((3, 1), 1)
    assert dy.cumsum(dy.inputVector([1, 2, 3]), 1).value() == [1, 2, 3]
    assert dy.cumsum(tensor(2, 3), 5).dim() == ((2, 3), 1)
    with pytest.raises(ShapeError, match="cumsum: needs an axis of 0 or more, not -1"):
        dy.cumsum(column, -1)


def test_nothing_is_read_before_it_is_written() -> None:
    (dy.constant((2, 2), math.nan) * dy.ones(2)).value()
    dy.renew_cg()
    assert (dy.ones((2, 2)) * dy.ones(2)).value() == [2, 2]


def test_minibatches_are_kept() -> None:
    batch = tensor(4, 5, 2, batched=True)
    assert dy.filter1d_narrow(batch, tensor(4, 2)).dim() == ((1, 4), 2)
    assert dy.fold_rows(batch, 2).dim() == ((2, 5), 2)
    assert dy.conv2d(tensor(4, 5, 1), tensor(2, 2, 1, 3, 2, batched=True), [1, 1]).dim() == ((3, 4, 3), 2)


def test_lookup_parameters_from_numpy_of_rank_3(model) -> None:
    array = random.normal(size=(4, 3, 2)).astype(np.float32)
    np.testing.assert_array_equal(model.lookup_parameters_from_numpy(array).as_array(), array)


def test_weight_noise_keeps_the_input(model) -> None:
    builder = dy.CompactVanillaLSTMBuilder(1, 2, 2, model)
    builder.set_weightnoise(1e-4)
    outputs = [builder.initial_state().add_input(dy.inputVector([x, x])).output().npvalue() for x in (3, -3)]
    assert np.abs(outputs[0] - outputs[1]).max() > 0.01


def test_update_false_counts_for_its_state_alone(model) -> None:
    builder = dy.VanillaLSTMBuilder(1, 2, 2, model)
    builder.initial_state(update=False)
    dy.squared_norm(builder.initial_state().add_input(dy.ones(2)).output()).backward()
    assert builder.get_parameters()[0][0].grad_as_array().any()


def test_update_subset(model) -> None:
    p, q = (model.add_parameters(2, init=1.0) for _ in range(2))
    dy.squared_norm(p + q).backward()
    dy.SimpleSGDTrainer(model, 0.1).update_subset([1], [])
    assert p.as_array().tolist() == [1, 1]
    assert (q.as_array() < 1).all()


def test_he_is_as_published(model) -> None:
    assert model.add_parameters((200, 200), init="he").as_array().std() == pytest.approx(math.sqrt(2 / 200), rel=0.02)


def test_what_crashed(model) -> None:
    dy.cg_checkpoint()  # an empty graph
    p, table = model.add_parameters(2, init=1.0), model.add_lookup_parameters((3, 2))
    assert dy.squared_norm(p).value() == 2
    dy.cg_revert()
    assert dy.squared_norm(p).value() == 2
    assert len(list(table)) == 3
    state = dy.StackedRNNState([dy.GRUBuilder(1, 2, 2, model).initial_state() for _ in range(2)])
    assert state.add_input(p).output().dim() == ((2,), 1)
    trainer = dy.SimpleSGDTrainer(dy.ParameterCollection())
    trainer.update()


# ---- exceptions ------------------------------------------------------------------------------------------------------


def renewed() -> dy.Expression:
    x = dy.ones(3)
    dy.renew_cg()
    dy.ones(3)
    return x


def clusters(text: str | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clusters"
        if text is not None:
            path.write_text(text)
        dy.ClassFactoredSoftmaxBuilder(3, str(path), {"a": 0}, dy.ParameterCollection())


def table() -> dy.LookupParameters:
    return dy.ParameterCollection().add_lookup_parameters((4, 2))


def builder() -> dy.VanillaLSTMBuilder:
    return dy.VanillaLSTMBuilder(1, 2, 2, dy.ParameterCollection())


def stale_state() -> dy.RNNState:
    state = builder().initial_state()
    dy.renew_cg()
    return state


FAILURES: dict[str, tuple[type[Exception], Callable[[], object]]] = {
    "stale unary": (StaleExpressionError, lambda: dy.tanh(renewed())),
    "stale first": (StaleExpressionError, lambda: renewed() + dy.ones(3)),
    "stale list": (StaleExpressionError, lambda: dy.esum([renewed()])),
    "scalar_value": (ValueError, lambda: dy.ones(2).scalar_value()),
    "empty slice": (ValueError, lambda: dy.ones(3)[1:1]),
    "backward slice": (ValueError, lambda: dy.ones(3)[2:1]),
    "row": (IndexError, lambda: table()[4]),
    "negative row": (IndexError, lambda: table()[-1]),
    "pick": (IndexError, lambda: dy.pick(dy.ones(3), 3)),
    "pick_batch_elem": (IndexError, lambda: dy.pick_batch_elem(dy.ones(3), 1)),
    "one_hot": (IndexError, lambda: dy.one_hot(3, 3)),
    "restrict": (IndexError, lambda: dy.log_softmax(dy.ones(3), [3])),
    "constrained_softmax": (ShapeError, lambda: dy.constrained_softmax(dy.ones(3), dy.ones(2))),
    "concatenate": (ShapeError, lambda: dy.concatenate([dy.ones(2), dy.ones(2)], 2)),
    "contract3d": (ShapeError, lambda: dy.contract3d_1d_1d(dy.ones((2, 3, 4)), dy.ones(3), dy.ones(3))),
    "step 0": (ShapeError, lambda: dy.conv2d(tensor(3, 3, 1), tensor(2, 2, 1, 1), [0, 1])),
    "one step": (ShapeError, lambda: dy.conv2d(tensor(3, 3, 1), tensor(2, 2, 1, 1), [1])),
    "pooling step 0": (ShapeError, lambda: dy.maxpooling2d(tensor(3, 3, 1), [2, 2], [0, 1])),
    "inverse of a vector": (ShapeError, lambda: dy.inverse(dy.ones(3))),
    "inverse": (ShapeError, lambda: dy.inverse(dy.ones((2, 3)))),
    "dropout 1": (ValueError, lambda: dy.dropout(dy.ones(3), 1)),
    "dropout below 0": (ValueError, lambda: dy.dropout_dim(dy.ones(3), 0, -0.1)),
    "block_dropout": (ValueError, lambda: dy.block_dropout(dy.ones(3), 2)),
    "uniform": (ValueError, lambda: dy.UniformInitializer(0)),
    "set_dropout": (ValueError, lambda: builder().set_dropout(2)),
    "set_dropouts": (ValueError, lambda: builder().set_dropouts(0, -1)),
    "gru dropout": (ValueError, lambda: dy.GRUBuilder(1, 2, 2, dy.ParameterCollection()).set_dropout(2)),
    "masks": (ValueError, lambda: builder().set_dropout_masks()),
    "no layers": (ValueError, lambda: dy.SimpleRNNBuilder(0, 2, 2, dy.ParameterCollection())),
    "init_row size": (ShapeError, lambda: table().init_row(0, [1, 2, 3])),
    "init_row": (IndexError, lambda: table().init_row(4, [1, 2])),
    "row_as_array": (IndexError, lambda: table().row_as_array(4)),
    "set": (ShapeError, lambda: dy.vecInput(3).set([1, 2])),
    "directory": (FileNotFoundError, lambda: table().save("/missing/file")),
    "weight decay": (ValueError, lambda: dy.ParameterCollection().set_weight_decay(-1)),
    "no clusters": (FileNotFoundError, lambda: clusters(None)),
    "unknown word": (ValueError, lambda: clusters("c a\nc b\n")),
    "softmax base": (TypeError, lambda: dy.SoftmaxBuilder()),
    "trainer base": (TypeError, lambda: dy.Trainer(dy.ParameterCollection(), 0.1)),
    "device": (NoCudaError, lambda: dy.to_device(dy.ones(2), "GPU:0")),
    "stale builder": (ValueError, lambda: stale_state().add_input(dy.ones(2))),
    "empty list": (ValueError, lambda: dy.esum([])),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "call"), FAILURES.values(), ids=FAILURES)
def test_exceptions(kind, call) -> None:
    with pytest.raises(kind, match=r"needs|Stale|stale|No such file|Invalid|missing"):
        call()
    assert dy.ones(2).value() == [1, 1]  # the graph goes on
