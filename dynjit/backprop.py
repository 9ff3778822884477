"""Gradients on the CPU: the calls of a plan in reverse; see cpu.py."""

from __future__ import annotations

from dynjit.arena import (
    FROZEN,
    GATHER,
    HEADER_BYTES,
    NEEDS_GRADIENT,
    calls_at,
    float32s,
    float64s,
    headers,
    int32s,
    int64s,
    nodes_at,
    operators_at,
    parts_at,
    signatures_at,
    works_at,
)
from dynjit.calls import has_stacked, np_int
from dynjit.cpu import cut, missing, missing_in_parts, run_all_parts, run_kernel
from dynjit.deferred import add_deferred, is_weight, join_deferred
from dynjit.jit import address_of, entry, external, flush_denormals, helper, set_floating_point_mode
from dynjit.op import IN_PLACE, LIST, SLOTS
from dynjit.threads import share

CLEARED = 8  # numbers in a nanosecond
LINE = 16  # numbers in a cache line, where all results begin


@helper
def add_apart(buffer, arguments, call):  # type: ignore[no-untyped-def]
    for i in range(call.count):
        target = buffer[arguments[call.args + i] : arguments[call.args + i] + call.batch]
        source = buffer[call.y + i * call.batch : call.y + (i + 1) * call.batch]
        for e in range(call.batch):
            target[e] += source[e]


@helper
def needs_gradient(h, number):  # type: ignore[no-untyped-def]
    flags = nodes_at(h.nodes)[number].flags
    return flags & NEEDS_GRADIENT or (h.full and not flags & FROZEN)


@helper
def mark_reached(h, target):  # type: ignore[no-untyped-def]
    """Stamps the nodes on which the target depends through operands that need gradients."""
    nodes, args, work, stack = nodes_at(h.nodes), int32s(h.args), works_at(h.work), int32s(h.stack)
    h.reach += 1
    work[target].reached = h.reach
    stack[0] = target
    depth = 1
    while depth > 0:
        depth -= 1
        node = nodes[stack[depth]]
        for k in range(node.arity):
            source = args[node.args + k]
            if work[source].reached != h.reach and needs_gradient(h, source):
                work[source].reached = h.reach
                stack[depth] = source
                depth += 1


@helper
def clear(h, start, stop):  # type: ignore[no-untyped-def]
    """Sets gradients to zero."""
    if h.wide:
        wide = float64s(h.g)[start:stop]
        for i in range(wide.size):
            wide[i] = 0
    else:
        narrow = float32s(h.g)[start:stop]
        for i in range(narrow.size):
            narrow[i] = 0


@helper
def clear_results(h, first, stop):  # type: ignore[no-untyped-def]
    """Sets the gradients of what calls make to zero, not those of their scratch numbers."""
    signatures, calls = signatures_at(h.signatures), calls_at(h.calls)
    start, end = np_int(h.value_base), np_int(h.value_base)
    for index in range(first, stop):
        call = calls[index]
        if call.takes < 0:
            own = call.count if call.signature == GATHER else signatures[call.signature].item
            if call.y < end or call.y >= end + LINE:  # else it goes on where the last one ended
                clear(h, start, end)
                start = np_int(call.y)
            end = np_int(call.y + own * call.batch)
    clear(h, start, end)


@external("void(int64, int64)")
def clear_part(context, part):  # type: ignore[no-untyped-def]
    """Sets the gradients of a part's results to zero."""
    h = headers(context)[0]
    clear_results(h, parts_at(h.part_table)[part].call, parts_at(h.part_table)[part].stop)


address_of_clear_part = address_of(clear_part)


