"""Runs a plan as `cpu.py` and `backprop.py` do, and takes the time of each call; in use while a profile is taken.

Compiled code adds up counts and times by operator, and writes an event for each call; both are numbers since the start
of the process, of which profiles take differences.
"""

from __future__ import annotations

import ctypes
import time
from typing import Any, Protocol

import numpy as np
from numba import types

from dynjit import kernels, op
from dynjit.arena import (
    GATHER,
    NEEDS_GRADIENT,
    Header,
    calls_at,
    headers,
    int32s,
    int64s,
    nodes_at,
    operators_at,
    shapes_at,
    signatures_at,
)
from dynjit.backprop import needs_gradient, reached_nodes, run_call_back, runs_whole
from dynjit.cpu import run_call
from dynjit.deferred import add_deferred, is_weight, join_deferred
from dynjit.jit import add_symbol, entry, flush_denormals, helper, set_floating_point_mode
from dynjit.memory import reserve
from dynjit.shape import shapes
from dynjit.views import view_of

FORWARD, BACKWARD, WEIGHTS = 0, 1, 2  # the part of a step that a call belongs to
NUMBER = 4  # bytes
TOTALS = np.dtype([(name, "i8") for name in ("nodes", "groups", "forward", "backward", "nbytes", "flops")])
EVENT = np.dtype(
    [(name, "i4") for name in ("signature", "part", "nodes", "unused")]
    + [(name, "i8") for name in ("start", "stop", "nbytes", "flops")]
)
RECORDER = np.dtype(
    [(name, "i8") for name in ("seconds", "nanoseconds", "frequency", "totals", "costs", "events", "count")]
)
totals_at, events_at, recorders_at = view_of(TOTALS), view_of(EVENT), view_of(RECORDER)

totals = reserve(1 + op.TABLE.size, TOTALS)  # by operator code + 1; in front, copying of scattered operands
recorder = np.zeros(1, RECORDER)
recorder[0]["totals"] = totals.ctypes.data
RECORDER_ADDRESS = recorder.ctypes.data

# ---- the clock -------------------------------------------------------------------------------------------------------

if hasattr(time, "clock_gettime"):
    MONOTONIC = time.CLOCK_MONOTONIC
    function: Any = ctypes.CDLL(None).clock_gettime
    read_clock: Any = types.ExternalFunction("dynjit_clock", types.intc(types.intc, types.intp))

    @helper
    def now(recorder):  # type: ignore[no-untyped-def]
        """Nanoseconds of a clock that never goes back; its numbers are left in the recorder."""
        read_clock(MONOTONIC, recorder)
        r = recorders_at(recorder)[0]
        return r.seconds * 1_000_000_000 + r.nanoseconds

else:  # Windows
    function = ctypes.windll.kernel32.QueryPerformanceCounter  # type: ignore[attr-defined]
    ctypes.windll.kernel32.QueryPerformanceFrequency(  # type: ignore[attr-defined]
        ctypes.c_void_p(recorder.ctypes.data + RECORDER.fields["frequency"][1])  # type: ignore[index]
    )
    read_clock = types.ExternalFunction("dynjit_clock", types.intc(types.intp))

    @helper
    def now(recorder):  # type: ignore[no-untyped-def]
        """Nanoseconds of a clock that never goes back; its ticks are left in the recorder."""
        read_clock(recorder)
        r = recorders_at(recorder)[0]
        return r.seconds // r.frequency * 1_000_000_000 + r.seconds % r.frequency * 1_000_000_000 // r.frequency


add_symbol("dynjit_clock", ctypes.cast(function, ctypes.c_void_p).value or 0)


@entry("int64(int64)")
def clock(recorder):  # type: ignore[no-untyped-def]
    """Nanoseconds of the clock by which calls are timed."""
    return now(recorder)


# ---- the calls -------------------------------------------------------------------------------------------------------


@helper
def note(r, signature, code, part, nodes, start, stop, elements, flops):  # type: ignore[no-untyped-def]
    """Adds a call to its operator's totals, and its event to the list."""
    total = totals_at(r.totals)[code + 1]
    if part == FORWARD:
        total.nodes += nodes
        total.groups += 1
        total.forward += stop - start
    else:
        total.backward += stop - start
    total.nbytes += elements * NUMBER
    total.flops += flops
    event = events_at(r.events)[r.count]
    event.signature = signature
    event.part = part
    event.nodes = nodes
    event.start = start
    event.stop = stop
    event.nbytes = elements * NUMBER
    event.flops = flops
    r.count += 1


