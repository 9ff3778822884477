"""Wrong arguments: every public function says what is wrong, in Python; none ends the process, hangs, or takes it.

Each function is called with arguments that are right but for one, which is one of many wrong ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import dynjit as dy
from dynjit import shape
from dynjit.errors import NoCudaError, StaleExpressionError

collection = dy.ParameterCollection()
dense, rows = collection.add_parameters((3, 3), init=0.5), collection.add_lookup_parameters((4, 3), init=0.5)


class Operand:
    """An argument that has to be an expression, made anew for each call."""

    def __init__(self, *dims: int, batched: bool = False) -> None:
        self.values, self.batched = np.linspace(0.2, 0.8, int(np.prod(dims))).reshape(dims), batched

    def make(self) -> dy.Expression:
        return dy.inputTensor(self.values, batched=self.batched)


class Table(Operand):
    """An argument that has to be a lookup table."""

    def make(self) -> dy.Expression:
        return rows


class Device(str):
    """The name of a device."""


V, M, C, S, B = Operand(3), Operand(3, 3), Operand(3, 3, 3), Operand(1), Operand(3, 2, batched=True)
FILTER, GATES, WEIGHTS, ANY, ROW = Operand(2, 2, 3, 2), Operand(12), Operand(12, 3), Device(""), Operand(1, 3)
MODE = "zero_gradient"
UNARY = re.findall(
    r"\w+",
    """abs acos acosh asin asinh atan atanh cos cosh cube erf exp flip_gradient l2_norm lgamma log log_sigmoid logistic
mean_batches mean_elems nobackprop rectify selu sin sinh softsign sparsemax sqrt square squared_norm std_batches std_elems
sum_batches sum_elems tan tanh""",
)
BINARY = re.findall(
    r"\w+",
    """bmax bmin cdiv circ_conv circ_corr cmult constrained_softmax dot_product l1_distance squared_distance
