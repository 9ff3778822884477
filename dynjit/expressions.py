"""Expressions: handles of nodes; what users compute with, and the Python twins of what compiled code records.

An expression's handle is the version of its graph and the number of a node.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from dynjit import frontend, op, slots, subscripts
from dynjit.arena import random_state
from dynjit.errors import StaleExpressionError, located
from dynjit.families import FAMILIES
from dynjit.graph import ComputationGraph, here, values_at
from dynjit.ops import binary, leaf, linear, select, unary
from dynjit.recording import PLACE
from dynjit.shape import Shape, as_integer, as_integers, as_number, kind_of, shapes
from dynjit.space import space
from dynjit.tensor import DeviceTensor, Tensor

slow: dict[str, Callable] = {}  # what the native slots hand over to, by the names of frontend.SLOTS
NUMBERS = (int, float, np.integer, np.floating)
# the plain cases of methods of expressions
native_value, native_scalar, native_flat, native_place = (
    frontend.reader(slots.native_value, kind) for kind in (slots.NATURAL, slots.SCALAR, slots.FLAT, slots.LIES)
)
native_shape, native_start_backward = map(frontend.reader, (slots.native_shape, slots.native_start_backward))


def natural(window: np.ndarray, shape: Shape) -> np.ndarray:
    """A float64 copy in index order (axes, then the mini-batch if there is one)."""
    dims = shape.dims if shape.batch == 1 else (*shape.dims, shape.batch)
    copy = window.astype(np.float64)
    return copy if len(dims) <= 1 else copy.reshape(dims, order="F")


@frontend.expression_type(slow)
class Expression:
    """A node of the current graph; made by operators, not by users."""

    __slots__ = ()
    handle: int

    def _node(self) -> int:
        """The node's number in the current graph; raises StaleExpressionError if it has none."""
        handle, current = self.handle, here()
        number = handle & 0xFFFFFFFF
        if handle >> 32 != current._version or not current.has(number):
            raise StaleExpressionError(located(
                "Expression of another graph than the current one"
                if handle >> 32 != current._version and ComputationGraph.of_version(handle >> 32) else
                "Stale Expression (created before renewing the Computation Graph, or dropped by cg_revert)"
            ))  # fmt: skip
        return number

    def _place(self) -> tuple[ComputationGraph, int]:
        """(its graph, its number): as `_node`, but the graph need not be current if it is still alive."""
        current, version, number = here(), self.handle >> 32, self.handle & 0xFFFFFFFF
        home = current if version == current._version else ComputationGraph.of_version(version) or current
        if isinstance(self, NativeParameter) or not home.has(number) or version != home._version:
            return current, self._node()
        return home, number

    def dim(self) -> tuple[tuple[int, ...], int]:
        """((sizes of the axes), mini-batch size)."""
        found = native_shape(self)
        if found < 0:
            home, number = self._place()
            return tuple(home.shape(number))  # type: ignore[return-value]
        return tuple(shapes[found])  # type: ignore[return-value]

    def forward(self, recalculate: bool = False) -> None:
        """Computes the value if it is not there yet."""
        home, number = self._place()
        home.evaluate([number], recalculate)

    def _value(self, recalculate: bool) -> tuple[np.ndarray, Shape]:
        if not recalculate and (place := native_place(self)) >= 0:
            start, shape = place // PLACE, shapes[place % PLACE]
            return values_at(start, shape.size), shape
        home, number = self._place()
        if home.is_pending or recalculate or home.places[number] < 0:
            home.evaluate([number], recalculate)
        return home.value(number), home.shape(number)

    def window(self) -> np.ndarray:
        """The value in place, in memory order: writing changes it."""
        return self._value(False)[0]

    def npvalue(self, recalculate: bool = False) -> np.ndarray:
        """The value as a float64 array, mini-batch last; shape (1,) for a scalar."""
        return natural(*self._value(recalculate))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.npvalue() if dtype is None else self.npvalue().astype(dtype)

    __array_ufunc__ = None  # numpy's numbers leave operators to the expression

    def tensor_value(self, recalculate: bool = False) -> Tensor:
        """The value as a Tensor, which can be searched and sampled from; on a GPU it stays there until it is read."""
        if space.executor is not None:
            home, number = self._place()
            home.evaluate([number], recalculate)
            return DeviceTensor(home, number)
        window, shape = self._value(recalculate)
        return Tensor(natural(window, shape), shape.batch > 1)

    def value(self, recalculate: bool = False) -> Any:
        """The value: an array from rank 2 on, else a float if it has one element, else a flat list."""
        if not recalculate and type(found := native_value(self)) is not int:
            return found
        window, shape = self._value(recalculate)
        if len(shape.dims) > 1:
            return natural(window, shape)
        return float(window[0]) if window.size == 1 else window.tolist()

    def scalar_value(self, recalculate: bool = False) -> float:
        """The value of an expression of one element; raises ValueError for others."""
        if not recalculate and type(found := native_scalar(self)) is float:
            return found
        home, number = self._place()
        if home.shape(number).size != 1:
            raise ValueError(located(f"scalar_value: needs one element, got {home.shape(number)}"))
        return float(self._value(recalculate)[0][0])

    def vec_value(self, recalculate: bool = False) -> list[float]:
        """The value as a flat list in memory order: first axis fastest, mini-batch slowest."""
        if not recalculate and type(found := native_flat(self)) is list:
            return found
        return self._value(recalculate)[0].tolist()  # type: ignore[no-any-return]

    def backward(self, full: bool = False) -> None:
        """Adds d(self)/d(parameter) to the gradient of each parameter that the value depends on.

        full: find the gradients of inputs, too.  Raises ValueError unless the value has one element.
        """
        current = here()
        if not full and current.constants_from < 0 and native_start_backward(self) == 0:
            current.run_backward()
            return
        home, number = self._place()
        home.backward(number, full)

    def gradient(self) -> np.ndarray:
        """d(target of the last backward)/d(self), float64, mini-batch last.

        Raises RuntimeError before `backward`, and for nodes newer than its target.
        """
        home, number = self._place()
        if home.header.backward_from < 0:
            raise RuntimeError(located("gradient: needs backward() first"))
        if number > home.header.backward_from:
            raise RuntimeError(located(
                f"gradient: needs a node up to that of backward ({home.header.backward_from}), got node {number}"
            ))  # fmt: skip
        if not home.operator(number).leaf:
            home.keep_results()
        if not 0 <= home.places[number] < home.header.backward_top:  # computed after backward, or not at all
            return natural(np.zeros(home.shape(number).size), home.shape(number))
        return natural(home.gradient(number), home.shape(number))

    def set(self, value: Any) -> None:
        """Replaces the data of an input, or the index of a lookup; values computed from it are computed anew."""
        home, number = self._place()
        home.set_data(number, value)

    set_index = set

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterable[Expression]:
        return (self[i] for i in range(len(self)))  # type: ignore[index]

    def __len__(self) -> int:
        """Size of the first axis."""
        return self.dim()[0][0] if self.dim()[0] else 1

    def __reduce__(self) -> Any:
        raise TypeError(located("expressions belong to their graph: they cannot be pickled or copied"))

    def __repr__(self) -> str:
        number, version = self.handle & 0xFFFFFFFF, self.handle >> 32
        home = ComputationGraph.of_version(version)
        if home is None or not home.has(number):
            return f"expression {number}/{version} (stale)"
        return f"expression {number}/{version} ({home.operator(number).name} {home.shape(number)})"


