"""A graph as text: in the DOT language for Graphviz, or as a list of values and gradients."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from dynjit import graph
from dynjit.errors import located
from dynjit.expressions import Expression, natural
from dynjit.graph import ComputationGraph
from dynjit.ops import leaf


def numbers(nodes: ComputationGraph) -> range | list[int]:
    """The numbers of a graph's nodes."""
    return [number for number in range(nodes.header.node_count) if nodes.has(number)]


def escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def dot_lines(
    nodes: ComputationGraph, compact: bool = False, show_dims: bool = True,
    expression_names: Mapping[Expression, str] | None = None,
    lookup_names: Mapping[Any, Mapping[int, str]] | None = None,
) -> Iterator[str]:  # fmt: skip
    """The graph in the DOT language: a box per node, with its operator and shape.

    compact: leave the nodes' numbers out of the boxes;  expression_names: labels of expressions and parameters;
    lookup_names: for each lookup table the labels of its rows.
    """
    # a parameter is asked for its number only if it is in the graph: asking would let it join
    names = {e.handle & 0xFFFFFFFF: name for e, name in (expression_names or {}).items() if is_of(nodes, e)}
    rows = {table.handle & 0xFFFFFFFF: found for table, found in (lookup_names or {}).items() if is_of(nodes, table)}
    args = nodes.recorded_args()
    yield "digraph G {"
    yield "  rankdir=LR;"
    yield "  nodesep=.05;"
    for number in numbers(nodes):
        node, operator = nodes.nodes[number], nodes.operator(number)
        sources = args[node["args"] : node["args"] + node["arity"]].tolist()
        called = f"{operator.name}({', '.join(names.get(source, f'v{source}') for source in sources)})"
        label = operator.name if compact else f"v{number} = {called}"
        if operator in (leaf.LOOKUP, leaf.LOOKUP_BATCH):
            index = int(nodes.storage.data[nodes.nodes[number]["data"]])
            label += f" [{rows.get(sources[0], {}).get(index, index)}]" if operator is leaf.LOOKUP else ""
        if number in names:
            label = f"{names[number]}: {label}"
        if show_dims:
            label += f" {nodes.shape(number)}"
        yield f'  N{number} [label="{escaped(label)}"];'
        for source in sources:
            yield f"  N{source} -> N{number};"
    yield "}"


def is_of(nodes: ComputationGraph, expression: Expression) -> bool:
    """Whether an expression or parameter has a node in a graph."""
    return expression.handle >> 32 == nodes.version() and nodes.has(expression.handle & 0xFFFFFFFF)


def print_text_graphviz() -> None:
    """Prints the current graph in the DOT language."""
    print("\n".join(dot_lines(graph.here())))


def print_graphviz(
    compact: bool = False, show_dims: bool = True, expression_names: Mapping[Expression, str] | None = None,
    lookup_names: Mapping[Any, Mapping[int, str]] | None = None, collapse_birnns: bool = False,
) -> None:  # fmt: skip
    """Prints the current graph in the DOT language; see `dot_lines`.

    collapse_birnns: not supported, and said so in the output.
    """
    for names in (expression_names, lookup_names):
        if names is not None and not isinstance(names, Mapping):
            raise TypeError(located(f"print_graphviz: needs names as a dict, got {type(names).__name__}"))
    if collapse_birnns:
        print("// collapse_birnns is not supported: both directions of each layer are shown")
    print("\n".join(dot_lines(graph.here(), compact, show_dims, expression_names, lookup_names)))


def described(window: np.ndarray | None, shape: Any, nan_check_only: bool) -> str:
    if window is None:
        return "(not computed)"
    if nan_check_only:
        return "valid" if np.isfinite(window).all() else "invalid"
    return "\n" + np.array2string(natural(window, shape), threshold=sys.maxsize)


def dump_lines(
    nodes: ComputationGraph, show_values: bool = True, show_gradients: bool = True, nan_check_only: bool = False
) -> Iterator[str]:
    """Each node with its operator, shape, value and gradient, or (nan_check_only) whether these are finite."""
    for number in numbers(nodes):
        shape = nodes.shape(number)
        yield f"Node {number} {nodes.operator(number).name} {shape}"
        if show_values:
            window = nodes.value(number) if nodes.nodes[number]["value"] >= 0 else None
            yield f"Value: {described(window, shape, nan_check_only)}"
        if show_gradients:
            header = nodes.header
            has_gradient = number <= header.backward_from and 0 <= nodes.places[number] < header.backward_top
            window = nodes.gradient(number) if has_gradient else None
            yield f"Gradient: {described(window, shape, nan_check_only)}"


def dump(nodes: ComputationGraph, filename: str | bytes, *options: bool) -> None:
    """Writes `dump_lines` to a file, or prints them if the name is empty."""
    text = "\n".join(dump_lines(nodes, *options))
    if not filename:
        print(text)
        return
    with open(os.fsdecode(filename), "w", encoding="utf-8") as file:
        file.write(text + "\n")


def dump_cg(
    filename: str | bytes = "", show_values: bool = True, show_gradients: bool = True, nan_check_only: bool = False
) -> None:
    """Writes the current graph's values and gradients to a file, or prints them if the name is empty.

    nan_check_only: whether they are finite, instead of the numbers.
    """
    dump(graph.here(), filename, show_values, show_gradients, nan_check_only)
