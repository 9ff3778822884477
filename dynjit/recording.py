"""Recording a node costs one short call of compiled code: what all the C functions have in common that do it.

Each takes the plain case (operands of the current graph, a signature met before, indices in range) and hands every
other case, unchanged, to its twin in Python, which also says what is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from dynjit import op
from dynjit.arena import (
    FROZEN,
    HEADER,
    HIGH,
    MULTIPLIER,
    NEEDS_GRADIENT,
    SCRATCH,
    add_record,
    append,
    append_leaf,
    find_signature,
    headers,
    int32s,
    int64s,
    nodes_at,
    operators_at,
    random_state,
    signatures_at,
    states,
    stops_at,
)
from dynjit.arena import state as signature_state
from dynjit.jit import add_symbol, entry, external, helper, inline, python_symbol
from dynjit.memory import reserve
from dynjit.views import view_of

SLOTS = ("add", "subtract", "multiply", "divide", "negative", "matmul", "subscript", "power")
PLAIN = (
    "add", "subtract", "product", "add_number", "number_minus", "scale", "negate", "pick", "pick_range", "lookup",
    "pow", "second_power", "number_power",
)  # fmt: skip
METHODS = ("initial_state", "add_input", "add_inputs", "transduce", "output")  # of recurrent networks, see sequence.py
KINDS = ("expression", "dense", "lookup_table", "int", "bool", "float", "list", "tuple", "slice", "bytes", "array")
STATE = np.dtype(
    [(name, "i8") for name in ("header", "thread", "nothing", "may_run", "table", "parameters", "forms")]
    + [(name, "i8") for name in ("fields", "memos", "free", "free_count", "none")]
    + [(name, "i8") for name in KINDS]
    + [(name, "i8") for name in ("rnn_state", "rnn_run")]
    + [(f"slow_{name}", "i8") for name in (*SLOTS, *METHODS)]
    + [(f"op_{name}", "i8") for name in PLAIN]
)
PARAMETER = np.dtype([("signature", "i8"), ("value", "i8"), ("flags", "i8")])
# how a function is called that stands for an operator: one form each (operands: how many arguments there are if all are
# operands, else -1;  next: the form that a call may have instead, 0: none;  program: of a composed function, else 0;
# fill: of a leaf), and a field per argument (only: what it must be if it has no letter)
FORM = np.dtype([(name, "i8") for name in ("code", "count", "operands", "slow", "next", "program")] + [("fill", "f8")])
FIELD = np.dtype([(name, "i8") for name in ("letter", "name", "default", "only")] + [("low", "f8"), ("high", "f8")])
MAX_FIELDS, MAX_MADE = 8, 8
# short nodes, of which there are most: one to three operands, up to two integer parameters, up to one number or index.
# What is known of their signatures lies in one cache line each.
MEMO = np.dtype(
    [(name, "i8") for name in ("what", "shapes", "first", "second", "bound", "signature", "shape", "stops")]
)
MEMOS = 1 << 13
NO_DATA, A_NUMBER, AN_INDEX = 1, 2, 3  # data of a short node
HANDLE, NUMBER = 16, 24  # offsets of an expression's handle, and of a parameter's number, behind the object's head
BYTES = 32  # where a bytes object's own begin
START, STOP, STEP = 16, 24, 32  # offsets in a slice
MAX_LIST = 1 << 20
LOWER = (1 << 32) - 1  # the lower half of a number
PLACE = 1 << 26  # more than there are numbers of shapes
MAX_FREE = 1 << 16
HAS_COLLECTION = 1 << 14  # Py_TPFLAGS_HAVE_GC

state = np.zeros(1, STATE)
parameters = reserve(1 << 24, PARAMETER)
forms, fields = reserve(op.TABLE.size, FORM), reserve(op.TABLE.size * MAX_FIELDS, FIELD)
memos = reserve(MEMOS, MEMO)
state[0]["table"], state[0]["parameters"] = signature_state.ctypes.data, parameters.ctypes.data
state[0]["forms"], state[0]["fields"] = forms.ctypes.data, fields.ctypes.data
state[0]["memos"] = memos.ctypes.data
# until there is a graph: a header without room, so that compiled code hands everything over to the twins
nothing = np.zeros(1, HEADER)
scratch_of_nothing = reserve(SCRATCH, np.int64)
for _name, _array in (("scratch", scratch_of_nothing), ("seed", random_state), ("signatures", op.SIGNATURES),
                      ("operators", op.TABLE)):  # fmt: skip
    nothing[0][_name] = _array.ctypes.data
nothing[0]["version"], state[0]["header"], state[0]["nothing"] = -1, nothing.ctypes.data, nothing.ctypes.data
state[0]["may_run"] = 1
add_symbol("dynjit_front_end", state.ctypes.data)


def python_function(name, result, *arguments):  # type: ignore[no-untyped-def]
    """A function of CPython's C interface for compiled code."""
    python_symbol(name)
    return types.ExternalFunction(name, result(*arguments))


