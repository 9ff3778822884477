"""Which nodes are pending: those that the targets need and that have no value yet.

One pass goes down from the highest target and finds out, of each node that it *stamps*, how far from the targets it is,
how many of its operands are pending, and its consumers.  The consumers of a node are a list of edges; an edge is a
place in `args`, its consumer and the next edge lie in `consumers`.  Nodes that wait for no other, the *initial* ones,
are listed in order.  Stretches of a graph that need nothing of each other may be gone through by several threads, each
with a header, and so a stamp, of its own.
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
    nodes_at,
    signatures_at,
    works_at,
)
from dynjit.jit import address_of, external, helper, inline, prefetch
from dynjit.merging import TARGET
from dynjit.parts import may_be_shared

LAST_STAMP = 1 << 30  # stamps have 32 bits
AHEAD = 16  # so many nodes ahead is asked for what is known of them
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


@helper
def start_list(h, highest):  # type: ignore[no-untyped-def]
    """Says that nothing is stamped from node `highest` down but nodes that are wanted."""
    h.highest = highest
    h.initials = h.stack + 4 * (highest + 1)  # from there downwards: they are met from the last to the first
    h.initial_count = 0
    h.pending = 0
    h.levels = 1
    h.time = 0
    h.room = 0
    h.shadows = 0
    h.is_divisible = 1


@external("void(int64, int64, int64)")
def want_targets(context, targets, count):  # type: ignore[no-untyped-def]
    """Stamps those of `count` targets (numbers at the address `targets`) that have no value yet, with a new stamp."""
    h = headers(context)[0]
    work = works_at(h.work)
    h.most_nodes = max(h.most_nodes, h.node_count)
    if max(h.generation, h.reach) >= LAST_STAMP:
        forget_stamps(h)
    h.generation += 1
    h.whole_generation = h.generation
    h.waiting = 0
    highest = -1
    for t in range(count):
        target = int64s(targets)[t]
        h.waiting += want(h, target)
        work[target].uses += 2  # nothing takes its place
        work[target].equal = TARGET
        highest = max(highest, target)
    start_list(h, highest)


@inline
def mark_down(h, number, bottom, is_part, is_divisible):  # type: ignore[no-untyped-def]
    """Goes down from a node to node `bottom`, or until no wanted node is left.

    is_part: whether to give up at a node that needs a pending one in front of `bottom`, and to count operands and
    indices;  is_divisible: whether to find out what threads could not do at once, and which parameters need shadows.
    Both are constants, so that else there is no trace of it in the code.
    """
    nodes, args, work, edges = nodes_at(h.nodes), int32s(h.args), works_at(h.work), int32s(h.consumers)
    signatures, initials = signatures_at(h.signatures), int32s(h.stack)
    capacity, waiting, pending, levels = h.node_capacity, h.waiting + 0, h.pending + 0, h.levels + 0
    time, room, initial, operands, ids = h.time + 0, h.room + 0, (h.initials - h.stack) // 4, 0, 0
    while waiting > 0 and number >= bottom:
        own = work[number]
        prefetch(h.nodes + (number - AHEAD) * NODE_BYTES)
        prefetch(h.work + (number - AHEAD) * WORK_BYTES)
        if own.stamp == h.generation:
            waiting -= 1
            pending += 1
            node = nodes[number]
            q = signatures[node.signature]
            time += q.time
            room += q.room
            operands += node.arity
            ids += q.ids
            own.uses += 2 * q.kept  # nothing takes its place
            height, unmet = own.height + 1, 0
            levels = max(levels, height)
            for edge in range(node.args, node.args + node.arity):
                if args[edge] >= capacity:  # a shadow, which may be older than its parameter
                    args[edge] = args[nodes[args[edge]].args]
                if is_part and args[edge] < bottom and nodes[args[edge]].value < 0:
                    h.is_divisible = 0
                    return
                waiting += want(h, args[edge])
                source = work[args[edge]]
                if source.stamp == h.generation:
                    unmet += 1
                    source.uses += 1
                    source.height = max(source.height, height)
                    edges[2 * edge] = number
                    edges[2 * edge + 1] = source.start
                    source.start = edge
                elif is_divisible and source.stamp != -h.whole_generation:
                    is_divisible = may_be_shared(h, node, edge - node.args)
            own.unmet = unmet
            if unmet == 0:
                initial -= 1
                initials[initial] = number
        number -= 1
    h.lowest = number + 1
    h.waiting = waiting
    h.pending = pending
    h.levels = levels
    h.time = time
    h.room = room
    h.initial_count += (h.initials - h.stack) // 4 - initial
    h.initials = h.stack + 4 * initial
    h.is_divisible = is_divisible
    if is_part:
        h.arg_count = operands
        h.data_count = ids


@external("void(int64, int64)")
def mark(context, bottom):  # type: ignore[no-untyped-def]
    """Goes down from the highest target to node `bottom`, or as far as there are pending nodes."""
    h = headers(context)[0]
    mark_down(h, h.highest, bottom, False, False)


@external("void(int64)")
def mark_divisible(context):  # type: ignore[no-untyped-def]
    """As `mark` to the first node, for a graph that may be divided by pieces."""
    h = headers(context)[0]
    mark_down(h, h.highest, 0, False, True)


@external("void(int64, int64)")
def mark_part(first_header, part):  # type: ignore[no-untyped-def]
    """Goes through a part from the last of its nodes to the first; its header is one of several that lie end to end."""
    h = headers(first_header + part * HEADER_BYTES)[0]
    mark_down(h, h.highest, h.lowest, True, True)


address_of_mark_part = address_of(mark_part)
