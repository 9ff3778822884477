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
from dynjit import expressions, frontend, graph, initializers, op
from dynjit.arena import random_state
from dynjit.errors import ShapeError, StaleExpressionError
from dynjit.ops import leaf, linear, unary

pytestmark = pytest.mark.skipif(not frontend.is_native, reason="this interpreter has the twins alone")

FAST = {
    function.__name__: (function, services[0].operator)
    for function, services in op.fast.items()
    if services[0].operator is not None and not services[0].only
}
TWINS = {function.__name__: function for function in op.fast}
COMPOSED = [function for function, services in op.fast.items() if services[0].operator is None]


class MyList(list):
    """A list whose items compiled code must not read past the back of Python."""

    def __iter__(self) -> Iterator[Any]:
        return iter(list.__iter__(self))


def outcome(call: Callable[[], Any]) -> tuple[Any, ...]:
    """What a call does: the node that it makes with all that is known of it, or the error."""
    header, first = graph.current.header, graph.current.header.node_count
    streams = random_state.tolist()
    try:
        made = call()
    except Exception as error:
        text = re.sub(r" \(at .*\)$", "", str(error))
        text = re.sub(r"0x[0-9a-f]+|\d+/\d+", "", text)
        return type(error), text, header.node_count - first, random_state.tolist() != streams
    if not isinstance(made, dy.Expression):
        return (type(made),)
    number, count = made._node(), header.node_count
    nodes, storage = graph.current.nodes, graph.current.storage
    start, data = int(nodes[number]["args"]), int(nodes[number]["data"])
    operands = storage.args[start : start + int(nodes[number]["arity"])]
    return (
        count - first, number - first, int(nodes[number]["signature"]), int(nodes[number]["flags"]),
        [("made", k - first) if k >= first else ("given", k) for k in operands.tolist()],
        storage.data[data : header.data_count].tolist(), made.dim(),
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


TABLES = {function.__name__: function for function, services in op.fast.items() if "t" in services[0].letters}
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
            for function in op.fast:
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
    assert graph.current.header.node_count == 4
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
    return expressions.slow[slots[name]](*arguments[name]) if name in slots else None


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
    native, slow = PAIRS[name], expressions.slow[name]
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
            y = expressions.slow["power"](x, exponent) if alone else x**exponent
            assert y._node() == graph.current.header.node_count - 1
            np.testing.assert_allclose(y.npvalue(), x.npvalue() ** exponent, rtol=1e-6)
        assert graph.current.header.node_count == 5
        dy.sum_elems(x**3).backward(full=True)
        np.testing.assert_allclose(x.gradient(), 3 * x.npvalue() ** 2, rtol=1e-6)
    m = dy.inputTensor(np.full((2, 1), 3.0))
    assert (m**3).dim() == (m**2).dim() == (m ** dy.scalarInput(3)).dim() == ((2,), 1)  # as in DyNet


def test_powers_have_no_modulus() -> None:
    x = dy.inputVector([1, 2])
    for call in (lambda: pow(x, 2, 3), lambda: pow(x, x, x), lambda: expressions.slow["power"](x, 2, 3)):
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
        for subscript in (python_operator.getitem, expressions.slow["subscript"]):
            dy.renew_cg()
            x = what()
            found.append(outcome(lambda f=subscript, x=x: f(x, index)))
        assert found[0] == found[1]


ARRAYS = [
    np.arange(6.0), np.arange(6.0).reshape(2, 3), np.arange(24.0).reshape(2, 3, 4), np.asfortranarray(np.eye(3)),
    np.arange(24.0).reshape(2, 3, 4)[:, ::-1, 1:3], np.arange(6.0)[::-2], np.ones((2, 1, 3)).transpose(2, 0, 1),
    np.broadcast_to(2.0, (2, 3)), np.arange(6).reshape(2, 3), np.arange(6, dtype=np.float32).reshape(3, 2)[1:],
    np.arange(6, dtype=np.int32), np.arange(6, dtype=np.float16), np.arange(6, dtype=">f8"), np.eye(2, dtype=bool),
    np.arange(6, dtype=np.uint8), np.ones(2, complex), np.array(["a"]), np.array(["2020-01-01"], "M8[D]"), np.array(1.0),
    np.ones((2, 0)), np.ones((1,) * 7), np.ones((1,) * 8), np.ones((1,) * 9), np.ones(2, object), np.ma.array([1.0, 2.0]),
    np.frombuffer(bytes(25), np.float64, 3, 1), [1.0, 2.0], [[1.0, 2.0], [3.0, 4.0]], [np.ones(2), np.ones(2)], [], (1.0,),
]  # fmt: skip


def input_outcome(call: Callable[[], Any]) -> Any:
    """What a call does in a new graph, and the values of what it makes."""
    dy.renew_cg()
    made: list[Any] = []
    found = outcome(lambda: made.append(call()) or made[0])
    return found, *(expression.npvalue().tolist() for expression in made)


@pytest.mark.parametrize("number", range(len(ARRAYS)))
def test_arrays(number: int) -> None:
    for rest in ((), (False,), (True,), (1,), (None,), (True, "CPU"), (False, "nowhere"), (False, "", True)):
        expected = input_outcome(lambda rest=rest: leaf.inputTensor(ARRAYS[number], *rest))
        for _ in range(2):  # a shape that was not met before, and one that was
            assert input_outcome(lambda rest=rest: dy.inputTensor(ARRAYS[number], *rest)) == expected, rest


SPARSE: list[tuple[Any, ...]] = [
    ((4, 2), {}), ((4, 4), {}), ((4, -1), {}), ((4, [2, 0]), {}), ((4, (2, 4)), {}), ((4, []), {}), ((4, [1.0]), {}),
    ((4, np.array([1, 2])), {}), ((4, np.int64(1)), {}), ((0, 0), {}), ((-1, 0), {}), ((None, 0), {}), (((4,), 0), {}),
    ((4, None), {}), ((4, 1, "CPU"), {}), ((4, 1, "nowhere"), {}), ((), {"idx": [1, True], "d": 3}), ((4,), {}),
]  # fmt: skip
PLACED: list[tuple[Any, ...]] = [
    ((([1, 2],), [0.5, 1.5], (8,)), {}), ((([1, 1],), (0.5, 2), (8,)), {}), (([[1, 2]], [0.5, 1.5], 8), {}),
    ((([1, 0], [2, 1]), [0.5, 1.5], (2, 3)), {}), ((([1, 0], [2, 1]), [0.5, 1.5], (2, 3), True, -1), {}),
    ((([1, 2],), [0.5, 1.5], (8,), True), {"defval": 3.5}), ((((1, 7),), [0.5, 1.5], (8,), False, 2.0, ""), {}),
    ((([1, 2], [1, 2]), [0.5, 1.5], (8,)), {}), ((([1, 8],), [0.5, 1.5], (8,)), {}), ((([-1],), [0.5], (8,)), {}),
    ((([1, 2],), [0.5], (8,)), {}), ((([1],), [0.5, 1.5], (8,)), {}), ((([1.5],), [0.5], (8,)), {}), ((([],), [], (8,)), {}),
    ((([1],), [None], (8,)), {}), ((([1],), ["x"], (8,)), {}), (((1,), [0.5], (8,)), {}), ((1, [0.5], (8,)), {}),
    ((([1],), [[0.5]], (8,)), {}), (((), [0.5], ()), {}), (((), [0.5], (), True), {}), ((([1],), [0.5], (8.0,)), {}),
    (((np.array([1, 2]),), np.array([0.5, 1.5]), (8,)), {}), ((([True],), [True], (8,)), {}), ((([1],), [0.5], (-8,)), {}),
    ((([1],), [0.5], (8,), False, None), {}), ((([1],), [0.5], (8,), False, 0.0, "nowhere"), {}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "calls"), [("one_hot", SPARSE), ("sparse_inputTensor", PLACED)])
def test_sparse_inputs(name: str, calls: list[tuple[Any, ...]]) -> None:
    for positional, keywords in calls:
        expected = input_outcome(lambda p=positional, k=keywords: getattr(leaf, name)(*p, **k))
        for function in (getattr(dy, name), frontend.builtin(TWINS[name])):
            found = input_outcome(lambda f=function, p=positional, k=keywords: f(*p, **k))
            assert found == expected, (positional, keywords)


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


def composed_calls(model: dy.ParameterCollection) -> dict[str, list[tuple[list[Any], dict[str, Any]]]]:
    """Calls of functions that are composed of others: (positional, keyword) arguments."""
    wx, wh, b = model.add_parameters((12, 2)), model.add_parameters((12, 3)), model.add_parameters(12)
    b + 1, wx + 1, wh + 1  # they have joined the graph
    x, h, short = dy.inputVector([1, 2]), dy.inputTensor(np.ones((3, 2)), batched=True), dy.inputVector([1])
    p, q = dy.inputVector([0.5, 0.5]), dy.inputVector([1, 0, 1])
    cube, y, z, bias = dy.inputTensor(np.ones((3, 2, 2))), x, p, q
    plain = {
        "vanilla_lstm_gates": [x, h, wx, wh, b], "vanilla_lstm_gates_concat": [[short, short], h, wx, wh, b],
        "vanilla_lstm_gates_dropout": [x, h, wx, wh, b, p, q],
        "vanilla_lstm_gates_dropout_concat": [(x,), h, wx, wh, b, p, q],
        "contract3d_1d_1d": [cube, y, z], "contract3d_1d_1d_bias": [cube, y, z, bias], "to_device": [x, "CPU"],
    }  # fmt: skip
    calls = {}
    for name, given in plain.items():
        strange = [
            [*given[:at], other, *given[at + 1 :]]
            for at in range(len(given)) for other in (None, cube, 1, [x], [], [short, None], wx, model)
        ]  # fmt: skip
        names = list(inspect.signature(TWINS[name]).parameters)
        calls[name] = [(given, {}), (given, {}), (given[:1], dict(zip(names[1:], given[1:], strict=False)))]
        calls[name] += [(arguments, {}) for arguments in (*strange, given[:-1], [*given, None, 0.0])]
        calls[name] += [(given, {"weightnoise_std": std}) for std in (0.0, 0, 0.5, -1.0, "x")]
    return calls


def test_composed_functions(model: dy.ParameterCollection) -> None:
    dy.renew_cg()
    calls = composed_calls(model)
    assert set(calls) == {function.__name__ for function in COMPOSED}
    for name, given in calls.items():
        for positional, keywords in given:
            found = []
            for function in (getattr(dy, name), TWINS[name]):
                initializers.reset_random_seed(5)
                found.append(outcome(lambda f=function, p=positional, k=keywords: f(*p, **k)))
            assert found[0] == found[1], (name, positional, keywords)


def test_compiled_code_composes(model: dy.ParameterCollection, monkeypatch: pytest.MonkeyPatch) -> None:
    dy.renew_cg()
    calls = composed_calls(model)
    for name, ((positional, _), *_) in calls.items():
        getattr(dy, name)(*positional)  # signatures that are known from now on
    for module, function in [
        (linear, "affine_transform"),
        (linear, "product"),
        (linear, "add_product"),
        (unary, "dim_of"),
    ]:
        monkeypatch.setattr(module, function, lambda *given: pytest.fail("Python's twin"))
    for name, ((positional, _), *_) in calls.items():
        made = getattr(dy, name)(*positional)
        assert made is positional[0] or np.isfinite(made.npvalue()).all()
    x = dy.inputVector([1, 2])
    dy.renew_cg()
    with pytest.raises(pytest.fail.Exception):
        dy.to_device(x, "CPU")


def test_functions_of_several_operators() -> None:
    names = {function.__name__ for function, services in op.fast.items() if len(services) > 1}
    assert names == {"argmax", "ceil", "floor", "inputTensor", "log_softmax", "round"}
    dy.renew_cg()
    x, m = dy.inputVector([1, 2.5, 3]), dy.inputTensor(np.ones((2, 2)))
    modes = ("zero_gradient", "straight_through_gradient", "".join(("zero", "_gradient")), "zero", None, [], 1, b"x")
    for name in ("argmax", "ceil", "floor", "round"):
        for operand in (x, m, None):
            for calls in ([((operand, mode), {}), ((operand,), {"gradient_mode": mode})] for mode in modes):
                for positional, keywords in (*calls, ((operand,), {})):
                    both_ways(name, lambda n=name, p=positional, k=keywords: getattr(dy, n)(*p, **k),
                              lambda n=name, p=positional, k=keywords: TWINS[n](*p, **k))  # fmt: skip
        needs = "Unknown gradient mode: needs zero_gradient or straight_through_gradient, got 'zero'"
        with pytest.raises(ValueError, match=f"{name}: {needs}"):
            getattr(dy, name)(x, "zero")
    for operand in (x, m, None):
        for restrict in (None, [1, 2], (0,), [], [3], [-1], [1.0], 1, "x", np.array([1])):
            for _ in range(2):
                both_ways("log_softmax", lambda o=operand, r=restrict: dy.log_softmax(o, r),
                          lambda o=operand, r=restrict: TWINS["log_softmax"](o, restrict=r))  # fmt: skip


def test_handles_are_not_kept_alive_by_compiled_code() -> None:
    import gc
    import sys

    x = dy.inputVector([1.0, 2.0])
    numbers, y, array = [0.5, 0.25], 2.5, np.ones(2)

    def make() -> None:
        dy.tanh(x), dy.esum([x, x]), x + x, x * y, y * x, x[0], x[0:1], dy.inputVector(numbers), -x, x**3
        dy.inputTensor(array), dy.one_hot(2, 1), dy.to_device(x, "CPU")

    make()
    gc.collect()
    counts = [sys.getrefcount(o) for o in (x, numbers, y, array, dy.Expression)]
    for _ in range(100):
        make()
        x.value()
        with pytest.raises(IndexError):
            x[5]
        with pytest.raises(TypeError):
            x + "a"
    gc.collect()
    assert [sys.getrefcount(o) for o in (x, numbers, y, array, dy.Expression)] == counts


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
