"""Profiles: where the time of graphs goes, by operator, and as a trace of all calls."""

from __future__ import annotations

import atexit
import json
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dynjit import backprop, kernels, op, plan, timing
from dynjit.arena import GATHER
from dynjit.errors import located
from dynjit.graph import PLAIN, Engine, use_engine
from dynjit.shape import shapes
from dynjit.trainer_base import Trainer

TIMED = Engine(
    timing.Stretch("planning", plan.plan.call),
    timing.Pass(timing.timed_forward, kernels.load_forward),
    timing.Stretch("clearing gradients", backprop.start_backward.call),
    timing.Pass(timing.timed_backward, kernels.load_backward),
)
UPDATE = Trainer.update
GATHERS = "(copying together)"  # of operands that lie apart, for the products of a group
PYTHON = "Python: building graphs, and all else"
PARTS = ("forward", "backward", "backward, weights")  # by timing.FORWARD, BACKWARD, WEIGHTS
HEADINGS = ("operator", "calls", "groups", "group size", "forward ms", "backward ms", "ms", "%", "MB", "GFLOP/s")


class Row(NamedTuple):
    """What a profile says of an operator.

    calls: of the operator by the program, as far as they were computed;  groups: calls computed together, by one call
    of a kernel;  nbytes: read and written;  flops: floating-point operations.  Both count what the shapes say, forward
    and backward: operands and gradients once for each group.
    """

    operator: str
    calls: int
    groups: int
    forward_ms: float
    backward_ms: float
    nbytes: int
    flops: int

    @property
    def mean_group_size(self) -> float:
        """Calls per group."""
        return self.calls / self.groups if self.groups else 0.0

    @property
    def ms(self) -> float:
        """Milliseconds forward and backward."""
        return self.forward_ms + self.backward_ms

    @property
    def flops_per_second(self) -> float:
        """Floating-point operations per second, forward and backward."""
        return self.flops / self.ms * 1e3 if self.ms else 0.0


class Profile:
    """Times and counts of all that is computed inside `with profile() as p:`, by operator.

    print(p) shows a table; `rows` and `parts` have its numbers, `save_trace` writes all calls in their order.
    """

    def __init__(self, trace: bool = True) -> None:
        self._trace = trace
        self._events: list[np.ndarray] = []
        self._stretches: list[tuple[str, int, int]] = []
        self._begin = self._end = 0  # of the profile, in nanoseconds
        self._totals = self._totals_before = np.zeros(0, timing.TOTALS)
        self._names = self._names_before = dict[str, int]()

    def __enter__(self) -> Profile:
        if self._begin:
            raise RuntimeError(located("profile: needs to be entered once, got a profile that was; make another"))
        for unit in (timing.clock, timing.timed_forward, timing.timed_backward):
            assert unit.address  # compiled now, or else within the times
        timing.enter_costs()
        self._totals_before, self._names_before = self._present()
        self._begin = timing.nanoseconds()
        timing.listeners.append(self)
        use_engine(TIMED)
        Trainer.update = timed_update  # type: ignore[assignment, method-assign]
        return self

    def __exit__(self, *error: object) -> None:
        self._end = timing.nanoseconds()
        timing.listeners.remove(self)
        self._totals, self._names = self._present()
        if not timing.listeners:
            use_engine(PLAIN)
            Trainer.update = UPDATE  # type: ignore[assignment, method-assign]

    def _present(self) -> tuple[np.ndarray, dict[str, int]]:
        """Totals by operator, and of stretches, since the start of the process."""
        return timing.totals[: 1 + len(op.operators)].copy(), dict(timing.stretches)

    # ---- what calls and stretches of time are told to ----

    def add_calls(self, events: np.ndarray) -> None:
        """Takes the events of a forward or backward pass."""
        if self._trace:
            self._events.append(events)

    def add_stretch(self, name: str, start: int, stop: int) -> None:
        """Takes a stretch of time that is no call, in nanoseconds."""
        if self._trace:
            self._stretches.append((name, start, stop))

    # ---- what it says ----

    @property
    def ms(self) -> float:
        """Milliseconds from the profile's begin to its end, or to now."""
        return ((self._end or timing.nanoseconds()) - self._begin) / 1e6 if self._begin else 0.0

    @property
    def rows(self) -> list[Row]:
        """What was computed, by operator, the slowest first; copies of scattered operands are a row of their own."""
        totals = self._totals if self._end else self._present()[0]
        rows = []
        for code, now in enumerate(totals[: totals.size if self._begin else 0], -1):
            before = (
                self._totals_before[code + 1] if code + 1 < self._totals_before.size else np.zeros((), timing.TOTALS)
            )
            nodes, groups, forward, backward, nbytes, flops = (
                int(now[name] - before[name]) for name in now.dtype.names
            )
            if groups or backward:
                name = op.operators[code].name if code >= 0 else GATHERS
                rows.append(Row(name, nodes, groups, forward / 1e6, backward / 1e6, nbytes, flops))
        return sorted(rows, key=lambda row: -row.ms)

    @property
    def parts(self) -> dict[str, float]:
        """Milliseconds of all that is no operator: planning, clearing gradients, updates, Python and others."""
        names = self._names if self._end else dict(timing.stretches)
        spent = {name: total - self._names_before.get(name, 0) for name, total in names.items()} if self._begin else {}
        parts = {name: total / 1e6 for name, total in spent.items() if total}
        rest = self.ms - sum(parts.values()) - sum(row.ms for row in self.rows)
        return {**dict(sorted(parts.items(), key=lambda item: -item[1])), PYTHON: rest}

    def __str__(self) -> str:
        total = self.ms or 1.0
        lines: list[tuple[str, ...]] = [HEADINGS]
        for row in self.rows:
            lines.append((
                row.operator, str(row.calls), str(row.groups), f"{row.mean_group_size:.1f}", f"{row.forward_ms:.3f}",
                f"{row.backward_ms:.3f}", f"{row.ms:.3f}", f"{100 * row.ms / total:.1f}", f"{row.nbytes / 1e6:.2f}",
                f"{row.flops_per_second / 1e9:.1f}",
            ))  # fmt: skip
        for name, ms in [*self.parts.items(), ("total", self.ms)]:
            lines.append((name, *[""] * 5, f"{ms:.3f}", f"{100 * ms / total:.1f}", "", ""))
        return aligned(lines)

    def save_trace(self, path: str | os.PathLike[str]) -> None:
        """Writes all calls as a Chrome trace (JSON), which chrome://tracing and ui.perfetto.dev show on a time axis.

        An event per call of a kernel, forward and backward, named by its operator, with shapes, group size, bytes and
        FLOPs; and one per planning, clearing of gradients, update.
        Raises RuntimeError for a profile(trace=False), OSError if the file cannot be written.
        """
        if not self._trace:
            raise RuntimeError(located("save_trace: needs a profile with trace=True, got one without"))
        place = {"pid": os.getpid(), "tid": threading.get_native_id()}
        found = [
            {"name": name, "cat": "dynjit", **self._times(start, stop), **place, "args": {}}
            for name, start, stop in self._stretches
        ]
        for event in (event for events in self._events for event in events):
            name, described = description(event)
            part = PARTS[event["part"]]
            found.append({"name": name, "cat": part, **self._times(int(event["start"]), int(event["stop"])), **place,
                          "args": described})  # fmt: skip
        found.sort(key=lambda event: event["ts"])
        Path(path).write_text(json.dumps({"traceEvents": found, "displayTimeUnit": "ms"}), encoding="utf-8")

    def _times(self, start: int, stop: int) -> dict[str, Any]:
        """A complete event's times, in microseconds since the profile's begin."""
        return {"ph": "X", "ts": (start - self._begin) / 1e3, "dur": (stop - start) / 1e3}


