"""Parts of a graph that need nothing of each other: each is planned and run by itself, by several threads.

A graph has as many parts as there are threads; one that is too large for the caches has more, with one thread, too.

Sentences or trees whose losses are added up, the two directions of a network, the subtrees of a tree: all share
parameters alone, up to the nodes that bring them together, the *rest*, which is planned and run when the parts are
done.  `divide` finds such parts among pending nodes in one of two ways.  Examples mostly lie one behind the other, and
what joins them at the end of the graph; then `mark` has found *cuts*, node numbers across which nothing is needed.
Where they do not make parts of one size, the nodes are gone through once more, upwards: those that share operands are
of one *piece*, unless it would become larger than a thread's share; a node that joins such pieces, and all above it,
is of the rest.

A part is planned by the same functions as a whole graph, with a header of its own: a copy of the graph's whose counts
start where the earlier parts need nothing any more.  In the end the parts' calls lie one behind the other in the
graph's list, and the table of parts says where; who runs calls one after the other need not know of parts.

Two threads may not add to the gradient of one parameter.  That of weights waits for the end anyway (`deferred`).  Of
other parameters (in b + W x) each part but the first gets a *shadow*: a node that is a copy, made before the parts run
and whose gradient is added to the parameter's when they have.  Shadows are numbered from `node_capacity` on; `twins`
holds whose operands they are, as for equal nodes.
"""

from __future__ import annotations

import numpy as np

from dynjit.arena import (
    CALL,
    GATHER,
    HEADER_BYTES,
    KEY,
    NEEDS_GRADIENT,
    SHADOWS,
    calls_at,
    headers,
    int32s,
    int64s,
    nodes_at,
    operators_at,
    parts_at,
    signatures_at,
    works_at,
)
from dynjit.calls import is_shared, new_call, np_int, take
from dynjit.jit import external, helper
from dynjit.merging import is_parameter
from dynjit.threads import MOST, thread_count, wake, waking, wide
from dynjit.views import view_of

REST = -1  # the piece of nodes that join parts
OF_PART = -2  # minus the number of a part: instead of a parent, at the root of a piece
WORTH = 3  # quarters of the time: no part and the rest together may take more
MANY = 1 << 16  # nodes that caches hold while they are planned
HEADER_WORDS, CALL_WORDS, KEY_BYTES = HEADER_BYTES // 8, CALL.itemsize // 8, KEY.itemsize
SMALL = 1 << 14  # numbers of a parameter of which a shadow is worth making
MOST_SHADOWS = SHADOWS // MOST  # parameters with shadows
# a node number; of the stamped nodes from there on: how many, their time and room, where the initial ones are listed
CUT = np.dtype([(name, "i8") for name in ("number", "count", "time", "room", "initial")])
cuts_of = view_of(CUT)
NOWHERE = (1 << 31) - 1  # behind all nodes
END = 64  # so many nodes from the last on, one may join what lies apart


@helper
def part_header(h, part):  # type: ignore[no-untyped-def]
    """Address of a part's header."""
    return h.part_headers + part * HEADER_BYTES


@helper
def cuts_at(h):  # type: ignore[no-untyped-def]
    """The cuts that `mark` has found, from the last to the first."""
    return cuts_of(h.slots)


@external("void(int64, int64)")
def copy_header(context, part):  # type: ignore[no-untyped-def]
    """Makes the header of a part a copy of the graph's; calls that run with it are not shared among threads."""
    h = headers(context)[0]
    source, target = int64s(context), int64s(part_header(h, part))
    for i in range(HEADER_WORDS):
        target[i] = source[i]
    headers(part_header(h, part))[0].is_part = 1


# ---- what `mark` finds out -------------------------------------------------------------------------------------------


@helper
def may_be_divided(h):  # type: ignore[no-untyped-def]
    """Whether it is worth finding out; starts to list cuts, and parameters that need shadows."""
    h.cuts = 0
    h.shadows = 0
    is_free = h.parts == 0 and h.overwriting != 0 and 4 * h.highest < h.node_capacity
    return is_free and (thread_count() > 1 or h.highest > MANY)


@helper
def note_cut(h, number, count, time, room, initial):  # type: ignore[no-untyped-def]
    cut = cuts_at(h)[h.cuts]
    cut.number = number
    cut.count = count
    cut.time = time
    cut.room = room
    cut.initial = initial
    h.cuts += 1


@helper
def joins(h, number, lowest):  # type: ignore[no-untyped-def]
    """Whether a node is one near the end that joins what lies apart; `lowest`: the first of its pending operands."""
    return number > h.highest - END and 4 * lowest < 3 * number


