"""A program for CUDA in the making (cudakernels.py): records of calls, products for a library, work items by level.

Where there is a library of products (cublas.py), large ones are no work items: they are listed with their level, and
the library makes them when that level has been run.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dynjit import cudakernels as ck
from dynjit import tiles
from dynjit.arena import NODES, float32s, float64s, int64s, operators_at, shapes_at, signatures_at
from dynjit.jit import helper
from dynjit.memory import reserve
from dynjit.op import TABLE, WHOLE_BATCH
from dynjit.ops.linear import SUMS_OF_PRODUCTS
from dynjit.space import space
from dynjit.views import view_of

FIRST = 1  # p[0] counts the blocks at a barrier
MOST_PARTS = 1024
# multiplications from which on a library makes a product.  Its call ends a stretch of levels: two launches more, some
# 15 us of the host's time.  Own tiles make two loads of shared memory for four multiplications, a tenth of what a GPU
# can do: 2 TFLOP/s of 20 (not measured).  So 2^24 take them 16 us, and that is what there is to gain.
LEAST_PRODUCT = 1 << 24
NEVER = 1 << 62
NN, TN, NT = range(3)  # C = A B, C += A' B, C += A B'
STATE = np.dtype([(name, "i8") for name in (
    "count", "entries", "base", "levels", "top", "table", "items", "parameter_end", "graph_base",
    "program", "entry", "made", "written", "gathered", "starts", "used", "kinds", "same", "seen",
    "stamp", "sums", "product", "products", "least_product",
)])  # fmt: skip
PRODUCT = np.dtype([(name, "i8") for name in ("level", "kind", "a", "b", "c", "m", "n", "k", "beta")])
ENTRY = np.dtype([(name, "i8") for name in ("level", "start", "parts")])
states, entries_at, products_at = view_of(STATE), view_of(ENTRY), view_of(PRODUCT)
int8s = view_of("i1")


class Lowering:
    """The program in the making, and what is known of each place's levels; one per device."""

    def __init__(self, least_product: int = NEVER) -> None:
        places = NODES + space.parameter_end // 16
        self.arrays: dict[str, Any] = {
            "program": reserve(1 << 33, np.int64), "entry": reserve(NODES * 8, ENTRY),
            "made": reserve(NODES, np.int64), "written": reserve(places, np.int64),
            "seen": reserve(places, np.int64), "gathered": reserve(NODES * 4, np.int64),
            "starts": reserve(NODES * 8, np.int64), "used": np.zeros(ck.PAIRS, np.int8),
            "kinds": np.full(ck.PAIRS, ck.NONE, np.int8), "same": np.zeros(ck.PAIRS, np.int64),
            "sums": np.full(TABLE.size, -1, np.int8), "product": reserve(NODES * 8, PRODUCT),
        }  # fmt: skip
        for operator, first in SUMS_OF_PRODUCTS.items():
            self.arrays["sums"][operator.code] = first
        for pair, first in ck.representatives().items():
            self.arrays["kinds"][pair], self.arrays["same"][pair] = ck.form(pair)[1], first
        self.missing = list(filter(ck.is_missing, ck.all_pairs()))
        self.arrays["kinds"][self.missing], self.arrays["same"][self.missing] = ck.SERIAL, self.missing
        self.state = np.zeros(1, STATE)
        self.record = self.state[0]
        for name, array in self.arrays.items():
            self.record[name] = array.ctypes.data
        self.record["parameter_end"], self.record["base"] = space.parameter_end, 1
        self.record["least_product"] = least_product
        self.address = self.state.ctypes.data

    @property
    def program(self) -> np.ndarray:
        """The finished program."""
        return self.arrays["program"][: int(self.record["count"])]  # type: ignore[no-any-return]

    def check(self) -> None:
        """Raises NoCudaError if the program has a call of an operator that has no form for CUDA."""
        used = self.arrays["used"]
        found = [pair for pair in self.missing if used[pair]]
        used[found] = 0  # later programs may do without
        for pair in found:
            ck.form(pair)

    @property
    def products(self) -> np.ndarray:
        """What a library has to multiply, in the order of levels."""
        products = self.arrays["product"][: int(self.record["products"])]
        return products[np.argsort(products["level"], kind="stable")]  # type: ignore[no-any-return]

    def used(self) -> list[int]:
        """The pairs of operator and slot that programs have used so far."""
        return np.flatnonzero(self.arrays["used"]).tolist()  # type: ignore[no-any-return]


# ---- writing ---------------------------------------------------------------------------------------------------------


@helper
def device_offset(h, s, offset):  # type: ignore[no-untyped-def]
    return offset if offset < s.parameter_end else offset - h.value_base + s.graph_base


@helper
def begin(s):  # type: ignore[no-untyped-def]
    int64s(s.program)[0] = 0
    s.count = FIRST
    s.entries = 0
    s.products = 0
    s.levels = 0
    s.top = s.base - 1


