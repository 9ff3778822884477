"""Gradients of weights, which wait for the end of the backward pass.

`calls.defer` has entered a record for each stretch of columns that lie end to end.  What a program looks at on its way
(a parser at each step) is planned in pieces, and its columns lie apart: they are copied together, since one product of
many columns costs much less than many of one, each of which goes over the whole gradient of the weight.
"""

from __future__ import annotations

from dynjit.arena import (
    NEEDS_GRADIENT,
    calls_at,
    float32s,
    float64s,
    headers,
    int32s,
    int64s,
    mixed,
    nodes_at,
    operators_at,
    shapes_at,
    signatures_at,
)
from dynjit.calls import is_shared, np_int, take
from dynjit.jit import call_kernel, external, helper
from dynjit.op import KEEPS_RESULT, LEAF, LIST, SLOTS

FEW = 32  # columns per record on average, up to which copying pays
NONE = (1 << 31) - 1  # no negative number: planning uses the same slots, and takes what is too large for empty


@helper
def is_weight(h, shared, source, k, arity):  # type: ignore[no-untyped-def]
    """Whether an operand is a leaf that all nodes of a group share."""
    code = signatures_at(h.signatures)[nodes_at(h.nodes)[source].signature].op
    return is_shared(shared, k, arity) and operators_at(h.operators)[code].flags & LEAF != 0


@helper
def add_deferred(h, context, i):  # type: ignore[no-untyped-def]
    """Adds the gradients of the weights of a deferred record: one product for all columns that follow each other."""
    record = calls_at(h.deferred)[i]
    if record.active == 0:
        return
    code = signatures_at(h.signatures)[record.signature].op
    operator = operators_at(h.operators)[code]
    head = nodes_at(h.nodes)[int32s(h.order)[record.first]]
    for k in range(record.arity):
        source = int32s(h.args)[head.args + k]
        needed = nodes_at(h.nodes)[source].flags & NEEDS_GRADIENT
        if needed and is_weight(h, operator.shared, source, k, record.arity):
            record.j = k
            address = int64s(h.kernels)[code * SLOTS + 1 + (0 if operator.flags & LIST else k)]
            call_kernel(address, context, -1 - i)


# ---- joining records -------------------------------------------------------------------------------------------------


@helper
def may_join(h, record):  # type: ignore[no-untyped-def]
    """Whether a record is columns of stacked operands and of results, and nothing else."""
    q = signatures_at(h.signatures)[record.signature]
    operator, arguments = operators_at(h.operators)[q.op], int64s(h.arguments)
    if record.active == 0 or q.scratch > 0 or q.ids > 0 or operator.floats > 0 or q.size == 0:
        return False
    stacked = 0
    for k in range(record.arity):
        own = is_shared(operator.shared, k, record.arity)
        if arguments[record.args + record.arity + k] != (1 if own else record.batch):
            return False
        stacked += not own
    return stacked > 0


@helper
def weights_code(h, record):  # type: ignore[no-untyped-def]
    """Hash of a record's signature and shared operands."""
    args, first = int32s(h.args), nodes_at(h.nodes)[int32s(h.order)[record.first]].args
    shared = operators_at(h.operators)[signatures_at(h.signatures)[record.signature].op].shared
    code = np_int(record.signature)
    for k in range(record.arity):
        if is_shared(shared, k, record.arity):
            code = mixed(code, args[first + k])
    return code


@helper
def same_weights(h, a, b):  # type: ignore[no-untyped-def]
    """Whether two records have the same signature and shared operands."""
    if a.signature != b.signature:
        return False
    nodes, order, args = nodes_at(h.nodes), int32s(h.order), int32s(h.args)
    shared = operators_at(h.operators)[signatures_at(h.signatures)[a.signature].op].shared
    for k in range(a.arity):
        own, other = args[nodes[order[a.first]].args + k], args[nodes[order[b.first]].args + k]
        if is_shared(shared, k, a.arity) and own != other:
            return False
    return True


