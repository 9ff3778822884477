"""From pending bundles to groups: which nodes run together, and in which order.

Bundles that begin with the same step and are ready together run as a *wave*: of each of their steps, the nodes form a
group.  Bundles that begin with a product wait while anything else is ready, for they gain most from each other.  Among
equals those that are on average farthest from the target go first, so that nodes that nothing waits for (losses, output
layers) gather until all of them are ready.

A result that one node alone needs, and no gradient, lies where that node may put its own: W x in b + W x, and that in
its tanh.  Such a node *takes* its operand's place; the operand has no value any more, and is computed anew if it is
asked for.  Less memory is less time: a step of a network is mostly reading and writing results.
"""

from __future__ import annotations

from dynjit.arena import (
    BUNDLE,
    HEADER_BYTES,
    NODE,
    bundles_at,
    headers,
    int32s,
    int64s,
    keys_at,
    nodes_at,
    signatures_at,
    steps_at,
)
from dynjit.bundles import last_of
from dynjit.calls import np_int, place_alone, place_group
from dynjit.dividing import divide
from dynjit.jit import address_of, external, helper, inline, prefetch
from dynjit.merging import merge_equals
from dynjit.parts import DIRECT, join_parts, part_header, read_shadows, start_rest
from dynjit.steps import NOBODY, position_of
from dynjit.threads import MOST, share

NEAR = 4  # so many bundles ahead is asked for what is known of their consumers
NEVER = 1 << 30  # behind all bundles
OUT_OF_MEMORY = -2
NODE_BYTES, BUNDLE_BYTES = NODE.itemsize, BUNDLE.itemsize


# ---- keys ------------------------------------------------------------------------------------------------------------


@helper
def key_of(h, step):  # type: ignore[no-untyped-def]
    """What this plan knows of the bundles with a step; nothing yet if none was met."""
    key = keys_at(h.keys)[step]
    if key.stamp != h.generation:
        key.stamp = h.generation
        key.height = 0
        key.bundles = 0
        key.count = 0
        key.ends = 0
        key.ready = 0
        key.started = 0
        key.waiting = 0
        key.done = 0
        key.total = 0
        key.filled = 0
        key.deferred = -1
        key.takes = -1
        key.free = -1
    return key


@inline
def taken(h, bundle, possible):  # type: ignore[no-untyped-def]
    """The operand whose place the first node of a bundle takes, out of `possible` ones, or -1."""
    if possible and h.overwriting:
        nodes, args, bundle_of = nodes_at(h.nodes), int32s(h.args), int32s(h.bundle_of)
        node = nodes[bundle.node]
        for k in range(node.arity):
            source = args[node.args + k]
            if (possible >> k) & 1 and nodes[source].value < 0:
                own = bundles_at(h.bundles)[bundle_of[source]]
                path, position = steps_at(h.steps)[own.step], position_of(h, own.node, source, own.gaps)
                is_alone = steps_at(h.steps)[bundle.step].same_count == 0
                if is_alone and own.stamp == h.generation and ((path.sinks & ~own.twice & ~path.kept) >> position) & 1:
                    return k
    return -1


@external("void(int64)")
def count_bundles(context):  # type: ignore[no-untyped-def]
    """Finds out how many bundles have each step in common, and which steps take the place of an operand."""
    h = headers(context)[0]
    bundles, steps, patterns, listed = bundles_at(h.bundles), steps_at(h.steps), int32s(h.patterns), int32s(h.list)
    signatures, last, room = signatures_at(h.signatures), np_int(-1), 0
    for i in range(h.listed):
        own = bundles[listed[i]]
        if own.stamp == h.generation:
            path, key = steps[own.step], key_of(h, own.step)
            key.ends += 1
            key.free &= path.once & ~own.wanted
            last = max(last, np_int(own.step))
            root = key_of(h, path.root)
            takes = taken(h, own, signatures[steps[path.root].signature].takes)
            root.takes = takes if root.bundles == 0 or root.takes == takes else -1
            root.bundles += 1
            root.height += own.height + path.levels
    for step in range(last, -1, -1):
        key = keys_at(h.keys)[step]
        if key.stamp != h.generation or key.count + key.ends == 0:
            continue
        key.first = room
        room += key.ends
        key.count += key.ends
        if steps[step].parent != NOBODY:
            parent = key_of(h, steps[step].parent)
            parent.count += key.count
            parent.free &= key.free
            possible = signatures[steps[step].signature].takes if h.overwriting else 0
            for k in range(steps[step].arity if possible else 0):
                pattern = patterns[steps[step].pattern + k]
                if key.takes < 0 and (possible >> k) & 1 and pattern >= 0 and (key.free >> pattern) & 1:
                    key.takes = k
        if key.takes < 0:
            key_of(h, steps[step].home).total += key.count


