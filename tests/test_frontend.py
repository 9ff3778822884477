"""The compiled front end makes the same nodes, and the same errors, as its twins in Python."""

from __future__ import annotations

import inspect
import operator as python_operator
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from records import shape_of, twins_alone

import dynjit as dy
from dynjit import frontend, graph, initializers, op
from dynjit.errors import ShapeError, StaleExpressionError
from dynjit.ops import leaf

pytestmark = pytest.mark.skipif(not frontend.is_native, reason="this interpreter has the twins alone")

FAST = {function.__name__: (function, operator) for function, (operator, letters) in op.fast.items()}


class MyList(list):
    """A list whose items compiled code must not read past the back of Python."""

    def __iter__(self) -> Iterator[Any]:
        return iter(list.__iter__(self))


def outcome(call: Callable[[], Any]) -> tuple[Any, ...]:
    """What a call does: the node that it makes with all that is known of it, or the error."""
    header, first = graph.current.header, int(graph.current.header["node_count"])
    streams = graph.random_state.tolist()
    try:
        made = call()
    except Exception as error:
        text = re.sub(r" \(at .*\)$", "", str(error))
        text = re.sub(r"0x[0-9a-f]+|\d+/\d+", "", text)
        return type(error), text, int(header["node_count"]) - first, graph.random_state.tolist() != streams
    if not isinstance(made, dy.Expression):
        return (type(made),)
    number, count = made._node(), int(header["node_count"])
    nodes, storage = graph.current.nodes, graph.current.storage
    start, data = int(nodes[number]["args"]), int(nodes[number]["data"])
    operands = storage.args[start : start + int(nodes[number]["arity"])]
    return (
        count - first, number - first, int(nodes[number]["signature"]), int(nodes[number]["flags"]),
        [("made", k - first) if k >= first else ("given", k) for k in operands.tolist()],
        storage.data[data : int(header["data_count"])].tolist(), made.dim(),
    )  # fmt: skip


def arguments_of(operator: op.Operator, case: op.Case) -> list[Any]:
    """The arguments of a plain call, operands as inputs of a new graph."""
    dy.renew_cg()
    initializers.reset_random_seed(3)
    shapes = [shape_of(given) for given in case.shapes]
    operands = [leaf.add_leaf(leaf.INPUT, shape, np.linspace(0.1, 0.9, shape.size)) for shape in shapes]
    given, others = iter(operands), iter(case.arguments)
    return [
        operands if letter == "X" else next(given) if letter == "x" else next(others, None)
        for letter in operator.params.replace("r", "")
    ]  # fmt: skip


def same(
    function: Callable, operator: op.Operator, case: op.Case, change: Callable[[list[Any]], Any]
) -> tuple[Any, ...]:
    """Checks that native and twin do the same; `change` makes (positional, keyword) arguments of the plain ones."""
    native, found = frontend.builtin(function), []
    for call in (native, function, native):
        if call is function:
            with twins_alone():
                positional, keywords = change(arguments_of(operator, case))
                found.append(outcome(lambda: function(*positional, **keywords)))
        else:
            positional, keywords = change(arguments_of(operator, case))
            found.append(outcome(lambda: native(*positional, **keywords)))
    assert found[0] == found[1] == found[2]
    return found[0]


TABLES = {function.__name__: function for function, (_, letters) in op.fast.items() if "t" in letters}
PLAIN = [pytest.param(*FAST[name], id=name) for name in FAST if FAST[name][1].cases and name not in TABLES]


@pytest.mark.parametrize(("function", "operator"), PLAIN)
def test_plain_calls(function: Callable, operator: op.Operator) -> None:
    names = list(inspect.signature(function).parameters)
    for case in operator.cases:
        result = same(function, operator, case, lambda arguments: (arguments, {}))
        assert isinstance(result[0], int), result
        same(function, operator, case, lambda arguments: ([], dict(zip(names, arguments, strict=False))))
        same(
            function,
            operator,
            case,
            lambda arguments: (arguments[:1], dict(zip(names[1:], arguments[1:], strict=False))),
        )


