"""From a plan's calls to a program for CUDA (cudakernels.py): records, offsets of the device, levels.

A level holds what can run at the same time.  Forward, a call's level is above those of the calls that make its
operands.  Backward, a call and an operand have a level above all that adds to the call's gradient, and above what adds
to the same operand before: so no two threads ever meet in one place, and sums have one order.  Levels are counted on
from program to program, so that what earlier programs have left behind lies below.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dynjit import cudakernels as ck
from dynjit import tiles
from dynjit.arena import (
    GATHER,
    NEEDS_GRADIENT,
    NODES,
    calls_at,
    float32s,
    float64s,
    headers,
    int32s,
    int64s,
    nodes_at,
    operators_at,
    shapes_at,
    signatures_at,
    space,
    view_of,
    works_at,
)
from dynjit.calls import has_stacked, is_shared
from dynjit.cpu import cut, mark_reached, needs_gradient
from dynjit.jit import entry, helper
from dynjit.memory import reserve
from dynjit.op import LEAF, LIST, SLOTS, VIEW, WHOLE_BATCH

FIRST = 1  # p[0] counts the blocks at a barrier
MOST_PARTS = 1024
STATE = np.dtype([(name, "i8") for name in (
    "count", "entries", "base", "levels", "top", "table", "items", "parameter_end", "graph_base",
    "program", "entry", "made", "written", "gathered", "starts", "used", "kinds", "same", "seen",
    "stamp",
)])  # fmt: skip
ENTRY = np.dtype([(name, "i8") for name in ("level", "start", "parts")])
states, entries_at = view_of(STATE), view_of(ENTRY)
int8s = view_of("i1")


class Lowering:
    """The program in the making, and what is known of each place's levels; one per device."""

    def __init__(self) -> None:
        places = NODES + space.parameter_end // 16
        self.arrays: dict[str, Any] = {
            "program": reserve(1 << 33, np.int64), "entry": reserve(NODES * 8, ENTRY),
            "made": reserve(NODES, np.int64), "written": reserve(places, np.int64),
            "seen": reserve(places, np.int64), "gathered": reserve(NODES * 4, np.int64),
            "starts": reserve(NODES * 8, np.int64), "used": np.zeros(ck.PAIRS, np.int8),
            "kinds": np.full(ck.PAIRS, ck.NONE, np.int8), "same": np.zeros(ck.PAIRS, np.int64),
        }  # fmt: skip
        for pair, first in ck.representatives().items():
            self.arrays["kinds"][pair], self.arrays["same"][pair] = ck.form(pair)[1], first
        self.missing = list(filter(ck.is_missing, ck.all_pairs()))
        self.arrays["kinds"][self.missing], self.arrays["same"][self.missing] = ck.SERIAL, self.missing
        self.state = np.zeros(1, STATE)
        self.record = self.state[0]
        for name, array in self.arrays.items():
            self.record[name] = array.ctypes.data
        self.record["parameter_end"], self.record["base"] = space.parameter_end, 1
        self.address = self.state.ctypes.data

    @property
    def program(self) -> np.ndarray:
        """The finished program."""
        return self.arrays["program"][: int(self.record["count"])]  # type: ignore[no-any-return]

    def check(self) -> None:
        """Raises NoCudaError if the program has a call of an operator that has no form for CUDA."""
        used = self.arrays["used"]
        found = [pair for pair in self.missing if used[pair]]
        used[found] = 0  # later programs may do without
        for pair in found:
            ck.form(pair)

    def used(self) -> list[int]:
        """The pairs of operator and slot that programs have used so far."""
        return np.flatnonzero(self.arrays["used"]).tolist()  # type: ignore[no-any-return]


# ---- writing ---------------------------------------------------------------------------------------------------------


@helper
def device_offset(h, s, offset):  # type: ignore[no-untyped-def]
    return offset if offset < s.parameter_end else offset - h.value_base + s.graph_base


@helper
def begin(s):  # type: ignore[no-untyped-def]
    int64s(s.program)[0] = 0
    s.count = FIRST
    s.entries = 0
    s.levels = 0
    s.top = s.base - 1


