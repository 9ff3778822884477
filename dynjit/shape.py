"""Shapes and the memory layout of tensors.

A tensor is column-major with the mini-batch last: element (r, c) of item b of a (rows, cols) x batch tensor lies at
b * rows * cols + c * rows + r.  So a group of tensors of one shape, laid end to end, is a tensor with a larger batch.
"""

from __future__ import annotations

import math
import operator as python_operator
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from dynjit.errors import located
from dynjit.memory import reserve

MAX_RANK = 7
NO_NUMBERS = (str, bytes, bytearray, complex)  # which int() and float() would take
RECORD = np.dtype([("item", "i8"), ("rows", "i8"), ("cols", "i8"), ("batch", "i8"), ("rank", "i8")])
TABLE = reserve(1 << 26, RECORD)  # what kernels know of each shape, by its number


class Shape(NamedTuple):
    """Dimensions and mini-batch size."""

    dims: tuple[int, ...]
    batch: int = 1

    @property
    def item(self) -> int:
        """Elements of one mini-batch item."""
        return math.prod(self.dims)

    @property
    def size(self) -> int:
        """Elements of all mini-batch items."""
        return self.item * self.batch

    @property
    def rows(self) -> int:
        return self.dims[0] if self.dims else 1

    @property
    def cols(self) -> int:
        """Second dimension; all dimensions behind the first count as columns."""
        return math.prod(self.dims[1:])

    def dim(self, axis: int) -> int:
        """Size along an axis; missing trailing axes have size 1."""
        return self.dims[axis] if axis < len(self.dims) else 1

    def around(self, axis: int) -> tuple[int, int, int]:
        """(elements before, along, behind) an axis of one item: the item as a (before, along, behind) tensor."""
        return math.prod(self.dims[:axis]), self.dim(axis), math.prod(self.dims[axis + 1 :])

    def truncated(self) -> Shape:
        """Without trailing axes of size 1 behind the first."""
        rank = max((axis + 1 for axis, size in enumerate(self.dims) if size != 1), default=1)
        return Shape(self.dims[:rank], self.batch)

    def __str__(self) -> str:
        dims = f"({', '.join(map(str, self.dims))}{',' if len(self.dims) == 1 else ''})"
        return dims if self.batch == 1 else f"{dims} x {self.batch}"


class Result(NamedTuple):
    """What a shape rule says of a node: the result's shape and what the kernels need besides.

    ints: the kernels' integer parameters `i0, i1, ...`; None: those of the call.
    bound: indices of the call must be below it.
    scratch: elements that a mini-batch item of the result needs besides its value.
    """

    shape: Shape
    ints: tuple[int, ...] | None = None
    bound: int = 0
    scratch: int = 0


def without(dims: tuple[int, ...], *axes: int) -> tuple[int, ...]:
    """The dims of a tensor that loses some of its axes."""
    return tuple(size for axis, size in enumerate(dims) if axis not in axes) or (1,)


numbers: dict[Shape, int] = {}
shapes: list[Shape] = []


def number_of(shape: Shape) -> int:
    """The number by which the arena knows a shape."""
    number = numbers.get(shape)
    if number is None:
        number = len(shapes)
        if number == TABLE.size:
            raise MemoryError(f"more than {number} different shapes")
        TABLE[number] = shape.item, shape.rows, shape.cols, shape.batch, len(shape.dims)
        numbers[shape] = number
        shapes.append(shape)
    return number


def whole(number: int | float) -> int:
    """A number without a fraction as an int; raises ValueError for others."""
    if isinstance(number, NO_NUMBERS) or int(number) != number:
        raise ValueError(number)
    return int(number)


def dims_of(operator: str, dim: int | float | Iterable[int | float]) -> tuple[int, ...]:
    """Dimensions as a tuple; whole floats count as ints, as in DyNet.

    Raises TypeError for other types, ValueError for negative sizes and more than 7 axes.
    """
    if isinstance(dim, (int, float, np.integer, np.floating)):
        dim = (dim,)
    try:
        dims = tuple(map(whole, None if isinstance(dim, (str, bytes, dict, set)) else dim))  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise TypeError(located(f"{operator}: needs dimensions as an int or a tuple of ints, got {dim!r}")) from None
    if any(size < 0 for size in dims) or len(dims) > MAX_RANK:
        raise ValueError(located(f"{operator}: needs up to {MAX_RANK} sizes of 0 or more, got {dims}"))
    if any(size >= 1 << 63 for size in dims):
        raise ValueError(located(f"{operator}: needs sizes of 63 bits, got {dims}"))
    return dims


# ---- other arguments -------------------------------------------------------------------------------------------------


def as_number(operator: str, value: Any) -> float:
    """A number of any kind as a float; raises TypeError for what is none."""
    try:
        return float(None if isinstance(value, NO_NUMBERS) else value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise TypeError(located(f"{operator}: needs a number, got {kind_of(value)}")) from None


def as_finite(operator: str, value: Any) -> float:
    """A number of any kind as a float; raises TypeError for what is none, ValueError for infinity and NaN."""
    number = as_number(operator, value)
    if not math.isfinite(number):
        raise ValueError(located(f"{operator}: needs a finite number, got {number}"))
    return number


def as_integer(operator: str, value: Any) -> int:
    """An int; raises TypeError for what is none, IndexError beyond 64 bits.

    Labels out of NumPy come as whole floats or arrays of one element, too, and count as in DyNet.
    """
    try:
        found = python_operator.index(value)
    except TypeError:
        try:
            found = whole(value.item() if isinstance(value, (np.generic, np.ndarray)) else value)
        except (TypeError, ValueError, OverflowError):
            raise TypeError(located(f"{operator}: needs an int, got {kind_of(value)}")) from None
    if not -(1 << 63) <= found < 1 << 63:
        raise IndexError(located(f"{operator}: needs an int of 64 bits, got {found}"))
    return found


def as_integers(operator: str, values: Any) -> list[int]:
    """Integers of any kind as a list of ints; raises TypeError for what is none."""
    return [as_integer(operator, value) for value in as_list(operator, "ints", values)]


def as_list(operator: str, what: str, values: Any) -> list[Any]:
    """The items of a list, or of anything else that gives them one by one; raises TypeError for what does not."""
    if isinstance(values, (str, bytes, dict, set)) or not hasattr(type(values), "__iter__"):
        raise TypeError(located(f"{operator}: needs a list of {what}, got {kind_of(values)}"))
    if isinstance(values, np.ndarray) and values.ndim == 0:
        raise TypeError(located(f"{operator}: needs a list of {what}, got an array without axes"))
    return list(values)


def as_text(operator: str, what: str, value: Any) -> str:
    """A string; raises TypeError for what is none."""
    if not isinstance(value, str):
        raise TypeError(located(f"{operator}: needs {what} as a string, got {kind_of(value)}"))
    return value


def as_batch(operator: str, batch_size: Any) -> int:
    """A mini-batch size; raises TypeError for what is no int, ValueError below 1."""
    found = as_integer(operator, batch_size)
    if found < 1:
        raise ValueError(located(f"{operator}: needs a mini-batch of 1 or more, got {found}"))
    return found


def dim_of(operator: str, x: Any) -> tuple[tuple[int, ...], int]:
    """An expression's dims and mini-batch size; raises TypeError for what is none."""
    if not hasattr(x, "dim"):
        raise TypeError(located(f"{operator}: needs expressions, got {kind_of(x)}"))
    return x.dim()  # type: ignore[no-any-return]


def kind_of(value: Any) -> str:
    """What was given, as messages call it."""
    return "None" if value is None else type(value).__name__
