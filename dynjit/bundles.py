"""Bundles: nodes that are recorded one behind the other and are ready together; planning need not tell them apart.

The code of a network's cell records W x, b + that, its logistic: whenever W x is ready, so is all that needs it alone.
Such nodes form a *bundle*, of which one thing is asked: which other bundles it waits for.  The nodes of a graph, taken
in the order of recording, are cut into bundles; a node follows in the bundle of the node before if it
- depends on the bundle, and else on what is there when the bundle is ready: what the bundle waits for, what this waits
  for, or what needs no product; but no product does, for products gain most from waiting until all of their kind are
  ready; or
- does not depend on the bundle, but on the latest that the bundle waits for.

The same code records the same bundles again and again.  What a bundle looks like is a path in a tree of *steps*: each
step is a node's signature, flags, and where its operands come from.  Bundles that have the first steps in common run
these together.  Leaves (parameters, inputs) have values from the start, and may lie between the nodes of a bundle.
"""

from __future__ import annotations

from dynjit import op
from dynjit.arena import (
    ROOTS,
    bundles_at,
    headers,
    int32s,
    mixed,
    nodes_at,
    operators_at,
    signatures_at,
    steps_at,
)
from dynjit.calls import has_stacked, is_shared, np_int
from dynjit.jit import entry, external, helper, inline

LONGEST = 60  # nodes of a bundle: a mask has a bit for each
MOST_BRANCHES = 8  # steps that follow one step
MOST_OUTERS = 2  # operands from other bundles that a node may need which follows in one
# where an operand comes from that is not of the bundle: from another one; the same node for all bundles (FIXED - its
# number); the same node as an operand before (SAME - its place among the bundle's operands)
OUTER, FIXED, SAME = -1, -2, -(1 << 30)
FAR = 64  # so many operands back, the same one is looked for
NOBODY = -1
INNER, APART, BARRED = 0, 1, 2  # kinds of steps: with operands in the bundle, without, and such as no bundle takes
MOST_OPERANDS = 8  # of a node about which it is noted that it does not follow


@helper
def is_parameter(h, number):  # type: ignore[no-untyped-def]
    """Whether a node is a parameter or a lookup table (they lie in front of all graphs), or the shadow of one."""
    value = nodes_at(h.nodes)[number].value
    return number >= h.node_capacity or (value >= 0 and value < h.value_base)


@inline
def is_inner(h, head, source):  # type: ignore[no-untyped-def]
    """Whether an operand is of the bundle in the making that begins with node `head`."""
    return source >= head and source < h.node_capacity and int32s(h.bundle_of)[source] == h.bundle_count


@helper
def is_leaf(h, node):  # type: ignore[no-untyped-def]
    return operators_at(h.operators)[signatures_at(h.signatures)[node.signature].op].flags & op.LEAF != 0


@helper
def position_of(h, head, number, gaps):  # type: ignore[no-untyped-def]
    """Which of its bundle's nodes a node is; `gaps`: how many leaves lie between the bundle's nodes."""
    position = number - head
    if gaps > 0:
        for between in range(head + 1, number):
            position -= is_leaf(h, nodes_at(h.nodes)[between])
    return position


@helper
def last_of(h, bundle):  # type: ignore[no-untyped-def]
    """The last node of a bundle."""
    return bundle.node + steps_at(h.steps)[bundle.step].position + bundle.gaps


# ---- steps -----------------------------------------------------------------------------------------------------------


@inline
def pattern_of(h, node, k, head, gaps, shared):  # type: ignore[no-untyped-def]
    """Where an operand comes from: its position in the bundle, or one of the negative numbers above."""
    args, edge = int32s(h.args), node.args + k
    source, first = args[edge], nodes_at(h.nodes)[head].args
    if is_inner(h, head, source):
        return position_of(h, head, source, gaps)
    if is_shared(shared, k, node.arity) or is_parameter(h, source):
        return FIXED - source
    for before in range(max(first, edge - FAR), node.args):
        if args[before] == source:
            return SAME - (before - first)
    return np_int(OUTER)


@inline
def is_like(h, node, step, head, gaps):  # type: ignore[no-untyped-def]
    """Whether a node is what a step says; `head`: the first node of its bundle."""
    if node.signature != step.signature or node.flags != step.flags:
        return False
    args, patterns = int32s(h.args), int32s(h.patterns)
    for k in range(node.arity):
        source, pattern = args[node.args + k], patterns[step.pattern + k]
        if pattern >= 0:
            is_same = is_inner(h, head, source) and position_of(h, head, source, gaps) == pattern
        elif pattern == OUTER:
            is_same = not is_inner(h, head, source) and not is_parameter(h, source)
        elif pattern <= SAME:
            is_same = source == args[nodes_at(h.nodes)[head].args + SAME - pattern]
        else:
            is_same = source == FIXED - pattern
        if not is_same:
            return False
    return True