def replaced(arguments: list[Any], position: int, value: Any) -> tuple[list[Any], dict[str, Any]]:
    changed = list(arguments)
    changed[position] = value(changed[position]) if callable(value) else value
    return changed, {}


STRANGE: dict[str, list[Any]] = {  # by letter: what stands in the place of a plain argument
    "x": [None, 3, 2.5, "x", [], np.ones(3), lambda x: [x]],
    "X": [None, [], (), "x", lambda xs: tuple(xs), MyList, lambda xs: [*xs, None], lambda xs: iter(xs), lambda xs: xs[0],
          lambda xs: [1.0 for _ in xs]],
    "i": [None, 1.5, "1", True, -1, 10**6, 2**63, -(2**80), np.int32, np.int64, np.float32(1), lambda i: [i]],
    "I": [None, 1, 1.5, 2.0, "1", (), [], (1.0,), (1.5,), (True,), (2**70,), ("a",), (-1,), tuple(range(9)), np.ones(2),
          lambda ints: list(ints), lambda ints: np.array(ints), lambda ints: [np.int64(i) for i in ints], (None,)],
    "e": [None, 1.5, True, -1, 0, 10**6, 2**70, np.int64],
    "f": [None, "1", 2, True, np.float32, np.float64, np.nan, np.inf, 2**80, lambda f: [f]],
    "d": [None, 1.5, "1", True, -1, 10**6, 2**63, -(2**80), np.int32, np.uint8, lambda i: [i]],
    "D": [None, 1, [], (), "12", lambda ids: tuple(ids), MyList, lambda ids: np.array(ids), lambda ids: [*ids, 0],
          lambda ids: [-1 for _ in ids], lambda ids: [2**70 for _ in ids], lambda ids: [np.int64(i) for i in ids],
          lambda ids: [float(i) for i in ids], lambda ids: [True for _ in ids]],
}  # fmt: skip
STRANGE["A"] = STRANGE["D"]


@pytest.mark.parametrize(("function", "operator"), PLAIN)
def test_strange_arguments(function: Callable, operator: op.Operator) -> None:
    case = operator.cases[0]
    letters = operator.params.replace("r", "")
    for position, letter in enumerate(letters):
        for value in STRANGE.get(letter, []):
            if callable(value) and arguments_of(operator, case)[position] is None:
                continue
            same(function, operator, case, lambda arguments, p=position, v=value: replaced(arguments, p, v))
    for change in (
        lambda arguments: ([], {}),
        lambda arguments: (arguments[:-1], {}),
        lambda arguments: ([*arguments, None, None, None], {}),
        lambda arguments: (arguments, {"nonsense": 1}),
    ):
        same(function, operator, case, change)


def test_arguments_of_another_kind_are_refused() -> None:
    x = dy.inputVector([1, 2, 3])
    with pytest.raises(TypeError, match=r"dropout: needs a number, got str"):
        dy.dropout(x, "0.5")
    with pytest.raises(ValueError, match=r"dropout: needs a probability 0 <= p < 1, got 1"):
        dy.dropout(x, 1)
    with pytest.raises(TypeError, match=r"pick_batch: needs a list of ints, got int"):
        dy.pick_batch(x, 3)
    with pytest.raises(TypeError, match=r"sum_dim: needs .*ints, got"):
        dy.sum_dim(x, "x")