@helper
def needs_shadow(h, node, k):  # type: ignore[no-untyped-def]
    """Whether an operand is a parameter whose gradient does not wait for the end."""
    source = int32s(h.args)[node.args + k]
    shared = operators_at(h.operators)[signatures_at(h.signatures)[node.signature].op].shared
    needed = nodes_at(h.nodes)[source].flags & NEEDS_GRADIENT != 0
    return needed and is_parameter(h, source) and not is_shared(shared, k, node.arity)


@helper
def may_be_shared(h, node, k):  # type: ignore[no-untyped-def]
    """Whether parts may have an operand in common that has a value; lists the parameters that need shadows."""
    nodes, work, source = nodes_at(h.nodes), works_at(h.work), int32s(h.args)[node.args + k]
    if not needs_shadow(h, node, k):
        return is_parameter(h, source) or nodes[source].flags & NEEDS_GRADIENT == 0
    if h.shadows == MOST_SHADOWS or signatures_at(h.signatures)[nodes[source].signature].size > SMALL:
        return False
    int32s(h.heap)[h.shadows] = source
    work[source].stamp = -h.generation  # it is listed
    work[source].start = h.shadows
    h.shadows += 1
    return True


# ---- finding parts ---------------------------------------------------------------------------------------------------


@external("int64(int64, int64)")
def choose_cuts(context, parts):  # type: ignore[no-untyped-def]
    """Writes to `mode` which cuts make parts of about one size, from the last on; says whether it is worth it: 0 or 1.

    What lies behind the first of them is the rest.
    """
    h = headers(context)[0]
    cuts, chosen = cuts_at(h), int32s(h.mode)
    rest, whole, most = cuts[0].time + 0, cuts[h.cuts - 1].time + 0, 0
    chosen[0] = 0
    i = 0
    for part in range(1, parts + 1):
        wanted, first = rest + (whole - rest) * part // parts, i + 0
        while i < h.cuts - 1 and (i == first or cuts[i].time + cuts[i + 1].time <= 2 * wanted):
            i += 1
        chosen[part] = i
        most = max(most, cuts[i].time - cuts[first].time)
    return i > chosen[parts - 1] and is_worth_it(h, rest, most)


