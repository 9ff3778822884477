"""Runs a plan on the CPU: the calls in order, and in reverse for gradients.

Both functions return -1 when they are done, or the code of an operator whose kernels are not in the table yet; the
caller loads them and calls again, and the run goes on where it stopped.
"""

from __future__ import annotations

from dynjit.arena import (
    FROZEN,
    GATHER,
    HEADER_BYTES,
    MORE,
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
    shapes_at,
    signatures_at,
    works_at,
)
from dynjit.calls import has_stacked, np_int
from dynjit.deferred import add_deferred, is_weight, join_deferred
from dynjit.jit import address_of, call_kernel, entry, external, flush_denormals, helper, set_floating_point_mode
from dynjit.op import IN_PLACE, LIST, SLOTS, WHOLE_BATCH
from dynjit.parts import copy_header, part_header
from dynjit.threads import large, share, thread_count

CLEARED = 8  # numbers in a nanosecond
LINE = 16  # numbers in a cache line, where all results begin


@helper
def copy_together(buffer, arguments, call):  # type: ignore[no-untyped-def]
    for i in range(call.count):
        source = buffer[arguments[call.args + i] : arguments[call.args + i] + call.batch]
        target = buffer[call.y + i * call.batch : call.y + (i + 1) * call.batch]
        for e in range(call.batch):
            target[e] = source[e]


@helper
def add_apart(buffer, arguments, call):  # type: ignore[no-untyped-def]
    for i in range(call.count):
        target = buffer[arguments[call.args + i] : arguments[call.args + i] + call.batch]
        source = buffer[call.y + i * call.batch : call.y + (i + 1) * call.batch]
        for e in range(call.batch):
            target[e] += source[e]


@entry("int64(int64)")
def rerun(context):  # type: ignore[no-untyped-def]
    """Prepares `forward` to run all calls again, with the indices that the nodes have now."""
    h = headers(context)[0]
    nodes, order, data, calls = nodes_at(h.nodes), int32s(h.order), int64s(h.data), calls_at(h.calls)
    for index in range(h.call_count):
        call = calls[index]
        if call.signature == GATHER or call.count == 1:
            continue
        q = signatures_at(h.signatures)[call.signature]
        floats = operators_at(h.operators)[q.op].floats
        for i in range(call.count):
            for b in range(q.ids):
                data[call.ids + i * q.ids + b] = data[nodes[order[call.first + i]].data + floats + b]
    h.calls_done = 0
    return 0


# ---- parts of calls --------------------------------------------------------------------------------------------------


@helper
def moves(h, call, k, units):  # type: ignore[no-untyped-def]
    """Whether operand k of a call is another one for each of its units: nodes of a group, or items of a mini-batch."""
    batch = int64s(h.arguments)[call.args + call.arity + k]
    if call.count == 1:
        return batch == units
    key = signatures_at(h.signatures)[call.signature].key
    return batch == shapes_at(h.shapes)[int64s(h.pool)[key + 2 + k]].batch * units