allocate = python_function("PyType_GenericAlloc", types.intp, types.intp, types.intp)
flags_of_type = python_function("PyType_GetFlags", types.uintp, types.intp)
free_object = python_function("PyObject_Free", types.void, types.intp)
free_collected = python_function("PyObject_GC_Del", types.void, types.intp)
drop = python_function("Py_DecRef", types.void, types.intp)
vectorcall = python_function("PyObject_Vectorcall", types.intp, types.intp, types.intp, types.intp, types.intp)
bound = python_function("PyMethod_New", types.intp, types.intp, types.intp)
as_integer = python_function("PyLong_AsLongLongAndOverflow", types.int64, types.intp, types.intp)
as_double = python_function("PyFloat_AsDouble", types.float64, types.intp)
list_size = python_function("PyList_Size", types.intp, types.intp)
list_item = python_function("PyList_GetItem", types.intp, types.intp, types.intp)
tuple_size = python_function("PyTuple_Size", types.intp, types.intp)
tuple_item = python_function("PyTuple_GetItem", types.intp, types.intp, types.intp)
bytes_start = python_function("PyBytes_AsString", types.intp, types.intp)
new_list = python_function("PyList_New", types.intp, types.intp)
set_item = python_function("PyList_SetItem", types.intc, types.intp, types.intp, types.intp)
new_tuple = python_function("PyTuple_New", types.intp, types.intp)
set_tuple_item = python_function("PyTuple_SetItem", types.intc, types.intp, types.intp, types.intp)
new_float = python_function("PyFloat_FromDouble", types.intp, types.float64)
integer = python_function("PyLong_FromLongLong", types.intp, types.int64)
thread_number = python_function("PyThread_get_thread_ident", types.intp)
clear_error = python_function("PyErr_Clear", types.void)
open_buffer = python_function("PyObject_GetBuffer", types.intc, types.intp, types.intp, types.intc)
close_buffer = python_function("PyBuffer_Release", types.void, types.intp)

words, front_ends = view_of("i8"), view_of(STATE, changing=("header", "thread", "may_run", "free", "free_count"))
parameters_at, memos_at = view_of(PARAMETER), view_of(MEMO)
forms_at, fields_at = view_of(FORM, changing=()), view_of(FIELD, changing=())
# where they lie in the header's scratch numbers: the node in the making, and what a call was given
KEY, OPERANDS, DATA = 0, 2 * MAX_LIST, 4 * MAX_LIST
ARGUMENTS = DATA + MAX_LIST + 16
MADE = ARGUMENTS + MAX_FIELDS  # nodes of a composed function
INTS = MADE + MAX_MADE  # integer parameters, until the number of operands is known


@intrinsic
def state_address(typing):  # type: ignore[no-untyped-def]
    """Address of the front end's state, by its symbol (the cache may not hold addresses)."""

    def codegen(target, builder, signature, args):  # type: ignore[no-untyped-def]
        symbol = ir.GlobalVariable(builder.module, ir.IntType(64), "dynjit_front_end")
        symbol.linkage = "external"
        return builder.ptrtoint(symbol, ir.IntType(64))

    return types.int64(), codegen


@helper
def header_of(s):  # type: ignore[no-untyped-def]
    """The header of this thread's current graph; if the state is another thread's, that of no graph."""
    return s.header if thread_number() == s.thread else s.nothing


