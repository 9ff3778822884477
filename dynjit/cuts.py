"""Cuts: node numbers across which nothing is needed, since examples mostly lie one behind the other.

What joins the examples lies at the end of the graph.  Near the places where parts of one size would begin, cuts are
looked for; then several threads go down the stretches between them at once.  A thread that meets a node which needs one
of another stretch gives up, and one thread goes through the whole graph again.
"""

from __future__ import annotations

from dynjit.arena import bundles_at, headers, int32s, nodes_at, steps_at, works_at
from dynjit.calls import np_int
from dynjit.jit import external, helper
from dynjit.marking import address_of_mark_part, mark, start_list
from dynjit.parts import MANY, MOST_SHADOWS, copy_header, is_worth_it, part_header, pays
from dynjit.threads import MOST, share, thread_count, wake, waking

NOWHERE = (1 << 31) - 1  # behind all nodes
END = 64  # so many nodes from the last on, one may join what lies apart
REACH = 2048  # so many nodes in front of a place and behind it, a cut is looked for
MARKING = 12  # nanoseconds to mark a node


@helper
def lowest_pending(h, number):  # type: ignore[no-untyped-def]
    """The first of a node's operands that have no value; NOWHERE if all have one."""
    nodes, args, lowest = nodes_at(h.nodes), int32s(h.args), NOWHERE
    node = nodes[number]
    for edge in range(node.args, node.args + node.arity):
        if args[edge] < lowest and nodes[args[edge]].value < 0:
            lowest = np_int(args[edge])
    return lowest


@helper
def first_joining(h):  # type: ignore[no-untyped-def]
    """Where the rest begins: at the first of the last nodes that joins what lies apart; behind all if none does."""
    first = h.highest + 1
    for number in range(h.highest, max(h.highest - END, h.planned), -1):
        if 4 * (lowest_pending(h, number) - h.planned) < 3 * (number - h.planned):
            first = number
    return np_int(bundles_at(h.bundles)[int32s(h.bundle_of)[first]].node) if first <= h.highest else first


@helper
def cut_near(h, wanted, reach, rest):  # type: ignore[no-untyped-def]
    """The cut nearest to a node number, as far as `reach` nodes around it tell; 0 if there is none."""
    nearest, lowest, bundles, bundle_of = 0, NOWHERE, bundles_at(h.bundles), int32s(h.bundle_of)
    for number in range(min(wanted + reach, rest - 1), max(wanted - reach, h.planned), -1):
        lowest = min(lowest, lowest_pending(h, number))
        if lowest >= number and bundle_of[number] >= 0 and bundles[bundle_of[number]].node == number:
            if nearest == 0 or abs(number - wanted) < nearest - wanted:
                nearest = number
            if number <= wanted:
                break
    return nearest


@external("int64(int64, int64, int64)")
def choose_cuts(context, rest, parts):  # type: ignore[no-untyped-def]
    """Writes to `mode` where each part begins, and where the rest does; says whether there are such places: 0 or 1."""
    h = headers(context)[0]
    starts, first, count = int32s(h.mode), h.planned + 0, rest - h.planned
    starts[0] = 0
    starts[parts] = rest
    for part in range(1, parts):
        starts[part] = cut_near(h, first + count * part // parts, min(REACH, count // (2 * parts)), rest)
        if starts[part] <= starts[part - 1]:
            return 0
    return 1


@external("void(int64, int64)")
def start_stretches(context, parts):  # type: ignore[no-untyped-def]
    """Gives each part a header and a stamp, and tells it which of its nodes the rest wants."""
    h = headers(context)[0]
    args, bundles, bundle_of, starts = int32s(h.args), bundles_at(h.bundles), int32s(h.bundle_of), int32s(h.mode)
    patterns, listed = int32s(h.patterns), int32s(h.list)
    for part in range(parts):
        copy_header(context, part)
        own = headers(part_header(h, part))[0]
        own.generation = h.generation + 1 + part
        own.heap = h.heap + 4 * part * MOST_SHADOWS
        own.lowest = starts[part]
        own.waiting = 0
        start_list(own, starts[part + 1] - 1)
    for i in range(h.listed):
        rest = bundles[listed[i]]
        path = steps_at(h.steps)[rest.step]
        for at in range(path.lists, path.lists + path.outer_count):
            source = args[rest.args + patterns[at]]
            needed, part = bundles[bundle_of[source]], parts - 1
            if source < starts[parts] and nodes_at(h.nodes)[source].value < 0 and needed.stamp == h.generation:
                while source < starts[part]:
                    part -= 1
                own = headers(part_header(h, part))[0]
                needed.stamp = own.generation
                own.waiting += 1


@helper
def join_shadows(h, parts):  # type: ignore[no-untyped-def]
    """Makes one list of the parts' parameters that need shadows; says whether there is room for all."""
    work, listed = works_at(h.work), int32s(h.heap)
    h.shadows = 0
    for part in range(parts):
        own = headers(part_header(h, part))[0]
        for i in range(own.shadows):
            source, k = listed[part * MOST_SHADOWS + i], 0
            while k < h.shadows and listed[k] != source:
                k += 1
            if k == MOST_SHADOWS:
                return False
            listed[k] = source
            work[source].place = k
            h.shadows = max(h.shadows, k + 1)
    return True


@helper
def add_up(h, parts):  # type: ignore[no-untyped-def]
    """Adds what the parts have found out to what the rest has; returns the time of the largest part."""
    most = 0
    for part in range(parts):
        own = headers(part_header(h, part))[0]
        h.pending += own.pending
        h.time += own.time
        h.room += own.room
        h.levels = max(h.levels, own.levels)
        most = max(most, own.time)
    h.lowest = headers(part_header(h, 0))[0].lowest
    return most


@helper
def join_stretches(h, parts):  # type: ignore[no-untyped-def]
    """Makes one stretch of all, with one stamp and one list."""
    bundles, listed, first = bundles_at(h.bundles), int32s(h.stack), (h.list - h.stack) // 4
    for part in range(parts - 1, -1, -1):
        own = headers(part_header(h, part))[0]
        last = (own.list - h.stack) // 4 + own.listed - 1
        for i in range(own.listed):
            listed[first - 1 - i] = listed[last - i]
            bundles[listed[first - 1 - i]].stamp = h.generation
        first -= own.listed
        h.listed += own.listed
    h.list = h.stack + 4 * first


@external("int64(int64)")
def mark_by_parts(context):  # type: ignore[no-untyped-def]
    """Marks the graph in stretches, and makes them parts if it is worth it.

    Returns how many parts that makes, at least 1; 0 if the graph cannot be cut, and is not marked.
    """
    h = headers(context)[0]
    count = h.highest - h.planned
    parts = max(thread_count(), min(count // MANY, MOST))
    if parts == 1 or count * MARKING < waking():
        return 0
    rest = first_joining(h)
    if rest > h.highest or choose_cuts(context, rest, parts) == 0:
        return 0
    mark(context, rest)
    start_stretches(context, parts)
    wake()
    share(address_of_mark_part(), part_header(h, 0), 0, parts, count * MARKING)
    for part in range(parts):
        if headers(part_header(h, part))[0].is_divisible == 0:
            return 0
    time_of_rest, most = h.time + 0, add_up(h, parts)
    h.is_divisible = join_shadows(h, parts) and pays(h, parts)
    if not h.is_divisible or not is_worth_it(h, time_of_rest, most):
        join_stretches(h, parts)
        return 1
    for part in range(parts):
        h.pending -= headers(part_header(h, part))[0].pending
    return parts
