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
    SHADOWS,
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
from dynjit.jit import address_of, external, helper, inline, prefetch
from dynjit.merging import TARGET, merge_equals
from dynjit.parts import (
    NOWHERE,
    divide,
    join_parts,
    joins,
    may_be_divided,
    may_be_shared,
    note_cut,
    part_header,
    read_shadows,
    stamp_range,
    start_rest,
)
from dynjit.threads import MOST, share

LAST_STAMP = 1 << 30  # stamps have 32 bits
AHEAD, NEAR = 16, 4  # so many nodes ahead `mark`, on its way down, and `schedule` ask for what is known of them
DIRECT = 12  # so few pending nodes are called one by one, without planning
OUT_OF_MEMORY = -2
NODE_BYTES, WORK_BYTES = NODE.itemsize, WORK.itemsize


@helper
def want(h, number):  # type: ignore[no-untyped-def]
    """Stamps a node if it has no value yet; returns how many nodes that makes, 0 or 1."""
    own = works_at(h.work)[number]
    if nodes_at(h.nodes)[number].value >= 0 or own.stamp == h.generation:
        return 0
    own.stamp = h.generation
    own.height = 0
    own.start = -1
    own.uses = 0
    own.equal = 0
    return 1


@helper
def forget_stamps(h):  # type: ignore[no-untyped-def]
    """Starts to count plans and backward passes anew, before their numbers are too large for stamps."""
    work = works_at(h.work)
    for i in range(h.most_nodes + SHADOWS):
        number = i if i < h.most_nodes else h.node_capacity + i - h.most_nodes
        work[number].stamp = 0
        work[number].reached = 0
    h.generation = 0
    h.reach = 0


@inline
def mark_down(h, number, waiting, is_divisible):  # type: ignore[no-untyped-def]
    """Goes down from the highest target, until none of the `waiting` stamped nodes is left; returns the lowest.

    is_divisible: whether to find out on the way what `divide` needs to know: where the graph may be cut, and which
    parameters need shadows.  A constant, so that else there is no trace of it in the code.
    """
    nodes, args, work, edges = nodes_at(h.nodes), int32s(h.args), works_at(h.work), int32s(h.consumers)
    signatures, initials = signatures_at(h.signatures), int32s(h.stack)
    capacity, total, levels, time, room = h.node_capacity, waiting + 0, 1, 0, 0
    initial, low = capacity + 0, NOWHERE
    while waiting > 0:
        own = work[number]
        prefetch(h.nodes + (number - AHEAD) * NODE_BYTES)
        prefetch(h.work + (number - AHEAD) * WORK_BYTES)
        if own.stamp == h.generation:
            if is_divisible and low > number:  # what lies behind needs nothing that lies in front
                note_cut(h, number + 1, total - waiting, time, room, initial)
            waiting -= 1
            node, lowest = nodes[number], NOWHERE
            q = signatures[node.signature]
            time += q.time
            room += q.room
            own.uses += 2 * q.kept  # nothing takes its place
            height, unmet = own.height + 1, 0
            levels = max(levels, height)
            for edge in range(node.args, node.args + node.arity):
                if args[edge] >= capacity:  # a shadow, which may be older than its parameter
                    args[edge] = args[nodes[args[edge]].args]
                new = want(h, args[edge])
                waiting += new
                total += new
                source = work[args[edge]]
                if source.stamp == h.generation:
                    unmet += 1
                    lowest = min(lowest, args[edge])
                    source.uses += 1
                    source.height = max(source.height, height)
                    edges[2 * edge] = number
                    edges[2 * edge + 1] = source.start
                    source.start = edge
                elif is_divisible and source.stamp != -h.generation:
                    is_divisible = may_be_shared(h, node, edge - node.args)
            if is_divisible:
                low = min(low, lowest)
                if joins(h, number, lowest):  # it, and what lies behind, is left for later
                    low = NOWHERE
                    h.cuts = 0
            own.unmet = unmet
            if unmet == 0:
                initial -= 1
                initials[initial] = number
        number -= 1
    if is_divisible:
        note_cut(h, number + 1, total, time, room, initial)
    h.is_divisible = is_divisible
    h.initials = h.stack + 4 * initial
    h.initial_count = capacity - initial
    h.pending = total
    h.levels = levels
    h.time = time
    h.room = room
    return number + 1


@external("int64(int64, int64, int64)")
def mark(context, targets, count):  # type: ignore[no-untyped-def]
    """Stamps the nodes that the targets need and that have no value yet; returns the lowest.

    One pass from the highest target down: each node's distance to the targets, its pending operands, its consumers.
    The consumers of a node are a list of edges; an edge is a place in `args`, its consumer and the next edge lie in
    `consumers`.  Nodes that wait for no other, the *initial* ones, are listed from the end of `stack` on, in order.
    """
    h = headers(context)[0]
    work = works_at(h.work)
    h.most_nodes = max(h.most_nodes, h.node_count)
    if max(h.generation, h.reach) >= LAST_STAMP:
        forget_stamps(h)
    h.generation += 1
    waiting, highest = 0, -1
    for t in range(count):
        target = int64s(targets)[t]
        waiting += want(h, target)
        work[target].uses += 2  # nothing takes its place
        work[target].equal = TARGET
        highest = max(highest, target)
    h.highest = highest
    if may_be_divided(h):
        return mark_down(h, highest, waiting, True)
    return mark_down(h, highest, waiting, False)


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
    if headers(context)[0].is_cut:
        stamp_range(context, part)
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
    lowest = mark(context, targets, count)
    if h.pending == 0:
        return 0
    h.whole = int64s(targets)[0] if count == 1 and orders == 0 else -1
    h.first_result = top
    if h.pending <= DIRECT or h.autobatch == 0:
        for number in range(lowest, h.highest + 1):
            if works_at(h.work)[number].stamp == h.generation:
                place_alone(context, number)
    else:
        parts = divide(context, lowest)
        if parts > 1:
            share(address_of_plan_part(), part_header(h, 0), 0, parts, h.time)
            join_parts(context, parts)
            start_rest(context)
        plan_groups(context, h.rest)
    first_stamp = h.generation + 0
    h.generation += MOST  # the parts' stamps are used up, too
    if h.value_top <= h.value_end:
        return 0
    for number in range(lowest, h.highest + 1):  # as before
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
