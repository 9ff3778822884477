"""Bundles: nodes that are recorded one behind the other and are ready together; planning need not tell them apart.

The code of a network's cell records W x, b + that, its logistic: whenever W x is ready, so is all that needs it alone.
Such nodes form a *bundle*, of which one thing is asked: which other bundles it waits for.  The nodes of a graph, taken
in the order of recording, are cut into bundles; a node follows in the bundle of the node before if it
- depends on the bundle, and else on what is there when the bundle is ready: what the bundle waits for, what this waits
  for, or what needs no product; but no product does, for products gain most from waiting until all of their kind are
  ready; or
- does not depend on the bundle, but on the latest that the bundle waits for.

Leaves (parameters, inputs) have values from the start, and may lie between the nodes of a bundle.  What is known to
follow, from bundles before, need not be found out again: see steps.py.
"""

from __future__ import annotations

from dynjit.arena import bundles_at, headers, int32s, nodes_at, operators_at, signatures_at, steps_at
from dynjit.calls import np_int
from dynjit.jit import entry, external, helper, inline
from dynjit.steps import (
    APART,
    BARRED,
    FIXED,
    LONGEST,
    NOBODY,
    OUTER,
    SAME,
    describe_path,
    is_inner,
    is_leaf,
    is_like,
    is_parameter,
    new_step,
    restart,
    root_step,
)

MOST_BRANCHES = 8  # steps that follow one step
MOST_OUTERS = 2  # operands from other bundles that a node may need which follows in one
MOST_OPERANDS = 8  # of a node about which it is noted that it does not follow


@helper
def last_of(h, bundle):  # type: ignore[no-untyped-def]
    """The last node of a bundle."""
    return bundle.node + steps_at(h.steps)[bundle.step].position + bundle.gaps


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


@external("int64(int64, int64, int64, int64, int64)")
def next_step(context, number, head, step, gaps):  # type: ignore[no-untyped-def]
    """What is known, or found out now, of a node behind a bundle whose last step is `step`; NOBODY if nothing is."""
    h = headers(context)[0]
    node, steps, branches = nodes_at(h.nodes)[number], steps_at(h.steps), 0
    child = np_int(steps[step].child)
    while child != NOBODY and not is_like(h, node, steps[child], head, gaps):
        branches += 1
        child = np_int(steps[child].sibling)
    if child == NOBODY and branches < MOST_BRANCHES:
        follows = may_follow(h, node, head, step, gaps)
        if follows or node.arity <= MOST_OPERANDS:
            child = new_step(context, number, head, step, gaps)
            if not follows:
                steps[child].kind = BARRED
    return child


@external("int64(int64, int64)")
def look_back(context, step):  # type: ignore[no-untyped-def]
    """Sees to it that bundles which end with a step have one result, as far as this is possible.

    What nothing else in the bundle needs, and does not lie at its end, should wait for others of its kind (an output
    layer, and not the next step of a recurrence).  Returns whether bundles will be cut in front of a step of this path
    from now on: 0 or 1.
    """
    steps, position, at, behind = steps_at(headers(context)[0].steps), 0, np_int(step), np_int(NOBODY)
    sinks = steps[step].sinks
    if sinks & (sinks - 1) == 0:
        return 0
    while (sinks >> position) & 1 == 0:
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
    steps[at].kind = BARRED
    return 1


@inline
def end_bundle(h, head, last, step, depth):  # type: ignore[no-untyped-def]
    """Enters a bundle, whose nodes know its number already."""
    own, path = bundles_at(h.bundles)[h.bundle_count], steps_at(h.steps)[step]
    own.node = head
    own.args = nodes_at(h.nodes)[head].args
    own.step = step
    own.depth = depth + steps_at(h.steps)[path.root].is_product
    own.gaps = last - head - path.position
    own.stamp = 0
    own.placed = head < h.planned  # formed anew
    h.bundle_count += 1


