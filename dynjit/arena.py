"""The arena: a graph's nodes in flat typed arrays, owned by a thin jitclass.

Compiled code receives the address of the header, never the instance (a function that takes a jitclass is compiled anew
in every process).  All arrays are reservations of address space: they never move, so addresses stay true.
"""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

import numpy as np
from numba import from_dtype, types
from numba.experimental import jitclass

from dynjit import op
from dynjit.jit import add_symbol, entry, helper, inline
from dynjit.memory import release, reserve
from dynjit.shape import TABLE as SHAPES
from dynjit.space import space
from dynjit.threads import MOST
from dynjit.views import view_of

NODE = np.dtype([(name, "i4") for name in ("signature", "args", "arity", "flags", "data", "shape")] + [("value", "i8")])
NEEDS_GRADIENT, FROZEN = 1, 2  # flags of a node; behind them, two bits with those of each operand

CALL = np.dtype(
    [
        ("signature", "i4"), ("arity", "i4"), ("j", "i4"), ("deferred", "i4"),
        ("y", "i8"), ("args", "i8"), ("batch", "i8"), ("scratch", "i8"), ("ids", "i8"), ("floats", "i8"),
        ("first", "i4"), ("count", "i4"), ("active", "i4"), ("takes", "i4"),
        ("ahead", "i4"), ("behind", "i4"),  # other calls of the same group that follow, and that come before
    ]
)  # fmt: skip
MORE = 32  # the index of a call that a kernel is given has in the bits from this one on how many more calls follow
GATHER = -1  # the signature of a call that copies scattered operands together

# what is known of a node beside: the backward pass that reaches it; of a parameter, the plan that lists it, and where
WORK = np.dtype([(name, "i4") for name in ("reached", "listed", "place")])
# what planning knows of a bundle (bundles.py): a cache line
BUNDLE = np.dtype(
    [(name, "i8") for name in ("wanted", "twice")]
    + [
        (name, "i4")
        for name in (
            "node", "args", "step", "stamp", "unmet", "height", "start", "equal", "placed", "gaps", "depth", "link",
        )
    ]
)  # fmt: skip
# what bundles have in common up to one of their nodes: first what is asked of each node, a cache line of it
STEP = np.dtype(
    [
        (name, "i4")
        for name in (
            "signature", "flags", "arity", "pattern", "child", "sibling", "kind", "position", "outers", "parent",
            "root", "bucket", "is_product", "lists", "outer_count", "bias_count", "same_count", "levels", "operands",
            "ids", "numbers", "restart", "home", "next_home", "user", "mark",
        )
    ]
    + [(name, "i8") for name in ("time", "room", "sinks", "once", "kept")]
)  # fmt: skip
# what a plan knows of the bundles that have a step in common
KEY = np.dtype(
    [(name, "i8") for name in ("height", "y", "scratch", "x", "free")]
    + [
        (name, "i4")
        for name in (
            "stamp", "count", "ends", "first", "ready", "started", "done", "deferred", "takes", "bundles", "waiting",
            "wave", "stop", "size", "rest", "low", "total", "filled",
        )
    ]
)  # fmt: skip

COUNTERS = (
    "version", "node_count", "arg_count", "data_count", "order_count", "call_count", "calls_done", "deferred_count",
    "argument_count", "value_top", "generation", "reach", "autobatch", "wide", "full", "cursor", "pending",
    "highest", "overwriting", "overwritten", "whole",
    "whole_reached", "stops", "merged", "most_nodes",
    "parts", "is_part", "lowest", "shadows", "is_divisible", "is_cut",
    "waiting", "whole_generation", "planned", "formed", "bundle_count", "step_count",
    "pattern_count", "most_keys",
    "listed", "strewn", "levels", "time", "room", "part_time", "first_result", "era",
    "check_validity", "backward_from", "backward_top",
)  # fmt: skip
LIMITS = ("node_capacity", "arg_capacity", "data_capacity", "value_base", "value_end")
ADDRESSES = (
    "nodes", "args", "data", "consumers", "calls", "deferred", "arguments", "work", "keys", "order", "stack", "mode",
    "heap", "slots", "ready", "twins", "v", "g", "signatures", "pool", "operators", "shapes", "kernels", "seed",
    "scratch", "late", "part_headers", "part_table", "list", "bundle_of", "bundles", "steps", "patterns",
    "roots", "homes",
)  # fmt: skip
HEADER = np.dtype([(name, "i8") for name in (*COUNTERS, *LIMITS, *ADDRESSES)])
HEADER_BYTES = HEADER.itemsize