@helper
def is_worth_it(h, rest, most):  # type: ignore[no-untyped-def]
    """Whether parts of which the largest takes the time `most`, and then the rest, are done soon enough."""
    alone = rest if thread_count() == 1 else rest + max(most, (h.time - rest) // thread_count())
    return 4 * alone < WORTH * h.time


@helper
def root_of(work, number):  # type: ignore[no-untyped-def]
    """The first node of a node's piece; REST if it is in none."""
    own = np_int(number)
    while work[own].key >= 0 and work[own].key != own:
        parent = np_int(work[own].key)
        work[own].key = work[parent].key  # a shorter way for the next
        own = parent
    return own if work[own].key >= 0 else np_int(REST)


@external("int64(int64, int64, int64)")
def find_pieces(context, lowest, most):  # type: ignore[no-untyped-def]
    """Makes pieces of the stamped nodes; what joins pieces that together would take longer than `most` is of the rest.

    The time of a piece lies behind `arguments`, by its first node.  Returns the time of the rest.
    """
    h = headers(context)[0]
    nodes, args, work, times = nodes_at(h.nodes), int32s(h.args), works_at(h.work), int64s(h.arguments)
    signatures, first, rest = signatures_at(h.signatures), h.argument_count - lowest, 0
    for number in range(lowest, h.highest + 1):
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


@external("int64(int64, int64, int64, int64)")
def deal_pieces(context, lowest, parts, rest):  # type: ignore[no-untyped-def]
    """Deals the pieces out, in order; says whether it is worth it: 0 or 1."""
    h = headers(context)[0]
    work, times, first = works_at(h.work), int64s(h.arguments), h.argument_count - lowest
    part, filled, most, each = 0, 0, 0, (h.time - rest) // parts
    for number in range(lowest, h.highest + 1):
        if work[number].stamp == h.generation and work[number].key == number:
            time = times[first + number]
            if filled > 0 and filled + time // 2 > each and part < parts - 1:
                part += 1
                filled = 0
            work[number].key = OF_PART - part
            filled += time
            most = max(most, filled)
    return part == parts - 1 and is_worth_it(h, rest, most)


# ---- making parts ----------------------------------------------------------------------------------------------------


@external("void(int64, int64)")
def add_shadow(context, source):  # type: ignore[no-untyped-def]
    """A shadow of a parameter, and the call that copies the parameter there."""
    h = headers(context)[0]
    nodes, known = nodes_at(h.nodes), nodes_at(h.nodes)[source]
    number, edge = h.node_capacity + h.shadows, h.arg_capacity + h.shadows
    size, shadow = signatures_at(h.signatures)[known.signature].size, nodes[number]
    int32s(h.args)[edge] = source
    int32s(h.order)[number] = number
    shadow.signature = known.signature
    shadow.args = edge
    shadow.arity = 1
    shadow.flags = NEEDS_GRADIENT | NEEDS_GRADIENT << 2
    shadow.data = known.data
    shadow.shape = known.shape
    shadow.value = take(h, size)
    call = new_call(h, GATHER, number, 0, shadow.value, size)
    int64s(h.arguments)[call.args] = known.value
    h.argument_count += 1
    call.first = number
    call.count = 1
    call.j = 0
    h.shadows += 1


@external("void(int64, int64)")
def stamp_parts(context, lowest):  # type: ignore[no-untyped-def]
    """Stamps each part's nodes with a number of their own, and counts in its header what it needs; the rest stays."""
    h = headers(context)[0]
    nodes, work, signatures = nodes_at(h.nodes), works_at(h.work), signatures_at(h.signatures)
    h.rest = h.highest
    for number in range(lowest, h.highest + 1):
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


@helper
def start_of(h, number):  # type: ignore[no-untyped-def]
    """Where a node's operands and data begin; of the one behind the last node, where they would."""
    if number == h.node_count:
        return h.arg_count + 0, h.data_count + 0
    node = nodes_at(h.nodes)[number]
    return np_int(node.args), np_int(node.data)


@external("void(int64, int64)")
def cut_parts(context, parts):  # type: ignore[no-untyped-def]
    """Tells each part between which of the chosen cuts it lies, and what it needs at most; it stamps its own nodes."""
    h = headers(context)[0]
    cuts, chosen = cuts_at(h), int32s(h.mode)
    h.rest = cuts[0].number
    for i in range(parts):
        own, cut, last = headers(part_header(h, parts - 1 - i))[0], cuts[chosen[i + 1]], cuts[chosen[i]]
        args, data = start_of(h, cut.number)
        last_args, last_data = start_of(h, last.number)
        own.lowest = cut.number
        own.highest = last.number - 1
        own.pending = cut.count - last.count
        own.room = cut.room - last.room
        own.initials = h.stack + 4 * cut.initial
        own.initial_count = last.initial - cut.initial
        own.arg_count = last_args - args
        own.data_count = last_data - data
        h.pending -= own.pending


@external("void(int64, int64)")
def stamp_range(context, part):  # type: ignore[no-untyped-def]
    """Stamps the nodes between two cuts; `context`: the part's header."""
    h = headers(context)[0]
    work = works_at(h.work)
    for number in range(h.lowest, h.highest + 1):
        if work[number].stamp == h.generation - 1 - part:
            work[number].stamp = h.generation


@external("void(int64)")
def start_rest(context):  # type: ignore[no-untyped-def]
    """Counts for the nodes of the rest which of their operands are still to come: only those in the rest."""
    h = headers(context)[0]
    nodes, args, work, initials = nodes_at(h.nodes), int32s(h.args), works_at(h.work), int32s(h.stack)
    h.initials = h.stack
    h.initial_count = 0
    for number in range(h.rest, h.highest + 1):
        own, node = work[number], nodes[number]
        if own.stamp == h.generation:
            own.unmet = 0
            for edge in range(node.args, node.args + node.arity):
                own.unmet += work[args[edge]].stamp == h.generation
            if own.unmet == 0:
                initials[h.initial_count] = number
                h.initial_count += 1


@external("void(int64, int64)")
def start_parts(context, parts):  # type: ignore[no-untyped-def]
    """Gives each part a place for its results, and for all else that planning makes, behind the part before."""
    h = headers(context)[0]
    nodes, operands, indices, numbers = 0, 0, 0, (h.value_top + 15) & ~15
    for part in range(parts):
        own, known = headers(part_header(h, part))[0], parts_at(h.part_table)[part]
        pending, arity, ids, room = own.pending + 0, own.arg_count + 0, own.data_count + 0, own.room + 0
        own.generation = h.generation + 1 + part
        own.order_count = h.order_count + nodes
        own.call_count = h.call_count + nodes + operands
        own.deferred_count = h.deferred_count + nodes
        own.argument_count = h.argument_count + 8 * operands
        own.data_count = h.data_count + indices
        own.merged = h.merged + operands
        own.value_top = numbers
        own.keys = h.keys + nodes * KEY_BYTES
        own.heap = h.heap + 4 * nodes
        own.ready = h.ready + 4 * nodes
        own.slots = h.slots + 4 * (4 * nodes + 16 * part)
        own.mode = h.mode + 4 * operands
        own.overwritten = 0
        known.order = own.order_count
        known.call = own.call_count
        known.deferred = own.deferred_count
        known.merged = own.merged
        nodes += pending
        operands += arity
        indices += ids
        numbers += 16 * room


@helper
def has_room(h, lowest, parts):  # type: ignore[no-untyped-def]
    """Whether all arrays hold what parts need at most, each behind the one before."""
    operands = h.arg_count - nodes_at(h.nodes)[lowest].args  # or fewer
    numbers = 16 * h.room + parts * MOST_SHADOWS * (SMALL + 16)
    is_half_free = 2 * h.node_count <= h.node_capacity and 2 * h.arg_count <= h.arg_capacity
    return h.value_top + numbers <= h.value_end and 4 * (h.pending + operands) <= h.node_capacity and is_half_free


@external("int64(int64, int64)")
def divide(context, lowest):  # type: ignore[no-untyped-def]
    """Divides the stamped nodes, of which number `lowest` is the first; returns how many parts that makes, at least 1.

    Those of the rest keep their stamp; number `h.rest` is the first.
    """
    h = headers(context)[0]
    parts = max(thread_count(), min(h.pending // MANY, MOST))
    h.rest = lowest
    if parts == 1 or h.pending < wide() * parts * h.levels:
        return 1
    if not h.is_divisible or h.time < 2 * waking() or not has_room(h, lowest, parts):
        return 1
    h.is_cut = choose_cuts(context, parts)
    if not h.is_cut and deal_pieces(context, lowest, parts, find_pieces(context, lowest, h.time // parts)) == 0:
        return 1
    shadowed, h.shadows = h.shadows + 0, 0
    for i in range((parts - 1) * shadowed):
        add_shadow(context, int32s(h.heap)[i % shadowed])
    h.parts = parts
    h.part_time = h.time
    for part in range(parts):
        copy_header(context, part)
        own = headers(part_header(h, part))[0]
        own.pending = 0
        own.arg_count = 0
        own.data_count = 0
        own.room = 0
    wake()
    if h.is_cut:
        cut_parts(context, parts)
    else:
        stamp_parts(context, lowest)
    start_parts(context, parts)
    return parts


@external("void(int64, int64)")
def read_shadows(context, part):  # type: ignore[no-untyped-def]
    """Lets the nodes of a part read its shadows of parameters; `context`: the part's header."""
    h = headers(context)[0]
    nodes, args, work, twins = nodes_at(h.nodes), int32s(h.args), works_at(h.work), int32s(h.twins)
    listed, first = -(h.generation - 1 - part), h.node_capacity + (part - 1) * (h.shadows // (h.parts - 1))
    for number in range(h.lowest, h.highest + 1):
        if work[number].stamp != h.generation:
            continue
        node = nodes[number]
        for k in range(node.arity):
            source = args[node.args + k]
            if work[source].stamp == listed and needs_shadow(h, node, k):
                args[node.args + k] = first + work[source].start
                twins[2 * h.merged] = node.args + k
                twins[2 * h.merged + 1] = source
                h.merged += 1
                h.overwritten += 1


# ---- planned parts ---------------------------------------------------------------------------------------------------


@helper
def move(array, source, count, target, size):  # type: ignore[no-untyped-def]
    """Moves records of `size` numbers towards the front."""
    for i in range(count * size):
        array[target * size + i] = array[source * size + i]


@helper
def move_calls(calls, source, count, target, order):  # type: ignore[no-untyped-def]
    """Moves call records towards the front, whose nodes have moved by `order` places."""
    move(int64s(calls), source, count, target, CALL_WORDS)
    for i in range(target, target + count):
        calls_at(calls)[i].first -= order


@external("void(int64, int64)")
def join_parts(context, parts):  # type: ignore[no-untyped-def]
    """Lays what the parts' planning has made behind what the graph has, part by part."""
    h = headers(context)[0]
    for part in range(parts):
        own, known = headers(part_header(h, part))[0], parts_at(h.part_table)[part]
        nodes, calls = own.order_count - known.order, own.call_count - known.call
        deferred, merged = own.deferred_count - known.deferred, own.merged - known.merged
        order, waiting = known.order - h.order_count, known.deferred - h.deferred_count
        if part > 0:
            move(int32s(h.order), known.order, nodes, h.order_count, 1)
            move(int32s(h.twins), known.merged, merged, h.merged, 2)
            move_calls(h.calls, known.call, calls, h.call_count, order)
            move_calls(h.deferred, known.deferred, deferred, h.deferred_count, order)
            for i in range(h.call_count, h.call_count + calls):
                call = calls_at(h.calls)[i]
                if call.deferred >= 0:
                    call.deferred -= waiting
        known.call = h.call_count
        known.stop = h.call_count + calls
        h.order_count += nodes
        h.call_count += calls
        h.deferred_count += deferred
        h.merged += merged
        h.overwritten += own.overwritten
        h.argument_count = own.argument_count
        h.data_count = own.data_count
        h.value_top = own.value_top
