"""Checks gradients in float64 against central differences.

The graph's plan runs a second time over float64 buffers of the same offsets, with the float64 form of the same kernels.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from dynjit import backprop, cpu, kernels, op
from dynjit import graph as graphs
from dynjit.errors import located
from dynjit.expressions import Expression
from dynjit.graph import ComputationGraph
from dynjit.memory import release
from dynjit.models import ParameterCollection
from dynjit.op import LEAF
from dynjit.shape import as_integer, as_number
from dynjit.space import space


class WideGraph:
    """A graph's computed nodes once more, in float64."""

    def __init__(self, graph: ComputationGraph) -> None:
        self.graph = graph
        self.header = graph.storage.widened()
        self.address = ctypes.addressof(self.header)
        count = graph.header.node_count
        self.v, self.g = space.double.v, space.double.g
        for number in range(count):
            if graph.has(number) and op.TABLE[graph.operator(number).code]["flags"] & LEAF:
                window = self.window(number)
                window[:] = graph.value(number)

    def window(self, number: int) -> np.ndarray:
        """A node's value."""
        start = int(self.graph.places[number])
        return self.v[start : start + self.graph.shape(number).size]

    def gradient(self, number: int) -> np.ndarray:
        """A node's gradient."""
        start = int(self.graph.places[number])
        return self.g[start : start + self.graph.shape(number).size]

    def forward(self) -> None:
        """Computes all nodes that the graph has computed."""
        self.header.calls_done = 0
        while (code := cpu.forward.call(self.address)) >= 0:
            kernels.load_forward(code, kernels.WIDE)

    def backward(self, number: int, dy: np.ndarray | float = 1.0, full: bool = False) -> None:
        """Adds the gradients of sum(dy * value) of a node."""
        backprop.start_backward.call(self.address, number, int(full))
        self.gradient(number)[:] = dy
        while (code := backprop.backward.call(self.address)) >= 0:
            kernels.load_backward(code, kernels.WIDE)
        self.graph.header.reach = self.header.reach

    def close(self) -> None:
        """Gives the memory of the float64 values and gradients back."""
        for buffer in (self.v, self.g):
            release(buffer, 0, space.parameter_top)
            release(buffer, self.graph.storage.start, self.graph.storage.end)


def difference(run: WideGraph, target: int, window: np.ndarray, i: int, dy: Any, step: float) -> float:
    """Central difference of sum(dy * target) along element i of a window."""
    kept = window[i]
    values = []
    for moved in (kept + step, kept - step):
        window[i] = moved
        run.forward()
        values.append((run.window(target) * dy).sum())
    window[i] = kept
    return float(values[0] - values[1]) / (2 * step)


def check_nodes(
    run: WideGraph, target: int, nodes: Sequence[int], dy: Any = 1.0, step: float = 1e-5, most: int | None = None
) -> float:
    """Largest error of the gradients of leaf nodes, relative to 1 + their size; at most `most` elements of each."""
    for node in nodes:
        run.gradient(node)[:] = 0
    run.forward()
    run.backward(target, dy, full=True)
    found = [run.gradient(node).copy() for node in nodes]
    worst = 0.0
    for node, gradient in zip(nodes, found, strict=True):
        window = run.window(node)
        count = window.size if most is None else min(most, window.size)
        for i in np.linspace(0, window.size - 1, count).astype(int):
            expected = difference(run, target, window, int(i), dy, step)
            error = abs(gradient[i] - expected) / (1 + abs(expected))
            worst = max(worst, float("inf") if np.isnan(error) else error)
    run.forward()
    return worst


def gradcheck(
    expression: Expression, collection: ParameterCollection, most: int | None = None, step: float = 1e-5
) -> float:
    """Largest error of d(expression)/d(parameter), in float64, against central differences.

    Errors are relative to 1 + the size of the difference: 1e-6 is good, 1e-2 a wrong gradient or a kink nearby.
    most: so many elements of each parameter are tried, spread evenly; None: all;  step: of the differences.
    Values, gradients and the graph stay as they are.  A parameter that the graph also uses as a constant (`expr(False)`
    or `nobackprop`) shows an error: the differences see what the gradient is told not to.
    Raises ValueError unless the expression is a scalar and its graph uses parameters of the collection.
    """
    if not isinstance(expression, Expression) or not isinstance(collection, ParameterCollection):
        got = f"{type(expression).__name__} and {type(collection).__name__}"
        raise TypeError(located(f"gradcheck: needs an expression and a collection, got {got}"))
    step = as_number("gradcheck", step)
    if not 0 < step < 1 or (most is not None and as_integer("gradcheck", most) < 1):
        raise ValueError(located(f"gradcheck: needs a step between 0 and 1 and most of 1 or more, got {step}, {most}"))
    number, graph = expression._node(), graphs.current
    if graph.shape(number).size != 1:
        raise ValueError(located(f"gradcheck: needs a scalar (one element, batch 1), got {graph.shape(number)}"))
    graph.evaluate([number])
    nodes = [stored.handle & 0xFFFFFFFF for stored in collection.stored if stored.handle >> 32 == graph.version()]
    nodes = [node for node in nodes if graph.has(node)]
    if not nodes:
        raise ValueError(located("gradcheck: needs an expression of parameters of the collection, got none of them"))
    run = WideGraph(graph)
    try:
        return check_nodes(run, number, nodes, step=step, most=most)
    finally:
        run.close()
