"""Equal nodes are computed once: equal rows of a lookup table, and what is made from these alone in the same way.

Sentences and trees in one graph repeat their words; so the first layers of a network often compute the same numbers
again.  Of equal nodes the first serves the consumers of all: their operands in `args` name it from then on, and the
others have no value unless it is asked for.  A gradient reaches the one node from all consumers, so that sums are as
before but for their order.  `twins` holds (place in `args`, node that was there), by which it is undone.

Equal lookups are found by their hash.  What is made from equal nodes is compared with the consumers that the first of
them had from the beginning: the same code makes the same few.

Noise is never equal: each such node has a random stream of its own among its data.
"""

from __future__ import annotations

import numpy as np

from dynjit.arena import headers, int32s, int64s, mixed, nodes_at, operators_at, signatures_at, works_at
from dynjit.calls import np_int
from dynjit.jit import external, helper, inline
from dynjit.views import view_of

LEAST = 256  # pending nodes; in smaller graphs little is equal
WORTH = 8  # one lookup of so many must be another's twin, or what depends on them is not searched
HAS_TWIN, TARGET, CANDIDATE = 1, 2, 4  # bits of a node's `equal`; of the last: an operand was another node's twin
MOST_CONSUMERS = 16  # of a node, with which what is made of its twins is compared
KNOWN = np.dtype([("code", "i4"), ("node", "i4")])  # a node that others may equal: bits of its hash, its number (not 0)
BUCKET, MOST_KNOWN = 8, 1 << 14  # known nodes that are compared, a cache line of them; all of them
NEVER_READY = 1 << 30
known_at = view_of(KNOWN)


@helper
def is_parameter(h, number):  # type: ignore[no-untyped-def]
    """Whether a node is a parameter or a lookup table (they lie in front of all graphs), or the shadow of one."""
    value = nodes_at(h.nodes)[number].value
    return number >= h.node_capacity or (value >= 0 and value < h.value_base)


@helper
def data_size(h, node):  # type: ignore[no-untyped-def]
    """How many floats and indices a node has."""
    q = signatures_at(h.signatures)[node.signature]
    return operators_at(h.operators)[q.op].floats + q.ids


@inline
def code_of(h, node):  # type: ignore[no-untyped-def]
    """Hash of all that a node's value depends on."""
    args, data = int32s(h.args), int64s(h.data)
    code = mixed(node.signature, node.flags)
    for k in range(node.arity):
        code = mixed(code, args[node.args + k])
    for i in range(data_size(h, node)):
        code = mixed(code, data[node.data + i])
    return code


@inline
def equal(h, a, b):  # type: ignore[no-untyped-def]
    """Whether two nodes have the same value and pass gradients on alike."""
    if a.signature != b.signature or a.flags != b.flags:
        return False
    args, data, k, i = int32s(h.args), int64s(h.data), 0, 0
    while k < a.arity and args[a.args + k] == args[b.args + k]:
        k += 1
    count = data_size(h, a)
    while i < count and data[a.data + i] == data[b.data + i]:
        i += 1
    return k == a.arity and i == count


@helper
def clear_known(h):  # type: ignore[no-untyped-def]
    """Empties the table of known nodes; returns its size, a power of two."""
    known, size = known_at(h.slots), BUCKET
    while 2 * size <= min(2 * h.pending, MOST_KNOWN):
        size *= 2
    for i in range(size):
        known[i].code = 0
        known[i].node = 0
    return size


@helper
def first_equal(h, number, size):  # type: ignore[no-untyped-def]
    """The first node equal to this one, which may be itself; it is known from then on if it is.

    The table has `size` places.  Where a bucket is full, a node is forgotten: then it is computed once more.
    """
    nodes, known = nodes_at(h.nodes), known_at(h.slots)
    code = code_of(h, nodes[number])
    bucket, mark = (code >> 32) & (size - BUCKET), code & 0x7FFFFFFF
    for i in range(bucket, bucket + BUCKET):
        other = known[i].node + 0
        if other > 0 and known[i].code == mark and equal(h, nodes[other], nodes[number]):
            return other
        if other == 0 or i == bucket + BUCKET - 1:
            known[i].code = mark
            known[i].node = number
            break
    return number


@helper
def merge(h, first, number):  # type: ignore[no-untyped-def]
    """Lets a node serve the consumers of an equal one, which may have twins in turn."""
    nodes, args, work = nodes_at(h.nodes), int32s(h.args), works_at(h.work)
    edges, twins = int32s(h.consumers), int32s(h.twins)
    own, known, node = work[number], work[first], nodes[number]
    if known.equal & (HAS_TWIN | TARGET) == 0:
        known.equal |= HAS_TWIN
        known.key = known.start  # its own consumers, in front of which come those of others
    last, edge = -1, own.start
    while edge >= 0:
        args[edge] = first
        twins[2 * h.merged] = edge
        twins[2 * h.merged + 1] = number
        h.merged += 1
        work[edges[2 * edge]].equal |= CANDIDATE
        last = edge
        edge = edges[2 * edge + 1]
    if last >= 0:
        edges[2 * last + 1] = known.start
        known.start = own.start
    known.uses += own.uses
    known.height = max(known.height, own.height)
    for edge in range(node.args, node.args + node.arity):
        if work[args[edge]].stamp == h.generation:
            work[args[edge]].uses -= 1
    own.stamp = 0
    own.unmet = NEVER_READY
    h.pending -= 1
    h.overwritten += 1


@helper
def twin_of(h, number):  # type: ignore[no-untyped-def]
    """A node in front of this one that is made from the same operands in the same way, or the node itself."""
    nodes, args, work, edges = nodes_at(h.nodes), int32s(h.args), works_at(h.work), int32s(h.consumers)
    node, edge, left = nodes[number], -1, MOST_CONSUMERS
    for k in range(node.arity):
        source = work[args[node.args + k]]
        if source.stamp == h.generation and source.equal & HAS_TWIN:
            edge = np_int(source.key)
    while edge >= 0 and left > 0:
        other = edges[2 * edge]
        if other < number and work[other].stamp == h.generation and equal(h, nodes[other], node):
            return other
        edge = edges[2 * edge + 1]
        left -= 1
    return number


@helper
def is_made_of_parameters(h, node):  # type: ignore[no-untyped-def]
    for k in range(node.arity):
        if not is_parameter(h, int32s(h.args)[node.args + k]):
            return False
    return node.arity > 0


@external("void(int64, int64)")
def merge_equals(context, lowest):  # type: ignore[no-untyped-def]
    """Merges the stamped nodes, of which number `lowest` is the first, as far as it is worth it."""
    h = headers(context)[0]
    if h.pending < LEAST or h.overwriting == 0:
        return
    nodes, work = nodes_at(h.nodes), works_at(h.work)
    size, found, total, initials = clear_known(h), 0, 0, int32s(h.initials)
    for i in range(h.initial_count):
        number = initials[i]
        if work[number].stamp == h.generation and is_made_of_parameters(h, nodes[number]):
            total += 1
            first = first_equal(h, number, size)
            if first != number and work[number].equal & TARGET == 0:
                merge(h, first, number)
                found += 1
    if found * WORTH < total or found == 0:
        return
    for number in range(lowest, h.highest + 1):
        own = work[number]
        if own.stamp == h.generation and own.equal & CANDIDATE and own.equal & TARGET == 0:
            first = twin_of(h, number)
            if first != number:
                merge(h, first, number)
