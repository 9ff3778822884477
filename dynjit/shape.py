"""Shapes and the memory layout of tensors.

A tensor is column-major with the mini-batch last: element (r, c) of item b of a (rows, cols) x batch tensor lies at
b * rows * cols + c * rows + r.  So a group of tensors of one shape, laid end to end, is a tensor with a larger batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from dynjit.errors import located
from dynjit.memory import reserve

MAX_RANK = 7
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
    if int(number) != number:
        raise ValueError(number)
    return int(number)


def dims_of(operator: str, dim: int | float | Iterable[int | float]) -> tuple[int, ...]:
    """Dimensions as a tuple; whole floats count as ints, as in DyNet.

    Raises TypeError for other types, ValueError for negative sizes and more than 7 axes.
    """
    if isinstance(dim, (int, float, np.integer, np.floating)):
        dim = (dim,)
    try:
        dims = tuple(map(whole, dim))
    except (TypeError, ValueError, OverflowError):
        raise TypeError(located(f"{operator}: needs dimensions as an int or a tuple of ints, got {dim!r}")) from None
    if any(size < 0 for size in dims) or len(dims) > MAX_RANK:
        raise ValueError(located(f"{operator}: needs up to {MAX_RANK} sizes of 0 or more, got {dims}"))
    return dims