# ---- order -----------------------------------------------------------------------------------------------------------


@helper
def make_ready(h, bundle):  # type: ignore[no-untyped-def]
    """Appends a bundle to the ready ones of its last step; says whether it is the only one of its first that waits."""
    step = bundles_at(h.bundles)[bundle].step
    key, root = keys_at(h.keys)[step], keys_at(h.keys)[steps_at(h.steps)[step].root]
    int32s(h.ready)[key.first + key.ready] = bundle
    key.ready += 1
    root.waiting += 1
    return root.waiting == 1


@helper
def before(h, a, b):  # type: ignore[no-untyped-def]
    """Whether step a goes before step b: it is no product, or its bundles are on average farther from the target."""
    keys, steps = keys_at(h.keys), steps_at(h.steps)
    if steps[a].is_product != steps[b].is_product:
        return steps[b].is_product != 0
    left, right = keys[a].height * keys[b].bundles, keys[b].height * keys[a].bundles
    return left > right or (left == right and a > b)


@helper
def push(h, size, step):  # type: ignore[no-untyped-def]
    """Adds a step to the heap of `size` first steps of bundles that wait."""
    heap = int32s(h.heap)
    i = np_int(size)
    while i > 0 and before(h, step, heap[(i - 1) // 2]):
        heap[i] = heap[(i - 1) // 2]
        i = (i - 1) // 2
    heap[i] = step


@external("int64(int64, int64)")
def pop(context, size):  # type: ignore[no-untyped-def]
    """Takes the first step from the heap of `size` steps."""
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
def take_ready(h, key, place):  # type: ignore[no-untyped-def]
    """Writes the ready bundles that end with a step into the wave, from a place on.

    Their nodes are strewn over the graph, so that memory would be waited for at each: it is asked for in advance.
    """
    ready, bundles = int32s(h.ready), bundles_at(h.bundles)
    wave, numbers = int32s(h.slots), int32s(h.slots + 4 * h.pending)
    for i in range(key.first + key.started, key.first + key.ready):
        wave[place] = ready[i]
        numbers[place] = bundles[ready[i]].node
        prefetch(h.nodes + numbers[place] * NODE_BYTES)
        place += 1
    key.started = key.ready


@external("int64(int64, int64)")
def collect_wave(context, root):  # type: ignore[no-untyped-def]
    """Lists the ready bundles that begin with step `root`; those with more in common are neighbours.

    Of those that end where others go on, and these, come first whose first one was recorded first.  They lie in
    `slots`, behind them their first nodes, then the steps, each after the step before.  Returns how many steps these
    are.
    """
    h = headers(context)[0]
    steps, keys, ready, visited = steps_at(h.steps), keys_at(h.keys), int32s(h.ready), int32s(h.slots + 8 * h.pending)
    count, step = 0, np_int(root)
    keys[root].waiting = 0
    h.strewn = 0
    while step != NOBODY:
        following, key = np_int(NOBODY), keys[step]
        if key.stamp == h.generation:
            key.size = key.ready - key.started
            key.low = ready[key.first + key.started] if key.size > 0 else NEVER
            visited[count] = step
            count += 1
            following = np_int(steps[step].child)
        while following == NOBODY and step != root:
            following = np_int(steps[step].sibling)
            step = np_int(steps[step].parent)
        step = following
    for i in range(count - 1, 0, -1):
        own, parent = keys[visited[i]], keys[steps[visited[i]].parent]
        parent.size += own.size
        parent.low = min(parent.low, own.low)
    keys[root].wave = 0
    for i in range(count):
        own, number = keys[visited[i]], keys[visited[i]].ready - keys[visited[i]].started
        if i > 0:
            parent = keys[steps[visited[i]].parent]
            own.wave = parent.rest
            parent.rest += own.size
        own.stop = own.wave + own.size
        own.rest = own.wave
        if number > 0 and ready[own.first + own.started] == own.low:
            own.rest += number
            take_ready(h, own, np_int(own.wave))
        else:
            take_ready(h, own, np_int(own.stop) - number)
    return count


@external("void(int64, int64)")
def run_step(context, step):  # type: ignore[no-untyped-def]
    """Places the nodes with a step of the bundles of the wave that have it."""
    h = headers(context)[0]
    nodes, order, numbers = nodes_at(h.nodes), int32s(h.order), int32s(h.slots + 4 * h.pending)
    key = keys_at(h.keys)[step]
    first, is_root = h.order_count - key.wave, steps_at(h.steps)[step].parent == NOBODY
    for i in range(key.wave, key.stop):
        number = np_int(numbers[i])
        if not is_root:
            number += 1
            while nodes[number].value >= 0:  # a leaf
                number += 1
            numbers[i] = number
        order[first + i] = number
    count = key.stop - key.wave
    h.order_count += count
    place_group(context, step, first + key.wave, count)
    key.done += count


@helper
def ask_for_consumers(h, i, count):  # type: ignore[no-untyped-def]
    """Asks in advance for what is known of consumers of the bundles behind number i of a wave of `count` bundles."""
    bundles, wave, edges = bundles_at(h.bundles), int32s(h.slots), int32s(h.consumers)
    if i + 2 * NEAR < count:
        prefetch(h.consumers + 8 * bundles[wave[i + 2 * NEAR]].start)
    if i + NEAR < count:
        edge = bundles[wave[i + NEAR]].start
        if edge >= 0:
            prefetch(h.bundles + edges[2 * edge] * BUNDLE_BYTES)


@external("void(int64)")
def schedule(context):  # type: ignore[no-untyped-def]
    """Groups and orders the nodes of the stamped bundles."""
    h = headers(context)[0]
    bundles, keys, steps, edges = bundles_at(h.bundles), keys_at(h.keys), steps_at(h.steps), int32s(h.consumers)
    wave, visited = int32s(h.slots), int32s(h.slots + 8 * h.pending)
    heap_size, listed = 0, int32s(h.list)
    for i in range(h.listed):
        own = bundles[listed[i]]
        if own.unmet == 0 and own.stamp == h.generation and make_ready(h, np_int(listed[i])):
            push(h, heap_size, steps[own.step].root)
            heap_size += 1
    while heap_size > 0:
        root = pop(context, heap_size)
        heap_size -= 1
        for i in range(collect_wave(context, root)):
            if keys[visited[i]].stop > keys[visited[i]].wave:
                run_step(context, visited[i])
        for i in range(keys[root].stop):
            ask_for_consumers(h, i, keys[root].stop)
            own = bundles[wave[i]]
            own.placed = 1
            edge = own.start
            while edge >= 0:
                consumer = np_int(edges[2 * edge])
                waiting = bundles[consumer]
                if waiting.stamp == h.generation:  # it may be of the rest, see parts.py
                    waiting.unmet -= 1
                    if waiting.unmet == 0 and make_ready(h, consumer):
                        push(h, heap_size, steps[waiting.step].root)
                        heap_size += 1
                edge = edges[2 * edge + 1]


@external("void(int64)")
def plan_groups(context):  # type: ignore[no-untyped-def]
    """Groups and orders the stamped bundles."""
    merge_equals(context)
    count_bundles(context)
    schedule(context)


@external("void(int64, int64)")
def plan_part(first_header, part):  # type: ignore[no-untyped-def]
    """Plans a part, whose header is one of several that lie end to end."""
    context = first_header + part * HEADER_BYTES
    if part > 0 and headers(context)[0].shadows > 0:
        read_shadows(context, part)
    plan_groups(context)


address_of_plan_part = address_of(plan_part)


@external("void(int64)")
def plan_directly(context):  # type: ignore[no-untyped-def]
    """Calls the nodes of the stamped bundles one by one, as they were recorded."""
    h = headers(context)[0]
    bundles, nodes, listed = bundles_at(h.bundles), nodes_at(h.nodes), int32s(h.list)
    for i in range(h.listed):
        own = bundles[listed[i]]
        own.placed = 1
        for number in range(own.node, last_of(h, own) + 1):
            if nodes[number].value < 0:
                place_alone(context, number)


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
        plan_directly(context)
    else:
        if parts > 1:
            share(address_of_plan_part(), part_header(h, 0), 0, parts, h.time)
            join_parts(context, parts)
            start_rest(context)
        h.most_keys = max(h.most_keys, h.step_count)
        plan_groups(context)
    h.generation += MOST  # the parts' stamps are used up, too
    if h.value_top <= h.value_end:
        h.planned = max(h.planned, h.highest + 1)
        return 0
    for number in range(h.lowest, h.highest + 1):  # as before
        if nodes_at(h.nodes)[number].value >= top:
            nodes_at(h.nodes)[number].value = -1
    h.parts = had_parts
    h.order_count = orders
    h.call_count = calls
    h.deferred_count = deferred
    h.argument_count = arguments
    h.data_count = data
    h.value_top = top
    return OUT_OF_MEMORY
