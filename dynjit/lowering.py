"""From a plan's calls to a program for CUDA (program.py): which call belongs to which level.

A level holds what can run at the same time.  Forward, a call's level is above those of the calls that make its
operands.  Backward, a call and an operand have a level above all that adds to the call's gradient, and above what adds
to the same operand before: so no two threads ever meet in one place, and sums have one order.  Levels are counted on
from program to program, so that what earlier programs have left behind lies below.
"""

from __future__ import annotations

from dynjit import cudakernels as ck
from dynjit.arena import (
    GATHER,
    NEEDS_GRADIENT,
    NODES,
    calls_at,
    headers,
    int32s,
    int64s,
    nodes_at,
    operators_at,
    signatures_at,
    works_at,
)
from dynjit.backprop import mark_reached, needs_gradient
from dynjit.calls import has_stacked, is_shared
from dynjit.cpu import cut
from dynjit.jit import entry, helper
from dynjit.op import LEAF, LIST, SLOTS, VIEW
from dynjit.program import begin, finish, int8s, states, write_call, write_copy

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
        level = write_call(h, s, call, signatures[call.signature].op * SLOTS, 0, 0, level)
        for i in range(call.first, call.first + call.count):
            made[order[i]] = level
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
    """Makes the program of the gradients of a target; see `run_calls_back` of backprop.py."""
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
