"""Pieces: nodes that share operands, in graphs whose parts do not lie one behind the other.

A pass upwards with union-find: nodes that share operands are of one piece, unless it would become larger than a
thread's share; a node that joins such pieces, and all above it, is of the rest.  Pieces are dealt out in order.
"""

from __future__ import annotations

from dynjit.arena import headers, int32s, int64s, nodes_at, signatures_at, works_at
from dynjit.calls import np_int
from dynjit.jit import external, helper
from dynjit.parts import MANY, copy_header, is_worth_it, part_header, pays
from dynjit.threads import MOST, thread_count, wake

REST = -1  # the piece of nodes that join parts
OF_PART = -2  # minus the number of a part: instead of a parent, at the root of a piece


@helper
def root_of(work, number):  # type: ignore[no-untyped-def]
    """The first node of a node's piece; REST if it is in none."""
    own = np_int(number)
    while work[own].key >= 0 and work[own].key != own:
        parent = np_int(work[own].key)
        work[own].key = work[parent].key  # a shorter way for the next
        own = parent
    return own if work[own].key >= 0 else np_int(REST)


@external("int64(int64, int64)")
def find_pieces(context, most):  # type: ignore[no-untyped-def]
    """Makes pieces of the stamped nodes; what joins pieces that together would take longer than `most` is of the rest.

    The time of a piece lies behind `arguments`, by its first node.  Returns the time of the rest.
    """
    h = headers(context)[0]
    nodes, args, work, times = nodes_at(h.nodes), int32s(h.args), works_at(h.work), int64s(h.arguments)
    signatures, first, rest = signatures_at(h.signatures), h.argument_count - h.lowest, 0
    for number in range(h.lowest, h.highest + 1):
        own = work[number]
        if own.stamp != h.generation:
            continue
        node, root = nodes[number], np_int(number)
        time = signatures[node.signature].time
        own.key = number
        for k in range(node.arity):
            source = args[node.args + k]
            if work[source].stamp != h.generation:
                continue
            other = root_of(work, source)
            if root == number:
                root = other  # a node may always continue a piece
            elif root == REST:
                continue
            elif other != REST and other != root and times[first + root] + times[first + other] <= most:
                low, high = min(root, other), max(root, other)
                work[high].key = low
                times[first + low] += times[first + high]
                root = low
            elif other != root:
                root = np_int(REST)
        own.key = root
        if root == REST:
            rest += time
        elif root == number:
            times[first + root] = time
        else:
            times[first + root] += time
    return rest


@external("int64(int64, int64, int64)")
def deal_pieces(context, parts, rest):  # type: ignore[no-untyped-def]
    """Deals the pieces out, in order; says whether it is worth it: 0 or 1."""
    h = headers(context)[0]
    work, times, first = works_at(h.work), int64s(h.arguments), h.argument_count - h.lowest
    part, filled, most, each = 0, 0, 0, (h.time - rest) // parts
    for number in range(h.lowest, h.highest + 1):
        if work[number].stamp == h.generation and work[number].key == number:
            time = times[first + number]
            if filled > 0 and filled + time // 2 > each and part < parts - 1:
                part += 1
                filled = 0
            work[number].key = OF_PART - part
            filled += time
            most = max(most, filled)
    return part == parts - 1 and is_worth_it(h, rest, most)


@external("void(int64, int64)")
def stamp_parts(context, parts):  # type: ignore[no-untyped-def]
    """Stamps each part's nodes with a number of their own, and counts in its header what it needs; the rest stays."""
    h = headers(context)[0]
    nodes, work, signatures = nodes_at(h.nodes), works_at(h.work), signatures_at(h.signatures)
    h.rest = h.highest
    for part in range(parts):
        copy_header(context, part)
        own_header = headers(part_header(h, part))[0]
        own_header.pending = 0
        own_header.arg_count = 0
        own_header.data_count = 0
        own_header.room = 0
    for number in range(h.lowest, h.highest + 1):
        own = work[number]
        if own.stamp != h.generation:
            continue
        node, root = nodes[number], np_int(number)
        while work[root].key >= 0:
            root = np_int(work[root].key)
        if work[root].key == REST:
            h.rest = min(h.rest, number)
            continue
        part = OF_PART - work[root].key
        q, own_header = signatures[node.signature], headers(part_header(h, part))[0]
        own.stamp = h.generation + 1 + part
        if own_header.pending == 0:
            own_header.lowest = number
        own_header.highest = number
        own_header.pending += 1
        own_header.arg_count += node.arity
        own_header.data_count += q.ids
        own_header.room += q.room
        h.pending -= 1


@external("int64(int64)")
def divide_by_pieces(context):  # type: ignore[no-untyped-def]
    """Makes parts of the stamped nodes if it is worth it; returns how many parts that makes, at least 1."""
    h = headers(context)[0]
    parts = max(thread_count(), min(h.pending // MANY, MOST))
    if parts == 1 or not h.is_divisible or not pays(h, parts):
        return 1
    if deal_pieces(context, parts, find_pieces(context, h.time // parts)) == 0:
        return 1
    wake()
    stamp_parts(context, parts)
    return parts
