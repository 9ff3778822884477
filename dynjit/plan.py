"""From pending nodes to groups: which nodes run together, and in which order.

Nodes of equal *group key* (signature, flags, identity of shared operands) that are ready together form a group.
Products wait while anything else is ready, for they gain most from each other.  Among equals the key whose nodes are on
average farthest from the target goes first, so that nodes that nothing waits for (losses, output layers) gather until
all of them are ready.

A result that one node alone needs, and no gradient, lies where that node may put its own: W x in b + W x, and that in
its tanh.  Such a node *takes* its operand's place; the operand has no value any more, and is computed anew if it is
asked for.  Less memory is less time: a step of a network is mostly reading and writing results.
"""

from __future__ import annotations

from dynjit.arena import (
    HEADER_BYTES,
    NODE,
    WORK,
    headers,
    int32s,
    int64s,
    keys_at,
    mixed,
    nodes_at,
    operators_at,
    signatures_at,
    works_at,
)
from dynjit.calls import has_stacked, is_shared, np_int, place_alone, place_group
from dynjit.dividing import divide
from dynjit.jit import address_of, external, helper, inline, prefetch
from dynjit.merging import merge_equals
from dynjit.parts import DIRECT, join_parts, part_header, read_shadows, start_rest
from dynjit.threads import MOST, share

NEAR = 4  # so many nodes ahead is asked for what is known of them
OUT_OF_MEMORY = -2
NODE_BYTES, WORK_BYTES = NODE.itemsize, WORK.itemsize


@inline
def taken(h, node, possible):  # type: ignore[no-untyped-def]
    """The operand whose place a node takes, out of `possible` ones, or -1."""
    args, work = int32s(h.args), works_at(h.work)
    if possible and h.overwriting:
        for k in range(node.arity):
            own = work[args[node.args + k]]
            if (possible >> k) & 1 and own.stamp == h.generation and own.uses == 1:
                return k
    return -1


@inline
def key_code(h, node, shared):  # type: ignore[no-untyped-def]
    """Hash of a node's group key; `shared`: bits of the shared operands."""
    args = int32s(h.args)
    code = mixed(node.signature, node.flags)
    if shared:
        for k in range(node.arity):
            if is_shared(shared, k, node.arity):
                code = mixed(code, args[node.args + k])
    return code


@inline
def same_key(h, a, b, shared):  # type: ignore[no-untyped-def]
    """Whether two nodes have the same group key, compared in full."""
    if a.signature != b.signature or a.flags != b.flags:
        return False
    args = int32s(h.args)
    if shared:
        for k in range(a.arity):
            if is_shared(shared, k, a.arity) and args[a.args + k] != args[b.args + k]:
                return False
    return True


@helper
def make_ready(h, number):  # type: ignore[no-untyped-def]
    """Appends a node to its key's ready nodes; says whether it is the only one that waits."""
    key = keys_at(h.keys)[works_at(h.work)[number].key]
    int32s(h.ready)[key.first + key.ready] = number
    key.ready += 1
    return key.ready == key.done + 1


@inline
def key_of(h, number, size, count):  # type: ignore[no-untyped-def]
    """The key of a node, out of `count` keys in a hash table of `size` slots; `count` itself if it is new."""
    nodes, slots, keys = nodes_at(h.nodes), int32s(h.slots), keys_at(h.keys)
    node, slot = nodes[number], -1
    q = signatures_at(h.signatures)[node.signature]
    shared, takes = operators_at(h.operators)[q.op].shared, taken(h, node, q.takes)
    if q.alone == 0:
        slot = key_code(h, node, shared) & (size - 1)
        # a slot is in use if the key that it names says so: the table need not be cleared
        while slots[slot] < count and keys[slots[slot]].slot == slot:
            known = keys[slots[slot]]
            if (known.takes == takes or known.is_product) and same_key(h, nodes[known.node], node, shared):
                if known.takes != takes:  # rather all products with places of their own than two groups
                    known.takes = -1
                return np_int(slots[slot])
            slot = (slot + 1) & (size - 1)
        slots[slot] = count
    key = keys[count]
    key.slot = slot
    key.node = number
    key.count = 0
    key.ready = 0
    key.done = 0
    key.height = 0
    key.takes = takes
    # operands are weights and what they are applied to: such nodes gain most from each other
    key.is_product = shared != 0 and has_stacked(shared, node.arity)
    return count


@external("void(int64, int64)")
def assign_keys(context, lowest):  # type: ignore[no-untyped-def]
    """Gives each stamped node its key, and each key room for the list of its ready nodes."""
    h = headers(context)[0]
    work, keys = works_at(h.work), keys_at(h.keys)
    size = 16
    while size < 2 * h.pending:
        size *= 2
    count = 0
    for number in range(lowest, h.highest + 1):
        own = work[number]
        if own.stamp == h.generation:
            own.key = key_of(h, number, size, count)
            count += own.key == count
            key = keys[own.key]
            key.count += 1
            key.height += own.height
    room = 0
    for key in range(count):
        keys[key].first = room
        room += keys[key].count


@helper
def before(h, a, b):  # type: ignore[no-untyped-def]
    """Whether key a goes before key b: it is no product, or its nodes are on average farther from the target."""
    keys = keys_at(h.keys)
    if keys[a].is_product != keys[b].is_product:
        return keys[b].is_product != 0
    left, right = keys[a].height * keys[b].count, keys[b].height * keys[a].count
    return left > right or (left == right and a > b)