@helper
def cut(h, index, target, args, units, first, stop):  # type: ignore[no-untyped-def]
    """Makes call `target` the part of call `index` that has its units from `first` to `stop`."""
    calls, arguments = calls_at(h.calls), int64s(h.arguments)
    call, part = calls[index], calls[target]
    q = signatures_at(h.signatures)[call.signature]
    own = call.batch // units  # mini-batch items of a unit
    part.signature = call.signature
    part.arity = call.arity
    part.j = call.j
    part.deferred = -1
    part.y = call.y + first * own * q.item
    part.args = args
    part.batch = (stop - first) * own
    part.scratch = call.scratch + first * own * (q.scratch // q.batch)
    part.ids = call.ids + first * own * (q.ids // q.batch)
    part.floats = call.floats
    part.first = call.first + (first if call.count > 1 else 0)
    part.count = stop - first if call.count > 1 else 1
    part.takes = call.takes
    part.ahead = 0
    part.behind = 0
    for k in range(call.arity):
        batch = arguments[call.args + call.arity + k]
        shape = shapes_at(h.shapes)[int64s(h.pool)[q.key + 2 + k]]
        moving = moves(h, call, k, units)
        arguments[args + k] = arguments[call.args + k] + (first * (batch // units) * shape.item if moving else 0)
        arguments[args + call.arity + k] = batch // units * (stop - first) if moving else batch


@helper
def units_of(h, call, k):  # type: ignore[no-untyped-def]
    """Into how many units a call may be cut, in forward (k is -1) or for the gradient of operand k."""
    q = signatures_at(h.signatures)[call.signature]
    operator = operators_at(h.operators)[q.op]
    if operator.shared or (call.count == 1 and operator.flags & WHOLE_BATCH):
        return 1  # products are divided inside
    units = np_int(call.count) if call.count > 1 else call.batch
    size = q.item * call.batch
    for other in range(call.arity):
        batch = int64s(h.arguments)[call.args + call.arity + other]
        size = max(size, batch * shapes_at(h.shapes)[int64s(h.pool)[q.key + 2 + other]].item)
        if not moves(h, call, other, units) and (other == k or (call.count == 1 and batch > 1)):
            return 1
    return units if size >= large() else 1


@helper
def is_small(h, call):  # type: ignore[no-untyped-def]
    """Whether a call neither makes nor reads enough for several threads, whatever its operands are."""
    return call.count * signatures_at(h.signatures)[call.signature].largest < large()


@external("void(int64, int64, int64, int64)")
def run_parts(context, index, address, k):  # type: ignore[no-untyped-def]
    """Runs a kernel over a call; over a large one in parts, by several threads."""
    h = headers(context)[0]
    call = calls_at(h.calls)[index]
    units = units_of(h, call, k)
    parts = min(units, thread_count())
    if parts == 1:
        call_kernel(address, context, index)
        return
    for part in range(parts):
        first, stop = units * part // parts, units * (part + 1) // parts
        cut(h, index, h.call_count + part, h.argument_count + 2 * call.arity * part, units, first, stop)
    numbers = max(large(), signatures_at(h.signatures)[call.signature].item * call.batch)
    share(address, context, h.call_count, parts, numbers)  # a nanosecond each


@helper
def run_kernel(context, index, more, address, k):  # type: ignore[no-untyped-def]
    """Runs a kernel over a call and `more` that follow, in forward (k is -1) or for the gradient of operand k."""
    h = headers(context)[0]
    may_share = thread_count() > 1 and not h.is_part
    number, last, calls = np_int(index), index + more, calls_at(h.calls)
    while number <= last:
        calls[number].j = calls[index].j
        stop = last + 1
        if may_share:
            stop = number
            while stop <= last and is_small(h, calls[stop]):
                stop += 1
        if stop > number:  # small calls, together
            call_kernel(address, context, number | (stop - number - 1) << MORE)
        else:
            run_parts(context, number, address, k)
            stop += 1
        number = stop


# ---- forward ---------------------------------------------------------------------------------------------------------


@external("void(int64, int64)")
def catch_up(context, index):  # type: ignore[no-untyped-def]
    """Lets the rows that a lookup reads take the updates that have been postponed for them."""
    h = headers(context)[0]
    call, known, data = calls_at(h.calls)[index], int64s(h.late), int64s(h.data)
    q = signatures_at(h.signatures)[call.signature]
    for t in range(known[0]):
        if known[1 + 3 * t] == int64s(h.arguments)[call.args]:
            for i in range(call.count * q.ids):
                call_kernel(known[2 + 3 * t], known[3 + 3 * t], data[call.ids + i])


@helper
def run_call(h, context, index, more):  # type: ignore[no-untyped-def]
    """Runs a call, and `more` of its group that follow.

    Returns -1, or the code of an operator whose kernel is not in the table yet.
    """
    call = calls_at(h.calls)[index]
    if call.signature == GATHER:
        if h.wide:
            copy_together(float64s(h.v), int64s(h.arguments), call)
        else:
            copy_together(float32s(h.v), int64s(h.arguments), call)
        return -1
    code = np_int(signatures_at(h.signatures)[call.signature].op)
    address = int64s(h.kernels)[code * SLOTS]
    if address == 0:
        return code
    if int64s(h.late)[0] > 0 and signatures_at(h.signatures)[call.signature].ids > 0:
        for number in range(index, index + more + 1):
            catch_up(context, number)
    run_kernel(context, index, more, address, -1)
    return -1


@helper
def may_run_parts(h):  # type: ignore[no-untyped-def]
    """Whether the next calls are those of parts that may run side by side; postponed updates of rows forbid it."""
    return h.parts > 0 and h.calls_done == parts_at(h.part_table)[0].call and h.wide == 0 and int64s(h.late)[0] == 0


@helper
def missing(h, code, slot):  # type: ignore[no-untyped-def]
    """Whether an operator's kernels, of which `slot` is the first, are not in the table yet: 0 forward, 1 gradients."""
    return int64s(h.kernels)[code * SLOTS + slot] == 0


@helper
def missing_in_parts(h, slot):  # type: ignore[no-untyped-def]
    """The code of an operator in a part whose kernel is not in the table yet; -1 if none is missing."""
    parts = parts_at(h.part_table)
    for index in range(parts[0].call, parts[h.parts - 1].stop):
        signature = calls_at(h.calls)[index].signature
        if signature != GATHER:
            code = np_int(signatures_at(h.signatures)[signature].op)
            if missing(h, code, slot):
                return code
    return -1


@external("void(int64, int64, int64)")
def run_all_parts(context, function, time):  # type: ignore[no-untyped-def]
    """Shares the parts of a graph among threads; each gets a header of its own."""
    h = headers(context)[0]
    for part in range(h.parts):
        copy_header(context, part)
    share(function, part_header(h, 0), 0, h.parts, time)


@external("void(int64, int64)")
def forward_part(first_header, part):  # type: ignore[no-untyped-def]
    """Runs the calls of a part, whose header is one of several that lie end to end."""
    context = first_header + part * HEADER_BYTES
    h = headers(context)[0]
    known = parts_at(h.part_table)[part]
    index = known.call + 0
    while index < known.stop:
        more = calls_at(h.calls)[index].ahead + 0
        run_call(h, context, index, more)
        index += more + 1


address_of_forward_part = address_of(forward_part)


@external("int64(int64)")
def forward(context):  # type: ignore[no-untyped-def]
    """Runs the calls that have not run yet."""
    mode = flush_denormals()
    result = run_calls(context)
    set_floating_point_mode(mode)
    return result


@helper
def run_calls(context):  # type: ignore[no-untyped-def]
    h = headers(context)[0]
    while h.calls_done < h.call_count:
        if may_run_parts(h):
            code = missing_in_parts(h, 0)
            if code >= 0:
                return code
            run_all_parts(context, address_of_forward_part(), h.part_time // 3)
            h.calls_done = parts_at(h.part_table)[h.parts - 1].stop
        else:
            more = calls_at(h.calls)[h.calls_done].ahead + 0
            code = run_call(h, context, h.calls_done, more)
            if code >= 0:
                return code
            h.calls_done += more + 1
    return -1


# ---- backward --------------------------------------------------------------------------------------------------------


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


@entry("int64(int64, int64, int64)")
def start_backward(context, target, full):  # type: ignore[no-untyped-def]
    """Clears the graph's gradients, sets the target's to one, and prepares `backward`."""
    h = headers(context)[0]
    h.full = full
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
