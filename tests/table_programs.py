"""Random programs of all operators of the table, and their graphs.

A program is a list of steps, each of an operator, one of its record's cases, and numbers that choose.  It is planned
once: operands of a case's shapes are taken from what has been computed before, reshaped, cut and brought into the
case's domain if need be.  Near a kink, a jump or a pole an operator is not used (`is_smooth`), so that no rounding
decides anything.  From a plan graphs are made in several ways, which must agree.
"""

from __future__ import annotations

import functools
import operator as python_operator
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from records import call, expected_value, shape_of

import dynjit as dy
from dynjit import backprop, frontend, graph, op
from dynjit.arena import random_state
from dynjit.ops import leaf
from dynjit.shape import Shape

OPERATORS = [operator for operator in op.operators if not operator.leaf]  # leaves are what programs begin with
BY_NAME = {operator.name: operator for operator in OPERATORS}
LOOKUPS = (BY_NAME["lookup"], BY_NAME["lookup_batch"])  # their operand is a table
TWINS = {  # public functions, in Python
    service.operator: function for function, services in op.fast.items() for service in services if not service.only
}
LARGER = {  # products that are cut into panels and strips, with rests
    "product": (op.Case(((70, 33), (33,))), op.Case(((37, 50), ((50, 3), 4)))),
    "affine_transform": (op.Case(((37,), (37, 50), (50,), (37, 33), (33,))), op.Case(((70,), (70, 33), ((33,), 4)))),
    "add_product": (op.Case(((37,), (37, 50), (50,))), op.Case((((70,), 4), (70, 33), ((33,), 4)))),
}
SIGNS: dict[str, Callable[..., Any]] = {  # operators of Python that stand for one of the table
    "add": python_operator.add, "subtract": python_operator.sub, "product": python_operator.mul,
    "cdiv": python_operator.truediv, "negate": python_operator.neg, "add_number": lambda x, f: x + f,
    "scale": lambda x, f: f * x, "number_minus": lambda x, f: f - x, "number_over": lambda x, f: f / x,
    "pow": lambda x, y: x**y, "second_power": lambda x: x**2,
    "number_power": lambda x, f: x**f, "lookup": lambda x, i: x[i],
}  # fmt: skip
SHIFT, AMPLIFIED = 1e-4, 50.0  # a shift of an operand moves values and gradients by so much more, at most
LARGEST = 100.0  # value or gradient
STREAMS = 100  # of random numbers that a node can have
OWN_NUMBERS = 1000
WIDE, TRIES = 2.0, 6  # values up to WIDE are used as they are where the domain is the usual one


class Step(NamedTuple):
    """A call of an operator with a case of its record; `choice` chooses the operands.

    From OWN_NUMBERS on lanes have floats of their own, and fewer groups.
    """

    operator: int
    case: int
    choice: int


class Program(NamedTuple):
    """Steps, each of which is taken in so many lanes."""

    lanes: int
    steps: tuple[Step, ...]


class Node(NamedTuple):
    """A leaf, or a call of an operator on earlier nodes; `value` is that of planning."""

    shape: Shape
    value: np.ndarray
    make: Callable[[], Any] | None = None  # of a leaf
    operator: op.Operator | None = None
    operands: tuple[int, ...] = ()
    case: op.Case = op.Case(())


def numbers(*key: Any) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(repr(key).encode()))


@functools.cache
def collection() -> dy.ParameterCollection:
    """The parameters of all programs."""
    return dy.ParameterCollection()


@functools.cache
def parameter(dims: tuple[int, ...], variant: int, is_table: bool = False) -> dy.Parameters | dy.LookupParameters:
    if is_table:
        made = collection().add_lookup_parameters((dims[-1], *dims[:-1]))
    else:
        made = collection().add_parameters(dims)
    made.values()[:] = numbers(dims, variant).uniform(-1, 1, made.values().size)
    return made


def same(made: Any) -> Any:
    return made


def tensor(shape: Shape, values: np.ndarray) -> Any:
    """An input with values in memory order."""
    whole = (*shape.dims, shape.batch) if shape.batch > 1 else shape.dims
    return dy.inputTensor(values.reshape(whole, order="F"), batched=shape.batch > 1)


