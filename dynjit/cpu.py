"""Runs a plan on the CPU: the calls in order; in reverse, for gradients, see backprop.py.

`forward` and `backward` return -1 when they are done, or the code of an operator whose kernels are not in the table
yet; the caller loads them and calls again, and the run goes on where it stopped.
"""

from __future__ import annotations

from dynjit.arena import (
    GATHER,
    HEADER_BYTES,
    MORE,
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
)
from dynjit.calls import np_int
from dynjit.jit import address_of, call_kernel, entry, external, flush_denormals, helper, set_floating_point_mode
from dynjit.op import SLOTS, WHOLE_BATCH
from dynjit.parts import copy_header, part_header
from dynjit.threads import large, share, thread_count


@helper
def copy_together(buffer, arguments, call):  # type: ignore[no-untyped-def]
    for i in range(call.count):
        source = buffer[arguments[call.args + i] : arguments[call.args + i] + call.batch]
        target = buffer[call.y + i * call.batch : call.y + (i + 1) * call.batch]
        for e in range(call.batch):
            target[e] = source[e]


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