@external("int64(int64, int64, int64, int64, int64)")
def new_step(context, number, head, parent, gaps):  # type: ignore[no-untyped-def]
    """A step that says what a node is; parent: the step before, or NOBODY.

    Of a barred step, `root` is the step that begins a bundle instead.
    """
    h = headers(context)[0]
    steps, patterns, node = steps_at(h.steps), int32s(h.patterns), nodes_at(h.nodes)[number]
    shared = operators_at(h.operators)[signatures_at(h.signatures)[node.signature].op].shared
    index = h.step_count
    step, outers = steps[index], 0
    for k in range(node.arity):
        pattern = pattern_of(h, node, k, head, gaps, shared)
        patterns[h.pattern_count + k] = pattern
        outers += pattern == OUTER or pattern <= SAME
    step.signature = node.signature
    step.flags = node.flags
    step.arity = node.arity
    step.pattern = h.pattern_count
    step.outers = outers
    # operands are weights and what they are applied to: such nodes gain most from each other
    step.is_product = shared != 0 and has_stacked(shared, node.arity)
    step.parent = parent
    step.root = index
    step.position = 0
    step.child = NOBODY
    step.sibling = NOBODY
    step.bucket = NOBODY
    step.lists = NOBODY
    step.kind = APART
    for k in range(node.arity):
        if patterns[step.pattern + k] >= 0:
            step.kind = INNER
    if parent != NOBODY:
        step.root = steps[parent].root
        step.position = steps[parent].position + 1
        step.sibling = steps[parent].child
        steps[parent].child = index
    h.pattern_count += node.arity
    h.step_count += 1
    return index


@external("int64(int64, int64)")
def root_step(context, number):  # type: ignore[no-untyped-def]
    """The step of a node that begins a bundle."""
    h = headers(context)[0]
    node, steps, roots = nodes_at(h.nodes)[number], steps_at(h.steps), int32s(h.roots)
    q = signatures_at(h.signatures)[node.signature]
    if q.alone:
        return new_step(context, number, number, NOBODY, 0)
    shared, code = operators_at(h.operators)[q.op].shared, mixed(node.signature, node.flags)
    for k in range(node.arity):
        code = mixed(code, pattern_of(h, node, k, number, 0, shared))
    bucket = code & (ROOTS - 1)
    first = np_int(roots[bucket])
    if first >= h.step_count or steps[first].bucket != bucket:  # of an earlier graph
        first = np_int(NOBODY)
    index = first
    while index != NOBODY and not is_like(h, node, steps[index], number, 0):
        index = np_int(steps[index].sibling)
    if index == NOBODY:
        index = new_step(context, number, number, NOBODY, 0)
        steps[index].bucket = bucket
        steps[index].sibling = first
        roots[bucket] = index
    return index


