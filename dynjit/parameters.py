"""What is learned: parameters and lookup tables.

Values lie in the front part of the process's buffers, gradients at the same offsets; graphs read them in place.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dynjit import graph, op, recording, textformat
from dynjit.arena import FROZEN, NEEDS_GRADIENT
from dynjit.errors import ModelFileError, ShapeError, located
from dynjit.expressions import Expression, NativeParameter, expression_at, natural
from dynjit.ops import leaf
from dynjit.shape import Shape, as_integer, as_list, as_number, as_text
from dynjit.space import space

free_numbers: list[int] = []
used_numbers = [0]
parameter_changes = [0]  # grows when a parameter is made, or frozen, so that trainers know when to look again


class Stored(NativeParameter):
    """What parameters and lookup tables share: a number, a span of the buffers, and their node in the current graph."""

    __slots__ = ("__weakref__", "_name", "_updated", "count", "shape_in_graph", "start")
    number: int
    kind = ""
    is_table = False
    operator: op.Operator

    def __init__(self, name: str, dims: tuple[int, ...]) -> None:
        self._name, self.shape_in_graph = name, Shape(dims)
        self.handle = 0  # type: ignore[misc]
        self.count = math.prod(dims)
        self.start = space.take_parameters(self.extent)
        self.number = free_numbers.pop() if free_numbers else used_numbers[0]  # type: ignore[misc]
        used_numbers[0] += self.number == used_numbers[0]
        self._updated = True
        parameter_changes[0] += 1
        signature = leaf.leaf_signature(self.operator, self.shape_in_graph)
        recording.parameters[self.number] = signature, self.start, NEEDS_GRADIENT
        weakref.finalize(self, give_back, self.number, self.start, self.extent).atexit = False

    @property
    def extent(self) -> int:
        """Elements of the buffers that belong to it."""
        return self.count

    def join(self) -> int:
        """Its node in the current graph."""
        if not self.has_joined():
            number = graph.here().add_leaf(*(int(value) for value in recording.parameters[self.number]))
            self.handle = graph.here().version() << 32 | number  # type: ignore[misc]
        return self.handle & 0xFFFFFFFF

    def has_joined(self) -> bool:
        """Whether its handle is that of its node in the current graph, and not of another since the graph was cut."""
        current, number = graph.here(), self.handle & 0xFFFFFFFF
        if self.handle >> 32 != current.version() or not current.has(number):
            return False
        known, own = current.nodes[number], recording.parameters[self.number]
        return all(known[name] == own[name] for name in ("signature", "value", "flags"))

    def _node(self) -> int:
        return self.join()

    def constant(self) -> Expression:
        """Itself as a constant of the current graph: no gradient flows to it."""
        signature, start, _ = (int(value) for value in recording.parameters[self.number])
        return expression_at(graph.here().add_leaf(signature, start, FROZEN))

    def name(self) -> str:
        """Full name, such as /encoder/W."""
        return self._name

    def is_updated(self) -> bool:
        """Whether trainers change it."""
        return self._updated

    def set_updated(self, b: bool) -> None:
        """Freezes it (False) or lets trainers change it; gradients accumulate either way."""
        if self._updated != bool(b):
            self._updated = bool(b)
            parameter_changes[0] += 1

    def window(self, buffer: np.ndarray) -> np.ndarray:
        """Its place in a buffer, in memory order."""
        return buffer[self.start : self.start + self.count]

    def values(self) -> np.ndarray:
        """Its values, a window of the buffer, in memory order."""
        return space.values(self.start, self.count)

    def gradients(self) -> np.ndarray:
        """Its gradients, a window of the buffer, in memory order."""
        return space.gradients(self.start, self.count)

    def zero(self) -> None:
        """Sets all values to 0."""
        self.values()[:] = 0

    def scale(self, s: float) -> None:
        """Multiplies all values by a number."""
        self.values()[:] *= np.float32(as_number("scale", s))

    def scale_gradient(self, s: float) -> None:
        """Multiplies all gradients by a number."""
        self.gradients()[:] *= np.float32(as_number("scale_gradient", s))

    def block(self, name: str | None = None) -> textformat.Block:
        """Itself as a block of a model file."""
        gradients = self.gradients()
        return textformat.Block(
            self.kind, name or self._name, self.shape_in_graph.dims, self.values().copy(),
            gradients.copy() if gradients.any() else None,
        )  # fmt: skip

    def fill(self, block: textformat.Block) -> None:
        """Takes values and gradients from a block of a model file."""
        self.values()[:] = block.values
        self.gradients()[:] = 0 if block.gradient is None else block.gradient

    def check_fits(self, block: textformat.Block, fname: str) -> None:
        if tuple(block.dims) != self.shape_in_graph.dims:
            raise ModelFileError(
                f"{fname}: Dimensions of {block.name} in the file, {tuple(block.dims)}, do not match those of "
                f"{self._name}, {self.shape_in_graph.dims}"
            )

    def save(self, fname: str, key: str = "", append: bool = False) -> None:
        """Writes it to a model file, under its own name or `key`; the old file stays if that fails."""
        textformat.write_blocks(fname, [self.block(as_text("save", "a key", key) or None)], append=append)

    def populate(self, fname: str, key: str = "") -> None:
        """Reads the block `key` of a model file.

        Raises ValueError for an empty key, ModelFileError for a missing block or one that does not fit.
        """
        if not as_text("populate", "a key", key):
            raise ValueError(located("populate: needs the name of a block in the file, got an empty key"))
        block = textformat.find_block(fname, key)
        self.check_fits(block, fname)
        self.fill(block)

    write_to_textfile = save
    populate_from_textfile = populate

    def __reduce__(self) -> Any:
        gradients = space.single.g[self.start : self.start + self.extent]
        return rebuild, (
            type(self), self._name, self.shape_in_graph.dims, self.values().copy(), self._updated,
            gradients.copy() if gradients.any() else None,
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self._name} {self.shape_in_graph}"


def give_back(number: int, start: int, extent: int) -> None:
    free_numbers.append(number)
    space.give_parameters(start, extent)


class Parameters(Stored):
    """A dense tensor that trainers change; an expression wherever one is wanted."""

    __slots__ = ()
    kind = "Parameter"
    operator = leaf.PARAMETER

    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        return self.shape_in_graph.dims

    def as_array(self) -> np.ndarray:
        """A float64 copy of the values."""
        return natural(self.values(), self.shape_in_graph)

    def grad_as_array(self) -> np.ndarray:
        """A float64 copy of the gradients that wait for the next update."""
        return natural(self.gradients(), self.shape_in_graph)

    def set_value(self, arr: Any) -> None:
        """Overwrites the values; raises ShapeError unless the array has the parameter's shape."""
        array = leaf.as_numbers("set_value", arr)
        if array.shape != self.shape_in_graph.dims:
            raise ShapeError("set_value", f"an array of shape {self.shape_in_graph.dims}", array.shape)
        self.values()[:] = array.ravel(order="F")

    def clip_inplace(self, left: float, right: float) -> None:
        """Moves all values into [left, right]; raises ValueError unless left <= right."""
        low, high = as_number("clip_inplace", left), as_number("clip_inplace", right)
        if not low <= high:
            raise ValueError(located(f"clip_inplace: needs a left end up to the right one, got {left} and {right}"))
        np.clip(self.values(), low, high, out=self.values())

    def expr(self, update: bool = False) -> Expression:
        """The parameter as an expression; without `update` (DyNet's default) a constant: no gradient flows to it."""
        return expression_at(self.join()) if update else self.constant()