@helper
def load(address):  # type: ignore[no-untyped-def]
    return words(address)[0]


@helper
def take(o):  # type: ignore[no-untyped-def]
    """One more reference to an object of ours; the interpreter's own may be immortal, and are not counted like this."""
    words(o)[0] += 1


@helper
def overflow_flag(h):  # type: ignore[no-untyped-def]
    """Address of a number that the interpreter may write to."""
    return h.scratch + (DATA + MAX_LIST) * 8


@helper
def integer_of(h, o):  # type: ignore[no-untyped-def]
    """An int object's value; the second number is not 0 if it does not fit."""
    words(overflow_flag(h))[0] = 0
    value = as_integer(o, overflow_flag(h))
    return value, words(overflow_flag(h))[0] & 0xFFFFFFFF


@helper
def int_of(s, h, o):  # type: ignore[no-untyped-def]
    """(value, True) of an int or a bool; (0, False) of anything else, and of what does not fit."""
    if load(o + 8) != s.int and load(o + 8) != s.bool:
        return np.int64(0), False
    value, overflow = integer_of(h, o)
    return value, overflow == 0


@helper
def number_of(s, o):  # type: ignore[no-untyped-def]
    """(value, True) of a float or an int; (0, False) of anything else, and of what does not fit."""
    if load(o + 8) == s.float:
        return as_double(o), True
    if load(o + 8) != s.int:
        return 0.0, False
    value = as_double(o)
    if value == -1:
        clear_error()  # an int without a float, perhaps: the twin finds out
        return 0.0, False
    return value, True


@helper
def count_of(s, o):  # type: ignore[no-untyped-def]
    """Entries of a list or tuple; -1 for anything else, and for what is too long."""
    size = list_size(o) if load(o + 8) == s.list else tuple_size(o) if load(o + 8) == s.tuple else -1
    return size if size < MAX_LIST else -1


@helper
def entry_of(s, o, i):  # type: ignore[no-untyped-def]
    return list_item(o, i) if load(o + 8) == s.list else tuple_item(o, i)


@external("int64(int64, int64)")
def parameter_node(context, o):  # type: ignore[no-untyped-def]
    """The node of a parameter, which joins the graph on its first use.  -1: not the plain case."""
    s, h, kind = front_ends(state_address())[0], headers(context)[0], load(o + 8)
    if kind != s.dense and kind != s.lookup_table:
        return -1
    parameter = parameters_at(s.parameters)[load(o + NUMBER)]
    handle = load(o + HANDLE)
    node = handle & 0xFFFFFFFF
    if handle >> 32 == h.version and node < h.node_count:
        known = nodes_at(h.nodes)[node]  # another node, perhaps, since the graph was cut back
        is_same = known.value == parameter.value and known.signature == parameter.signature
        if is_same and known.flags == parameter.flags:
            return node
    node = append_leaf(h, parameter.signature, parameter.value, parameter.flags)
    if node >= 0:
        words(o + HANDLE)[0] = h.version << 32 | node
    return node


@inline
def operand(s, context, o):  # type: ignore[no-untyped-def]
    """The node of an operand.  -1: not the plain case."""
    if load(o + 8) != s.expression:
        return parameter_node(context, o)
    h, handle = headers(context)[0], load(o + HANDLE)
    node = handle & 0xFFFFFFFF
    return node if handle >> 32 == h.version and node < h.node_count else -1


@inline
def expression_of(s, h, node):  # type: ignore[no-untyped-def]
    """A new Expression object, if possible in the place of one that nobody needs any more."""
    result = s.free
    if result != 0:
        s.free = load(result + HANDLE)
        s.free_count -= 1
        words(result)[0] = 1  # the number of references
    else:
        result = allocate(s.expression, 0)
    if result != 0:
        words(result + HANDLE)[0] = h.version << 32 | node
    return result


@entry("void(intp)")
def native_dealloc(o):  # type: ignore[no-untyped-def]
    """Keeps the memory of an expression for the next one; gives that of other objects back."""
    s = front_ends(state_address())[0]
    kind = load(o + 8)
    if kind == s.expression and s.free_count < MAX_FREE:
        words(o + HANDLE)[0] = s.free
        s.free = o
        s.free_count += 1
        return
    if flags_of_type(kind) & HAS_COLLECTION:
        free_collected(o)
    else:
        free_object(o)
    drop(kind)