class Header(ctypes.Structure):
    """Python's view of a header: its fields are ints, got and set in a tenth of the time of a NumPy record's."""

    __slots__ = ()
    _fields_ = [(name, ctypes.c_int64) for name in HEADER.names or ()]


# of a part of a graph (parts.py): its first call and the one behind its last; where its planning began to list
PART = np.dtype([(name, "i8") for name in ("call", "stop", "order", "deferred", "merged")])

NODES = 1 << 27
SHADOWS = 1 << 12  # nodes behind all others, see parts.py
ROOTS = 1 << 16  # places in the hash tables of what bundles begin with, and of where results lie, see steps.py
SCRATCH = 1 << 24  # int64 numbers for the front end: keys, operands and data of the node in the making


headers = view_of(HEADER, changing=(*COUNTERS, "list"))
nodes_at, calls_at, works_at, bundles_at, steps_at, keys_at, parts_at = (
    view_of(kind) for kind in (NODE, CALL, WORK, BUNDLE, STEP, KEY, PART)
)
signatures_at, operators_at, shapes_at = (
    view_of(kind, changing=()) for kind in (op.SIGNATURE, op.OPERATOR, SHAPES.dtype)
)
int32s, int64s, float32s, float64s = view_of("i4"), view_of("i8"), view_of("f4"), view_of("f8")


kernels = reserve(2 * op.TABLE.size * op.SLOTS, np.int64)  # addresses: float32, then float64; 0: not loaded yet
LATE_TABLES = 64  # lookup tables at most with rows whose updates are postponed
# their number, and of each its offset, the function by which a row takes the steps that it has missed, its context
late_tables = np.zeros(1 + 3 * LATE_TABLES, np.int64)
random_state = np.zeros(2, np.int64)  # seed, number of the next random stream (which begins with the seed)

# ---- the jitclass ----------------------------------------------------------------------------------------------------


@jitclass(
    [
        ("header", types.Array(from_dtype(HEADER), 1, "C")),
        ("nodes", types.Array(from_dtype(NODE), 1, "C")),
        ("args", types.int32[::1]),
        ("data", types.int64[::1]),
    ]
)
class Arena:
    """Owner of a graph's arrays.

    header: counts and addresses;  nodes: one record per node;  args: the nodes' operands, end to end;
    data: the nodes' floats (as bits) and indices, end to end.
    """

    def __init__(self, header, nodes, args, data):  # type: ignore[no-untyped-def]
        self.header = header
        self.nodes = nodes
        self.args = args
        self.data = data


ARRAYS: dict[str, tuple[Any, int]] = {
    "consumers": (np.int32, NODES * 8), "calls": (CALL, NODES * 4), "deferred": (CALL, NODES * 2),
    "arguments": (np.int64, NODES * 16), "scratch": (np.int64, SCRATCH), "work": (WORK, NODES),
    "keys": (KEY, NODES * 4),
    "order": (np.int32, NODES), "stack": (np.int32, NODES), "mode": (np.int32, NODES), "heap": (np.int32, NODES),
    "slots": (np.int32, NODES * 4), "ready": (np.int32, NODES), "twins": (np.int32, NODES * 8),
    "part_headers": (HEADER, MOST), "part_table": (PART, MOST),
    "bundle_of": (np.int32, NODES), "bundles": (BUNDLE, NODES * 4), "steps": (STEP, NODES * 4),
    "patterns": (np.int32, NODES * 32), "roots": (np.int32, ROOTS), "homes": (np.int32, ROOTS),
}  # fmt: skip