@helper
def enter(s, level, start, work):  # type: ignore[no-untyped-def]
    """Enters a record into a level; `work`: how many threads it can use."""
    entry = entries_at(s.entry)[s.entries]
    entry.level = level
    entry.start = start
    entry.parts = max(1, min(MOST_PARTS, (work + tiles.THREADS - 1) // tiles.THREADS))
    s.entries += 1
    s.top = max(s.top, level)


@helper
def all_divide(h, q, call, arguments, slot):  # type: ignore[no-untyped-def]
    """Whether each mini-batch item of a call can be worked on by itself."""
    for k in range(call.arity):
        batch = arguments[call.args + call.arity + k]
        if batch != call.batch and (batch != 1 or slot - 1 == k):
            return False
    return True


@helper
def work_of(h, s, q, call, arguments, kind, slot, j):  # type: ignore[no-untyped-def]
    """(units, threads that can work on a call)."""
    shapes, pool = shapes_at(h.shapes), int64s(h.pool)
    n = q.item * call.batch
    if kind == ck.ELEMENTS:
        return n, n
    if kind == ck.SERIAL:
        return 1, 1
    if kind == ck.ITEMS:
        is_whole = operators_at(h.operators)[q.op].flags & WHOLE_BATCH
        units = call.batch if not is_whole and all_divide(h, q, call, arguments, slot) else 1
        return units, units
    rows, columns = q.rows, q.cols * call.batch
    if slot > 0:
        shape = shapes[pool[q.key + 2 + j]]
        batch = arguments[call.args + call.arity + j]
        rows, columns = shape.rows, shape.cols * batch
        if q.ids == 0 or q.item == 1:  # lookups go over their result, not over the table
            n = max(n, shape.item * batch)
    if kind == ck.TILES:
        side = tiles.TILE
        return 1, (rows + side - 1) // side * ((columns + side - 1) // side) * tiles.THREADS
    if kind == ck.LINES:
        for k in range(call.arity):
            n = max(n, shapes[pool[q.key + 2 + k]].item * arguments[call.args + call.arity + k])
    return 1, n


@helper
def write_record(h, s, call, pair, slot, j, level):  # type: ignore[no-untyped-def]
    """Appends the record of a call."""
    p, arguments, data = int64s(s.program), int64s(h.arguments), int64s(h.data)
    shapes, pool = shapes_at(h.shapes), int64s(h.pool)
    q = signatures_at(h.signatures)[call.signature]
    operator = operators_at(h.operators)[q.op]
    units, work = work_of(h, s, q, call, arguments, int8s(s.kinds)[pair], slot, j)
    c, at = s.count, s.count + ck.RECORD
    p[c] = int64s(s.same)[pair]
    p[c + 1] = device_offset(h, s, call.y)
    p[c + 2] = device_offset(h, s, call.scratch)
    p[c + 3] = j
    p[c + 4] = call.arity
    p[c + 5] = call.batch
    p[c + 6] = q.item
    p[c + 7] = q.rows
    p[c + 8] = q.cols
    p[c + 9] = units
    p[c + 10] = q.scratch // q.batch
    p[c + 11] = at
    for k in range(call.arity):
        p[at + k] = device_offset(h, s, arguments[call.args + k])
        p[at + call.arity + k] = arguments[call.args + call.arity + k]
    at += 2 * call.arity
    p[c + 12] = at
    for k in range(call.arity):
        shape = shapes[pool[q.key + 2 + k]]
        p[at + 3 * k] = shape.item
        p[at + 3 * k + 1] = shape.rows
        p[at + 3 * k + 2] = shape.cols
    at += ck.PER_SHAPE * call.arity
    p[c + 13] = at
    for i in range(q.count):
        p[at + i] = pool[q.ints + i]
    at += q.count
    p[c + 14] = at
    for i in range(operator.floats):
        p[at + i] = 0
        float32s(s.program)[2 * (at + i)] = float64s(h.data)[call.floats + i]
    at += operator.floats
    p[c + 15] = at
    if q.ids > 0:
        each = q.ids // q.batch
        p[c + 16] = each
        for i in range(call.batch * each):
            p[at + i] = data[call.ids + i]
        at += call.batch * each
    s.count = at
    int8s(s.used)[p[c]] = 1
    enter(s, level, c, work)


@helper
def write_pieces(s, pair, y, j, count, item):  # type: ignore[no-untyped-def]
    """Appends the record of copies between `count` places and y; returns where the places stand."""
    p, c = int64s(s.program), s.count + 0
    p[c] = pair
    p[c + 1] = y
    p[c + 3] = j
    p[c + 4] = count
    p[c + 5] = 1
    p[c + 6] = item
    p[c + 11] = c + ck.RECORD
    s.count = c + ck.RECORD + count
    int8s(s.used)[pair] = 1
    return c + ck.RECORD


@helper
def write_copy(h, s, call, pair, is_apart, level):  # type: ignore[no-untyped-def]
    """Appends the record of copying operands together, or of adding their gradients apart."""
    p, arguments, c = int64s(s.program), int64s(h.arguments), s.count + 0
    at = write_pieces(s, pair, device_offset(h, s, call.y), is_apart, call.count, call.batch)
    for i in range(call.count):
        p[at + i] = device_offset(h, s, arguments[call.args + i])
    enter(s, level, c, call.batch * call.count if is_apart else call.batch)


@helper
def write_first(h, s, call, level):  # type: ignore[no-untyped-def]
    """Appends the record of copying operand 0 of a sum to the result: as it is, or once for each item or column."""
    p, arguments, c = int64s(s.program), int64s(h.arguments), s.count + 0
    q = signatures_at(h.signatures)[call.signature]
    item, n = shapes_at(h.shapes)[int64s(h.pool)[q.key + 2]].item, q.item * call.batch
    start, batch = device_offset(h, s, arguments[call.args]), arguments[call.args + call.arity]
    piece = n if item * batch == n else item
    at = write_pieces(s, ck.GATHER, device_offset(h, s, call.y), 0, n // piece, piece)
    for i in range(n // piece):
        p[at + i] = start + (i * item // q.item * item if batch > 1 else 0)
    enter(s, level, c, n)


@helper
def multiplications(h, s, call, slot, j):  # type: ignore[no-untyped-def]
    """How many the plain matrix products of a call have; 0 if one of them is none, or the call is something else."""
    q, arguments = signatures_at(h.signatures)[call.signature], int64s(h.arguments)
    shapes, pool, first, total = shapes_at(h.shapes), int64s(h.pool), int8s(s.sums)[q.op], 0
    if first < 0 or (slot > 0 and j < first):
        return 0
    for k in range(first, call.arity, 2):
        if slot == 0 or k == j or k + 1 == j:
            at = call.args + call.arity + k
            if arguments[at] != 1 or arguments[at + 1] != call.batch:
                return 0
            total += q.item * call.batch * shapes[pool[q.key + 2 + k]].cols
    return total


@helper
def write_product(s, level, kind, a, b, c, m, n, k, beta):  # type: ignore[no-untyped-def]
    """Enters a product of the library into a level."""
    product = products_at(s.product)[s.products]
    product.level = level
    product.kind = kind
    product.a = a
    product.b = b
    product.c = c
    product.m = m
    product.n = n
    product.k = k
    product.beta = beta
    s.products += 1
    s.top = max(s.top, level)


@helper
def write_products(h, s, call, slot, j, level):  # type: ignore[no-untyped-def]
    """Leaves a call to the library; returns the level at which it is done."""
    q, arguments = signatures_at(h.signatures)[call.signature], int64s(h.arguments)
    shapes, pool, first = shapes_at(h.shapes), int64s(h.pool), int8s(s.sums)[q.op]
    y, rows, columns = device_offset(h, s, call.y), q.rows, q.cols * call.batch
    if slot == 0 and first > 0:
        write_first(h, s, call, level)
        level += 1
    for k in range(first, call.arity, 2):
        w, x = device_offset(h, s, arguments[call.args + k]), device_offset(h, s, arguments[call.args + k + 1])
        depth = shapes[pool[q.key + 2 + k]].cols
        if slot == 0:  # those of a call one after another, in one level
            write_product(s, level, NN, w, x, y, rows, columns, depth, int(k > 0))
        elif k == j:
            write_product(s, level, NT, y, x, w, rows, depth, columns, 1)
        elif k + 1 == j:
            write_product(s, level, TN, w, y, x, depth, columns, rows, 1)
    return level


@helper
def write_call(h, s, call, pair, slot, j, level):  # type: ignore[no-untyped-def]
    """Appends a call, as a record or as products of the library; returns the level at which it is done."""
    if multiplications(h, s, call, slot, j) >= s.least_product:
        return write_products(h, s, call, slot, j, level)
    write_record(h, s, call, pair, slot, j, level)
    return level


@helper
def finish(s):  # type: ignore[no-untyped-def]
    """Appends the work items in the order of levels."""
    p, entries, starts = int64s(s.program), entries_at(s.entry), int64s(s.starts)
    s.levels = s.top - s.base + 1
    s.table = s.count
    s.items = s.table + s.levels + 1
    for level in range(s.levels + 1):
        p[s.table + level] = 0
    for i in range(s.entries):
        p[s.table + entries[i].level - s.base + 1] += entries[i].parts
    for level in range(s.levels):
        p[s.table + level + 1] += p[s.table + level]
        starts[level] = p[s.table + level]
    for i in range(s.entries):
        entry = entries[i]
        level = entry.level - s.base
        for part in range(entry.parts):
            at = s.items + 3 * starts[level]
            p[at] = entry.start
            p[at + 1] = part
            p[at + 2] = entry.parts
            starts[level] += 1
    for i in range(s.products):
        products_at(s.product)[i].level -= s.base
    s.count = s.items + 3 * p[s.table + s.levels]
    s.base = s.top + 1