@pytest.mark.parametrize(
    "call",
    [
        lambda x: dy.zeros(3), lambda x: dy.zeros((2, 3), batch_size=2), lambda x: dy.ones((2,)),
        lambda x: dy.constant((2, 2), 1.5), lambda x: dy.constant(3, 2, 2), lambda x: dy.vecInput(4),
        lambda x: dy.inputTensorTranspose([1.0, 2, 3, 4], (2, 2)), lambda x: dy.one_hot(4, 2),
        lambda x: dy.inputTensorTranspose([1.0, 2, 3, 4], (2,), batch_size=2), lambda x: dy.one_hot(4, [2, 0]),
        lambda x: dy.inputMatrix([1.0, 2, 3, 4], (2, 2)), lambda x: dy.scalarInput(2), lambda x: dy.inputVector((1.0, 2)),
    ],
)  # fmt: skip
def test_leaves_have_the_values_of_their_twins(call: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for alone in (False, False, True):
        if alone:
            for function, (_, _) in op.fast.items():
                if function.__module__ == leaf.__name__:
                    monkeypatch.setattr(leaf, function.__name__, function)
                    monkeypatch.setattr(dy, function.__name__, function, raising=False)
        dy.renew_cg()
        made = call(None)
        found.append((outcome(lambda made=made: made), made.npvalue().tolist()))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("name", ["tanh", "add", "affine_transform", "pick", "esum", "pickneglogsoftmax", "cmult"])
def test_stale_and_foreign_operands(name: str) -> None:
    function, operator = FAST[name]
    old = dy.inputVector([1, 2, 3])
    dy.renew_cg()

    def with_old(arguments: list[Any]) -> tuple[list[Any], dict[str, Any]]:
        if operator.is_list:
            return [[old, *arguments[0][1:]], *arguments[1:]], {}
        return [old, *arguments[1:]], {}

    result = same(function, operator, operator.cases[0], with_old)
    assert result[0] is dy.StaleExpressionError


def test_parameters_join_at_their_first_use(model: dy.ParameterCollection) -> None:
    w, b, x = model.add_parameters((3, 3)), model.add_parameters((3,)), model.add_parameters((3,))
    table = model.add_lookup_parameters((4, 3))
    calls: dict[str, Callable[[], Any]] = {
        "add": lambda: b + x, "product": lambda: w * x, "tanh": lambda: dy.tanh(x), "negate": lambda: -b,
        "affine": lambda: dy.affine_transform([b, w, x]), "pick": lambda: x[1], "slice": lambda: x[1:3],
        "lookup": lambda: table[2], "batch": lambda: dy.lookup_batch(table, [1, 1, 3]), "scale": lambda: 2 * x,
        "esum": lambda: dy.esum([x, b, x]), "square": lambda: x**2, "matmul": lambda: w @ b, "whole": lambda: table + 1,
    }  # fmt: skip
    for name, call in calls.items():
        found = []
        for alone in (False, True):
            dy.renew_cg()
            if alone:
                with twins_alone():
                    slots = {"add": "add", "product": "multiply", "negate": "negative", "pick": "subscript"}
                    found.append(outcome(lambda n=name, c=call: slow_call(n, slots, (w, b, x, table)) or c()))
            else:
                found.append(outcome(call))
        assert found[0] == found[1], name
    dy.renew_cg()
    first = w * x
    again = w * x
    assert graph.current.header["node_count"] == 4
    assert first.npvalue().tolist() == again.npvalue().tolist() == pytest.approx(w.as_array() @ x.as_array())


@pytest.mark.parametrize("name", ["lookup", "lookup_batch"])
def test_lookups(name: str, model: dy.ParameterCollection) -> None:
    native, twin = frontend.builtin(TABLES[name]), TABLES[name]
    table, vector = model.add_lookup_parameters((4, 3)), model.add_parameters(3)
    rows = [0, 3, 4, -1, True, 1.5, None, "1", 2**70, np.int64(2)]
    if name == "lookup_batch":
        rows = [[1], (0, 3), [], [1, 4], [True, 2], [1.5], *rows]
    calls = [((table, row), {}) for row in rows] + [((other, rows[0]), {}) for other in (vector, dy.zeros(3), None, 2)]
    calls += [
        ((table, rows[0], False), {}),
        ((table, rows[0], True), {}),
        ((table, rows[0]), {"update": False}),
        ((), {}),
    ]
    calls += [
        ((table,), {}),
        ((table,), {"index" if name == "lookup" else "indices": rows[1]}),
        ((table, rows[0], 1, 2), {}),
    ]
    dy.renew_cg()
    table[0], vector + 1, dy.lookup(table, 0, False)  # they have joined the graph
    for positional, keywords in calls:
        for _ in range(2):  # a signature that was not met before, and one that was
            both_ways(
                name, lambda p=positional, k=keywords: native(*p, **k), lambda p=positional, k=keywords: twin(*p, **k)
            )


def slow_call(name: str, slots: dict[str, str], given: tuple[Any, ...]) -> Any:
    """The same call by the twin of a slot; None for calls that have none."""
    w, b, x, table = given
    arguments = {"add": (b, x), "product": (w, x), "negate": (b, b), "pick": (x, 1)}
    return graph.slow[slots[name]](*arguments[name]) if name in slots else None


# ---- the operators of expressions ------------------------------------------------------------------------------------

OTHERS = [
    2, 2.5, -1, -1.0, 0, 0.0, True, 2**70, 1e300, np.float32(1.5), np.int64(3), np.float64(2), np.array(2.0), np.nan,
    None, "x", [1.0], np.ones(3), 1 + 2j, object,
]  # fmt: skip
PAIRS = {"add": python_operator.add, "subtract": python_operator.sub, "multiply": python_operator.mul,
         "divide": python_operator.truediv, "matmul": python_operator.matmul, "power": python_operator.pow}  # fmt: skip


def both_ways(name: str, native: Callable[[], Any], slow: Callable[[], Any]) -> None:
    with twins_alone():
        expected = outcome(slow)
    assert outcome(native) == expected, name


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", PAIRS)
def test_pairs(name: str) -> None:
    native, slow = PAIRS[name], graph.slow[name]
    dy.renew_cg()
    old = dy.inputVector([1, 2, 3])
    dy.renew_cg()
    a, b = dy.inputVector([1, 2, 3]), dy.inputVector([4, 5, 6])
    m, s = dy.inputTensor(np.ones((3, 3))), dy.scalarInput(2)
    for left, right in [(a, b), (m, a), (a, m), (m, m), (a, s), (s, a), (a, old), (old, a), (a, a)]:
        both_ways(name, lambda x=left, y=right: native(x, y), lambda x=left, y=right: slow(x, y))
    for other in OTHERS:
        both_ways(name, lambda o=other: native(a, o), lambda o=other: slow(a, o))
        if not isinstance(other, (np.ndarray, np.generic)):  # NumPy takes those to the elements, before it asks us
            both_ways(name, lambda o=other: native(o, a), lambda o=other: slow(o, a))


def test_a_power_with_a_number_is_one_node() -> None:
    for alone in (False, True):
        dy.renew_cg()
        x = dy.inputVector([0.5, 2.0])
        for exponent in (3, -1, 0.5, 0):
            y = graph.slow["power"](x, exponent) if alone else x**exponent
            assert y._node() == graph.current.header["node_count"] - 1
            np.testing.assert_allclose(y.npvalue(), x.npvalue() ** exponent, rtol=1e-6)
        assert graph.current.header["node_count"] == 5
        dy.sum_elems(x**3).backward(full=True)
        np.testing.assert_allclose(x.gradient(), 3 * x.npvalue() ** 2, rtol=1e-6)
    m = dy.inputTensor(np.full((2, 1), 3.0))
    assert (m**3).dim() == (m**2).dim() == (m ** dy.scalarInput(3)).dim() == ((2,), 1)  # as in DyNet


def test_powers_have_no_modulus() -> None:
    x = dy.inputVector([1, 2])
    for call in (lambda: pow(x, 2, 3), lambda: pow(x, x, x), lambda: graph.slow["power"](x, 2, 3)):
        with pytest.raises(TypeError, match="pow: an expression has no modulus"):
            call()
    np.testing.assert_allclose((x**2).value(), [1, 4])
    np.testing.assert_allclose((2.0**x).value(), [2, 4], rtol=1e-6)
    np.testing.assert_allclose((x**x).value(), [1, 4], rtol=1e-6)
    np.testing.assert_allclose((x**0.5).value(), [1, 2**0.5], rtol=1e-6)


INDICES = [0, 1, 2, 3, -1, -3, -4, 2**70, True, 1.5, "1", None, np.int64(1), slice(0, 2), slice(1, None), slice(None),
           slice(0, 0), slice(2, 1), slice(-2, None), slice(0, 9), slice(0, 3, 2), slice(None, None, -1), slice("a", 2),
           slice(0, 2**70), (0, 1), [0]]  # fmt: skip


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_subscripts(index: Any, model: dy.ParameterCollection) -> None:
    table = model.add_lookup_parameters((3, 2))
    for what in (lambda: dy.inputVector([1, 2, 3]), lambda: dy.inputTensor(np.ones((3, 2))), lambda: table):
        found = []
        for subscript in (python_operator.getitem, graph.slow["subscript"]):
            dy.renew_cg()
            x = what()
            found.append(outcome(lambda f=subscript, x=x: f(x, index)))
        assert found[0] == found[1]


def test_inputs() -> None:
    for native, slow, given in [
        (dy.scalarInput, leaf.scalarInput, [1.5, 1, -2.0, True, np.float32(1), "x", None, [1.0], 2**70, np.nan]),
        (dy.inputVector, leaf.inputVector, [
            [1.0, 2.0], [1, 2], [], (1.0, 2.0), np.ones(2), [1.0, "x"], [1.0, None], MyList([1.0, 2.0]), None, "x", [[1.0]],
            [True, 1.0], [np.float32(1), 2.0], [2**70, 1.0],
        ]),
    ]:  # fmt: skip
        for value in given:
            for _ in range(2):  # a shape that was not met before, and one that was
                dy.renew_cg()
                found = outcome(lambda: native(value))
                dy.renew_cg()
                assert found == outcome(lambda: slow(value)), value
    assert dy.zeros((0,)).dim() == ((0,), 1)  # a shape that compiled code knows from then on
    for call in (dy.inputVector, leaf.inputVector):
        with pytest.raises(ValueError):
            call([])
    assert dy.inputVector([1.0, 2.5]).value() == [1, 2.5]
    assert dy.scalarInput(1.5).value() == 1.5


@pytest.mark.parametrize("seed", [1, 1 << 30, (1 << 31) - 1])  # streams begin with the seed
def test_compiled_code_alone_draws_streams(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    dy.renew_cg()
    x = dy.inputVector([1.0, 2.0])
    x + dy.dropout(x, 0.5), dy.random_normal(2)  # signatures that are known from now on
    initializers.reset_random_seed(seed)
    monkeypatch.setattr(op, "recorder", lambda operator, arguments: pytest.fail(f"{operator.name}: Python's twin"))
    assert np.isfinite((x + dy.dropout(x, 0.5)).npvalue() + dy.random_normal(2).npvalue()).all()


def test_memos_are_of_all_that_a_signature_is_of() -> None:
    dy.renew_cg()
    vectors = [dy.inputVector([0.5] * size) for size in range(1, 40)]
    matrix = dy.inputTensor(np.ones((40, 3)))
    for _ in range(2):  # then all are known; there are more of them than fit without collisions
        for x in vectors:
            size = x.dim()[0][0]
            for y in vectors:
                assert (x * dy.transpose(y)).dim()[0] == (size, y.dim()[0][0])
            assert matrix[:size].dim()[0] == (size, 3) and dy.pick_range(matrix, 0, 1, 1).dim()[0] == (40, 1)
            assert x[size - 1].dim()[0] == (1,)
            for index in (size, -size - 1, 1 << 40):
                with pytest.raises(IndexError):
                    x[index]


def test_memos_are_of_all_operands() -> None:
    for _ in range(3):
        x, y, z = (dy.inputVector([1.0] * size) for size in (2, 3, 4))
        for operands in ([x], [x, y], [y, x], [x, y, z], [x, z, y], [x, y, z, x]):
            sizes = sum(e.dim()[0][0] for e in operands)
            assert dy.concatenate(operands).dim()[0] == (sizes,) and dy.concatenate(operands).value() == [1.0] * sizes
        with pytest.raises(ShapeError):
            dy.esum([x, x, y])
        assert dy.esum([x, x, x]).value() == [3.0] * 2


def test_a_dropped_operand_is_not_a_missing_one() -> None:
    x = dy.inputVector([1.0, 2.0])
    for count in (1, 2, 3):
        for _ in range(3):  # then it is known
            dy.esum([x] * count)
        dy.cg_checkpoint()
        dropped = dy.inputVector([3.0, 4.0])
        dy.cg_revert()
        for operands in ([x] * count + [dropped], [x] * (count - 1) + [dropped]):
            with pytest.raises(StaleExpressionError):
                dy.esum(operands)


def test_random_streams_are_the_same() -> None:
    found = []
    for alone in (False, True):
        dy.renew_cg()
        initializers.reset_random_seed(9)
        x = dy.inputTensor(np.ones((20, 3)), batched=True)
        if alone:
            with twins_alone():
                made = [dy.dropout(x, 0.5), dy.noise(x, 0.1), dy.dropout(x, 0.5)]
        else:
            made = [dy.dropout(x, 0.5), dy.noise(x, 0.1), dy.dropout(x, 0.5)]
        found.append([e.npvalue() for e in made])
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0][0] != found[0][2]).any()