@helper
def operand_size(h, r, call, k):  # type: ignore[no-untyped-def]
    """Elements of an operand that a call reads; operators that move numbers read at most as many as they write."""
    q = signatures_at(h.signatures)[call.signature]
    item = shapes_at(h.shapes)[int64s(h.pool)[q.key + 2 + k]].item
    size = item * int64s(h.arguments)[call.args + call.arity + k]
    return min(size, q.item * call.batch) if int64s(r.costs)[q.key] == 0 else size


@helper
def elements_of(h, r, call):  # type: ignore[no-untyped-def]
    """Elements that a call reads and writes: the operands and the result."""
    elements = signatures_at(h.signatures)[call.signature].item * call.batch
    for k in range(call.arity):
        elements += operand_size(h, r, call, k)
    return elements


@helper
def note_forward(h, r, index, start, stop):  # type: ignore[no-untyped-def]
    """Enters a call of the forward pass."""
    call = calls_at(h.calls)[index]
    if call.signature == GATHER:
        note(r, GATHER, -1, FORWARD, call.count, start, stop, 2 * call.count * call.batch, 0)
        return
    q = signatures_at(h.signatures)[call.signature]
    flops = int64s(r.costs)[q.key] * call.count
    note(r, call.signature, q.op, FORWARD, call.count, start, stop, elements_of(h, r, call), flops)


@entry("int64(int64, int64, int64)")
def nbytes_of(context, recorder, index):  # type: ignore[no-untyped-def]
    """Bytes that a call reads and writes."""
    h = headers(context)[0]
    return elements_of(h, recorders_at(recorder)[0], calls_at(h.calls)[index]) * NUMBER


@helper
def note_backward(h, r, index, hits, start, stop):  # type: ignore[no-untyped-def]
    """The result's gradient and other operands are read; the gradients that are found are read and written.

    index: of a call, or -1 - that of a deferred record;  hits: how many of the call's nodes are reached.
    """
    call = calls_at(h.calls)[index] if index >= 0 else calls_at(h.deferred)[-1 - index]
    head = nodes_at(h.nodes)[int32s(h.order)[call.first]]
    args = int32s(h.args)
    if call.signature == GATHER:
        if needs_gradient(h, args[head.args + call.j]):
            note(r, GATHER, -1, BACKWARD, call.count, start, stop, 3 * call.count * call.batch, 0)
        return
    q = signatures_at(h.signatures)[call.signature]
    shared, costs = operators_at(h.operators)[q.op].shared, int64s(r.costs)
    nodes = call.batch // q.batch
    waits = index >= 0 and call.deferred >= 0 and runs_whole(h, call, hits)
    elements, flops, found = q.item * call.batch, 0, 0
    for k in range(call.arity):
        source = args[head.args + k]
        if index < 0:
            is_found = nodes_at(h.nodes)[source].flags & NEEDS_GRADIENT and is_weight(h, shared, source, k, call.arity)
        else:
            is_found = needs_gradient(h, source) and not (waits and is_weight(h, shared, source, k, call.arity))
        size = operand_size(h, r, call, k)
        elements += 2 * size if is_found else size
        flops += costs[q.key + 2 + k] * nodes if is_found else 0
        found += 1 if is_found else 0
    if found == 0:
        return
    if index >= 0 and not runs_whole(h, call, hits):
        elements = elements * hits // nodes
        flops = flops * hits // nodes
        nodes = hits
    note(r, call.signature, q.op, BACKWARD if index >= 0 else WEIGHTS, nodes, start, stop, elements, flops)


@entry("int64(int64, int64)")
def timed_forward(context, recorder):  # type: ignore[no-untyped-def]
    """As `cpu.forward`, with times."""
    mode = flush_denormals()
    result = time_calls(context, recorder)
    set_floating_point_mode(mode)
    return result


