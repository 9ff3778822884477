"""Pieces: bundles that share operands, in graphs whose parts do not lie one behind the other.

A pass upwards with union-find: bundles that share operands are of one piece, unless it would become larger than a
thread's share; one that joins such pieces, and all above it, is of the rest.  Pieces are dealt out in order.
"""

from __future__ import annotations

from dynjit.arena import bundles_at, headers, int32s, int64s, nodes_at, steps_at
from dynjit.calls import np_int
from dynjit.jit import external, helper
from dynjit.parts import MANY, copy_header, is_worth_it, part_header, pays
from dynjit.threads import MOST, thread_count, wake

REST = -1  # the piece of bundles that join parts
OF_PART = -2  # minus the number of a part: instead of a parent, at the root of a piece


@helper
def root_of(bundles, number):  # type: ignore[no-untyped-def]
    """The first bundle of a bundle's piece; REST if it is in none."""
    own = np_int(number)
    while bundles[own].link >= 0 and bundles[own].link != own:
        parent = np_int(bundles[own].link)
        bundles[own].link = bundles[parent].link  # a shorter way for the next
        own = parent
    return own if bundles[own].link >= 0 else np_int(REST)


@external("int64(int64, int64)")
def find_pieces(context, most):  # type: ignore[no-untyped-def]
    """Makes pieces of the listed bundles; what joins pieces that together would take longer than `most` is of the rest.

    The time of a piece lies behind `arguments`, by its first bundle.  Returns the time of the rest.
    """
    h = headers(context)[0]
    nodes, args, bundles, bundle_of = nodes_at(h.nodes), int32s(h.args), bundles_at(h.bundles), int32s(h.bundle_of)
    patterns, listed, times = int32s(h.patterns), int32s(h.list), int64s(h.arguments + 8 * h.argument_count)
    rest = 0
    for i in range(h.listed):
        number = np_int(listed[i])
        own, root = bundles[number], number
        path = steps_at(h.steps)[own.step]
        own.link = number
        for at in range(path.lists, path.lists + path.outer_count):
            source = args[own.args + patterns[at]]
            if nodes[source].value >= 0:
                continue
            other = root_of(bundles, bundle_of[source])
            if root == number:
                root = other  # a bundle may always continue a piece
            elif root == REST:
                continue
            elif other != REST and other != root and times[root] + times[other] <= most:
                low, high = min(root, other), max(root, other)
                bundles[high].link = low
                times[low] += times[high]
                root = low
            elif other != root:
                root = np_int(REST)
        own.link = root
        if root == REST:
            rest += path.time
        elif root == number:
            times[root] = path.time
        else:
            times[root] += path.time
    return rest


@external("int64(int64, int64, int64)")
def deal_pieces(context, parts, rest):  # type: ignore[no-untyped-def]
    """Deals the pieces out, in order; says whether it is worth it: 0 or 1."""
    h = headers(context)[0]
    bundles, listed, times = bundles_at(h.bundles), int32s(h.list), int64s(h.arguments + 8 * h.argument_count)
    part, filled, most, each = 0, 0, 0, (h.time - rest) // parts
    for i in range(h.listed):
        if bundles[listed[i]].link == listed[i]:
            time = times[listed[i]]
            if filled > 0 and filled + time // 2 > each and part < parts - 1:
                part += 1
                filled = 0
            bundles[listed[i]].link = OF_PART - part
            filled += time
            most = max(most, filled)
    return part == parts - 1 and is_worth_it(h, rest, most)


@external("void(int64, int64)")
def stamp_parts(context, parts):  # type: ignore[no-untyped-def]
    """Stamps each part's bundles with a number of their own, and counts in its header what it needs; the rest stays."""
    h = headers(context)[0]
    bundles, listed = bundles_at(h.bundles), int32s(h.list)
    for part in range(parts):
        copy_header(context, part)
        own_header = headers(part_header(h, part))[0]
        own_header.pending = 0
        own_header.arg_count = 0
        own_header.data_count = 0
        own_header.room = 0
    for i in range(h.listed):
        own, root = bundles[listed[i]], np_int(listed[i])
        while bundles[root].link >= 0:
            root = np_int(bundles[root].link)
        if bundles[root].link != REST:
            part = OF_PART - bundles[root].link
            path, own_header = steps_at(h.steps)[own.step], headers(part_header(h, part))[0]
            own.stamp = h.generation + 1 + part
            own_header.pending += path.position + 1
            own_header.arg_count += path.operands
            own_header.data_count += path.ids
            own_header.room += path.room
            h.pending -= path.position + 1


@external("int64(int64)")
def divide_by_pieces(context):  # type: ignore[no-untyped-def]
    """Makes parts of the listed bundles if it is worth it; returns how many parts that makes, at least 1."""
    h = headers(context)[0]
    parts = max(thread_count(), min(h.pending // MANY, MOST))
    if parts == 1 or not h.is_divisible or not pays(h, parts):
        return 1
    if deal_pieces(context, parts, find_pieces(context, h.time // parts)) == 0:
        return 1
    wake()
    stamp_parts(context, parts)
    return parts