# ---- adding nodes ----------------------------------------------------------------------------------------------------


@external("int64(int64, int64, int64, int64)")
def add_long(context, length, arity, data):  # type: ignore[no-untyped-def]
    """Appends the node whose key, operands and data lie in the scratch numbers; -1: not the plain case."""
    s = front_ends(state_address())[0]
    h = headers(context)[0]
    scratch = int64s(h.scratch)
    nodes, known = nodes_at(h.nodes), signatures_at(h.signatures)
    for k in range(arity):
        scratch[KEY + 2 + k] = nodes[scratch[OPERANDS + k]].shape
    signature = find_signature(states(s.table)[0], h.scratch + KEY * 8, length)
    if signature == 0:
        return -1
    q = known[signature]
    operator = operators_at(h.operators)[q.op]
    given = data - operator.floats
    for i in range(operator.floats, data):
        if scratch[DATA + i] < 0 or scratch[DATA + i] >= q.bound:
            return -1
    if operator.flags & op.RANDOM:
        for i in range(q.ids):  # a random stream for each mini-batch item
            scratch[DATA + operator.floats + i] = words(h.seed)[1] + i
        words(h.seed)[1] += q.ids
        data = operator.floats + q.ids
    while given > 0 and data < operator.floats + q.ids:  # the same indices for all mini-batch items
        scratch[DATA + data] = scratch[DATA + data - given]
        data += 1
    if data != operator.floats + q.ids:
        return -1
    return append(h, signature, h.scratch + OPERANDS * 8, arity, h.scratch + DATA * 8, data)


@inline
def memo_of(s, what, shapes, first, second):  # type: ignore[no-untyped-def]
    """The place for what is known of short nodes of these operands' shapes and integers; it may be another's."""
    code = (np.uint64(what) * MULTIPLIER + np.uint64(shapes)) * MULTIPLIER
    code += (np.uint64(first) * MULTIPLIER + np.uint64(second)) * (MULTIPLIER >> HIGH)
    return memos_at(s.memos)[np.int64(code >> np.uint64(40)) & (MEMOS - 1)]


@external("int64(int64, int64, int64, int64, int64, int64, int64, int64, int64)")
def add_new(context, what, a, b, c, shapes, first, second, datum):  # type: ignore[no-untyped-def]
    """As `add_short`, for nodes of a signature that is not remembered; then it is, if there is such a signature."""
    s, h = front_ends(state_address())[0], headers(context)[0]
    scratch, code, ints, data = int64s(h.scratch), (what & LOWER) >> 8, (what >> 4) & 15, what & 15
    arity, floats, count = 1 if b < 0 else 2 if c < 0 else 3, data == A_NUMBER, data != NO_DATA
    scratch[KEY] = code
    scratch[KEY + 1] = arity
    scratch[OPERANDS] = a
    scratch[OPERANDS + 1] = b
    scratch[OPERANDS + 2] = c
    scratch[KEY + 2 + arity] = first
    scratch[KEY + 3 + arity] = second
    scratch[DATA] = datum
    node = add_long(context, 2 + arity + ints, arity, count)
    if node < 0:
        return -1
    q = signatures_at(h.signatures)[nodes_at(h.nodes)[node].signature]
    operator = operators_at(h.operators)[q.op]
    if operator.flags & op.RANDOM == 0 and operator.floats == floats and q.ids == count - floats:
        memo = memo_of(s, what, shapes, first, second)
        memo.what = what
        memo.shapes = shapes
        memo.first = first
        memo.second = second
        memo.bound = q.bound
        memo.signature = nodes_at(h.nodes)[node].signature
        memo.shape = q.shape
        memo.stops = stops_at(h, q.op)
    return node


@inline
def upper_shape(node):  # type: ignore[no-untyped-def]
    """An operand's shape for a memo, in the upper half of a number; not 0 (no operand), not even of a dropped node."""
    return np.int64(node.shape + 2) << 32


