"""Equal bundles are computed once: equal rows of a lookup table, and what is made from these alone in the same way.

Sentences and trees in one graph repeat their words; so the first layers of a network often compute the same numbers
again.  Of equal bundles the first serves the consumers of all: their operands in `args` name its nodes from then on,
and the others have no values unless these are asked for.  A gradient reaches the one bundle from all consumers, so that
sums are as before but for their order.  `twins` holds (place in `args`, node that was there), by which it is undone.

Equal lookups are found by their hash.  What is made from equal bundles is compared with the consumers that the first of
them had from the beginning: the same code makes the same few.

Noise is never equal: each such node has a random stream of its own among its data.
"""

from __future__ import annotations

import numpy as np

from dynjit.arena import bundles_at, headers, int32s, int64s, mixed, nodes_at, steps_at
from dynjit.calls import np_int
from dynjit.jit import external, helper, inline
from dynjit.steps import node_at, position_of
from dynjit.views import view_of

LEAST = 256  # pending nodes; in smaller graphs little is equal
WORTH = 8  # one lookup of so many must be another's twin, or what depends on them is not searched
HAS_TWIN, TARGET, CANDIDATE = 1, 2, 4  # bits of a bundle's `equal`; of the last: an operand was in another one's twin
MOST_CONSUMERS = 16  # of a bundle, with which what is made of its twins is compared
KNOWN = np.dtype([("code", "i4"), ("bundle", "i4")])  # what others may equal: bits of its hash, its number
BUCKET, MOST_KNOWN = 8, 1 << 14  # known bundles that are compared, a cache line of them; all of them
NEVER_READY = 1 << 30
known_at = view_of(KNOWN)


@inline
def code_of(h, bundle):  # type: ignore[no-untyped-def]
    """Hash of all that the values of a bundle which needs no other depend on."""
    data, first, code = int64s(h.data), nodes_at(h.nodes)[bundle.node].data, mixed(bundle.step, 0)
    for i in range(steps_at(h.steps)[bundle.step].numbers):
        code = mixed(code, data[first + i])
    return code


@inline
def equal(h, a, b):  # type: ignore[no-untyped-def]
    """Whether two bundles have the same values and pass gradients on alike."""
    if a.step != b.step:
        return False
    args, data, patterns, path = int32s(h.args), int64s(h.data), int32s(h.patterns), steps_at(h.steps)[a.step]
    first, other = nodes_at(h.nodes)[a.node], nodes_at(h.nodes)[b.node]
    for i in range(path.lists, path.lists + path.outer_count):
        if args[first.args + patterns[i]] != args[other.args + patterns[i]]:
            return False
    i = 0
    while i < path.numbers and data[first.data + i] == data[other.data + i]:
        i += 1
    return i == path.numbers


@helper
def clear_known(h):  # type: ignore[no-untyped-def]
    """Empties the table of known bundles; returns its size, a power of two."""
    known, size = known_at(h.slots), BUCKET
    while 2 * size <= min(2 * h.listed, MOST_KNOWN):
        size *= 2
    for i in range(size):
        known[i].bundle = -1
    return size


@helper
def first_equal(h, number, size):  # type: ignore[no-untyped-def]
    """The first bundle equal to this one, which may be itself; it is known from then on if it is.

    The table has `size` places.  Where a bucket is full, a bundle is forgotten: then it is computed once more.
    """
    known, bundles = known_at(h.slots), bundles_at(h.bundles)
    code = code_of(h, bundles[number])
    bucket, mark = (code >> 32) & (size - BUCKET), code & 0x7FFFFFFF
    for i in range(bucket, bucket + BUCKET):
        other = np_int(known[i].bundle)
        if other >= 0 and known[i].code == mark and equal(h, bundles[other], bundles[number]):
            return other
        if other < 0 or i == bucket + BUCKET - 1:
            known[i].code = mark
            known[i].bundle = number
            break
    return number


@helper
def counterpart(h, number, own, first):  # type: ignore[no-untyped-def]
    """The node of bundle `first` that is equal to a node of the equal bundle `own`."""
    return node_at(h, first.node, position_of(h, own.node, number, own.gaps), first.gaps)


