"""Passes of compiled code over the flat storage of parameters: updates, norms, weight decay, moving averages.

A trainer's moments and averages lie in buffers of its own at the parameters' offsets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dynjit.arena import float32s, int64s, view_of
from dynjit.jit import Compiled, add_entry, entry, flush_denormals, helper, set_floating_point_mode
from dynjit.parameters import LookupParameters, Parameters, Stored
from dynjit.scalars import ZERO

# updated together: offset, elements of a row, of the part of a row that a rule sees at once, rows, offset of the rows'
# marks (or -1), whether trainers change it
SPAN = np.dtype([(name, "i8") for name in ("start", "item", "part", "rows", "marks", "updated")])
spans_at = view_of(SPAN)


def compiled_rule(step: Callable) -> Compiled:
    """The update of all spans by `step(p, g, a, b, c, numbers)` over windows.

    p: values; g: gradients; a, b, c: moments; numbers: (gradient scale, rule's own ...).
    """
    module, own = step.__module__, step
    step = helper(step)

    def update(buffers, spans, count, sparse, numbers):  # type: ignore[no-untyped-def]
        bases = int64s(buffers)
        values, gradients, settings = float32s(bases[0]), float32s(bases[1]), float32s(numbers)
        first, second, third = float32s(bases[2]), float32s(bases[3]), float32s(bases[4])
        mode = flush_denormals()
        for index in range(count):
            span = spans_at(spans)[index]
            for row in range(span.rows if span.updated else 0):
                if span.marks >= 0:
                    used = gradients[span.marks + row] != ZERO
                    gradients[span.marks + row] = ZERO
                    if sparse and not used:
                        continue
                begin, size = span.start + row * span.item, span.part
                for at in range(begin, begin + span.item, size):
                    p, g = values[at : at + size], gradients[at : at + size]
                    step(p, g, first[at : at + size], second[at : at + size], third[at : at + size], settings)
                    for i in range(size):
                        g[i] = ZERO
        set_floating_point_mode(mode)

    update.__name__ = update.__qualname__ = step.__name__ + "_update"
    update.step = own  # type: ignore[attr-defined]  # for CUDA
    update.__module__ = module  # whose source, with all that it imports, the code is made from
    return add_entry(update, "void(int64, int64, int64, int64, int64)")


@entry("float64(int64, int64, int64, int64)")
def squared_norm(gradients, spans, count, sparse):  # type: ignore[no-untyped-def]
    """Sum of the squares of all gradients; of tables, over the marked rows only if `sparse`."""
    g = float32s(gradients)
    mode = flush_denormals()
    total = 0.0
    for index in range(count):
        span = spans_at(spans)[index]
        for row in range(span.rows):
            if span.marks < 0 or not sparse or g[span.marks + row] != ZERO:
                window = g[span.start + row * span.item : span.start + (row + 1) * span.item]
                part = ZERO
                for i in range(span.item):
                    part += window[i] * window[i]
                total += part
    set_floating_point_mode(mode)
    return total


@entry("void(int64, int64, int64, float32)")
def shrink(values, spans, count, factor):  # type: ignore[no-untyped-def]
    """Multiplies all values by a factor: weight decay."""
    for index in range(count):
        span = spans_at(spans)[index]
        if span.updated:
            p = float32s(values)[span.start : span.start + span.item * span.rows]
            for i in range(p.size):
                p[i] *= factor


@entry("void(int64, int64, int64, int64, float32)")
def follow(values, averages, spans, count, share):  # type: ignore[no-untyped-def]
    """Moves averages by a share of their distance to the values."""
    mode = flush_denormals()
    for index in range(count):
        span = spans_at(spans)[index]
        start, stop = span.start, span.start + span.item * span.rows
        p, average = float32s(values)[start:stop], float32s(averages)[start:stop]
        for i in range(p.size):
            average[i] += share * (p[i] - average[i])
    set_floating_point_mode(mode)


PIECE = 4096  # elements of a dense span that are worked on together, while they are in the first-level cache


def dense_spans(parameter: Parameters) -> list[tuple[int, ...]]:
    """Spans of a parameter, cut into rows that fit the first-level cache."""
    start, updated = parameter.start, parameter._updated
    whole, rest = divmod(parameter.count, PIECE)
    spans = [(start, PIECE, PIECE, whole, -1, updated), (start + whole * PIECE, rest, rest, 1, -1, updated)]
    return [span for span in spans if span[1] * span[3] > 0]


def table_span(table: LookupParameters, by_columns: bool) -> tuple[int, ...]:
    """The span of a lookup table."""
    item = table.count // max(1, len(table))
    part = table.shape_in_graph.dims[0] if by_columns else item
    return table.start, item, part, len(table), table.start + table.count, table._updated


def spans_of(stored: Sequence[Stored], by_columns: bool) -> np.ndarray:
    """Records of what is updated and of what is frozen; by parameters, so that sums do not depend on where they lie.

    by_columns: a rule sees one column at a time (a vector, or the elements along the first axis).
    """
    spans: list[tuple[int, ...]] = []
    for item in stored:
        if isinstance(item, LookupParameters):
            spans.append(table_span(item, by_columns))
        elif by_columns:
            spans.append((item.start, item.count, item.shape_in_graph.dims[0], 1, -1, item._updated))
        else:
            spans += dense_spans(item)
    return np.array(spans, SPAN)