@external("void(int64, int64)")
def describe_path(context, step):  # type: ignore[no-untyped-def]
    """Tells the last step of a bundle what all of its steps come to.

    Its lists are of places among the bundle's operands: those from other bundles, parameters that are not shared, and
    pairs of the same operand, the second place first.
    """
    h = headers(context)[0]
    steps, patterns, scratch = steps_at(h.steps), int32s(h.patterns), int32s(h.slots)
    path, at = steps[step], np_int(step)
    length, uses, levels, trace = path.position + 1, 0, LONGEST, 2 * LONGEST
    for position in range(length - 1, -1, -1):
        scratch[uses + position] = 0
        scratch[trace + position] = at
        at = np_int(steps[at].parent)
    path.time = 0
    path.room = 0
    path.ids = 0
    path.numbers = 0
    path.levels = 0
    path.kept = 0
    path.lists = h.pattern_count
    counts = (np_int(0), np_int(0), np_int(0))
    for kind in range(3):
        place, count = 0, 0
        for position in range(length):
            own = steps[scratch[trace + position]]
            shared = operators_at(h.operators)[signatures_at(h.signatures)[own.signature].op].shared
            for k in range(own.arity):
                pattern = patterns[own.pattern + k]
                is_fixed = pattern <= FIXED and pattern > SAME
                is_constant = is_fixed and is_parameter(h, FIXED - pattern)
                is_outer = pattern == OUTER or (is_fixed and not is_constant)
                is_bias = is_constant and not is_shared(shared, k, own.arity)
                if (kind == 0 and is_outer) or (kind == 1 and is_bias):
                    patterns[h.pattern_count + count] = place
                    count += 1
                elif kind == 2 and pattern <= SAME:
                    patterns[h.pattern_count + count] = place
                    patterns[h.pattern_count + count + 1] = SAME - pattern
                    count += 2
                place += 1
        path.operands = place
        h.pattern_count += count
        counts = (counts[1], counts[2], count)
    path.outer_count, path.bias_count, path.same_count = counts
    for position in range(length):
        own, level = steps[scratch[trace + position]], 1
        q = signatures_at(h.signatures)[own.signature]
        for k in range(own.arity):
            pattern = patterns[own.pattern + k]
            if pattern >= 0:
                scratch[uses + pattern] += 1
                level = max(level, scratch[levels + pattern] + 1)
        scratch[levels + position] = level
        path.levels = max(path.levels, level)
        path.time += q.time
        path.room += q.room
        path.ids += q.ids
        path.numbers += q.ids + operators_at(h.operators)[q.op].floats
        path.kept |= np_int(q.kept != 0) << position
    path.sinks = 0
    path.once = 0
    for position in range(length):
        path.sinks |= np_int(scratch[uses + position] == 0) << position
        path.once |= np_int(scratch[uses + position] == 1) << position
    path.once &= ~path.kept


# ---- forming bundles -------------------------------------------------------------------------------------------------


@inline
def depth_of(h, source):  # type: ignore[no-untyped-def]
    """How many products, one after the other, a node outside of a bundle needs."""
    if nodes_at(h.nodes)[source].value >= 0:
        return 0
    return np_int(bundles_at(h.bundles)[int32s(h.bundle_of)[source]].depth)


@inline
def owner_of(h, source):  # type: ignore[no-untyped-def]
    """By which number a node outside of a bundle is known as what the bundle waits for: its bundle's first node's."""
    if nodes_at(h.nodes)[source].value >= 0:
        return np_int(source)
    return np_int(bundles_at(h.bundles)[int32s(h.bundle_of)[source]].node)


@helper
def is_early(h, source, latest):  # type: ignore[no-untyped-def]
    """Whether a node outside of a bundle is there when `latest` is, which the bundle waits for."""
    nodes, bundles, bundle_of = nodes_at(h.nodes), bundles_at(h.bundles), int32s(h.bundle_of)
    owner = owner_of(h, source)
    if owner == latest or nodes[source].value >= 0:
        return True
    if bundles[bundle_of[source]].depth == 0:
        return True
    if latest == NOBODY or nodes[latest].value >= 0:
        return False
    needed = bundles[bundle_of[latest]]
    path, args, patterns = steps_at(h.steps)[needed.step], int32s(h.args), int32s(h.patterns)
    for at in range(path.lists, path.lists + path.outer_count):
        if owner_of(h, args[needed.args + patterns[at]]) == owner:
            return True
    return False


@inline
def fits(h, node, head, latest):  # type: ignore[no-untyped-def]
    """Whether a node is ready when the bundle is."""
    args, is_ready = int32s(h.args), False
    for edge in range(node.args, node.args + node.arity):
        source = args[edge]
        if is_inner(h, head, source):
            is_ready = True
        elif not is_parameter(h, source):
            if not is_early(h, source, latest):
                return False
            is_ready = is_ready or owner_of(h, source) == latest
    return is_ready


@inline
def may_follow(h, node, head, step, gaps):  # type: ignore[no-untyped-def]
    """Whether a node may be of a bundle whose last step is `step`, if it fits."""
    q, args = signatures_at(h.signatures)[node.signature], int32s(h.args)
    shared = operators_at(h.operators)[q.op].shared
    if q.alone or steps_at(h.steps)[step].position + 1 == LONGEST:
        return False
    inner, outers = 0, 0
    for edge in range(node.args, node.args + node.arity):
        if is_inner(h, head, args[edge]):
            inner += 1
        else:
            outers += not is_parameter(h, args[edge])
    if inner + outers == 0 or outers > MOST_OUTERS or (inner > 0 and shared != 0):
        return False
    if inner == 0:  # not twice the same
        at = np_int(step)
        while at != NOBODY:
            if is_like(h, node, steps_at(h.steps)[at], head, gaps):
                return False
            at = np_int(steps_at(h.steps)[at].parent)
    return True