NativeParameter: Any = frontend.parameter_base(Expression)


def expression_at(number: int) -> Expression:
    """The expression of a node of the current graph."""
    expression = Expression()
    expression.handle = here()._version << 32 | number  # type: ignore[misc]
    return expression


# ---- the Python twin of recording a node -----------------------------------------------------------------------------


def node_of(operator: op.Operator, operand: Any) -> int:
    """The node of an operand, checked; a parameter joins the graph."""
    if isinstance(operand, NativeParameter):
        return operand.join()  # type: ignore[no-any-return]
    if isinstance(operand, Expression):
        return operand._node()
    raise TypeError(located(f"{operator.name}: needs expressions, got {kind_of(operand)}"))


def ints_of(operator: op.Operator, values: Any) -> tuple[int, ...]:
    """A tuple of ints, of one or of several."""
    return tuple(as_integers(operator.name, [values] if isinstance(values, NUMBERS) else values))


def bits_of(operator: op.Operator, value: Any, limits: op.Range) -> int:
    """A float parameter as an int with the same bits; raises ValueError if it is out of range."""
    number = as_number(operator.name, value)
    if limits.low == limits.low and not limits.low <= number <= limits.high:
        raise ValueError(located(f"{operator.name}: needs {limits.needs}, got {value}"))
    return int(np.float64(number).view(np.int64))