@helper
def copy_all(h, buffer, chain, k, item, target):  # type: ignore[no-untyped-def]
    """Copies operand k (or the result: k is -1), of all records of a chain, end to end."""
    deferred, arguments = calls_at(h.deferred), int64s(h.arguments)
    index, at = chain, target
    while index != NONE:
        record = deferred[index]
        start = arguments[record.args + k] if k >= 0 else record.y
        size = record.batch * item
        source, to = buffer[start : start + size], buffer[at : at + size]
        for i in range(size):
            to[i] = source[i]
        at += size
        index = record.deferred


@helper
def copy_columns(h, values, chain, k, item, target):  # type: ignore[no-untyped-def]
    """As `copy_all`, of the values or of the gradients."""
    address = h.v if values else h.g
    if h.wide:
        copy_all(h, float64s(address), chain, k, item, target)
    else:
        copy_all(h, float32s(address), chain, k, item, target)


@helper
def join(h, chain, index):  # type: ignore[no-untyped-def]
    """Makes record `index` of the columns of all records of a chain; says whether there was reason and room for it."""
    deferred, arguments = calls_at(h.deferred), int64s(h.arguments)
    shapes, pool, last = shapes_at(h.shapes), int64s(h.pool), deferred[chain]
    q = signatures_at(h.signatures)[last.signature]
    operator = operators_at(h.operators)[q.op]
    records, batch, at = 0, 0, np_int(chain)
    while at != NONE:
        records += 1
        batch += deferred[at].batch
        at = np_int(deferred[at].deferred)
    top, joined = h.value_top, deferred[index]
    joined.y = take(h, batch * q.item)
    joined.args = h.argument_count
    for k in range(last.arity):
        is_stacked = not is_shared(operator.shared, k, last.arity)
        item = shapes[pool[q.key + 2 + k]].item
        arguments[joined.args + k] = take(h, batch * item) if is_stacked else arguments[last.args + k]
        arguments[joined.args + last.arity + k] = batch if is_stacked else 1
    fits = records > 1 and batch <= FEW * records and h.value_top <= h.value_end
    if fits:
        copy_columns(h, False, chain, -1, q.item, joined.y)
        if operator.flags & KEEPS_RESULT:
            copy_columns(h, True, chain, -1, q.item, joined.y)
        for k in range(last.arity):
            if not is_shared(operator.shared, k, last.arity):
                copy_columns(h, True, chain, k, shapes[pool[q.key + 2 + k]].item, arguments[joined.args + k])
        joined.signature = last.signature
        joined.arity = last.arity
        joined.first = last.first
        joined.batch = batch
        joined.takes = -1
        joined.active = 1
        at = np_int(chain)
        while at != NONE:
            deferred[at].active = 0
            at = np_int(deferred[at].deferred)
    else:
        h.value_top = top
    return fits


@external("int64(int64)")
def join_deferred(context):  # type: ignore[no-untyped-def]
    """Joins active records of the same weights; returns how many records there are with the joined ones.

    Those lie behind all others, and their columns behind the graph's values, until something else is put there.
    """
    h = headers(context)[0]
    deferred, slots, count = calls_at(h.deferred), int32s(h.slots), h.deferred_count
    size = 4
    while size < 2 * count:
        size *= 2
    for slot in range(size):
        slots[slot] = NONE
    for i in range(count):
        record = deferred[i]
        if may_join(h, record):
            slot = weights_code(h, record) & (size - 1)
            while slots[slot] != NONE and not same_weights(h, deferred[slots[slot]], record):
                slot = (slot + 1) & (size - 1)
            record.deferred = slots[slot]
            slots[slot] = i
    top, used = h.value_top, h.argument_count
    for slot in range(size):
        if slots[slot] != NONE and join(h, slots[slot], count):
            h.argument_count += 2 * deferred[count].arity
            count += 1
    h.value_top = top
    h.argument_count = used
    return count