def evaluated(
    operator: op.Operator, case: op.Case, arrays: list[np.ndarray], number: int, backward: bool = True
) -> tuple[Shape, list[np.ndarray]]:
    """The result's shape; value and gradients of a call in a graph of its own."""
    graph.current.renew()
    random_state[1] = STREAMS * number
    shapes = map(shape_of, case.shapes)
    operands = [leaf.add_leaf(leaf.INPUT, shape, array) for shape, array in zip(shapes, arrays, strict=True)]
    y = call(operator, operands, case)._node()
    graph.current.evaluate([y])
    found = [graph.current.value(y).copy()]
    if backward and operands and not op.TABLE[operator.code]["flags"] & (op.NO_GRADIENT | op.VIEW):
        backprop.start_backward.call(graph.current.address, y, 1)
        graph.current.gradient(y)[:] = np.cos(np.arange(found[0].size))
        graph.current.run_backward()
        found += [graph.current.gradient(x._node()).copy() for x in operands]
    return graph.current.shape(y), found


def is_smooth(operator: op.Operator, case: op.Case, arrays: list[np.ndarray], number: int) -> bool:
    """Whether value and gradients change little with the operands."""
    _, found = evaluated(operator, case, arrays, number)
    if not all(np.isfinite(array).all() and np.abs(array).max(initial=0) <= LARGEST for array in found):
        return False
    random = numbers(number)
    noise = [SHIFT * max(1, np.abs(x).max(initial=0)) * random.uniform(-1, 1, x.size) for x in arrays]
    for sign in (1, -1):
        _, moved = evaluated(operator, case, [x + sign * n for x, n in zip(arrays, noise, strict=True)], number)
        for a, b in zip(moved, found, strict=True):
            if not np.abs(a - b).max(initial=0) <= AMPLIFIED * SHIFT * max(1, np.abs(b).max(initial=0)):
                return False
    return True


def of_lane(operator: op.Operator, arguments: tuple[Any, ...], lane: int, choice: int) -> tuple[Any, ...]:
    """A case's arguments with indices, and now and then numbers, of the lane's own."""
    varied, shift, share = [], 0, 0.9**lane if choice >= OWN_NUMBERS else 1.0
    for letter, given in zip((c for c in operator.params if c not in "xXr"), arguments, strict=True):
        if letter == "d":
            shift = min(lane, given)
        moved = {"d": lambda i: i - shift, "e": lambda i: i - shift, "f": lambda f: f * share,
                 "D": lambda ids: tuple(max(0, i - lane) for i in ids)}.get(letter)  # fmt: skip
        varied.append(moved(given) if moved and not (letter == "D" and operator.whole_batch) else given)
    return tuple(varied)


