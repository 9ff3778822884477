"""Passes of compiled code over the flat storage of parameters: updates, norms, weight decay, moving averages.

A trainer's moments and averages lie in buffers of its own at the parameters' offsets.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import numpy as np

from dynjit import threads
from dynjit.arena import float32s, float64s, int64s
from dynjit.jit import Compiled, add_entry, entry, flush_denormals, helper, set_floating_point_mode
from dynjit.ops.leaf import TOGETHER
from dynjit.parameters import LookupParameters, Parameters, Stored
from dynjit.scalars import ZERO
from dynjit.views import view_of

# updated together: offset, elements of a row, of the part of a row that a rule sees at once, rows, offset of the rows'
# marks (or -1), whether trainers change it
SPAN = np.dtype([(name, "i8") for name in ("start", "item", "part", "rows", "marks", "updated")])
# what a pass goes over, and addresses: of the arrays that it reads and writes, of the rule's numbers, of its sums
PASS = np.dtype([(name, "i8") for name in ("spans", "count", "sparse", "parts", "arrays", "numbers", "sums")])
spans_at, passes_at = view_of(SPAN), view_of(PASS)
SHARED = 1 << 18  # elements from which on threads share a pass; fewer had better stay in one core's cache
KERNEL = "void(int64, int64)"
NUMBERS = 8  # that a kernel takes at most


@helper
def share_of(span, part, parts):  # type: ignore[no-untyped-def]
    """The rows that a part of a pass goes over: the same at each pass, so that they stay in a core's cache.

    Of a table, no two parts have rows with one mark for all of them.
    """
    unit = TOGETHER if span.marks >= 0 else 1
    units = (span.rows + unit - 1) // unit
    return min(span.rows, units * part // parts * unit), min(span.rows, units * (part + 1) // parts * unit)


@helper
def next_row(gradients, span, is_sparse, row, stop):  # type: ignore[no-untyped-def]
    """The next row of a span that a pass sees, from `row` on: of a table only marked ones if it is sparse."""
    marks = float32s(gradients)
    while span.marks >= 0 and is_sparse and row < stop:
        if row % TOGETHER == 0 and marks[span.marks + span.rows + row // TOGETHER] == ZERO:
            row += TOGETHER
        elif marks[span.marks + row] != ZERO:
            break
        else:
            row += 1
    return row


def compiled_rule(step: Callable) -> Compiled:
    """The pass that updates spans by `step(p, g, a, b, c, numbers)` over windows.

    p: values; g: gradients; a, b, c: moments; numbers: (gradient scale, rule's own ...).
    """
    module, own = step.__module__, step
    step = helper(step)

    def update(context, part):  # type: ignore[no-untyped-def]
        job = passes_at(context)[0]
        bases, settings = int64s(job.arrays), float32s(job.numbers)
        values, gradients = float32s(bases[0]), float32s(bases[1])
        first, second, third = float32s(bases[2]), float32s(bases[3]), float32s(bases[4])
        mode = flush_denormals()
        for index in range(job.count):
            span = spans_at(job.spans)[index]
            if not span.updated:
                continue
            first_row, stop = share_of(span, part, job.parts)
            row = next_row(bases[1], span, job.sparse, first_row, stop)
            while row < stop:
                if span.marks >= 0:
                    gradients[span.marks + row] = ZERO
                begin, size = span.start + row * span.item, span.part
                for at in range(begin, begin + span.item, size):
                    p, g = values[at : at + size], gradients[at : at + size]
                    step(p, g, first[at : at + size], second[at : at + size], third[at : at + size], settings)
                    for i in range(size):
                        g[i] = ZERO
                row = next_row(bases[1], span, job.sparse, row + 1, stop)
            if span.marks >= 0:
                for row in range(first_row, stop, TOGETHER):
                    gradients[span.marks + span.rows + row // TOGETHER] = ZERO
        set_floating_point_mode(mode)

    update.__name__ = update.__qualname__ = step.__name__ + "_update"
    update.step = own  # type: ignore[attr-defined]  # for CUDA
    update.__module__ = module  # whose source, with all that it imports, the code is made from
    return add_entry(update, KERNEL)


@entry(KERNEL)
def squared_norm(context, part):  # type: ignore[no-untyped-def]
    """Sum of the squares of the gradients in the first array; of tables, over the marked rows only if `sparse`."""
    job = passes_at(context)[0]
    g = float32s(int64s(job.arrays)[0])
    mode = flush_denormals()
    total = 0.0
    for index in range(job.count):
        span = spans_at(job.spans)[index]
        first, stop = share_of(span, part, job.parts)
        row = next_row(int64s(job.arrays)[0], span, job.sparse, first, stop)
        while row < stop:
            window = g[span.start + row * span.item : span.start + (row + 1) * span.item]
            piece = ZERO
            for i in range(span.item):
                piece += window[i] * window[i]
            total += piece
            row = next_row(int64s(job.arrays)[0], span, job.sparse, row + 1, stop)
    set_floating_point_mode(mode)
    float64s(job.sums)[part] = total


@entry(KERNEL)
def shrink(context, part):  # type: ignore[no-untyped-def]
    """Multiplies the values in the first array by a number: weight decay."""
    job = passes_at(context)[0]
    factor = float32s(job.numbers)[0]
    for index in range(job.count):
        span = spans_at(job.spans)[index]
        first, stop = share_of(span, part, job.parts)
        for row in range(first, stop if span.updated else first):
            p = float32s(int64s(job.arrays)[0])[span.start + row * span.item : span.start + (row + 1) * span.item]
            for i in range(p.size):
                p[i] *= factor


@entry(KERNEL)
def follow(context, part):  # type: ignore[no-untyped-def]
    """Moves the averages in the second array by a share of their distance to the values in the first."""
    job = passes_at(context)[0]
    arrays, share = int64s(job.arrays), float32s(job.numbers)[0]
    mode = flush_denormals()
    for index in range(job.count):
        span = spans_at(job.spans)[index]
        for row in range(*share_of(span, part, job.parts)):
            start, stop = span.start + row * span.item, span.start + (row + 1) * span.item
            p, average = float32s(arrays[0])[start:stop], float32s(arrays[1])[start:stop]
            for i in range(p.size):
                average[i] += share * (p[i] - average[i])
    set_floating_point_mode(mode)


class Pass:
    """What goes over the storage of some parameters, piece by piece, by all threads if it is large."""

    def __init__(self, spans: np.ndarray) -> None:
        self.spans = spans
        sizes, is_table = spans["item"] * spans["rows"], spans["marks"] >= 0
        self.sizes = int(sizes.sum()), int(sizes[~is_table].sum())  # of all, and without lookup tables
        # arrays of ctypes: cheaper to fill than NumPy's
        self.job, self.arrays = (ctypes.c_int64 * len(PASS.names or ()))(), (ctypes.c_int64 * 5)()
        self.numbers, self.sums = (ctypes.c_float * NUMBERS)(), (ctypes.c_double * threads.MOST)()
        addresses = [ctypes.addressof(array) for array in (self.arrays, self.numbers, self.sums)]
        self.job[:] = [spans.ctypes.data, len(spans), 0, 1, *addresses]
        self.address = ctypes.addressof(self.job)

    def run(
        self, kernel: Compiled, arrays: Sequence[int], numbers: Sequence[float] = (), sparse: bool = False
    ) -> list[float]:
        """Runs a kernel over all spans; returns the sums that its parts have left.

        arrays: addresses of the buffers that it reads and writes;  numbers: what it takes beside.
        """
        size = self.sizes[sparse]  # few rows of a table are looked up
        parts = threads.threads() if size >= SHARED else 1
        self.job[2], self.job[3] = sparse, parts
        self.arrays[: len(arrays)], self.numbers[: len(numbers)] = list(arrays), list(numbers)
        threads.run.call(kernel.address, self.address, parts, size)  # a nanosecond each
        return self.sums[:parts]


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
