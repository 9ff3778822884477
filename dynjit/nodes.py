"""Access to a graph's nodes by number, as DyNet's ComputationGraph has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dynjit.errors import located
from dynjit.ops import leaf
from dynjit.shape import Shape, as_batch, as_integer, as_integers, as_list, as_number, dims_of


class NodesByNumber:
    """The methods of a graph that take the number of a node (`index`); IndexError if there is no such node."""

    def _number(self: Any, operator: str, index: int) -> int:
        number = as_integer(operator, index)
        if not (number >= 0 and self.has(number)):
            raise IndexError(located(f"{operator}: needs the number of a node, got {index}"))
        return number

    def _computed(self: Any, operator: str, index: int, recalculate: bool) -> np.ndarray:
        number = self._number(operator, index)
        self.evaluate([number], recalculate)
        return self.value(number)  # type: ignore[no-any-return]

    def forward(self, index: int) -> None:
        """Computes all nodes anew, with the value of a node among them."""
        self._computed("forward", index, True)

    def inc_forward(self, index: int) -> None:
        """Computes the value of a node if it is not there yet."""
        self._computed("inc_forward", index, False)

    def forward_scalar(self, index: int) -> float:
        """The value of a node of one element, computed anew; raises ValueError for others."""
        return self._scalar(self._computed("forward_scalar", index, True))

    def inc_forward_scalar(self, index: int) -> float:
        """The value of a node of one element; raises ValueError for others."""
        return self._scalar(self._computed("inc_forward_scalar", index, False))

    def forward_vec(self, index: int) -> list[float]:
        """The value of a node as a flat list, computed anew."""
        return self._computed("forward_vec", index, True).tolist()  # type: ignore[no-any-return]

    def inc_forward_vec(self, index: int) -> list[float]:
        """The value of a node as a flat list."""
        return self._computed("inc_forward_vec", index, False).tolist()  # type: ignore[no-any-return]

    @staticmethod
    def _scalar(window: np.ndarray) -> float:
        if window.size != 1:
            raise ValueError(located(f"forward_scalar: needs a node of one element, got one of {window.size}"))
        return float(window[0])

    def inputMatrixLiteral(self, v: Sequence[float], d: Any, batch_size: int = 1, device: str = "") -> Any:
        """A constant with dims `d` from a flat list of its elements, first axis fastest."""
        return leaf.inputTensorTranspose(v, d, batch_size, device)

    def inputSparseTensor(
        self: Any, idxs: Sequence[int], v: Sequence[float], dim: Any, batch_size: int = 1, defval: float = 0.0,
        device: str = "",
    ) -> Any:  # fmt: skip
        """A constant with dims `dim` that is v[i] at position idxs[i] in memory order, else `defval`.

        Raises ValueError for lists of different lengths, IndexError for positions out of range.
        """
        name = "inputSparseTensor"
        indices, numbers = as_integers(name, idxs), [as_number(name, number) for number in as_list(name, "numbers", v)]
        size = Shape(dims_of(name, dim), as_batch(name, batch_size)).size
        if size > self.header.value_end:
            raise MemoryError(located(f"{name}: needs room for {size} numbers, which the graph has not"))
        values = np.full(size, as_number(name, defval), np.float64)
        if len(indices) != len(numbers):
            raise ValueError(located(f"{name}: needs lists of one length, got {len(indices)} and {len(numbers)}"))
        for index, value in zip(indices, numbers):
            if not 0 <= index < values.size:
                raise IndexError(located(f"{name}: needs positions below {values.size}, got {index}"))
            values[index] = value
        return leaf.inputTensorTranspose(values.tolist(), dim, batch_size, device)

    def print_graphviz(self: Any) -> None:
        """Prints the graph in the DOT language."""
        from dynjit import graphviz  # knows the graph, so that the graph cannot know it first

        print("\n".join(graphviz.dot_lines(self)))

    def dump(self: Any, filename: str | bytes, show_values: bool, show_gradients: bool, nan_check_only: bool) -> None:
        """Writes values and gradients to a file; see `dump_cg`."""
        from dynjit import graphviz

        graphviz.dump(self, filename, show_values, show_gradients, nan_check_only)