@helper
def push(h, size, key):  # type: ignore[no-untyped-def]
    """Adds a key to the heap of `size` keys."""
    heap = int32s(h.heap)
    i = np_int(size)
    while i > 0 and before(h, key, heap[(i - 1) // 2]):
        heap[i] = heap[(i - 1) // 2]
        i = (i - 1) // 2
    heap[i] = key


@external("int64(int64, int64)")
def pop(context, size):  # type: ignore[no-untyped-def]
    """Takes the first key from the heap of `size` keys."""
    h = headers(context)[0]
    heap = int32s(h.heap)
    result, last = heap[0], heap[size - 1]
    size -= 1
    i = 0
    while 2 * i + 1 < size:
        child = 2 * i + 1
        if child + 1 < size and before(h, heap[child + 1], heap[child]):
            child += 1
        if not before(h, heap[child], last):
            break
        heap[i] = heap[child]
        i = child
    heap[i] = last
    return result


@helper
def take_ready(h, key):  # type: ignore[no-untyped-def]
    """Appends the ready nodes of a key to the order; returns how many.

    They are strewn over the graph, so that memory would be waited for at each of them: what is read next is asked for
    in advance.
    """
    order, ready = int32s(h.order), int32s(h.ready)
    own, first = keys_at(h.keys)[key], h.order_count
    count = own.ready - own.done
    for i in range(count):
        number = ready[own.first + own.done + i]
        order[first + i] = number
        prefetch(h.nodes + number * NODE_BYTES)
        prefetch(h.work + number * WORK_BYTES)
    h.order_count += count
    return count


@helper
def ask_for_consumers(h, i, stop):  # type: ignore[no-untyped-def]
    """Asks in advance for what is known of consumers of the nodes behind order[i], up to `stop`."""
    work, order, edges = works_at(h.work), int32s(h.order), int32s(h.consumers)
    if i + 2 * NEAR < stop:
        prefetch(h.consumers + 8 * work[order[i + 2 * NEAR]].start)
    if i + NEAR < stop:
        edge = work[order[i + NEAR]].start
        if edge >= 0:
            prefetch(h.work + edges[2 * edge] * WORK_BYTES)


@external("void(int64)")
def schedule(context):  # type: ignore[no-untyped-def]
    """Groups and orders the stamped nodes."""
    h = headers(context)[0]
    work, keys, order, edges = works_at(h.work), keys_at(h.keys), int32s(h.order), int32s(h.consumers)
    heap_size, initials = 0, int32s(h.initials)
    for i in range(h.initial_count):
        number = initials[i]
        if work[number].stamp == h.generation and make_ready(h, number):
            push(h, heap_size, work[number].key)
            heap_size += 1
    while heap_size > 0:
        key = pop(context, heap_size)
        heap_size -= 1
        first, group = h.order_count, take_ready(h, key)
        place_group(context, key, first, group)
        keys[key].done += group
        for i in range(first, first + group):
            ask_for_consumers(h, i, first + group)
            edge = work[order[i]].start
            while edge >= 0:
                consumer = edges[2 * edge]
                if work[consumer].stamp == h.generation:  # it may be of the rest, see parts.py
                    work[consumer].unmet -= 1
                    if work[consumer].unmet == 0 and make_ready(h, consumer):
                        push(h, heap_size, work[consumer].key)
                        heap_size += 1
                edge = edges[2 * edge + 1]


@external("void(int64, int64)")
def plan_groups(context, lowest):  # type: ignore[no-untyped-def]
    """Groups and orders the stamped nodes, of which number `lowest` is the first."""
    merge_equals(context, lowest)
    assign_keys(context, lowest)
    schedule(context)


@external("void(int64, int64)")
def plan_part(first_header, part):  # type: ignore[no-untyped-def]
    """Plans a part, whose header is one of several that lie end to end."""
    context = first_header + part * HEADER_BYTES
    if part > 0 and headers(context)[0].shadows > 0:
        read_shadows(context, part)
    plan_groups(context, headers(context)[0].lowest)


address_of_plan_part = address_of(plan_part)


@external("int64(int64, int64, int64)")
def plan(context, targets, count):  # type: ignore[no-untyped-def]
    """Appends the calls that give `count` target nodes (numbers at the address `targets`) their values.

    Returns 0, or OUT_OF_MEMORY.
    """
    h = headers(context)[0]
    orders, calls, deferred, arguments = h.order_count, h.call_count, h.deferred_count, h.argument_count
    data, top, had_parts = h.data_count, h.value_top, h.parts
    parts = divide(context, targets, count)
    if h.pending == 0 and parts == 1:
        return 0
    h.whole = int64s(targets)[0] if count == 1 and orders == 0 else -1
    h.first_result = top
    if parts == 1 and (h.pending <= DIRECT or h.autobatch == 0):
        for number in range(h.lowest, h.highest + 1):
            if works_at(h.work)[number].stamp == h.generation:
                place_alone(context, number)
    else:
        if parts > 1:
            share(address_of_plan_part(), part_header(h, 0), 0, parts, h.time)
            join_parts(context, parts)
            start_rest(context)
        plan_groups(context, h.rest)
    first_stamp = h.generation + 0
    h.generation += MOST  # the parts' stamps are used up, too
    if h.value_top <= h.value_end:
        h.planned = h.highest + 1
        return 0
    for number in range(h.lowest, h.highest + 1):  # as before
        if works_at(h.work)[number].stamp >= first_stamp:
            nodes_at(h.nodes)[number].value = -1
    h.parts = had_parts
    h.order_count = orders
    h.call_count = calls
    h.deferred_count = deferred
    h.argument_count = arguments
    h.data_count = data
    h.value_top = top
    return OUT_OF_MEMORY