@helper
def time_calls(context, recorder):  # type: ignore[no-untyped-def]
    h, r = headers(context)[0], recorders_at(recorder)[0]
    while h.calls_done < h.call_count:
        start = now(recorder)
        code = run_call(h, context, h.calls_done, 0)
        if code >= 0:
            return code
        note_forward(h, r, h.calls_done, start, now(recorder))
        h.calls_done += 1
    return -1


@entry("int64(int64, int64)")
def timed_backward(context, recorder):  # type: ignore[no-untyped-def]
    """As `backprop.backward`, with times."""
    mode = flush_denormals()
    result = time_calls_back(context, recorder)
    set_floating_point_mode(mode)
    return result


@helper
def time_calls_back(context, recorder):  # type: ignore[no-untyped-def]
    h, r = headers(context)[0], recorders_at(recorder)[0]
    while h.cursor > 0:
        hits = reached_nodes(h, h.cursor - 1)
        start = now(recorder)
        code = run_call_back(h, context, h.cursor - 1, 0, hits)
        if code >= 0:
            return code
        if hits > 0:
            note_backward(h, r, h.cursor - 1, hits, start, now(recorder))
        h.cursor -= 1
    for i in range(join_deferred(context)):
        if calls_at(h.deferred)[i].active:
            start = now(recorder)
            add_deferred(h, context, i)
            note_backward(h, r, -1 - i, 0, start, now(recorder))
    return -1


# ---- what stands in for the compiled functions -----------------------------------------------------------------------


class Listener(Protocol):
    """What wants to know of calls and of other stretches of time."""

    def add_calls(self, events: np.ndarray) -> None:
        """Takes the EVENT records of a forward or backward pass."""

    def add_stretch(self, name: str, start: int, stop: int) -> None:
        """Takes a stretch of time, in nanoseconds of the clock, that is no call."""


listeners: list[Listener] = []
stretches: dict[str, int] = {}  # nanoseconds of all stretches of a name
costs: list[np.ndarray] = []  # FLOPs by place in op.POOL: where a signature's key starts, and at its operands
known = [1]  # signatures whose FLOPs are entered


def nanoseconds() -> int:
    """What the clock says."""
    return clock.call(RECORDER_ADDRESS)  # type: ignore[no-any-return]


def enter_costs() -> None:
    """Enters the FLOPs of signatures that are new."""
    if not costs:
        costs.append(reserve(op.POOL.size, np.int64))
        recorder[0]["costs"] = costs[0].ctypes.data
    for number in range(known[0], op.used["signatures"]):
        q = op.SIGNATURES[number]
        start, arity = int(q["key"]), int(q["arity"])
        operands = [shapes[shape] for shape in op.POOL[start + 2 : start + 2 + arity]]
        forward, *gradients = op.operators[q["op"]].flops(op.result_shape(number), *operands)
        costs[0][start], costs[0][start + 2 : start + 2 + arity] = forward, gradients
    known[0] = op.used["signatures"]


def add_stretch(name: str, start: int) -> None:
    """Notes the time since `start` under a name."""
    stop = nanoseconds()
    stretches[name] = stretches.get(name, 0) + stop - start
    for listener in listeners:
        listener.add_stretch(name, start, stop)


class Stretch:
    """Stands in for a function: calls it, and notes the time under a name."""

    def __init__(self, name: str, function: Any) -> None:
        self.name, self.function = name, function

    def call(self, *arguments: Any) -> Any:
        start = nanoseconds()
        try:
            return self.function(*arguments)
        finally:
            add_stretch(self.name, start)


class Pass:
    """Stands in for `cpu.forward` or `backprop.backward`: times calls, and loads kernels that are not in the table."""

    def __init__(self, run: Any, load: Any) -> None:
        self.run, self.load = run, Stretch("compiling kernels", load)
        self.events = np.empty(0, EVENT)  # room for those of a pass

    def call(self, address: int) -> int:
        enter_costs()
        header = Header.from_address(address)
        most = header.call_count + header.deferred_count
        if most > self.events.size:
            self.events = np.empty(2 * most, EVENT)
        recorder[0]["events"], recorder[0]["count"] = self.events.ctypes.data, 0
        while (code := self.run.call(address, RECORDER_ADDRESS)) >= 0:
            self.load.call(code, kernels.NARROW)
        events = self.events[: recorder[0]["count"]].copy()
        for listener in listeners if events.size else ():
            listener.add_calls(events)
        return -1