def test_builtins_look_like_their_functions() -> None:
    for function, _ in FAST.values():
        native = frontend.builtin(function)
        assert native.__name__ == function.__name__
        assert list(inspect.signature(native).parameters) == list(inspect.signature(function).parameters)
        assert native.__doc__ == (function.__doc__ or "None")


def test_handles_are_not_kept_alive_by_compiled_code() -> None:
    import gc
    import sys

    x = dy.inputVector([1.0, 2.0])
    numbers, y = [0.5, 0.25], 2.5
    dy.tanh(x), dy.esum([x, x]), x + x, x * y, x[0], x[0:1], dy.inputVector(numbers), -x
    gc.collect()
    counts = [sys.getrefcount(o) for o in (x, numbers, y, dy.Expression)]
    for _ in range(100):
        dy.tanh(x), dy.esum([x, x]), x + x, x * y, y * x, x[0], x[0:1], dy.inputVector(numbers), -x
        x.value()
        with pytest.raises(IndexError):
            x[5]
        with pytest.raises(TypeError):
            x + "a"
    gc.collect()
    assert [sys.getrefcount(o) for o in (x, numbers, y, dy.Expression)] == counts


TRAIN = """
import platform, sys
if sys.argv[1] == "twins":
    platform.python_implementation = lambda: "other"
import dynjit as dy
from dynjit import frontend, initializers
assert frontend.is_native == (sys.argv[1] != "twins")
initializers.reset_random_seed(1)
m = dy.ParameterCollection()
table, lstm, w, b = m.add_lookup_parameters((5, 4)), dy.VanillaLSTMBuilder(1, 4, 6, m), m.add_parameters((3, 6)), m.add_parameters(3)
trainer = dy.SimpleSGDTrainer(m)
for epoch in range(4):
    dy.renew_cg()
    losses = []
    for n in range(1, 4):
        for h in lstm.initial_state().transduce([table[i % 5] for i in range(n + 2)]):
            losses.append(dy.pickneglogsoftmax(dy.affine_transform([b, w, dy.dropout(h, 0.2)]) - 0.5 * b, n % 3))
    loss = dy.esum(losses) / len(losses) + 0.01 * dy.squared_norm(w)
    print(repr(loss.value()))
    loss.backward()
    trainer.update()
    assert [v.value() for v in dy.inputVector([1, 2])] == [1, 2] and (-b)[0:2].dim() == ((2,), 1)
"""


def test_twins_alone_train_to_the_same_losses(python: Callable[..., Any]) -> None:
    losses = python(TRAIN, "native").stdout
    assert losses.count("\n") == 4
    assert python(TRAIN, "twins").stdout == losses