class Storage:
    """An arena with the arrays that planning and running need; Python's side of a graph."""

    def __init__(self) -> None:
        self.start, self.end = space.take_span()
        self.header = header = Header()
        nodes, args, data = reserve(NODES, NODE), reserve(NODES * 4, np.int32), reserve(NODES * 4, np.int64)
        record = np.frombuffer(header, HEADER)  # type: ignore[call-overload]
        self.arena = Arena(record, nodes, args, data)
        self.nodes, self.args, self.data = nodes, args, data
        self.address = ctypes.addressof(header)
        self.arrays = {name: reserve(count, dtype) for name, (dtype, count) in ARRAYS.items()}
        sizes = {name: array.size for name, array in self.arrays.items()}
        # no plan needs more per node, or per operand, than this
        per_node = min(
            *(sizes[name] for name in ("work", "order", "ready", "stack", "mode", "heap", "bundle_of")),
            *(sizes[name] // 4 for name in ("bundles", "steps", "keys")),
        )
        header.node_capacity = min(nodes.size, per_node, sizes["slots"] // 4, sizes["calls"] // 2,
                                      sizes["deferred"] // 2) - SHADOWS  # fmt: skip
        header.arg_capacity = min(args.size, sizes["consumers"] // 2, sizes["twins"] // 2,
                                     sizes["arguments"] // 8, sizes["patterns"] // 8) - SHADOWS  # fmt: skip
        header.data_capacity = data.size // 2  # the plan lays indices end to end behind the nodes' own
        header.value_base = self.start
        header.value_end = min(self.end, self.start + space.most)
        header.autobatch = 1
        known = {
            "nodes": nodes, "args": args, "data": data, "v": space.single.v, "g": space.single.g,
            "signatures": op.SIGNATURES, "pool": op.POOL, "operators": op.TABLE, "shapes": SHAPES,
            "kernels": kernels, "seed": random_state, "late": late_tables, **self.arrays,
        }  # fmt: skip
        for name, array in known.items():
            setattr(header, name, array.ctypes.data)
        weakref.finalize(self, space.give_span, self.start).atexit = False

    def widened(self) -> Header:
        """A header over the same nodes with float64 values and gradients and float64 kernels."""
        header = Header.from_buffer_copy(self.header)
        header.v, header.g = space.double.v.ctypes.data, space.double.g.ctypes.data
        header.kernels += kernels.nbytes // 2
        header.wide = 1
        return header

    def shrink(self, values: int, nodes: int) -> None:
        """Gives the memory behind `values` elements of the span, and what `nodes` nodes need, back to the system."""
        release(space.single.v, self.start + values, self.end)
        release(space.single.g, self.start + values, self.end)
        for array in (self.nodes, self.args, self.data, *self.arrays.values()):
            if array is not self.arrays["scratch"]:
                release(array, 8 * nodes, array.size)


# ---- appending -------------------------------------------------------------------------------------------------------


@inline
def stops_at(h, code):  # type: ignore[no-untyped-def]
    """Of an operator's flags, those that let no gradient pass."""
    return operators_at(h.operators)[code].flags & (op.NO_GRADIENT | op.STOPS)


@inline
def add_record(h, signature, shape, stops, arity, needs, flags, count):  # type: ignore[no-untyped-def]
    """Adds a node whose `arity` operands and `count` data lie behind those of the others already.

    stops: see stops_at;  needs: whether an operand needs gradients;  flags: the operands'.
    """
    node = h.node_count
    if needs and stops:
        h.stops = 1
        if stops & op.NO_GRADIENT:
            needs = 0
    record = nodes_at(h.nodes)[node]
    record.signature = signature
    record.args = h.arg_count
    record.arity = arity
    record.flags = needs | flags
    record.data = h.data_count
    record.shape = shape
    record.value = -1
    h.node_count = node + 1
    h.arg_count += arity
    h.data_count += count
    return node


@helper
def append(h, signature, operands, arity, data, count):  # type: ignore[no-untyped-def]
    """Adds a node; operands and data are addresses of int64 numbers.  -1: the arena is full."""
    node, first, start = h.node_count, h.arg_count, h.data_count
    if node >= h.node_capacity or first + arity > h.arg_capacity or start + count > h.data_capacity:
        return -1
    nodes, args = nodes_at(h.nodes), int32s(h.args)
    sources, numbers, stored = int64s(operands), int64s(data), int64s(h.data)
    needs, flags = 0, 0
    for k in range(arity):
        args[first + k] = sources[k]
        own = nodes[sources[k]].flags & (NEEDS_GRADIENT | FROZEN)
        needs |= own & NEEDS_GRADIENT
        if k < op.FLAGGED:
            flags |= own << (2 + 2 * k)
    for i in range(count):
        stored[start + i] = numbers[i]
    q = signatures_at(h.signatures)[signature]
    return add_record(h, signature, q.shape, stops_at(h, q.op), arity, needs, flags, count)


@entry("int64(int64, int64, int64, int64, int64, int64)")
def append_node(context, signature, operands, arity, data, count):  # type: ignore[no-untyped-def]
    return append(headers(context)[0], signature, operands, arity, data, count)


@helper
def append_leaf(h, signature, value, flags):  # type: ignore[no-untyped-def]
    """Adds a node whose value lies in place already."""
    node = append(h, signature, 0, 0, 0, 0)
    if node >= 0:
        nodes_at(h.nodes)[node].value = value
        nodes_at(h.nodes)[node].flags = flags
    return node


@entry("int64(int64, int64, int64, int64)")
def append_leaf_node(context, signature, value, flags):  # type: ignore[no-untyped-def]
    return append_leaf(headers(context)[0], signature, value, flags)


# ---- dropping nodes and results ------------------------------------------------------------------------------------


@helper
def drop_plan(h):  # type: ignore[no-untyped-def]
    """Drops all calls, and what planning knows of the nodes."""
    h.order_count = 0
    h.call_count = 0
    h.calls_done = 0
    h.deferred_count = 0
    h.argument_count = 0
    h.parts = 0
    h.planned = 0
    h.formed = 0
    h.bundle_count = 0
    h.step_count = 0
    h.pattern_count = 0
    h.overwritten = 0
    h.merged = 0


@entry("int64(int64)")
def drop_results(context):  # type: ignore[no-untyped-def]
    """Drops the values of all nodes but leaves; the memory that they took is not used again."""
    h = headers(context)[0]
    nodes, signatures, operators = nodes_at(h.nodes), signatures_at(h.signatures), operators_at(h.operators)
    for number in range(h.node_count):
        if operators[signatures[nodes[number].signature].op].flags & op.LEAF == 0:
            nodes[number].value = -1
    drop_plan(h)
    return 0


@entry("int64(int64, int64, int64)")
def drop_nodes(context, version, era):  # type: ignore[no-untyped-def]
    """Drops all nodes; those that come next are of another version and era."""
    h = headers(context)[0]
    h.node_count = 0
    h.arg_count = 0
    h.data_count = 0
    h.value_top = h.value_base
    h.overwriting = 1
    h.stops = 0
    h.backward_from = -1
    h.backward_top = -1
    h.version = version
    h.era = era
    drop_plan(h)
    return 0


# ---- the hash table of signatures ------------------------------------------------------------------------------------

STATE = np.dtype([("table", "i8"), ("mask", "i8"), ("signatures", "i8"), ("pool", "i8")])
state = np.zeros(1, STATE)
state[0]["signatures"], state[0]["pool"] = op.SIGNATURES.ctypes.data, op.POOL.ctypes.data
add_symbol("dynjit_signature_state", state.ctypes.data)
states = view_of(STATE)
MULTIPLIER, HIGH = np.uint64(0x9E3779B97F4A7C15), np.uint64(29)


@helper
def mixed(code, number):  # type: ignore[no-untyped-def]
    """A hash that takes in one more number; unsigned, since compilers believe that signed products do not overflow."""
    code = (np.uint64(code) ^ np.uint64(number)) * MULTIPLIER
    return np.int64(code ^ (code >> HIGH))


@helper
def hash_of(key, length):  # type: ignore[no-untyped-def]
    """Hash of `length` int64 numbers, none of which waits for another (`mixed` would go through them one by one)."""
    numbers = int64s(key)
    total, factor = np.uint64(length), MULTIPLIER
    for i in range(length):
        total += np.uint64(numbers[i]) * factor
        factor *= MULTIPLIER
    return np.int64(total ^ (total >> HIGH))


@helper
def find_signature(table, key, length):  # type: ignore[no-untyped-def]
    """The signature with a key; 0 if there is none.  Keys are compared in full."""
    known, pool, wanted, slots = signatures_at(table.signatures), int64s(table.pool), int64s(key), int32s(table.table)
    code = hash_of(key, length)
    slot = code & table.mask
    while slots[slot] != 0:
        candidate = known[slots[slot]]
        if candidate.hash == code and candidate.length == length:
            i = 0
            while i < length and pool[candidate.key + i] == wanted[i]:
                i += 1
            if i == length:
                return slots[slot]
        slot = (slot + 1) & table.mask
    return np.int32(0)


@entry("int64(int64, int64)")
def key_hash(key, length):  # type: ignore[no-untyped-def]
    return hash_of(key, length)


class SignatureTable:
    """Python's side of the hash table; grows to stay at most half full."""

    def __init__(self) -> None:
        self.resize(1 << 12)
        op.on_new_signature = self.insert

    def resize(self, count: int) -> None:
        self.slots = np.zeros(count, np.int32)
        state[0]["table"], state[0]["mask"] = self.slots.ctypes.data, count - 1
        for number in range(1, op.used["signatures"]):
            self.place(number)

    def place(self, number: int) -> None:
        slot = int(op.SIGNATURES[number]["hash"]) & (self.slots.size - 1)
        while self.slots[slot]:
            slot = (slot + 1) & (self.slots.size - 1)
        self.slots[slot] = number

    def insert(self, number: int) -> None:
        record = op.SIGNATURES[number]
        record["hash"] = key_hash.call(op.POOL.ctypes.data + 8 * int(record["key"]), int(record["length"]))
        if 2 * number > self.slots.size:
            self.resize(2 * self.slots.size)
        else:
            self.place(number)


signature_table = SignatureTable()
