"""Parts of a graph that need nothing of each other: each is planned and run by itself, by several threads.

Sentences or trees whose losses are added up, the two directions of a network, the subtrees of a tree: all share
parameters alone, up to the nodes that bring them together, the *rest*, which is planned and run when the parts are
done.  `dividing` finds such parts.

A part is planned by the same functions as a whole graph, with a header of its own: a copy of the graph's whose counts
start where the earlier parts need nothing any more.  In the end the parts' calls lie one behind the other in the
graph's list, and the table of parts says where; who runs calls one after the other need not know of parts.

Two threads may not add to the gradient of one parameter.  That of weights waits for the end anyway (`deferred`).  Of
other parameters (in b + W x) each part but the first gets a *shadow*: a node that is a copy, made before the parts run
and whose gradient is added to the parameter's when they have.  Shadows are numbered from `node_capacity` on; `twins`
holds whose operands they are, as for equal nodes.
"""

from __future__ import annotations

from dynjit.arena import (
    CALL,
    GATHER,
    HEADER_BYTES,
    KEY,
    NEEDS_GRADIENT,
    SHADOWS,
    bundles_at,
    calls_at,
    headers,
    int32s,
    int64s,
    nodes_at,
    parts_at,
    signatures_at,
    steps_at,
    works_at,
)
from dynjit.calls import new_call, np_int, take
from dynjit.jit import external, helper
from dynjit.steps import is_parameter
from dynjit.threads import MOST, thread_count, waking, wide

HEADER_WORDS, CALL_WORDS, KEY_BYTES = HEADER_BYTES // 8, CALL.itemsize // 8, KEY.itemsize
SMALL = 1 << 14  # numbers of a parameter of which a shadow is worth making
MOST_SHADOWS = SHADOWS // MOST  # parameters with shadows
DIRECT = 12  # so few pending nodes are called one by one, without planning
MANY = 1 << 16  # nodes that caches hold while they are planned
WORTH = 3  # quarters of the time: no part and the rest together may take more


@helper
def part_header(h, part):  # type: ignore[no-untyped-def]
    """Address of a part's header."""
    return h.part_headers + part * HEADER_BYTES


@external("void(int64, int64)")
def copy_header(context, part):  # type: ignore[no-untyped-def]
    """Makes the header of a part a copy of the graph's; calls that run with it are not shared among threads."""
    h = headers(context)[0]
    source, target = int64s(context), int64s(part_header(h, part))
    for i in range(HEADER_WORDS):
        target[i] = source[i]
    headers(part_header(h, part))[0].is_part = 1


# ---- shadows ---------------------------------------------------------------------------------------------------------


@helper
def may_be_shared(h, source):  # type: ignore[no-untyped-def]
    """Whether parts may have an operand in common that has a value; lists the parameters that need shadows."""
    known, work = nodes_at(h.nodes)[source], works_at(h.work)[source]
    if known.flags & NEEDS_GRADIENT == 0:
        return True
    is_large = signatures_at(h.signatures)[known.signature].size > SMALL
    if h.shadows == MOST_SHADOWS or is_large or not is_parameter(h, source):
        return False
    int32s(h.heap)[h.shadows] = source
    work.listed = h.whole_generation
    work.place = h.shadows
    h.shadows += 1
    return True


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
def read_shadows(context, part):  # type: ignore[no-untyped-def]
    """Lets the nodes of a part read its shadows of parameters; `context`: the part's header."""
    h = headers(context)[0]
    args, work, bundles, twins = int32s(h.args), works_at(h.work), bundles_at(h.bundles), int32s(h.twins)
    steps, patterns, listed = steps_at(h.steps), int32s(h.patterns), int32s(h.list)
    first = h.node_capacity + (part - 1) * (h.shadows // (h.parts - 1))
    for i in range(h.listed):
        own = bundles[listed[i]]
        path = steps[own.step]
        if own.stamp != h.generation:  # of another part
            continue
        for at in range(path.lists + path.outer_count, path.lists + path.outer_count + path.bias_count):
            edge = own.args + patterns[at]
            source = np_int(args[edge])
            if work[source].listed == h.whole_generation:
                args[edge] = first + work[source].place
                twins[2 * h.merged] = edge
                twins[2 * h.merged + 1] = source
                h.merged += 1
                h.overwritten += 1


# ---- whether it is worth it ------------------------------------------------------------------------------------------


@helper
def is_worth_it(h, rest, most):  # type: ignore[no-untyped-def]
    """Whether parts of which the largest takes the time `most`, and then the rest, are done soon enough."""
    alone = rest if thread_count() == 1 else rest + max(most, (h.time - rest) // thread_count())
    return 4 * alone < WORTH * h.time


@helper
def has_room(h, parts):  # type: ignore[no-untyped-def]
    """Whether all arrays hold what parts need at most, each behind the one before."""
    operands = h.arg_count - nodes_at(h.nodes)[h.lowest].args  # or fewer
    numbers = 16 * h.room + parts * MOST_SHADOWS * (SMALL + 16)
    is_half_free = 2 * h.node_count <= h.node_capacity and 2 * h.arg_count <= h.arg_capacity
    is_half_free = is_half_free and parts * h.step_count <= h.node_capacity
    return h.value_top + numbers <= h.value_end and 4 * (h.pending + operands) <= h.node_capacity and is_half_free


@helper
def pays(h, parts):  # type: ignore[no-untyped-def]
    """Whether a graph is wide and long enough for so many parts, and there is room for them."""
    is_wide = h.pending > DIRECT and h.pending >= wide() * parts * h.levels
    return is_wide and h.time >= 2 * waking() and has_room(h, parts)


# ---- where parts begin -----------------------------------------------------------------------------------------------


@helper
def renew_header(h, context, part):  # type: ignore[no-untyped-def]
    """Brings a part's header up to date, but for what is known of the part's own nodes."""
    own = headers(part_header(h, part))[0]
    lowest, highest, pending, room = own.lowest + 0, own.highest + 0, own.pending + 0, own.room + 0
    args, data, first, listed = own.arg_count + 0, own.data_count + 0, own.list + 0, own.listed + 0
    copy_header(context, part)
    own.lowest = lowest
    own.highest = highest
    own.pending = pending
    own.room = room
    own.arg_count = args
    own.data_count = data
    own.list = first
    own.listed = listed


@external("void(int64, int64)")
def start_parts(context, parts):  # type: ignore[no-untyped-def]
    """Gives each part a place for its results, and for all else that planning makes, behind the part before."""
    h = headers(context)[0]
    nodes, operands, indices, numbers = 0, 0, 0, (h.value_top + 15) & ~15
    h.most_keys = max(h.most_keys, parts * h.step_count)
    for part in range(parts):
        renew_header(h, context, part)
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
        own.keys = h.keys + part * h.step_count * KEY_BYTES
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


@external("void(int64)")
def start_rest(context):  # type: ignore[no-untyped-def]
    """Counts for the nodes of the rest which of their operands are still to come: only those in the rest."""
    h = headers(context)[0]
    args, bundles, bundle_of = int32s(h.args), bundles_at(h.bundles), int32s(h.bundle_of)
    patterns, listed = int32s(h.patterns), int32s(h.list)
    for i in range(h.listed):
        own = bundles[listed[i]]
        path = steps_at(h.steps)[own.step]
        if own.stamp == h.generation:
            own.unmet = 0
            for at in range(path.lists, path.lists + path.outer_count):
                needed = bundle_of[args[own.args + patterns[at]]]
                own.unmet += needed >= 0 and bundles[needed].stamp == h.generation


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
