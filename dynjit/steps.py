"""Steps: what bundles look like; the same code records the same bundles again and again.

A node of a bundle is a *step*: its signature, its flags, and where its operands come from.  Steps are a tree, for many
bundles begin alike; a bundle is a path from the first step of some to its own last one.
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
from dynjit.jit import external, helper, inline

LONGEST = 60  # nodes of a bundle: a mask has a bit for each
# where an operand comes from that is not of the bundle: from another one; the same node for all bundles (FIXED - its
# number); the same node as an operand before (SAME - its place among the bundle's operands)
OUTER, FIXED, SAME = -1, -2, -(1 << 30)
FAR = 64  # so many operands back, the same one is looked for
NOBODY = -1
MOST_HOMES, MOST_SOURCES = 16, 4  # homes of a signature, and operands of a bundle, that are looked at for a home
VARIOUS = -2  # what begins a bundle instead is not the same for all nodes with a step
INNER, APART, BARRED = 0, 1, 2  # kinds of steps: with operands in the bundle, without, and such as no bundle takes


# ---- nodes of a bundle -----------------------------------------------------------------------------------------------


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
def node_at(h, head, position, gaps):  # type: ignore[no-untyped-def]
    """The node at a position of the bundle that begins with node `head`; `gaps` as above."""
    number = head + position
    if gaps > 0:
        number = head + 0
        while position > 0:
            number += 1
            position -= not is_leaf(h, nodes_at(h.nodes)[number])
    return number


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
    """A step that says what a node is; parent: the step before, or NOBODY."""
    h = headers(context)[0]
    steps, patterns, node = steps_at(h.steps), int32s(h.patterns), nodes_at(h.nodes)[number]
    shared = operators_at(h.operators)[signatures_at(h.signatures)[node.signature].op].shared
    index = h.step_count
    step, outers, is_inner_shared = steps[index], 0, False
    for k in range(node.arity):
        pattern = pattern_of(h, node, k, head, gaps, shared)
        patterns[h.pattern_count + k] = pattern
        outers += pattern == OUTER or pattern <= SAME
        is_inner_shared = is_inner_shared or (pattern >= 0 and is_shared(shared, k, node.arity))
    step.signature = node.signature
    step.flags = node.flags
    step.arity = node.arity
    step.pattern = h.pattern_count
    step.outers = outers
    # operands are weights and what they are applied to: such nodes gain most from each other
    step.is_product = shared != 0 and has_stacked(shared, node.arity)
    step.parent = parent
    step.root = index
    step.home = NOBODY
    step.restart = VARIOUS if is_inner_shared or signatures_at(h.signatures)[node.signature].alone else NOBODY
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
        first = np_int(steps[parent].child)
        if first == NOBODY:
            steps[parent].child = index
        else:  # which follows most often
            step.sibling = steps[first].sibling
            steps[first].sibling = index
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


@external("int64(int64, int64, int64)")
def restart(context, step, number):  # type: ignore[no-untyped-def]
    """The step of node `number` as one that begins a bundle; `step`: what it would be in the bundle before."""
    own = steps_at(headers(context)[0].steps)[step]
    if own.restart >= 0:
        return own.restart + 0
    root = root_step(context, number)
    if own.restart != VARIOUS:
        own.restart = root
    return root


@inline
def is_constant(h, pattern):  # type: ignore[no-untyped-def]
    """Whether an operand with a pattern is the same parameter for all bundles."""
    return pattern <= FIXED and pattern > SAME and is_parameter(h, FIXED - pattern)


@helper
def has_same_weights(h, a, b):  # type: ignore[no-untyped-def]
    """Whether two steps of one signature have the same shared operands."""
    shared, patterns = operators_at(h.operators)[signatures_at(h.signatures)[a.signature].op].shared, int32s(h.patterns)
    for k in range(a.arity):
        if is_shared(shared, k, a.arity) and patterns[a.pattern + k] != patterns[b.pattern + k]:
            return False
    return True


@helper
def last_parameter(h, step):  # type: ignore[no-untyped-def]
    """The last parameter that a bundle with a last step needs, as a pattern; 0 if it needs none."""
    steps, patterns, at = steps_at(h.steps), int32s(h.patterns), np_int(step)
    while at != NOBODY:
        for k in range(steps[at].arity - 1, -1, -1):
            pattern = np_int(patterns[steps[at].pattern + k])
            if is_constant(h, pattern):
                return pattern
        at = np_int(steps[at].parent)
    return np_int(0)


@helper
def goes_on_from(h, step, path, head):  # type: ignore[no-untyped-def]
    """Whether a bundle (with a first node and a last step) gets from another one what is in front of a step."""
    steps, args, patterns, bundle_of = steps_at(h.steps), int32s(h.args), int32s(h.patterns), int32s(h.bundle_of)
    first, lists = np_int(nodes_at(h.nodes)[head].args), np_int(steps[path].lists)
    for i in range(lists, lists + min(steps[path].outer_count, MOST_SOURCES)):
        source = bundle_of[args[first + patterns[i]]]
        at = np_int(steps[step].parent)
        while at != NOBODY and source >= 0:
            if bundles_at(h.bundles)[source].step == at:
                return True
            at = np_int(steps[at].parent)
    return False


@helper
def find_home(h, step, path, mark, head):  # type: ignore[no-untyped-def]
    """The step among whose results those of a step lie, which may be itself; see `find_homes`."""
    steps, homes = steps_at(h.steps), int32s(h.homes)
    own, last, count = steps[step], np_int(NOBODY), 0
    bucket = own.signature & (ROOTS - 1)
    home = np_int(homes[bucket])
    if home >= h.step_count or steps[home].signature != own.signature or steps[home].home != home:
        home = np_int(NOBODY)  # of an earlier graph, or another signature's
    while home != NOBODY and count < MOST_HOMES:
        is_free = steps[home].user != path and has_same_weights(h, own, steps[home])
        if is_free and ((steps[home].mark == mark and mark != 0) or goes_on_from(h, home, path, head)):
            return home
        last = home
        home = np_int(steps[home].next_home)
        count += 1
    own.mark = mark
    own.next_home = home
    if last == NOBODY:
        homes[bucket] = step
    else:
        steps[last].next_home = step
    return np_int(step)


@external("void(int64, int64, int64)")
def find_homes(context, path, head):  # type: ignore[no-untyped-def]
    """Says where the results of a bundle's steps lie; `path`: its last step; `head`: its first node.

    The first step of a recurrent network has other operands than the next, and yet the results of both should lie end
    to end.  So a step's results lie among those of an earlier one of the same signature, in a bundle with the same last
    parameter, or one that makes by itself what this bundle gets from another; from the last to the first, for what
    others need comes last.
    """
    h = headers(context)[0]
    steps, mark, at = steps_at(h.steps), last_parameter(h, path), np_int(path)
    while at != NOBODY:
        if steps[at].home != NOBODY:
            steps[steps[at].home].user = path
        at = np_int(steps[at].parent)
    at = np_int(path)
    while at != NOBODY:
        if steps[at].home == NOBODY:
            steps[at].home = find_home(h, at, path, mark, head)
            steps[steps[at].home].user = path
        at = np_int(steps[at].parent)


@external("void(int64, int64, int64)")
def describe_path(context, step, head):  # type: ignore[no-untyped-def]
    """Tells the last step of a bundle what all of its steps come to; `head`: the bundle's first node.

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
                is_outer = pattern < 0 and pattern > SAME and not is_constant(h, pattern)
                is_bias = is_constant(h, pattern) and not is_shared(shared, k, own.arity)
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
    find_homes(context, step, head)