@external("void(int64, int64, int64)")
def bar(context, step, number):  # type: ignore[no-untyped-def]
    """Lets no bundle take a step any more, of which `number` is a node."""
    own = steps_at(headers(context)[0].steps)[step]
    own.kind = BARRED
    own.root = root_step(context, number)


@external("int64(int64, int64, int64, int64, int64, int64)")
def next_step(context, number, head, step, latest, gaps):  # type: ignore[no-untyped-def]
    """The step by which a node follows in a bundle whose last step is `step`, or a barred one, or NOBODY."""
    h = headers(context)[0]
    node, branches, child = nodes_at(h.nodes)[number], 0, np_int(steps_at(h.steps)[step].child)
    while child != NOBODY and not is_like(h, node, steps_at(h.steps)[child], head, gaps):
        branches += 1
        child = np_int(steps_at(h.steps)[child].sibling)
    if child == NOBODY and branches < MOST_BRANCHES:
        if not may_follow(h, node, head, step, gaps):
            if node.arity <= MOST_OPERANDS:
                first = np_int(steps_at(h.steps)[step].child)
                child = new_step(context, number, head, step, gaps)
                if first != NOBODY:  # what follows most often stays in front
                    steps_at(h.steps)[child].sibling = steps_at(h.steps)[first].sibling
                    steps_at(h.steps)[first].sibling = child
                    steps_at(h.steps)[step].child = first
                bar(context, child, number)
        elif fits(h, node, head, latest):
            return new_step(context, number, head, step, gaps)
    if child == NOBODY or steps_at(h.steps)[child].kind == BARRED or fits(h, node, head, latest):
        return child
    return NOBODY


@external("int64(int64, int64, int64)")
def look_back(context, step, head):  # type: ignore[no-untyped-def]
    """Sees to it that bundles which end with a step have one result, as far as this is possible.

    What nothing else in the bundle needs, and does not lie at its end, should wait for others of its kind (an output
    layer, and not the next step of a recurrence).  Returns whether bundles will be cut in front of a step of this path
    from now on: 0 or 1.
    """
    h = headers(context)[0]
    nodes, steps, position, at, behind = nodes_at(h.nodes), steps_at(h.steps), 0, np_int(step), np_int(NOBODY)
    path = steps[step]
    while (path.sinks >> position) & 1 == 0:
        position += 1
    while steps[at].position > position:
        if steps[at].kind == APART:
            behind = at
        at = np_int(steps[at].parent)
    while at != NOBODY and (steps[at].kind != APART or steps[at].parent == NOBODY):
        at = np_int(steps[at].parent)
    if at == NOBODY:
        at = behind
    if at == NOBODY:
        return 0
    left, number = np_int(steps[at].position), head
    while left > 0:
        number += 1
        left -= not is_leaf(h, nodes[number])
    bar(context, at, number)
    return 1


@inline
def end_bundle(context, h, head, last, step, depth):  # type: ignore[no-untyped-def]
    """Enters a bundle, whose nodes know its number already."""
    own, path = bundles_at(h.bundles)[h.bundle_count], steps_at(h.steps)[step]
    own.node = head
    own.args = nodes_at(h.nodes)[head].args
    own.step = step
    own.depth = depth + steps_at(h.steps)[path.root].is_product
    own.gaps = last - head - path.position
    own.stamp = 0
    own.placed = head < h.planned  # formed anew
    if path.lists == NOBODY:
        describe_path(context, step)
    h.bundle_count += 1


@external("int64(int64, int64, int64, int64, int64)")
def follow(context, head, step, highest, latest):  # type: ignore[no-untyped-def]
    """Adds nodes to a bundle without gaps as long as they are what is known to follow; returns its last step."""
    h = headers(context)[0]
    nodes, args, steps, patterns = nodes_at(h.nodes), int32s(h.args), steps_at(h.steps), int32s(h.patterns)
    bundle_of, bundle, first = int32s(h.bundle_of), h.bundle_count + 0, nodes[head].args
    number = head + steps[step].position + 1
    following = np_int(steps[step].child)
    while following != NOBODY and number <= highest:
        node, known = nodes[number], steps[following]
        is_same = node.signature == known.signature and node.flags == known.flags and known.kind != BARRED
        is_ready = known.kind == INNER
        edge, at, stop = np_int(node.args), np_int(known.pattern), node.args + node.arity
        while is_same and edge < stop:
            source, pattern = args[edge], patterns[at]
            if pattern >= 0:
                is_same = source == head + pattern
            elif pattern <= SAME:
                is_same = source == args[first + SAME - pattern]
                is_ready = True
            elif pattern == OUTER:
                is_same = source < head and not is_parameter(h, source) and is_early(h, source, latest)
                is_ready = is_ready or owner_of(h, source) == latest
            else:
                is_same = source == FIXED - pattern
            edge += 1
            at += 1
        if not is_same or not is_ready:
            break
        bundle_of[number] = bundle
        number += 1
        step = following
        following = np_int(known.child)
    return step