@helper
def enter(s, level, start, work):  # type: ignore[no-untyped-def]
    """Enters a record into a level; `work`: how many threads it can use."""
    entry = entries_at(s.entry)[s.entries]
    entry.level = level
    entry.start = start
    entry.parts = max(1, min(MOST_PARTS, (work + tiles.THREADS - 1) // tiles.THREADS))
    s.entries += 1
    s.top = max(s.top, level)


@helper
def all_divide(h, q, call, arguments, slot):  # type: ignore[no-untyped-def]
    """Whether each mini-batch item of a call can be worked on by itself."""
    for k in range(call.arity):
        batch = arguments[call.args + call.arity + k]
        if batch != call.batch and (batch != 1 or slot - 1 == k):
            return False
    return True


@helper
def work_of(h, s, q, call, arguments, kind, slot, j):  # type: ignore[no-untyped-def]
    """(units, threads that can work on a call)."""
    shapes, pool = shapes_at(h.shapes), int64s(h.pool)
    n = q.item * call.batch
    if kind == ck.ELEMENTS:
        return n, n
    if kind == ck.SERIAL:
        return 1, 1
    if kind == ck.ITEMS:
        is_whole = operators_at(h.operators)[q.op].flags & WHOLE_BATCH
        units = call.batch if not is_whole and all_divide(h, q, call, arguments, slot) else 1
        return units, units
    rows, columns = q.rows, q.cols * call.batch
    if slot > 0:
        shape = shapes[pool[q.key + 2 + j]]
        batch = arguments[call.args + call.arity + j]
        rows, columns = shape.rows, shape.cols * batch
        if q.ids == 0:
            n = max(n, shape.item * batch)
    if kind == ck.TILES:
        side = tiles.TILE
        return 1, (rows + side - 1) // side * ((columns + side - 1) // side) * tiles.THREADS
    return 1, n


@helper
def write_call(h, s, call, pair, slot, j, level):  # type: ignore[no-untyped-def]
    """Appends the record of a call."""
    p, arguments, data = int64s(s.program), int64s(h.arguments), int64s(h.data)
    shapes, pool = shapes_at(h.shapes), int64s(h.pool)
    q = signatures_at(h.signatures)[call.signature]
    operator = operators_at(h.operators)[q.op]
    units, work = work_of(h, s, q, call, arguments, int8s(s.kinds)[pair], slot, j)
    c, at = s.count, s.count + ck.RECORD
    p[c] = int64s(s.same)[pair]
    p[c + 1] = device_offset(h, s, call.y)
    p[c + 2] = device_offset(h, s, call.scratch)
    p[c + 3] = j
    p[c + 4] = call.arity
    p[c + 5] = call.batch
    p[c + 6] = q.item
    p[c + 7] = q.rows
    p[c + 8] = q.cols
    p[c + 9] = units
    p[c + 10] = q.scratch // q.batch
    p[c + 11] = int64s(h.seed)[0]
    p[c + 12] = at
    for k in range(call.arity):
        p[at + k] = device_offset(h, s, arguments[call.args + k])
        p[at + call.arity + k] = arguments[call.args + call.arity + k]
    at += 2 * call.arity
    p[c + 13] = at
    for k in range(call.arity):
        shape = shapes[pool[q.key + 2 + k]]
        p[at + 3 * k] = shape.item
        p[at + 3 * k + 1] = shape.rows
        p[at + 3 * k + 2] = shape.cols
    at += ck.PER_SHAPE * call.arity
    p[c + 14] = at
    for i in range(q.count):
        p[at + i] = pool[q.ints + i]
    at += q.count
    p[c + 15] = at
    for i in range(operator.floats):
        p[at + i] = 0
        float32s(s.program)[2 * (at + i)] = float64s(h.data)[call.floats + i]
    at += operator.floats
    p[c + 16] = at
    if q.ids > 0:
        each = q.ids // q.batch
        p[c + 17] = each
        for i in range(call.batch * each):
            p[at + i] = data[call.ids + i]
        at += call.batch * each
    s.count = at
    int8s(s.used)[p[c]] = 1
    enter(s, level, c, work)


@helper
def write_copy(h, s, call, pair, is_apart, level):  # type: ignore[no-untyped-def]
    """Appends the record of copying operands together, or of adding their gradients apart."""
    p, arguments = int64s(s.program), int64s(h.arguments)
    c = s.count
    p[c] = pair
    p[c + 1] = device_offset(h, s, call.y)
    p[c + 3] = is_apart
    p[c + 4] = call.count
    p[c + 5] = 1
    p[c + 6] = call.batch
    p[c + 12] = c + ck.RECORD
    for i in range(call.count):
        p[c + ck.RECORD + i] = device_offset(h, s, arguments[call.args + i])
    s.count = c + ck.RECORD + call.count
    int8s(s.used)[pair] = 1
    enter(s, level, c, call.batch * call.count if is_apart else call.batch)


@helper
def finish(s):  # type: ignore[no-untyped-def]
    """Appends the work items in the order of levels."""
    p, entries, starts = int64s(s.program), entries_at(s.entry), int64s(s.starts)
    s.levels = s.top - s.base + 1
    s.table = s.count
    s.items = s.table + s.levels + 1
    for level in range(s.levels + 1):
        p[s.table + level] = 0
    for i in range(s.entries):
        p[s.table + entries[i].level - s.base + 1] += entries[i].parts
    for level in range(s.levels):
        p[s.table + level + 1] += p[s.table + level]
        starts[level] = p[s.table + level]
    for i in range(s.entries):
        entry = entries[i]
        level = entry.level - s.base
        for part in range(entry.parts):
            at = s.items + 3 * starts[level]
            p[at] = entry.start
            p[at + 1] = part
            p[at + 2] = entry.parts
            starts[level] += 1
    s.count = s.items + 3 * p[s.table + s.levels]
    s.base = s.top + 1


# ---- forward ---------------------------------------------------------------------------------------------------------


@helper
def root(h, number):  # type: ignore[no-untyped-def]
    """The node whose memory a node shows."""
    nodes, args = nodes_at(h.nodes), int32s(h.args)
    signatures, operators = signatures_at(h.signatures), operators_at(h.operators)
    number = number + 0
    while operators[signatures[nodes[number].signature].op].flags & VIEW:
        number = args[nodes[number].args] + 0
    return number


@entry("int64(int64, int64)")
def lower_forward(context, state):  # type: ignore[no-untyped-def]
    """Makes the program of the calls that have not run yet."""
    h, s = headers(context)[0], states(state)[0]
    nodes, args, order, made = nodes_at(h.nodes), int32s(h.args), int32s(h.order), int64s(s.made)
    signatures = signatures_at(h.signatures)
    begin(s)
    copied = s.base - 1  # level of the copies in front of a call
    for index in range(h.calls_done, h.call_count):
        call = calls_at(h.calls)[index]
        level = s.base + 0
        if call.signature == GATHER:
            for i in range(call.first, call.first + call.count):
                level = max(level, made[root(h, args[nodes[order[i]].args + call.j])] + 1)
            copied = max(copied, level)
            write_copy(h, s, call, ck.GATHER, 1, level)
            continue
        level = max(level, copied + 1)
        copied = s.base - 1
        for i in range(call.first, call.first + call.count):
            node = nodes[order[i]]
            for k in range(node.arity):
                level = max(level, made[root(h, args[node.args + k])] + 1)
        for i in range(call.first, call.first + call.count):
            made[order[i]] = level
        write_call(h, s, call, signatures[call.signature].op * SLOTS, 0, 0, level)
    finish(s)
    return 0


# ---- backward --------------------------------------------------------------------------------------------------------


@helper
def place(h, s, number):  # type: ignore[no-untyped-def]
    """Where `written` tells of a node's gradient: parameters are known by their memory, as nodes may share it."""
    number = root(h, number)
    value = nodes_at(h.nodes)[number].value
    return NODES + (value >> 4) if value < s.parameter_end else number


@helper
def differentiate(h, s, index, whole, first, count):  # type: ignore[no-untyped-def]
    """Appends the gradients of a call's operands; its nodes are order[first : first + count].

    whole: the call of which it is a part, and in front of which operands are copied together.
    """
    nodes, args, order, calls = nodes_at(h.nodes), int32s(h.args), int32s(h.order), calls_at(h.calls)
    signatures, operators = signatures_at(h.signatures), operators_at(h.operators)
    written, gathered = int64s(s.written), int64s(s.gathered)
    call = calls[index]
    q = signatures[call.signature]
    operator = operators[q.op]
    head = nodes[order[first]]
    ready = s.base - 1
    for i in range(first, first + count):
        ready = max(ready, written[place(h, s, order[i])])
    for k in range(call.arity):
        source = args[head.args + k]
        if not needs_gradient(h, source):
            continue
        is_leaf = operators[signatures[nodes[source].signature].op].flags & LEAF
        if call.deferred >= 0 and is_leaf and is_shared(operator.shared, k, call.arity):
            calls_at(h.deferred)[call.deferred].active = 1
            continue
        slot = 1 + (0 if operator.flags & LIST else k)
        pair = q.op * SLOTS + slot
        if int8s(s.kinds)[pair] == ck.NONE:
            continue
        level = ready + 1
        copy = whole - 1
        while copy >= 0 and calls[copy].signature == GATHER and calls[copy].first == calls[whole].first:
            if calls[copy].j == k:
                break
            copy -= 1
        if copy >= 0 and calls[copy].signature == GATHER and calls[copy].first == calls[whole].first:
            gathered[copy] = max(gathered[copy], level)
        else:
            for i in range(first, first + count):
                level = max(level, written[place(h, s, args[nodes[order[i]].args + k])] + 1)
            for i in range(first, first + count):
                written[place(h, s, args[nodes[order[i]].args + k])] = level
        write_call(h, s, call, pair, slot, k, level)


@helper
def differentiate_some(h, s, index):  # type: ignore[no-untyped-def]
    """As `differentiate`, for the nodes of a call that the target depends on, one by one."""
    order, work, call = int32s(h.order), works_at(h.work), calls_at(h.calls)[index]
    for i in range(call.count):
        if work[order[call.first + i]].reached == h.reach:
            cut(h, index, h.call_count, h.argument_count, call.count, i, i + 1)
            differentiate(h, s, h.call_count, index, call.first + i, 1)


@helper
def add_apart(h, s, index):  # type: ignore[no-untyped-def]
    """Appends what adds the gradients of copied operands to those of the operands."""
    nodes, args, order, calls = nodes_at(h.nodes), int32s(h.args), int32s(h.order), calls_at(h.calls)
    written, seen = int64s(s.written), int64s(s.seen)
    call = calls[index]
    if not needs_gradient(h, args[nodes[order[call.first]].args + call.j]):
        return
    level = max(int64s(s.gathered)[index], s.base - 1) + 1
    s.stamp += 1
    is_apart = 1
    for i in range(call.first, call.first + call.count):
        at = place(h, s, args[nodes[order[i]].args + call.j])
        level = max(level, written[at] + 1)
        if seen[at] == s.stamp:
            is_apart = 0
        seen[at] = s.stamp
    for i in range(call.first, call.first + call.count):
        written[place(h, s, args[nodes[order[i]].args + call.j])] = level
    write_copy(h, s, call, ck.SCATTER, is_apart, level)


@helper
def add_deferred(h, s):  # type: ignore[no-untyped-def]
    """Appends the gradients of weights: one product for all columns that follow each other."""
    nodes, args, order, written = nodes_at(h.nodes), int32s(h.args), int32s(h.order), int64s(s.written)
    signatures, operators = signatures_at(h.signatures), operators_at(h.operators)
    last = s.top + 0
    for i in range(h.deferred_count):
        record = calls_at(h.deferred)[i]
        if record.active == 0:
            continue
        code = signatures[record.signature].op
        head = nodes[order[record.first]]
        for k in range(record.arity):
            source = nodes[args[head.args + k]]
            if (
                is_shared(operators[code].shared, k, record.arity)
                and source.flags & NEEDS_GRADIENT
                and operators[signatures[source.signature].op].flags & LEAF
            ):
                at = place(h, s, args[head.args + k])
                level = max(last, written[at]) + 1
                written[at] = level
                slot = 1 + (0 if operators[code].flags & LIST else k)
                write_call(h, s, record, code * SLOTS + slot, slot, k, level)


@entry("int64(int64, int64, int64, int64)")
def lower_backward(context, state, target, full):  # type: ignore[no-untyped-def]
    """Makes the program of the gradients of a target; see `run_calls_back` of cpu.py."""
    h, s = headers(context)[0], states(state)[0]
    calls, signatures, order, work = calls_at(h.calls), signatures_at(h.signatures), int32s(h.order), works_at(h.work)
    h.full = full
    mark_reached(h, target)
    for i in range(h.deferred_count):
        calls_at(h.deferred)[i].active = 0
    begin(s)
    for index in range(h.call_count - 1, -1, -1):
        call = calls[index]
        hits = 0
        for i in range(call.first, call.first + call.count):
            hits += work[order[i]].reached == h.reach
        if hits == 0:
            continue
        if call.signature == GATHER:
            add_apart(h, s, index)
            continue
        # as on the CPU, a product takes all its members
        shared = operators_at(h.operators)[signatures[call.signature].op].shared
        if hits == call.count or (call.deferred >= 0 and has_stacked(shared, call.arity)):
            differentiate(h, s, index, index, call.first, call.count)
        else:
            differentiate_some(h, s, index)
    add_deferred(h, s)
    finish(s)
    return 0