@helper
def rename(h, edge, source, target):  # type: ignore[no-untyped-def]
    """Lets an operand be another node than it is recorded with."""
    args, twins = int32s(h.args), int32s(h.twins)
    args[edge] = target
    twins[2 * h.merged] = edge
    twins[2 * h.merged + 1] = source
    h.merged += 1


@helper
def merge(h, known, own):  # type: ignore[no-untyped-def]
    """Lets bundle `known` serve the consumers of an equal one, which may have twins in turn."""
    args, bundles, edges, patterns = int32s(h.args), bundles_at(h.bundles), int32s(h.consumers), int32s(h.patterns)
    if known.equal & (HAS_TWIN | TARGET) == 0:
        known.equal |= HAS_TWIN
        known.link = known.start  # its own consumers, in front of which come those of others
    last, edge = np_int(-1), np_int(own.start)
    while edge >= 0:
        consumer, source = bundles[edges[2 * edge]], np_int(args[edge])
        path, target = steps_at(h.steps)[consumer.step], counterpart(h, source, own, known)
        rename(h, edge, source, target)
        pairs = path.lists + path.outer_count + path.bias_count
        for pair in range(pairs, pairs + path.same_count, 2):
            if consumer.args + patterns[pair + 1] == edge:
                rename(h, consumer.args + patterns[pair], source, target)
        consumer.equal |= CANDIDATE
        last = edge
        edge = np_int(edges[2 * edge + 1])
    if last >= 0:
        edges[2 * last + 1] = known.start
        known.start = own.start
    known.twice |= own.twice | (known.wanted & own.wanted)
    known.wanted |= own.wanted
    known.height = max(known.height, own.height)
    own.stamp = 0
    own.unmet = NEVER_READY
    h.pending -= steps_at(h.steps)[own.step].position + 1
    h.overwritten += 1


@helper
def twin_of(h, number):  # type: ignore[no-untyped-def]
    """A bundle in front of this one that is made from the same operands in the same way, or the bundle itself."""
    bundles, args, patterns, bundle_of = bundles_at(h.bundles), int32s(h.args), int32s(h.patterns), int32s(h.bundle_of)
    own, edges, edge, left = bundles[number], int32s(h.consumers), np_int(-1), MOST_CONSUMERS
    path, first = steps_at(h.steps)[own.step], nodes_at(h.nodes)[own.node].args
    for i in range(path.lists, path.lists + path.outer_count):
        needed = np_int(bundle_of[args[first + patterns[i]]])
        if needed >= 0 and bundles[needed].stamp == h.generation and bundles[needed].equal & HAS_TWIN:
            edge = np_int(bundles[needed].link)
    while edge >= 0 and left > 0:
        other = np_int(edges[2 * edge])
        if bundles[other].node < own.node and bundles[other].stamp == h.generation and equal(h, bundles[other], own):
            return other
        edge = np_int(edges[2 * edge + 1])
        left -= 1
    return number


@external("void(int64)")
def merge_equals(context):  # type: ignore[no-untyped-def]
    """Merges the stamped bundles as far as it is worth it."""
    h = headers(context)[0]
    if h.pending < LEAST or h.overwriting == 0:
        return
    bundles, steps, listed = bundles_at(h.bundles), steps_at(h.steps), int32s(h.list)
    size, found, total = clear_known(h), 0, 0
    for i in range(h.listed):
        own = bundles[listed[i]]
        if own.unmet == 0 and own.stamp == h.generation and steps[own.step].outer_count == 0:
            total += 1
            first = first_equal(h, np_int(listed[i]), size)
            if first != listed[i] and own.equal & TARGET == 0:
                merge(h, bundles[first], own)
                found += 1
    if found * WORTH < total or found == 0:
        return
    for i in range(h.listed):
        own = bundles[listed[i]]
        if own.equal & CANDIDATE and own.stamp == h.generation and own.equal & TARGET == 0:
            first = twin_of(h, np_int(listed[i]))
            if first != listed[i]:
                merge(h, bundles[first], own)
