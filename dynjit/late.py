"""Dense updates of lookup tables, row by row as late as possible.

Without sparse updates each update changes all rows of a table, also those that no example has used: moments move them
on.  Such a row is read from memory, changed and written in each update for nothing, if nobody looks at it.  Instead it
is left as it was, and takes the steps that it has missed, with gradient zero and the numbers that each step had, when a
graph looks it up, or somebody reads the parameters or moments.  The steps are the same and in the same order, so that
the numbers are, bit by bit, those of updates in time.  Rows whose moments are zero do not change at all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np

from dynjit.arena import LATE_TABLES, float32s, int32s, int64s, late_tables
from dynjit.jit import Compiled, add_entry, flush_denormals, helper, set_floating_point_mode
from dynjit.parameters import LookupParameters, Stored
from dynjit.passes import KERNEL, NUMBERS, table_span
from dynjit.space import space
from dynjit.views import view_of

# a table: its span, and addresses: of the rows' counts of steps taken, of the steps' numbers, of the arrays, of zeros
LATE = np.dtype([(name, "i8") for name in ("start", "item", "rows", "steps", "count", "numbers", "arrays", "zeros")])
lates_at = view_of(LATE)
LONGEST = 1 << 12  # steps that are kept; then all rows take theirs
NEVER = -1  # steps taken by a row whose moments are zero
ALL = -1  # in place of a row


@functools.cache
def compiled_steps(step: Callable) -> Compiled:
    """What lets a row (or ALL) of a table take the steps of a rule that it has missed."""
    module, step = step.__module__, helper(step)

    def catch_up(context, row):  # type: ignore[no-untyped-def]
        table = lates_at(context)[0]
        bases, taken, zero = int64s(table.arrays), int32s(table.steps), float32s(table.zeros)[: table.item]
        values, first = float32s(bases[0]), float32s(bases[2])
        second, third = float32s(bases[3]), float32s(bases[4])
        mode = flush_denormals()
        for r in range(row if row >= 0 else 0, row + 1 if row >= 0 else table.rows):
            begin, end = table.start + r * table.item, table.start + (r + 1) * table.item
            p, a, b, c = values[begin:end], first[begin:end], second[begin:end], third[begin:end]
            for t in range(taken[r] if taken[r] >= 0 else table.count, table.count):
                step(p, zero, a, b, c, float32s(table.numbers + 4 * NUMBERS * t))
            if taken[r] >= 0:
                taken[r] = table.count
        set_floating_point_mode(mode)

    catch_up.__name__ = catch_up.__qualname__ = step.__name__ + "_late"
    catch_up.__module__ = module  # whose source, with all that it imports, the code is made from
    return add_entry(catch_up, KERNEL)


class LateRows:
    """The steps that a trainer's rule has taken, and which of them each row of its tables has."""

    def __init__(
        self, steps: Compiled, tables: Sequence[LookupParameters], arrays: Sequence[int], is_new: bool
    ) -> None:
        """arrays: addresses of values, gradients and moments;  is_new: whether all moments are zero."""
        self.run, self.tables = steps.call, tables
        self.numbers = np.zeros((LONGEST, NUMBERS), np.float32)
        self.arrays = np.array(arrays, np.int64)
        self.taken = [np.full(len(table), NEVER if is_new else 0, np.int32) for table in tables]
        self.zeros = np.zeros(max(table.count // max(1, len(table)) for table in tables), np.float32)
        self.records = np.zeros(len(tables), LATE)
        for number, (table, taken) in enumerate(zip(tables, self.taken, strict=True)):
            start, item, _, rows, _, _ = table_span(table, by_columns=False)
            addresses = [array.ctypes.data for array in (self.numbers, self.arrays, self.zeros)]
            self.records[number] = (start, item, rows, taken.ctypes.data, 0, *addresses)
        self.contexts = [self.records.ctypes.data + i * LATE.itemsize for i in range(len(tables))]
        self.places = [(table.start, steps.address, context) for table, context in zip(tables, self.contexts)]
        space.late.append(self)
        announce()

    @property
    def count(self) -> int:
        """Steps of the rule that are kept."""
        return int(self.records[0]["count"])

    def add(self, numbers: Sequence[float]) -> None:
        """Notes a step, which the marked rows have taken just now."""
        for table, taken in zip(self.tables, self.taken):
            taken[self.marked[table.start]] = self.count + 1
        self.numbers[self.count, : len(numbers)] = numbers
        self.records["count"] += 1
        if self.count == LONGEST:
            self.settle()
            for taken in self.taken:
                taken[taken >= 0] = 0
            self.records["count"] = 0

    def prepare(self) -> None:
        """Finds the marked rows, and lets them take the steps that they have missed."""
        self.marked = {table.start: np.flatnonzero(table.marks()) for table in self.tables}
        for table, taken, context in zip(self.tables, self.taken, self.contexts):
            rows = self.marked[table.start]
            for row in rows[taken[rows] < self.count].tolist():
                self.run(context, row)

    def settle(self, moments: bool = False) -> None:
        """Lets all rows take the steps that they have missed; `moments`: others may change these from here on."""
        for context, taken in zip(self.contexts, self.taken):
            self.run(context, ALL)
            if moments:
                taken[:] = self.count

    def close(self) -> None:
        """Settles, and keeps no more steps."""
        if self in space.late:
            self.settle()
            space.late.remove(self)
            announce()


def announce() -> None:
    """Tells compiled code for which tables rows may be late."""
    places = [place for late in space.late for place in late.places][:LATE_TABLES]
    numbers = [number for place in places for number in place]
    late_tables[1 : 1 + len(numbers)] = numbers
    late_tables[0] = len(places)


def has_room(tables: Sequence[LookupParameters]) -> bool:
    """Whether compiled code has room to know these tables, too."""
    return 0 < len(tables) <= LATE_TABLES - sum(len(late.tables) for late in space.late)


def settle_others(own: LateRows | None, stored: Sequence[Stored]) -> None:
    """Lets rows of stored parameters, which are about to be updated, take the steps that other trainers have left."""
    for late in space.late:
        if late is not own and any(table in stored for table in late.tables):
            late.settle()
