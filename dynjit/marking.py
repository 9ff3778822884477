"""Which bundles are pending: those with nodes that the targets need and that have no value yet.

One pass goes down from the highest target and finds out, of each bundle that it *stamps*, how far from the targets it
is, how many operands it waits for, which of its nodes others want, and its consumers.  The consumers of a bundle are a
list of edges; an edge is a place in `args`, its consumer and the next edge lie in `consumers`.  Bundles that wait for
no other, the *initial* ones, are listed in order.  Stretches of a graph that need nothing of each other may be gone
through by several threads, each with a header, and so a stamp, of its own.
"""

from __future__ import annotations

from dynjit.arena import (
    HEADER_BYTES,
    SHADOWS,
    bundles_at,
    headers,
    int32s,
    int64s,
    keys_at,
    nodes_at,
    steps_at,
    works_at,
)
from dynjit.bundles import form_bundles, last_of, part_bundle, renew_operands
from dynjit.calls import np_int
from dynjit.jit import address_of, external, helper, inline
from dynjit.merging import TARGET
from dynjit.parts import may_be_shared
from dynjit.steps import is_leaf, position_of

LAST_STAMP = 1 << 30  # stamps have 32 bits


@inline
def is_pending(h, number):  # type: ignore[no-untyped-def]
    """Whether a node has no value; what is known of its bundle is nearer than the node."""
    bundle = int32s(h.bundle_of)[number]
    if bundle >= 0 and bundles_at(h.bundles)[bundle].placed == 0:
        return True
    return nodes_at(h.nodes)[number].value < 0


@helper
def want(h, number):  # type: ignore[no-untyped-def]
    """Stamps the bundle of a node that has no value yet; returns how many bundles that makes, 0 or 1."""
    own = bundles_at(h.bundles)[int32s(h.bundle_of)[number]]
    bit = np_int(1) << position_of(h, own.node, number, own.gaps)
    if own.stamp == h.generation:
        own.twice |= own.wanted & bit
        own.wanted |= bit
        return 0
    own.stamp = h.generation
    own.wanted = bit
    own.twice = 0
    own.height = 0
    own.start = -1
    own.equal = 0
    return 1


@helper
def forget_stamps(h):  # type: ignore[no-untyped-def]
    """Starts to count plans and backward passes anew, before their numbers are too large for stamps."""
    work, bundles, keys = works_at(h.work), bundles_at(h.bundles), keys_at(h.keys)
    for i in range(h.most_nodes + SHADOWS):
        number = i if i < h.most_nodes else h.node_capacity + i - h.most_nodes
        work[number].listed = 0
        work[number].reached = 0
    for i in range(h.bundle_count):
        bundles[i].stamp = 0
    for i in range(h.most_keys):
        keys[i].stamp = 0
    h.generation = 0
    h.reach = 0


@helper
def start_list(h, highest):  # type: ignore[no-untyped-def]
    """Says that nothing is stamped from node `highest` down but bundles that are wanted."""
    h.highest = highest
    h.list = h.stack + 4 * (highest + 1)  # from there downwards: bundles are met from the last to the first
    h.listed = 0
    h.pending = 0
    h.levels = 1
    h.time = 0
    h.room = 0
    h.shadows = 0
    h.is_divisible = 1


@external("void(int64, int64, int64)")
def want_targets(context, targets, count):  # type: ignore[no-untyped-def]
    """Stamps, anew, the bundles of those of `count` targets (numbers from an address on) that have no value yet."""
    h = headers(context)[0]
    bundles, bundle_of, highest = bundles_at(h.bundles), int32s(h.bundle_of), np_int(-1)
    h.most_nodes = max(h.most_nodes, h.node_count)
    if max(h.generation, h.reach) >= LAST_STAMP:
        forget_stamps(h)
    h.generation += 1
    h.whole_generation = h.generation
    h.waiting = 0
    for t in range(count):
        highest = max(highest, int64s(targets)[t])
    form_bundles(context, highest)
    for t in range(count):
        target = int64s(targets)[t]
        if nodes_at(h.nodes)[target].value < 0:
            h.waiting += want(h, target)
            want(h, target)  # twice, so that nothing takes its place
            bundles[bundle_of[target]].equal = TARGET
    start_list(h, highest)


@helper
def is_in_pieces(h, own):  # type: ignore[no-untyped-def]
    """Whether only some of a stamped bundle's nodes are needed, or some have values."""
    nodes, sinks, last = nodes_at(h.nodes), steps_at(h.steps)[own.step].sinks, last_of(h, own)
    if own.wanted & sinks != sinks:
        return True
    for number in range(own.node, last + 1):
        if nodes[number].value >= 0 and not is_leaf(h, nodes[number]):
            return True
    renew_operands(h, own.node, last)
    own.placed = 0
    return False