@external("int64(int64, int64, int64, int64, int64)")
def follow(context, head, step, highest, latest):  # type: ignore[no-untyped-def]
    """Adds nodes to a bundle without gaps as long as they are what is known to follow.

    Returns its last step, or the known step of the node behind if this does not follow.
    """
    h = headers(context)[0]
    nodes, args, steps, patterns = nodes_at(h.nodes), int32s(h.args), steps_at(h.steps), int32s(h.patterns)
    bundle_of, bundle, first = int32s(h.bundle_of), h.bundle_count + 0, nodes[head].args
    number = head + 1
    following = np_int(steps[step].child)
    while following != NOBODY and number <= highest:
        node, known = nodes[number], steps[following]
        is_same, is_ready, is_late = node.signature == known.signature and node.flags == known.flags, False, False
        edge, at, stop = np_int(node.args), np_int(known.pattern), node.args + node.arity
        while is_same and edge < stop:
            source, pattern = args[edge], patterns[at]
            if pattern >= 0:
                is_same = source == head + pattern
                is_ready = True
            elif pattern <= SAME:
                is_same = source == args[first + SAME - pattern]
                is_ready = True
            elif pattern == OUTER:
                is_same = source < head and not is_parameter(h, source)
                is_late = is_late or (known.kind != BARRED and not is_early(h, source, latest))
                is_ready = is_ready or owner_of(h, source) == latest
            else:
                is_same = source == FIXED - pattern
            edge += 1
            at += 1
        if not is_same:
            following = np_int(known.sibling)
            continue
        step = following
        if known.kind == BARRED or is_late or not is_ready:
            break
        bundle_of[number] = bundle
        number += 1
        following = np_int(known.child)
    h.formed = number
    return step


@external("void(int64, int64)")
def form_bundles(context, highest):  # type: ignore[no-untyped-def]
    """Forms bundles of the nodes up to number `highest` that are in none."""
    h = headers(context)[0]
    nodes, args, steps, bundle_of = nodes_at(h.nodes), int32s(h.args), steps_at(h.steps), int32s(h.bundle_of)
    number, root = h.formed + 0, np_int(NOBODY)
    while number <= highest:
        if root == NOBODY:
            if nodes[number].signature == 0 or is_leaf(h, nodes[number]):  # dropped, or there from the start
                bundle_of[number] = NOBODY
                number += 1
                continue
            root = root_step(context, number)
        head, depth, latest = number + 0, 0, np_int(NOBODY)
        for edge in range(nodes[head].args, nodes[head].args + nodes[head].arity):
            if not is_parameter(h, args[edge]) and depth_of(h, args[edge]) >= depth:
                depth = depth_of(h, args[edge])
                latest = owner_of(h, args[edge])
        bundle_of[head] = h.bundle_count
        step, known = follow(context, head, root, highest, latest), np_int(NOBODY)
        number = h.formed + 0
        last = number - 1
        if head + steps[step].position == number:
            known = step
            step = np_int(steps[step].parent)
        while known == NOBODY and number <= highest and nodes[number].signature != 0:
            if is_leaf(h, nodes[number]):
                bundle_of[number] = NOBODY
                number += 1
                continue
            known = next_step(context, number, head, step, number - head - steps[step].position - 1)
            if known == NOBODY or steps[known].kind == BARRED or not fits(h, nodes[number], head, latest):
                break
            step = known
            known = np_int(NOBODY)
            bundle_of[number] = h.bundle_count
            last = number
            number += 1
        if steps[step].lists == NOBODY:
            describe_path(context, step, head)
        if number <= highest and nodes[number].signature != 0 and look_back(context, step):
            number = head
            continue
        end_bundle(h, head, last, step, depth)
        root = np_int(NOBODY) if known == NOBODY else restart(context, known, number)
    h.formed = number


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
            step = root_step(context, number)
            if steps_at(h.steps)[step].lists == NOBODY:
                describe_path(context, step, number)
            end_bundle(h, number, number, step, depth)


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
