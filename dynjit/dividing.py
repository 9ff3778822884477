"""Whether, and how, a graph is divided into parts.

A graph has as many parts as there are threads; one that is too large for the caches has more, with one thread, too.
"""

from __future__ import annotations

from dynjit.arena import headers, int32s
from dynjit.cuts import mark_by_parts
from dynjit.jit import external, helper
from dynjit.marking import mark, mark_divisible, want_targets
from dynjit.parts import MANY, add_shadow, start_parts
from dynjit.pieces import divide_by_pieces
from dynjit.threads import MOST, thread_count


@helper
def may_be_divided(h):  # type: ignore[no-untyped-def]
    """Whether it is worth finding out: there are several threads or many nodes, and no parts yet."""
    is_free = h.parts == 0 and h.overwriting != 0 and h.autobatch != 0 and 4 * h.highest < h.node_capacity
    return is_free and (thread_count() > 1 or h.highest - h.planned > MANY)


@external("int64(int64, int64, int64)")
def divide(context, targets, count):  # type: ignore[no-untyped-def]
    """Stamps the bundles that the targets need and that have no value yet, and divides them.

    Returns how many parts that makes, at least 1; each has a stamp of its own.  The others have the graph's.
    """
    h = headers(context)[0]
    want_targets(context, targets, count)
    if h.waiting == 0 or not may_be_divided(h):
        mark(context, 0)
        return 1
    parts = mark_by_parts(context) if count == 1 else 0
    h.is_cut = parts > 1
    if parts == 0:
        h.generation += MOST  # the stamps so far are used up
        want_targets(context, targets, count)
        mark_divisible(context)
    if not h.is_cut:
        parts = divide_by_pieces(context)
    if parts == 1:
        return 1
    shadowed, h.shadows = h.shadows + 0, 0
    for i in range((parts - 1) * shadowed):
        add_shadow(context, int32s(h.heap)[i % shadowed])
    h.parts = parts
    h.part_time = h.time
    start_parts(context, parts)
    return parts