@external("void(int64, int64)")
def form_bundles(context, highest):  # type: ignore[no-untyped-def]
    """Forms bundles of the nodes up to number `highest` that are in none."""
    h = headers(context)[0]
    nodes, args, steps, bundle_of = nodes_at(h.nodes), int32s(h.args), steps_at(h.steps), int32s(h.bundle_of)
    head, last, step, depth, latest, begins = np_int(NOBODY), 0, np_int(NOBODY), 0, 0, np_int(NOBODY)
    number = h.formed + 0
    while number <= highest:
        node = nodes[number]
        if node.signature == 0 or is_leaf(h, node):  # dropped, or there from the start
            bundle_of[number] = NOBODY
            if node.signature == 0 and head != NOBODY:
                end_bundle(context, h, head, last, step, depth)
                head = np_int(NOBODY)
            number += 1
            continue
        begins = np_int(NOBODY)
        if head != NOBODY:
            gaps = number - head - steps[step].position - 1
            following = next_step(context, number, head, step, latest, gaps)
            if following == NOBODY or steps[following].kind == BARRED:
                end_bundle(context, h, head, last, step, depth)
                sinks = steps[step].sinks
                if sinks & (sinks - 1) and look_back(context, step, head):
                    h.bundle_count -= 1
                    number, head = np_int(head), np_int(NOBODY)
                    continue
                head = np_int(NOBODY)
                if following != NOBODY:
                    begins = np_int(steps[following].root)
            else:
                step = following
        if head == NOBODY:
            head, depth, latest = np_int(number), 0, np_int(NOBODY)
            for edge in range(node.args, node.args + node.arity):
                if not is_parameter(h, args[edge]) and depth_of(h, args[edge]) >= depth:
                    depth = depth_of(h, args[edge])
                    latest = owner_of(h, args[edge])
            step = begins if begins != NOBODY else root_step(context, number)
        last = np_int(number)
        bundle_of[number] = h.bundle_count
        if last - head == steps[step].position:
            step = follow(context, head, step, highest, latest)
            last = head + steps[step].position
        number = last + 1
    if head != NOBODY:
        end_bundle(context, h, head, last, step, depth)
    h.formed = max(h.formed, highest + 1)


@helper
def renew_operands(h, head, last):  # type: ignore[no-untyped-def]
    """Lets the nodes of a bundle need parameters again instead of shadows, which may be older."""
    nodes, args = nodes_at(h.nodes), int32s(h.args)
    for number in range(head, last + 1):
        for edge in range(nodes[number].args, nodes[number].args + nodes[number].arity):
            if args[edge] >= h.node_capacity:
                args[edge] = args[nodes[args[edge]].args]


@external("void(int64, int64)")
def part_bundle(context, bundle):  # type: ignore[no-untyped-def]
    """Makes a bundle of each node of a bundle."""
    h = headers(context)[0]
    nodes, own = nodes_at(h.nodes), bundles_at(h.bundles)[bundle]
    head, last = np_int(own.node), last_of(h, own)
    depth = own.depth - steps_at(h.steps)[steps_at(h.steps)[own.step].root].is_product
    renew_operands(h, head, last)
    for number in range(head, last + 1):
        if nodes[number].signature != 0 and not is_leaf(h, nodes[number]):
            int32s(h.bundle_of)[number] = h.bundle_count
            end_bundle(context, h, number, number, root_step(context, number), depth)


@entry("int64(int64, int64)")
def cut_at(context, number):  # type: ignore[no-untyped-def]
    """Lets no bundle have nodes both in front of a node and from it on, before these are changed."""
    h = headers(context)[0]
    bundle_of, last = int32s(h.bundle_of), min(number, h.formed) - 1
    while last >= 0 and bundle_of[last] == NOBODY:
        last -= 1
    if last >= 0 and last_of(h, bundles_at(h.bundles)[bundle_of[last]]) >= number:
        part_bundle(context, bundle_of[last])
    return 0