@inline
def add_short(s, context, code, a, b, c, ints, first, second, data, datum):  # type: ignore[no-untyped-def]
    """Appends a short node: operands a, b, c (-1: there is none), 0 to 2 integers, a number's bits or an index.

    -1: not the plain case.
    """
    h = headers(context)[0]
    nodes, args = nodes_at(h.nodes), int32s(h.args)
    what, arity, used = np.int64(code << 8 | ints << 4 | data), 1, h.arg_count
    shapes, needs = np.int64(nodes[a].shape), nodes[a].flags & NEEDS_GRADIENT
    flags = (nodes[a].flags & (NEEDS_GRADIENT | FROZEN)) << 2
    if b >= 0:
        arity = 2
        shapes |= upper_shape(nodes[b])
        needs |= nodes[b].flags & NEEDS_GRADIENT
        flags |= (nodes[b].flags & (NEEDS_GRADIENT | FROZEN)) << 4
    if c >= 0:
        arity = 3
        what |= upper_shape(nodes[c])
        needs |= nodes[c].flags & NEEDS_GRADIENT
        flags |= (nodes[c].flags & (NEEDS_GRADIENT | FROZEN)) << 6
    memo = memo_of(s, what, shapes, first, second)
    is_known = memo.what == what and memo.shapes == shapes and memo.first == first and memo.second == second
    has_room = h.node_count < h.node_capacity and used + 3 <= h.arg_capacity and h.data_count < h.data_capacity
    fits = data != AN_INDEX or 0 <= datum < memo.bound
    if not (is_known and has_room and fits):
        return add_new(context, what, a, b, c, shapes, first, second, datum)
    args[used] = a
    if b >= 0:
        args[used + 1] = b
    if c >= 0:
        args[used + 2] = c
    if data != NO_DATA:
        int64s(h.data)[h.data_count] = datum
    return add_record(h, memo.signature, memo.shape, memo.stops, arity, needs, flags, data != NO_DATA)


@external("int64(int64, int64, int64, int64)")
def add_node(context, length, arity, data):  # type: ignore[no-untyped-def]
    """As `add_long`, quicker for short nodes."""
    s, h = front_ends(state_address())[0], headers(context)[0]
    scratch, ints = int64s(h.scratch), length - 2 - arity
    if arity < 1 or arity > 3 or ints > 2 or data > 1:
        return add_long(context, length, arity, data)
    kind = NO_DATA if data == 0 else A_NUMBER if operators_at(h.operators)[scratch[KEY]].floats else AN_INDEX
    return add_short(
        s, context, scratch[KEY], scratch[OPERANDS],
        scratch[OPERANDS + 1] if arity > 1 else -1, scratch[OPERANDS + 2] if arity > 2 else -1,
        ints, scratch[KEY + 2 + arity] if ints > 0 else 0, scratch[KEY + 3 + arity] if ints > 1 else 0,
        kind, scratch[DATA] if data else 0,
    )  # fmt: skip


# Programs of nodes, as int64 numbers: per node its operator, how many operands, integers and floats it has, and these.
# Where operands come from, who runs the program knows.


def programmed(code: int, operands: Sequence[int], ints: Sequence[int], floats: Sequence[int]) -> list[int]:
    """A node of a program; operands: the places that they come from;  floats: as bits."""
    return [code, len(operands), len(ints), len(floats), *operands, *ints, *floats]


@helper
def add_programmed(context, program, at, arity):  # type: ignore[no-untyped-def]
    """Appends the node that lies `at` a place of a program, and whose operands lie in the scratch numbers already.

    Returns the node (-1: not the plain case), and where the next one lies.
    """
    scratch, numbers = int64s(headers(context)[0].scratch), int64s(program)
    ints, floats, first = numbers[at + 2], numbers[at + 3], at + 4 + numbers[at + 1]
    scratch[KEY] = numbers[at]
    scratch[KEY + 1] = arity
    for i in range(ints):
        scratch[KEY + 2 + arity + i] = numbers[first + i]
    for i in range(floats):
        scratch[DATA + i] = numbers[first + ints + i]
    return add_node(context, 2 + arity + ints, arity, floats), first + ints + floats
