"""What tests make of operators' records: calls of their cases, the references' values, nodes made by the twins."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from dynjit import op
from dynjit.shape import Shape


def shape_of(given: Any) -> Shape:
    """A case's operand: dims, or (dims, batch)."""
    return Shape(*given) if given and isinstance(given[0], tuple) else Shape(tuple(given))


def call(operator: op.Operator, operands: list[Any], case: op.Case) -> Any:
    """The operator's node; operands and arguments in the order of its params."""
    given, arguments = iter(operands), iter(case.arguments)
    return operator(*(
        operands if letter == "X" else next(given) if letter == "x" else next(arguments)
        for letter in operator.params.replace("r", "")
    ))  # fmt: skip


def item(array: np.ndarray, shape: Shape, b: int) -> np.ndarray:
    """Item b of a mini-batch in memory order, as an array."""
    flat = array[b * shape.item : (b + 1) * shape.item] if shape.batch > 1 else array
    return flat.reshape(shape.dims, order="F")


def expected_value(operator: op.Operator, case: op.Case, arrays: list[np.ndarray], result: Shape) -> np.ndarray:
    """The reference's value in memory order."""
    assert operator.reference is not None
    shapes = [shape_of(given) for given in case.shapes]
    arguments = case.arguments
    if result.batch == 1 and any(shape.batch > 1 for shape in shapes):  # it reduces the mini-batch
        whole = [a.reshape((*s.dims, s.batch), order="F") for a, s in zip(arrays, shapes, strict=True)]
        return np.asarray(operator.reference(*whole, *arguments)).ravel(order="F")
    items = []
    for b in range(result.batch):
        given = [item(a, s, b if s.batch == result.batch else b % s.batch) for a, s in zip(arrays, shapes, strict=True)]
        own = [
            argument[b] if letter == "D" else argument
            for letter, argument in zip([c for c in operator.params if c not in "xXr"], arguments, strict=True)
        ]
        value = np.asarray(operator.reference(*given, *own), float)
        assert value.size == result.item, f"the reference has shape {value.shape}, the operator {result}"
        items.append(value.ravel(order="F"))
    return np.concatenate(items)


@contextmanager
def twins_alone() -> Iterator[None]:
    """Inside, no operator is served by compiled code."""
    kept = [operator.call for operator in op.operators]
    try:
        for operator in op.operators:
            operator.call = operator.record
        yield
    finally:
        for operator, call in zip(op.operators, kept, strict=True):
            operator.call = call