class Plan:
    """A program's nodes.  Each step is taken in several lanes with other numbers, so that there is what can be grouped.

    rows: nodes that are alike, one per lane.
    """

    def __init__(self, program: Program) -> None:
        self.lanes = program.lanes
        self.nodes: list[Node] = []
        self.rows: list[list[int]] = []
        self.drawn: set[str] = set()
        self.is_differentiable = True  # gradients are those of the function
        for step in program.steps:
            operator = OPERATORS[step.operator % len(OPERATORS)]
            cases = operator.cases + LARGER.get(operator.name, ())
            self.step(operator, cases[step.case % len(cases)], step.choice)
        used = {operand for node in self.nodes for operand in node.operands}
        self.left = [i for i, node in enumerate(self.nodes) if node.operator and i not in used]

    def step(self, operator: op.Operator, case: op.Case, choice: int) -> None:
        """Calls of the operator, if operands are found near which it is smooth."""
        nodes, rows = len(self.nodes), len(self.rows)
        arguments = [of_lane(operator, case.arguments, lane, choice) for lane in range(self.lanes)]
        for attempt in range(TRIES):
            if operator in LOOKUPS:
                operands = [self.leaf(shape_of(case.shapes[0]), choice, is_shared=True, is_table=True)]
            else:
                operands = [
                    self.operand(operator, case, k, shape_of(given), choice + 7 * attempt + 3 * k, attempt)
                    for k, given in enumerate(case.shapes)
                ]
            if operator in LOOKUPS or all(
                is_smooth(operator, *self.given(operands, lane, arguments[lane]), len(self.nodes) + lane)
                for lane in range(self.lanes)
            ):
                self.append(operator, operands, *arguments)
                self.drawn.add(operator.name)
                if case.no_difference or operator.name == "nobackprop":
                    self.is_differentiable = False
                return
            del self.nodes[nodes:], self.rows[rows:]

    def given(
        self, operands: list[list[int]], lane: int, arguments: tuple[Any, ...]
    ) -> tuple[op.Case, list[np.ndarray]]:
        """A lane's call as a case, with its operands' values."""
        nodes = [self.nodes[row[lane]] for row in operands]
        return op.Case(tuple(tuple(node.shape) for node in nodes), arguments=arguments), [node.value for node in nodes]

    def append(self, operator: op.Operator, operands: list[list[int]], *arguments: tuple[Any, ...]) -> list[int]:
        """A call in each lane; `arguments`: the lanes', or those of all."""
        each = arguments if len(arguments) == self.lanes else (arguments or ((),)) * self.lanes
        calls = [self.given(operands, lane, each[lane]) for lane in range(self.lanes)]
        row = []
        for lane, (case, arrays) in enumerate(calls):
            shape, (value, *_) = evaluated(operator, case, arrays, len(self.nodes), backward=False)
            row.append(self.add(Node(shape, value, None, operator, tuple(row[lane] for row in operands), case)))
        self.rows.append(row)
        return row

    def add(self, node: Node) -> int:
        self.nodes.append(node)
        return len(self.nodes) - 1

    def first(self, row: list[int]) -> Shape:
        return self.nodes[row[0]].shape

    def operand(
        self, operator: op.Operator, case: op.Case, k: int, shape: Shape, choice: int, attempt: int
    ) -> list[int]:
        """Nodes of a shape, in the domain of a case."""
        is_weight = operator.kind(k) == op.SHARED and choice % 4 > 0
        fitting = [row for row in self.rows if self.first(row) == shape]
        if is_weight or attempt > TRIES // 2:
            found = self.leaf(shape, choice, is_weight)
        elif fitting and choice % 5:
            found = fitting[-1 - choice // 5 % len(fitting)]
        else:
            found = self.adapted(shape, choice)
        if choice % 11 == 0:
            found = found[1:] + found[:1]  # lanes meet
        return self.within(found, case.low, case.high)

    def leaf(self, shape: Shape, choice: int, is_shared: bool = False, is_table: bool = False) -> list[int]:
        """Inputs, or parameters, which may be the same for all lanes, reshaped where they have a mini-batch."""
        dims = shape.dims if shape.batch == 1 else (shape.size,)
        row = []
        for lane in range(1 if is_shared else self.lanes):
            if choice % 3 == 0 and not is_table:
                values = numbers(shape, choice, lane).uniform(-1, 1, shape.size).astype(np.float32)
                row.append(self.add(Node(shape, values, functools.partial(tensor, shape, values))))
            else:
                stored = parameter(dims, 3 * lane + choice % 3, is_table)
                row.append(self.add(Node(Shape(dims), stored.values().copy(), functools.partial(same, stored))))
        row *= self.lanes if is_shared else 1
        found = self.reshaped(row, shape)
        if is_shared or choice % 4 == 0:
            return found
        return self.append(BY_NAME["scale"], [found], (0.9,))  # results of lanes lie end to end, as groups need them

    def reshaped(self, found: list[int], shape: Shape) -> list[int]:
        if self.first(found) == shape:
            return found
        return self.append(BY_NAME["reshape"], [found], (shape.dims, shape.batch))

    def adapted(self, shape: Shape, choice: int) -> list[int]:
        """Elements of any nodes that have as many, or new leaves."""
        large = [row for row in self.rows if self.first(row).size >= shape.size]
        if not large:
            return self.leaf(shape, choice)
        found = large[-1 - choice // 5 % len(large)]
        size = self.first(found).size
        if size > shape.size:
            start = choice % (size - shape.size + 1)
            found = self.reshaped(found, Shape((size,)))
            found = self.append(BY_NAME["pick_range"], [found], (start, start + shape.size, 0))
        return self.reshaped(found, shape)

    def within(self, found: list[int], low: float, high: float) -> list[int]:
        """The nodes, or a function of them, with values in a domain."""
        values = np.concatenate([self.nodes[i].value for i in found])
        is_usual = (low, high) == (-1, 1)
        least, most = (-WIDE, WIDE) if is_usual else (low, high)
        if least <= values.min() and values.max() <= most:
            return found
        if is_usual:
            return self.append(BY_NAME["tanh"], [found])
        low = max(low, -WIDE)
        found = self.append(BY_NAME["logistic"], [found])
        found = self.append(BY_NAME["scale"], [found], (min(high - low, 2 * WIDE),))
        return self.append(BY_NAME["add_number"], [found], (low,))

    def by_lane(self) -> list[int]:
        """The nodes lane after lane, but for what a lane needs of later ones."""
        order: dict[int, None] = {}

        def visit(number: int) -> None:
            if number not in order:
                for operand in self.nodes[number].operands:
                    visit(operand)
                order[number] = None

        for lane in range(self.lanes):
            for row in self.rows:
                visit(row[lane])
        return list(order)

    def expected(self, number: int, arrays: list[np.ndarray]) -> np.ndarray | None:
        """What the record's reference gives for a node; None if it has none."""
        node = self.nodes[number]
        if node.operator is None or node.operator.reference is None:
            return None
        if node.operator.view:
            return arrays[0]
        return expected_value(node.operator, node.case, arrays, node.shape)


@functools.lru_cache(16)
def planned(program: Program) -> Plan:
    return Plan(program)


class Graph:
    """A plan's expressions in the current graph.

    twins: of the functions in Python, not of compiled code;  stops: values are asked for on the way;
    by_lane: recorded lane after lane, not step after step.
    """

    def __init__(self, plan: Plan, twins: bool = False, stops: bool = False, by_lane: bool = False) -> None:
        self.plan = plan
        self.made: list[Any] = [None] * len(plan.nodes)
        for number in plan.by_lane() if by_lane else range(len(plan.nodes)):
            node = plan.nodes[number]
            random_state[1] = STREAMS * number
            self.made[number] = node.make() if node.make else self.called(node, number, twins)
            if stops and number % 5 == 3 and node.operator:
                self.made[number].value()

    def called(self, node: Node, number: int, twins: bool) -> Any:
        assert node.operator is not None
        operands, arguments = [self.made[i] for i in node.operands], iter(node.case.arguments)
        sign, twin = SIGNS.get(node.operator.name), TWINS.get(node.operator, node.operator)
        if sign and number % 2 and not twins:
            return sign(*operands, *arguments)
        given = iter(operands)
        function = twin if twins or node.operator not in TWINS else frontend.builtin(twin)
        return function(*(
            operands if letter == "X" else next(given) if letter == "x" else next(arguments)
            for letter in node.operator.params.replace("r", "")
        ))  # fmt: skip

    def loss(self) -> Any:
        """A sum of all elements that no node has used, weighted."""
        terms = []
        for i in self.plan.left:
            node = self.plan.nodes[i]
            weights = numbers("weights", i).uniform(-1, 1, node.shape.size) / max(1, np.abs(node.value).max(initial=0))
            terms.append(dy.sum_batches(dy.dot_product(self.made[i], tensor(node.shape, weights))))
        return dy.esum(terms)

    def values(self) -> list[np.ndarray]:
        return [made.npvalue() for made, node in zip(self.made, self.plan.nodes, strict=True) if node.operator]


def stored() -> list[Any]:
    """The parameters that the current graph uses."""
    return [item for item in collection().stored if item.handle >> 32 == dy.cg_version()]


def clear() -> None:
    """No gradients, no marks."""
    for item in collection().stored:
        item.gradients()[:] = 0
        if item.is_table:
            item.marks()[:] = 0