def record(operator: op.Operator, arguments: Sequence[Any]) -> Expression:
    """Appends a node for a call of an operator; checks everything first."""
    operands: list[int] = []
    ints: list[int | tuple[int, ...]] = []
    floats: list[int] = []
    ids: list[int] = []
    count, ranges = -1, iter(operator.floats)
    for letter, argument in zip(operator.params.replace("r", ""), arguments, strict=True):
        if letter == "x":
            operands.append(node_of(operator, argument))
        elif letter == "X":
            if not isinstance(argument, (list, tuple)) or len(argument) == 0:
                raise ValueError(located(f"{operator.name}: needs a list of one expression or more, got {argument!r}"))
            operands += [node_of(operator, item) for item in argument]
        elif letter == "i":
            ints.append(as_integer(operator.name, argument))
        elif letter == "I":
            ints.append(ints_of(operator, argument))
        elif letter == "e":
            ints.append(as_integer(operator.name, argument) - ids[-1])
        elif letter == "f":
            floats.append(bits_of(operator, argument, next(ranges, op.ANY)))
        elif letter == "d":
            ids.append(as_integer(operator.name, argument))
        else:
            ids = as_integers(operator.name, argument)
            count = len(ids)
    current = here()
    signature = op.signature_of(operator, [current.shape(number) for number in operands], ints, count)
    op.check_bound(operator, signature, ids)
    needed = int(op.SIGNATURES[signature]["ids"])
    if "r" in operator.params:
        ids = list(range(int(random_state[1]), int(random_state[1]) + needed))
        random_state[1] += needed
    elif ids:
        ids *= needed // len(ids)  # the same for all mini-batch items
    number = current.add(signature, operands, floats + ids)
    if current.immediate:
        current.evaluate([number])
    return expression_at(number)


op.recorder = record

# ---- the twins of Expression's operators -----------------------------------------------------------------------------


def number_of(operator: str, value: Any) -> float:
    if isinstance(value, NUMBERS) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return float(value)
    raise TypeError(located(f"{operator}: needs an expression or a number, got {type(value).__name__}"))


def add(a: Any, b: Any) -> Expression:
    if not isinstance(a, Expression):
        a, b = b, a
    return binary.add(a, b) if isinstance(b, Expression) else unary.add_number(a, number_of("+", b))  # type: ignore[no-any-return]


def subtract(a: Any, b: Any) -> Expression:
    if not isinstance(a, Expression):
        return unary.number_minus(b, number_of("-", a))  # type: ignore[no-any-return]
    return binary.subtract(a, b) if isinstance(b, Expression) else unary.add_number(a, -number_of("-", b))  # type: ignore[no-any-return]


def multiply(a: Any, b: Any) -> Expression:
    if not isinstance(a, Expression):
        a, b = b, a
    return linear.product(a, b) if isinstance(b, Expression) else unary.scale(a, number_of("*", b))  # type: ignore[no-any-return]


def divide(a: Any, b: Any) -> Expression:
    if isinstance(b, Expression):
        return binary.cdiv(a, b) if isinstance(a, Expression) else unary.number_over(b, number_of("/", a))  # type: ignore[no-any-return]
    number = number_of("/", b)
    if number == 0:
        raise ZeroDivisionError(located("/: needs a divisor that is not zero"))
    return unary.scale(a, 1 / number)  # type: ignore[no-any-return]


def matmul(a: Any, b: Any) -> Expression:
    if not (isinstance(a, Expression) and isinstance(b, Expression)):
        number = b if isinstance(a, Expression) else a
        raise TypeError(located(f"@: needs two expressions, got {type(number).__name__}"))
    return linear.product(a, b)  # type: ignore[no-any-return]


def negative(a: Expression, _: Any) -> Expression:
    return unary.negate(a)  # type: ignore[no-any-return]


def power(a: Any, exponent: Any, modulus: None = None) -> Expression:
    if modulus is not None:
        raise TypeError(located("pow: an expression has no modulus"))
    if not isinstance(a, Expression):
        base = number_of("**", a)
        if base <= 0:
            raise ValueError(located(f"**: needs a base above 0, got {base}"))
        return unary.exp(exponent * math.log(base))  # type: ignore[no-any-return]
    if isinstance(exponent, Expression):
        return binary.power(a, exponent)  # type: ignore[no-any-return]
    number = number_of("**", exponent)
    return unary.SECOND_POWER(a) if number == 2 else unary.NUMBER_POWER(a, number)  # type: ignore[no-any-return]


def subscript(a: Expression, index: Any) -> Expression:
    if isinstance(a, NativeParameter) and a.is_table:
        return leaf.lookup(a, index)
    return subscripts.subscript(a, here().shape(node_of(select.PICK, a)), index)


slow.update(
    add=add,
    subtract=subtract,
    multiply=multiply,
    divide=divide,
    matmul=matmul,
    negative=negative,
    power=power,
    subscript=subscript,
)


def add_leaf(operator: op.Operator, shape: Shape, values: Any) -> Expression:
    """A node with its values in place."""
    current = here()
    start = current.take(shape.size)
    space.single.v[start : start + shape.size] = values
    return expression_at(current.add_leaf(leaf.leaf_signature(operator, shape), start, 0))


leaf.leaf_maker.append(add_leaf)
frontend.install(FAMILIES)