binary_log_loss trace_of_product""",
)
LISTS = [
    "average",
    "concatenate_cols",
    "concatenate_to_batch",
    "emax",
    "esum",
    "logsumexp",
    "values",
    "npvalues",
    "forward",
]
CALLS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(UNARY, (V,)), **dict.fromkeys(BINARY, (V, V)), **dict.fromkeys(LISTS, ([V, V],)),
    **dict.fromkeys(("cumsum", "softmax", "max_dim", "min_dim", "logsumexp_dim"), (M, 1)),
    **dict.fromkeys(("ceil", "floor", "round", "argmax"), (V, MODE)),
    **dict.fromkeys(("elu", "silu", "scale_gradient"), (V, 1.5)), **dict.fromkeys(("inverse", "logdet"), (M,)),
    **dict.fromkeys(("block_dropout", "dropout", "dropout_batch", "noise"), (V, 0.5)),
    **dict.fromkeys(("mean_dim", "sum_dim", "std_dim"), (M, [0], False)), **dict.fromkeys(("zeros", "ones", "zeroes"), ((2, 3), 2)),
    **dict.fromkeys(("random_gumbel", "random_normal", "random_uniform"), ((2, 3), 0.0, 1.0, 2)),
    "affine_transform": ([V, M, V],), "colwise_add": (M, V), "concatenate": ([V, V], 0), "constant": ((2, 3), 1.5, 2),
    "const_parameter": (Table(1),), "contract3d_1d": (C, V), "contract3d_1d_1d": (C, V, V), "contract3d_1d_1d_bias": (C, V, V, V),
    "contract3d_1d_bias": (C, V, M), "conv2d": (C, FILTER, [1, 1], True), "conv2d_bias": (C, FILTER, Operand(2), [1, 1], True),
    "dropout_dim": (M, 0, 0.5), "filter1d_narrow": (M, Operand(3, 2)), "fold_rows": (Operand(4, 2), 2), "get_device_info": (Device("CPU"),),
    "hinge": (V, 1, 1.0), "hinge_batch": (B, [0, 1], 1.0), "hinge_dim": (M, [0, 1, 2], 0, 1.0), "huber_distance": (V, V, 1.3),
    "inputMatrix": ([1, 2, 3, 4], (2, 2)), "inputTensor": ([[1, 2], [3, 4]], False, ANY), "inputTensorTranspose": ([1, 2, 3, 4], (2, 2), 1, ANY),
    "inputVector": ([1, 2], ANY), "kmax_pooling": (M, 2, 1), "kmh_ngram": (M, 2), "layer_norm": (V, V, V), "log_softmax": (V, [0, 1]),
    "lookup": (Table(1), 1, True), "lookup_batch": (Table(1), [0, 1], True), "matInput": (2, 3), "maxpooling2d": (C, [2, 2], [1, 1], True),
    "moment_batches": (B, 2), "moment_dim": (M, [0], 2, False, 1), "moment_elems": (V, 2), "one_hot": (4, [1, 2], ANY),
    "pairwise_rank_loss": (ROW, ROW, 1.0), "pick": (V, 1, 0), "pick_batch": (B, [0, 1], 0), "pick_batch_elem": (B, 1), "pick_batch_elems": (B, [0, 1]),
    "pick_range": (V, 0, 2, 0), "pickneglogsoftmax": (V, 1), "pickneglogsoftmax_batch": (B, [0, 1]), "pickrange": (V, 0, 2),
    "poisson_loss": (S, 3), "pow": (V, S), "random_bernoulli": ((2, 3), 0.5, 1.0, 2), "reset_random_seed": (3,), "reshape": (M, (9,), 1),
    "scalarInput": (1.0, ANY), "select_cols": (M, [0, 1]), "select_rows": (M, [0, 1]),
    "sparse_inputTensor": ([[0, 1], [0, 1]], [1.0, 2.0], (2, 2), False, 0.0, ANY), "sparsemax_loss": (V, [0, 1]),
    "strided_select": (M, [1, 1], [0, 0], [2, 2]), "to_device": (V, Device("CPU")), "transpose": (M, [1, 0]),
    "vanilla_lstm_c": (V, GATES), "vanilla_lstm_h": (V, GATES), "vanilla_lstm_gates": (V, V, WEIGHTS, WEIGHTS, GATES, 0.0),
    "vanilla_lstm_gates_concat": ([V], V, WEIGHTS, WEIGHTS, GATES, 0.0), "vanilla_lstm_gates_dropout": (V, V, WEIGHTS, WEIGHTS, GATES, V, V, 0.0),
    "vanilla_lstm_gates_dropout_concat": ([V], V, WEIGHTS, WEIGHTS, GATES, V, V, 0.0), "vecInput": (3, ANY), "weight_norm": (M, S),
}  # fmt: skip
OTHERS = {  # what they take has tests of its own, or they take nothing
    "available_devices", "cg", "cg_checkpoint", "cg_revert", "cg_version", "dump_cg", "explain_batching", "gradcheck", "init",
    "init_from_params", "load", "load_generator", "new_graph", "no_grad", "parameter", "print_graphviz",
    "print_text_graphviz", "profile", "renew_cg", "save", "set_threads",
}  # fmt: skip
WORDS: list[Any] = [None, "x", b"x", object(), int, len, {1: 2}, 1j, dy.ParameterCollection, collection, [None], ["x"],
                    [[None]], np.array([object()], object), np.array(["a"]), np.array([1j])]  # fmt: skip
NUMBERS: list[Any] = [-1, 99, 1.5, -1e30, float("nan"), float("inf"), 10**30, -(2**63) - 1, 2**63, 2**40, True, np.int8(3),
                      np.array(2), [], (), [-1], [99], [1.5], [float("nan")], [2**63], np.zeros(0), np.ones((2, 2))]  # fmt: skip
ERRORS = (TypeError, ValueError, IndexError, RuntimeError, MemoryError)


def built(spec: Any) -> Any:
    if isinstance(spec, list):
        return [built(item) for item in spec]
    return spec.make() if isinstance(spec, Operand) else str(spec) if isinstance(spec, Device) else spec


def mutations(spec: tuple[Any, ...], values: list[Any]) -> Iterator[tuple[int, Any, list[Any]]]:
    """(position, wrong value, arguments) with each argument, and the first entry of each list, replaced in turn."""
    for i, right in enumerate(spec):
        for wrong in values:
            yield i, wrong, [*map(built, spec[:i]), wrong, *map(built, spec[i + 1 :])]
            if isinstance(right, list):
                yield i, wrong, [*map(built, spec[:i]), [wrong, *built(right)[1:]], *map(built, spec[i + 1 :])]


def test_all_functions_are_here() -> None:
    functions = {name for name in dy.__all__ if callable(getattr(dy, name)) and not isinstance(getattr(dy, name), type)}
    assert functions == CALLS.keys() | OTHERS


@pytest.mark.parametrize("name", CALLS)
def test_words_are_refused(name: str) -> None:
    function, spec = getattr(dy, name), CALLS[name]
    function(*map(built, spec))
    for i, wrong, arguments in mutations(spec, WORDS):
        right = spec[i]
        if isinstance(right, bool) or (wrong is None and (name, i) in OPTIONAL):
            continue
        with pytest.raises(ERRORS) as caught:
            function(*arguments)
        assert "needs" in str(caught.value) or "iterable" in str(caught.value), (i, wrong)
    assert dy.ones(2).value() == [1, 1]  # the graph goes on


OPTIONAL = {("log_softmax", 1), ("inputMatrix", 1), ("inputTensorTranspose", 1)}


@pytest.mark.parametrize("name", CALLS)
def test_numbers_out_of_range_are_refused_or_counted_with(name: str) -> None:
    function, spec = getattr(dy, name), CALLS[name]
    for i, wrong, arguments in mutations(spec, NUMBERS):
        dy.renew_cg()
        arguments = [a if a is arguments[i] else built(s) for a, s in zip(arguments, spec, strict=True)]
        try:
            made = function(*arguments)
        except ERRORS as error:
            assert not isinstance(spec[i], Operand) or isinstance(error, (TypeError, ValueError))
            continue
        assert not isinstance(spec[i], Operand), f"{wrong!r} was taken for an expression"
        if isinstance(made, dy.Expression):
            try:
                found = made.npvalue()
            except MemoryError:  # a shape is not computed before it is asked for
                continue
            dims, batch = made.dim()
            assert found.shape == ((*dims, batch) if batch > 1 else dims or (1,))
            if found.size:
                dy.sum_batches(dy.sum_elems(made)).backward(full=True)
    dy.renew_cg()
    assert dy.ones(2).value() == [1, 1]


@pytest.mark.parametrize("name", CALLS)
def test_expressions_that_are_gone_or_elsewhere(name: str) -> None:
    function, spec = getattr(dy, name), CALLS[name]
    with dy.new_graph() as other:
        foreign = dy.ones(3)
    assert other.has(0)
    stale = dy.ones(3)
    dy.renew_cg()
    for wrong in (foreign, stale, dy.Expression())[name == "to_device" :]:  # which returns it as it is
        for i, _, arguments in mutations(spec, [wrong]):
            if isinstance(spec[i], Operand) or (isinstance(spec[i], list) and isinstance(spec[i][0], Operand)):
                with pytest.raises((StaleExpressionError, TypeError, ValueError)):
                    function(*arguments)
    assert dy.ones(2).value() == [1, 1]


# ---- one by one ------------------------------------------------------------------------------------------------------

MESSAGES: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    ("word", lambda: dy.silu(V.make(), "x"), TypeError, "silu: needs a number, got str"),
    ("none", lambda: dy.inputVector([None]), TypeError, "inputVector: needs numbers, got list"),
    ("words", lambda: dy.inputVector(["1"]), TypeError, "inputVector: needs numbers, got list"),
    ("complex", lambda: dy.inputTensor(np.array([1j])), TypeError, "inputTensor: needs numbers, got ndarray"),
    ("uneven", lambda: dy.inputTensor([[1], [1, 2]]), TypeError, "inputTensor: needs numbers, got list"),
    ("scalar", lambda: dy.scalarInput("x"), TypeError, "scalarInput: needs a number, got str"),
    ("stride", lambda: dy.conv2d(C.make(), FILTER.make(), [1.5, 1]), TypeError, "conv2d: needs an int, got float"),
    ("strides", lambda: dy.conv2d(C.make(), FILTER.make(), 2), ValueError, r"conv2d: needs two numbers, for rows and columns, got \(2,\)"),
    ("huge", lambda: dy.pick(V.make(), 0, 2**63), IndexError, "pick: needs an int of 64 bits, got 9223372036854775808"),
    ("dims", lambda: dy.zeros("ab"), TypeError, "constant: needs dimensions as an int or a tuple of ints, got 'ab'"),
    ("batch", lambda: dy.zeros(2, 1.5), TypeError, "constant: needs an int, got float"),
    ("no batch", lambda: dy.reshape(M.make(), (9,), 0), ValueError, "reshape: needs"),
    ("order", lambda: dy.moment_elems(V.make(), 2**40), ValueError, "moment_elems: needs r from 1 to 1000, got 1099511627776"),
    ("divisor", lambda: dy.mean_dim(M.make(), [0], False, -1), ValueError, "mean_dim: needs n of 0 or more, got -1"),
    ("lookup", lambda: dy.lookup(M.make(), 1), TypeError, "lookup: needs a lookup table, got Expression"),
    ("lookups", lambda: dy.lookup_batch(dense, [1]), TypeError, "lookup_batch: needs a lookup table, got Parameters"),
    ("device", lambda: dy.inputVector([1], "GPU:0"), NoCudaError, "inputVector: Invalid device name: needs 'CPU', got 'GPU:0'"),
    ("devices", lambda: dy.vecInput(2, device="TPU"), RuntimeError, "vecInput: Invalid device name: needs 'CPU', got 'TPU'"),
    ("to_device", lambda: dy.to_device(3, "CPU"), TypeError, "to_device: needs expressions, got int"),
    ("rows", lambda: dy.select_rows(3, [1]), TypeError, "select_rows: needs expressions, got int"),
    ("c", lambda: dy.huber_distance(V.make(), V.make(), float("nan")), ValueError, "huber_distance: needs c of 0 or more, got nan"),
    ("count", lambda: dy.poisson_loss(S.make(), float("inf")), ValueError, "poisson_loss: needs a count of 0 or more, got inf"),
    ("indices", lambda: dy.sparse_inputTensor(3, [1], (2,)), TypeError, "sparse_inputTensor: needs a list of indices per axis, got int"),
    ("forward 3", lambda: dy.forward(3), TypeError, "forward: needs a list of expressions, got int"),
    ("forward [3]", lambda: dy.forward([3]), TypeError, "forward: needs expressions, got int"),
    ("constants", lambda: dy.const_parameter(V.make()), TypeError, "const_parameter: needs parameters, got Expression"),
    ("memory", lambda: dy.zeros(2**50), MemoryError, "the graph has no room for 1125899906842624 more numbers"),
    ("names", lambda: dy.print_graphviz(expression_names=[1]), TypeError, "print_graphviz: needs names as a dict, got list"),
    ("load", lambda: dy.load("nothing", 3), TypeError, "load: needs a collection for the parameters, got int"),
    ("gradcheck", lambda: dy.gradcheck(3, collection), TypeError, "gradcheck: needs an expression and a collection, got int and ParameterCollection"),
    ("step", lambda: dy.gradcheck(dy.squared_norm(dense), collection, None, -1), ValueError, "gradcheck: needs a step between 0 and 1"),
    ("params", lambda: dy.init_from_params(3), TypeError, "init_from_params: needs DynetParams, got int"),
    ("layers", lambda: dy.GRUBuilder(1e300, 2, 2, collection), ValueError, "GRUBuilder: needs layers, input_dim and hidden_dim of 1 or more, and at most 1000 layers"),
    ("sizes", lambda: dy.GRUBuilder(1, "x", 2, collection), TypeError, "GRUBuilder: needs a number, got str"),
    ("model", lambda: dy.BiRNNBuilder(1, 2, 2, 3, dy.GRUBuilder), TypeError, "BiRNNBuilder: needs a ParameterCollection, got int"),
    ("normal", lambda: dy.NormalInitializer(0, float("inf")), ValueError, "NormalInitializer: needs a variance of 0 or more, got inf"),
    ("collection device", lambda: dy.ParameterCollection().add_parameters(2, device="GPU:1"), NoCudaError, "add_parameters: Invalid device name"),
    ("parameters", lambda: dy.ParameterCollection().add_lookup_parameters((2**45, 8)), MemoryError, "no room for .* more parameters"),
    ("name", lambda: dy.ParameterCollection().add_parameters(2, name=3), TypeError, "add_parameters: needs a name as a string, got int"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "text"), [m[1:] for m in MESSAGES], ids=[m[0] for m in MESSAGES])
def test_messages(call: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()
    assert dy.ones(2).value() == [1, 1]


def test_lists_of_ints() -> None:
    assert shape.as_integers("f", (i for i in (1, np.int8(2)))) == [1, 2]
    with pytest.raises(TypeError, match="f: needs a list of ints, got str"):
        shape.as_integers("f", "12")


def test_rows_of_other_expressions_leave_their_gradients_alone() -> None:
    x, y = dy.inputTensor(np.ones((2, 2))), dy.ones(3)
    with pytest.raises(TypeError, match="needs a lookup table"):
        dy.lookup(x, 1)
    dy.sum_elems(y).backward(full=True)
    assert y.gradient().tolist() == [1, 1, 1]


def test_parameters_of_a_dead_collection() -> None:
    p = dy.ParameterCollection().add_parameters(2, init=1.0)
    table = dy.ParameterCollection().add_lookup_parameters((2, 2), init=1.0)
    loss = dy.squared_norm(p + table[1])
    loss.backward()
    assert loss.value() == 8
    assert p.grad_as_array().tolist() == [4, 4]


def test_mini_batches_beyond_all_memory_are_refused() -> None:
    with pytest.raises(MemoryError, match="random_normal: needs room for a mini-batch of"):
        dy.random_normal((1,), batch_size=1 << 40)