def timed_update(trainer: Trainer) -> None:
    """Stands in for `Trainer.update`."""
    start = timing.nanoseconds()
    try:
        UPDATE(trainer)
    finally:
        timing.add_stretch("updates", start)


def name_of(signature: int) -> str:
    """The operator of a call."""
    return GATHERS if signature == GATHER else op.operators[op.CODE_OF[signature]].name


def operand_shapes(signature: int) -> str:
    """The shapes of a signature's operands; of more than four, the first three."""
    q = op.SIGNATURES[signature]
    found = [str(shapes[number]) for number in op.POOL[int(q["key"]) + 2 : int(q["key"]) + 2 + int(q["arity"])]]
    return ", ".join(found if len(found) <= 4 else [*found[:3], "..."])


def description(event: Any) -> tuple[str, dict[str, Any]]:
    """(name, what there is to say) of a call."""
    signature = int(event["signature"])
    about: dict[str, Any] = {}
    if signature != GATHER:
        about = {"shape": str(op.result_shape(signature)), "operands": operand_shapes(signature)}
    about |= {"group size": int(event["nodes"]), "bytes": int(event["nbytes"]), "FLOPs": int(event["flops"])}
    return name_of(signature), about


def aligned(lines: Sequence[tuple[str, ...]], left: tuple[int, ...] = (0,)) -> str:
    """A table of words, its columns set to the right but for those in `left`."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join(
        "  ".join(
            word.ljust(width) if i in left else word.rjust(width) for i, (word, width) in enumerate(zip(line, widths))
        ).rstrip()
        for line in lines
    )


def profile(trace: bool = True) -> Profile:
    """A profile of what is computed inside `with profile() as p:`, in all graphs; `print(p)` shows it.

    trace: keep each call, about 50 bytes, for `p.save_trace(path)`.  Profiles may be nested.  Outside of one nothing is
    counted, and nothing is slower for it.
    """
    return Profile(trace)


# ---- the profile of a process, as DyNet's flag asks for it -----------------------------------------------------------


class Announced(Profile):
    """A profile that also writes each pass and its groups to stderr: DyNet's level 2."""

    def add_calls(self, events: np.ndarray) -> None:
        """Writes a line per group."""
        part = "Backward" if events[0]["part"] else "Forward"
        lines = [f"BatchSize:{event['nodes']} {name_of(int(event['signature']))}" for event in events]
        print("\n".join([f"{part} Call", *lines]), file=sys.stderr)


of_process: list[Profile] = []


def profile_process(level: int) -> None:
    """Takes a profile from now to the end of the process, which prints it to stderr.

    level: 0 drops the present one, 1 takes one, 2 also prints each group.
    """
    for present in of_process:
        present.__exit__()
    of_process.clear()
    if level:
        of_process.append((Announced if level > 1 else Profile)(trace=False).__enter__())


@atexit.register
def print_process_profile() -> None:
    """Prints the profile of the process, if there is one and something was computed."""
    for present in of_process:
        if present.rows:
            print(present, file=sys.stderr)