@helper
def clear_all(h, context):  # type: ignore[no-untyped-def]
    """Sets all gradients of the graph to zero."""
    if not h.whole_reached:
        clear(h, h.value_base, h.value_top)
        return
    clear(h, h.value_base, h.first_result)
    first, stop = h.call_count, h.call_count
    if h.parts > 0:
        first, stop = parts_at(h.part_table)[0].call, parts_at(h.part_table)[h.parts - 1].stop
        share(address_of_clear_part(), context, 0, h.parts, (h.value_top - h.first_result) // CLEARED)
    clear_results(h, 0, first)
    clear_results(h, stop, h.call_count)


@external("int64(int64, int64, int64)")
def start_backward(context, target, full):  # type: ignore[no-untyped-def]
    """Clears the graph's gradients, sets the target's to one, and prepares `backward`."""
    h = headers(context)[0]
    h.full = full
    h.backward_from = target
    h.backward_top = h.value_top
    h.whole_reached = target == h.whole and h.stops == 0
    if not h.whole_reached:
        mark_reached(h, target)
    clear_all(h, context)
    if h.wide:
        float64s(h.g)[nodes_at(h.nodes)[target].value] = 1
    else:
        float32s(h.g)[nodes_at(h.nodes)[target].value] = 1
    for i in range(h.deferred_count):
        calls_at(h.deferred)[i].active = 0
    h.cursor = h.call_count
    return 0


@helper
def differentiate(h, context, index, more, number):  # type: ignore[no-untyped-def]
    """Adds the gradients of the operands of a call, of which `number` is a node, and of `more` calls that follow."""
    nodes, args = nodes_at(h.nodes), int32s(h.args)
    signatures, operators, kernels = signatures_at(h.signatures), operators_at(h.operators), int64s(h.kernels)
    call = calls_at(h.calls)[index]
    q = signatures[call.signature]
    operator = operators[q.op]
    node = nodes[number]
    for k in range(call.arity):
        source = args[node.args + k]
        if not needs_gradient(h, source):
            continue
        if call.deferred >= 0 and is_weight(h, operator.shared, source, k, call.arity):
            calls_at(h.deferred)[call.deferred].active = 1
            continue
        if k != call.takes:
            address = kernels[q.op * SLOTS + 1 + (0 if operator.flags & LIST else k)]
            if address != 1:
                call.j = k
                run_kernel(context, index, more, address, k)
    if call.takes >= 0 and kernels[q.op * SLOTS + IN_PLACE] != 1:  # the last, for the others read dy
        run_kernel(context, index, more, kernels[q.op * SLOTS + IN_PLACE], call.takes)


@helper
def differentiate_some(h, context, index):  # type: ignore[no-untyped-def]
    """As `differentiate`, for the nodes of a call that the target depends on, one by one."""
    order, work, call, own = int32s(h.order), works_at(h.work), calls_at(h.calls)[index], np_int(h.call_count)
    for i in range(call.count):
        number = order[call.first + i]
        if work[number].reached == h.reach:
            cut(h, index, own, h.argument_count, call.count, i, i + 1)
            h.call_count += 1  # in use, for a part of it may be shared among threads
            h.argument_count += 2 * call.arity
            differentiate(h, context, own, 0, number)
            h.call_count -= 1
            h.argument_count -= 2 * call.arity


@helper
def reached_nodes(h, index):  # type: ignore[no-untyped-def]
    """How many nodes of a call the target depends on."""
    call, order, work = calls_at(h.calls)[index], int32s(h.order), works_at(h.work)
    if h.whole_reached:
        return np_int(call.count) if needs_gradient(h, order[call.first]) else 0
    hits = 0
    for i in range(call.first, call.first + call.count):
        hits += work[order[i]].reached == h.reach
    return hits


@helper
def runs_whole(h, call, hits):  # type: ignore[no-untyped-def]
    """Whether a call of which `hits` nodes are reached adds the gradients of all of its nodes.

    Members that the target does not depend on have zero gradients and add nothing to a product, but a lookup would mark
    their rows.
    """
    shared = operators_at(h.operators)[signatures_at(h.signatures)[call.signature].op].shared
    return hits == call.count or (call.deferred >= 0 and has_stacked(shared, call.arity))


@helper
def run_call_back(h, context, index, more, hits):  # type: ignore[no-untyped-def]
    """Adds the gradients of a call of which `hits` nodes are reached, and of `more` like it; returns as `run_call`."""
    if hits == 0:
        return -1
    call, order = calls_at(h.calls)[index], int32s(h.order)
    if call.signature == GATHER:
        head = nodes_at(h.nodes)[order[call.first]]
        if needs_gradient(h, int32s(h.args)[head.args + call.j]):
            if h.wide:
                add_apart(float64s(h.g), int64s(h.arguments), call)
            else:
                add_apart(float32s(h.g), int64s(h.arguments), call)
        return -1
    code = np_int(signatures_at(h.signatures)[call.signature].op)
    if missing(h, code, 1):
        return code
    if runs_whole(h, call, hits):
        differentiate(h, context, index, more, order[call.first])
    else:
        differentiate_some(h, context, index)
    return -1


@helper
def may_go_back_by_parts(h):  # type: ignore[no-untyped-def]
    """Whether the next calls are those of parts that may run side by side.

    They may not where the target needs some nodes of a call alone, or gradients are wanted of inputs that parts share.
    """
    if h.parts == 0 or not h.whole_reached or h.full or h.wide:
        return False
    return h.cursor == parts_at(h.part_table)[h.parts - 1].stop


@external("void(int64, int64)")
def backward_part(first_header, part):  # type: ignore[no-untyped-def]
    """Adds the gradients of the calls of a part, from the last to the first."""
    context = first_header + part * HEADER_BYTES
    h = headers(context)[0]
    known = parts_at(h.part_table)[part]
    index = known.stop + 0
    while index > known.call:
        more = calls_at(h.calls)[index - 1].behind + 0
        index -= more + 1
        run_call_back(h, context, index, more, reached_nodes(h, index))


address_of_backward_part = address_of(backward_part)


@entry("int64(int64)")
def backward(context):  # type: ignore[no-untyped-def]
    """Adds gradients from the last call to the first, then those of weights."""
    mode = flush_denormals()
    result = run_calls_back(context)
    set_floating_point_mode(mode)
    return result


@helper
def run_calls_back(context):  # type: ignore[no-untyped-def]
    h = headers(context)[0]
    while h.cursor > 0:
        if may_go_back_by_parts(h):
            code = missing_in_parts(h, 1)
            if code >= 0:
                return code
            run_all_parts(context, address_of_backward_part(), h.part_time - h.part_time // 3)
            h.cursor = parts_at(h.part_table)[0].call
        else:
            # a group's calls go together, unless some of their nodes are not reached
            more = calls_at(h.calls)[h.cursor - 1].behind if h.whole_reached else 0
            first = h.cursor - 1 - more
            code = run_call_back(h, context, first, more, reached_nodes(h, first))
            if code >= 0:
                return code
            h.cursor = first
    for i in range(join_deferred(context)):
        add_deferred(h, context, i)
    return -1