@external("int64(int64, int64)")
def hand_over(context, bundle):  # type: ignore[no-untyped-def]
    """Makes a bundle of each node of a stamped bundle, stamped if it is wanted; returns how many that makes more."""
    h = headers(context)[0]
    args, bundles, bundle_of, edges = int32s(h.args), bundles_at(h.bundles), int32s(h.bundle_of), int32s(h.consumers)
    own, count, position = bundles[bundle], np_int(-1), 0
    edge = np_int(own.start)
    part_bundle(context, bundle)
    for number in range(own.node, last_of(h, own) + 1):
        if is_leaf(h, nodes_at(h.nodes)[number]):
            continue
        if (own.wanted >> position) & 1 and nodes_at(h.nodes)[number].value < 0:
            count += want(h, number)
            single = bundles[bundle_of[number]]
            single.twice = (own.twice >> position) & 1
            single.height = own.height
            single.equal = own.equal
        position += 1
    while edge >= 0:
        source, following = bundles[bundle_of[args[edge]]], np_int(edges[2 * edge + 1])
        edges[2 * edge + 1] = source.start
        source.start = edge
        edge = following
    return count


@inline
def mark_down(h, context, number, bottom, is_part, is_divisible):  # type: ignore[no-untyped-def]
    """Goes down from a node to node `bottom`, or until no wanted bundle is left.

    is_part: whether to give up at a bundle that needs a pending node in front of `bottom`, or not all of whose nodes
    are needed, and to count operands and indices;  is_divisible: whether to find out what threads could not do at once,
    and which parameters need shadows.  Both are constants, so that else there is no trace of it in the code.
    """
    args, work, edges = int32s(h.args), works_at(h.work), int32s(h.consumers)
    bundles, steps, patterns = bundles_at(h.bundles), steps_at(h.steps), int32s(h.patterns)
    bundle_of, listed, place = int32s(h.bundle_of), int32s(h.stack), (h.list - h.stack) // 4
    waiting, pending, levels = h.waiting + 0, h.pending + 0, h.levels + 0
    time, room, first, operands, ids = h.time + 0, h.room + 0, place, 0, 0
    while waiting > 0 and number >= bottom:
        bundle = np_int(bundle_of[number])
        if bundle < 0:  # a leaf
            number -= 1
            continue
        own = bundles[bundle]
        if own.stamp == h.generation:
            path = steps[own.step]
            if (own.placed or own.wanted & path.sinks != path.sinks) and is_in_pieces(h, own):
                if is_part:
                    h.is_divisible = 0
                    return
                waiting += hand_over(context, bundle)
                continue
            waiting -= 1
            pending += path.position + 1
            time += path.time
            room += path.room
            operands += path.operands
            ids += path.ids
            height, unmet, at, stop = own.height + path.levels, 0, np_int(path.lists), path.lists + path.outer_count
            levels = max(levels, height)
            while at < stop:
                edge = own.args + patterns[at]
                source = args[edge]
                if is_pending(h, source):
                    if is_part and source < bottom:
                        h.is_divisible = 0
                        return
                    waiting += want(h, source)
                    needed = bundles[bundle_of[source]]
                    unmet += 1
                    needed.height = max(needed.height, height)
                    edges[2 * edge] = bundle
                    edges[2 * edge + 1] = needed.start
                    needed.start = edge
                elif is_divisible:
                    is_divisible = may_be_shared(h, source)
                at += 1
            if is_divisible:
                for i in range(stop, stop + path.bias_count):
                    source = args[own.args + patterns[i]]
                    if is_divisible and work[source].listed != h.whole_generation:
                        is_divisible = may_be_shared(h, source)
            own.unmet = unmet
            place -= 1
            listed[place] = bundle
        number = own.node - 1
    h.lowest = number + 1
    h.waiting = waiting
    h.pending = pending
    h.levels = levels
    h.time = time
    h.room = room
    h.listed += first - place
    h.list = h.stack + 4 * place
    h.is_divisible = is_divisible
    if is_part:
        h.arg_count = operands
        h.data_count = ids


@external("void(int64, int64)")
def mark(context, bottom):  # type: ignore[no-untyped-def]
    """Goes down from the highest target to node `bottom`, or as far as there are pending bundles."""
    h = headers(context)[0]
    mark_down(h, context, h.highest, bottom, False, False)


@external("void(int64)")
def mark_divisible(context):  # type: ignore[no-untyped-def]
    """As `mark` to the first node, for a graph that may be divided by pieces."""
    h = headers(context)[0]
    mark_down(h, context, h.highest, 0, False, True)


@external("void(int64, int64)")
def mark_part(first_header, part):  # type: ignore[no-untyped-def]
    """Goes through a part from the last of its nodes to the first; its header is one of several that lie end to end."""
    context = first_header + part * HEADER_BYTES
    h = headers(context)[0]
    mark_down(h, context, h.highest, h.lowest, True, True)


address_of_mark_part = address_of(mark_part)