class LookupParameters(Stored):
    """A table of n rows; an index gives a row as an expression, and only rows that were used get updated."""

    __slots__ = ()
    kind = "LookupParameter"
    operator = leaf.LOOKUP_TABLE
    is_table = True

    @property
    def extent(self) -> int:
        return self.count + len(self) + -(-len(self) // leaf.TOGETHER)  # marks of the rows that were used

    def __len__(self) -> int:
        """Number of rows."""
        return self.shape_in_graph.dims[-1]

    def __iter__(self) -> Iterator[Expression]:
        return (self[i] for i in range(len(self)))

    def shape(self) -> tuple[int, ...]:
        """(rows, sizes of a row's axes)."""
        return (len(self), *self.shape_in_graph.dims[:-1])

    def rows(self, window: np.ndarray) -> np.ndarray:
        """A window of the table with the rows first."""
        return np.moveaxis(window.reshape(self.shape_in_graph.dims, order="F"), -1, 0)

    def row(self, index: int) -> int:
        """The number of a row; raises TypeError for what is no int, IndexError if there is no such row."""
        index = as_integer(self._name, index)
        if not 0 <= index < len(self):
            raise IndexError(located(f"{self._name}: needs a row from 0 to {len(self) - 1}, got {index}"))
        return index

    def several(self, rows: Any) -> list[int]:
        """The numbers of rows; raises as `row`."""
        return [self.row(row) for row in as_list(self._name, "rows", rows)]

    def marks(self) -> np.ndarray:
        """For each row, whether it was used since the last update (not 0)."""
        return space.gradients(self.start + self.count, len(self))

    def mark(self, used: Any) -> None:
        """Marks rows, those for which `used` is true, and no others."""
        first = self.start + self.count + len(self)
        self.marks()[:] = used
        space.gradients(first, self.start + self.extent - first)[:] = 1

    def fill(self, block: textformat.Block) -> None:
        super().fill(block)
        self.mark(self.gradients().reshape(len(self), -1).any(axis=1))

    def batch(self, i: Sequence[int]) -> Expression:
        """Rows as a mini-batch."""
        return leaf.lookup_batch(self, i)  # type: ignore[no-any-return]

    def as_array(self) -> np.ndarray:
        """A float64 copy of the values, rows first."""
        return self.rows(self.values().astype(np.float64))

    def grad_as_array(self) -> np.ndarray:
        """A float64 copy of the gradients, rows first."""
        return self.rows(self.gradients().astype(np.float64))

    def row_as_array(self, row: int) -> np.ndarray:
        """A float64 copy of one row."""
        return self.rows(self.values())[self.row(row)].astype(np.float64)

    def rows_as_array(self, rows: Sequence[int]) -> np.ndarray:
        """Float64 copies of rows, stacked."""
        return self.rows(self.values())[self.several(rows)].astype(np.float64)

    def row_grad_as_array(self, row: int) -> np.ndarray:
        """A float64 copy of the gradients of one row."""
        return self.rows(self.gradients())[self.row(row)].astype(np.float64)

    def rows_grad_as_array(self, rows: Sequence[int]) -> np.ndarray:
        """Float64 copies of the gradients of rows, stacked."""
        return self.rows(self.gradients())[self.several(rows)].astype(np.float64)

    def init_row(self, i: int, row: Any) -> None:
        """Sets one row; raises IndexError or ShapeError if there is no such row or the values do not fit."""
        array = leaf.as_numbers("init_row", row)
        target = self.rows(self.values())[self.row(i)]
        if array.size != target.size or (array.ndim > 1 and array.shape != target.shape):
            raise ShapeError("init_row", f"a row of shape {target.shape}", array.shape)
        target[...] = array.reshape(target.shape, order="F")

    def init_from_array(self, arr: Any) -> None:
        """Sets the leading rows from an array, rows first."""
        array = leaf.as_numbers("init_from_array", arr)
        if array.ndim == 0 or array.shape[0] > len(self) or array.shape[1:] != self.shape()[1:]:
            raise ShapeError("init_from_array", f"up to {len(self)} rows of shape {self.shape()[1:]}", array.shape)
        self.rows(self.values())[: array.shape[0]] = array

    def expr(self, update: bool = True) -> LookupParameters:
        """Itself."""
        return self

    def scalar_value(self, recalculate: bool = False) -> float:
        raise TypeError(located("scalar_value: a lookup table is no scalar"))


def rebuild(
    kind: type, name: str, dims: tuple[int, ...], values: np.ndarray, updated: bool, gradients: np.ndarray | None
) -> Stored:
    """A parameter as it was pickled, or copied; of a table the gradients have the rows' marks behind them."""
    made: Stored = kind(name, dims)
    made.values()[:] = values
    made.set_updated(updated)
    if gradients is not None:
        space.single.g[made.start : made.start + made.extent] = gradients
    return made
