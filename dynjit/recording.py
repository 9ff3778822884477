"""Recording a node costs one short call of compiled code: what all the C functions have in common that do it.

Each takes the plain case (operands of the current graph, a signature met before, indices in range) and hands every
other case, unchanged, to its twin in Python, which also says what is wrong.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from dynjit import op
from dynjit.arena import (
    HEADER,
    SCRATCH,
    append,
    append_leaf,
    find_signature,
    headers,
    int64s,
    nodes_at,
    operators_at,
    random_state,
    signatures_at,
    states,
)
from dynjit.arena import state as signature_state
from dynjit.jit import add_symbol, entry, external, helper, python_symbol
from dynjit.memory import reserve
from dynjit.views import view_of

SLOTS = ("add", "subtract", "multiply", "divide", "negative", "matmul", "subscript")
PLAIN = (
    "add", "subtract", "product", "add_number", "number_minus", "scale", "negate", "pick", "pick_range", "lookup",
)  # fmt: skip
KINDS = ("expression", "dense", "lookup_table", "int", "bool", "float", "list", "tuple", "slice", "bytes")
STATE = np.dtype(
    [(name, "i8") for name in ("header", "thread", "nothing", "table", "parameters", "forms")]
    + [(name, "i8") for name in ("fields", "free", "free_count", "none")]
    + [(name, "i8") for name in KINDS]
    + [(f"slow_{name}", "i8") for name in (*SLOTS, "step", "steps")]
    + [(f"op_{name}", "i8") for name in PLAIN]
)
PARAMETER = np.dtype([("signature", "i8"), ("value", "i8"), ("flags", "i8")])
# how a function is called that stands for an operator: one form each, and a field per argument
FORM = np.dtype([(name, "i8") for name in ("code", "count", "is_unary", "slow")])
FIELD = np.dtype([("letter", "i8"), ("name", "i8"), ("default", "i8"), ("low", "f8"), ("high", "f8")])
MAX_FIELDS = 8
HANDLE, NUMBER = 16, 24  # offsets of an expression's handle, and of a parameter's number, behind the object's head
START, STOP, STEP = 16, 24, 32  # offsets in a slice
MAX_LIST = 1 << 20
PLACE = 1 << 26  # more than there are numbers of shapes
MAX_FREE = 1 << 16
HAS_COLLECTION = 1 << 14  # Py_TPFLAGS_HAVE_GC

state = np.zeros(1, STATE)
parameters = reserve(1 << 24, PARAMETER)
forms, fields = reserve(op.TABLE.size, FORM), reserve(op.TABLE.size * MAX_FIELDS, FIELD)
state[0]["table"], state[0]["parameters"] = signature_state.ctypes.data, parameters.ctypes.data
state[0]["forms"], state[0]["fields"] = forms.ctypes.data, fields.ctypes.data
# until there is a graph: a header without room, so that compiled code hands everything over to the twins
nothing = np.zeros(1, HEADER)
scratch_of_nothing = reserve(SCRATCH, np.int64)
for _name, _array in (("scratch", scratch_of_nothing), ("seed", random_state), ("signatures", op.SIGNATURES),
                      ("operators", op.TABLE)):  # fmt: skip
    nothing[0][_name] = _array.ctypes.data
nothing[0]["version"], state[0]["header"], state[0]["nothing"] = -1, nothing.ctypes.data, nothing.ctypes.data
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
as_integer = python_function("PyLong_AsLongLongAndOverflow", types.int64, types.intp, types.intp)
as_double = python_function("PyFloat_AsDouble", types.float64, types.intp)
list_size = python_function("PyList_Size", types.intp, types.intp)
list_item = python_function("PyList_GetItem", types.intp, types.intp, types.intp)
tuple_size = python_function("PyTuple_Size", types.intp, types.intp)
tuple_item = python_function("PyTuple_GetItem", types.intp, types.intp, types.intp)
bytes_start = python_function("PyBytes_AsString", types.intp, types.intp)
new_list = python_function("PyList_New", types.intp, types.intp)
set_item = python_function("PyList_SetItem", types.intc, types.intp, types.intp, types.intp)
new_float = python_function("PyFloat_FromDouble", types.intp, types.float64)
integer = python_function("PyLong_FromLongLong", types.intp, types.int64)
thread_number = python_function("PyThread_get_thread_ident", types.intp)
clear_error = python_function("PyErr_Clear", types.void)

words, front_ends, parameters_at = view_of("i8"), view_of(STATE), view_of(PARAMETER)
forms_at, fields_at = view_of(FORM), view_of(FIELD)
# where they lie in the header's scratch numbers: the node in the making, and what a call was given
KEY, OPERANDS, DATA = 0, 2 * MAX_LIST, 4 * MAX_LIST
ARGUMENTS = DATA + MAX_LIST + 16
INTS = ARGUMENTS + MAX_FIELDS  # integer parameters, until the number of operands is known


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


@helper
def operand(s, h, o):  # type: ignore[no-untyped-def]
    """The node of an operand; a parameter joins the graph on its first use.  -1: not the plain case."""
    kind = load(o + 8)
    if kind == s.expression:
        handle = load(o + HANDLE)
        node = handle & 0xFFFFFFFF
        return node if handle >> 32 == h.version and node < h.node_count else -1
    if kind == s.dense or kind == s.lookup_table:
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
    return -1


@helper
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


@external("int64(int64, int64, int64, int64)")
def add_node(context, length, arity, data):  # type: ignore[no-untyped-def]
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
    if operator.flags & op.RANDOM:
        for i in range(q.ids):  # a random stream for each mini-batch item
            scratch[DATA + operator.floats + i] = words(h.seed)[1] + i
        words(h.seed)[1] += q.ids
        data = operator.floats + q.ids
    given = data - operator.floats
    for i in range(operator.floats, data):
        if scratch[DATA + i] < 0 or scratch[DATA + i] >= q.bound:
            return -1
    while given > 0 and data < operator.floats + q.ids:  # the same indices for all mini-batch items
        scratch[DATA + data] = scratch[DATA + data - given]
        data += 1
    if data != operator.floats + q.ids:
        return -1
    return append(h, signature, h.scratch + OPERANDS * 8, arity, h.scratch + DATA * 8, data)


@helper
def finish(s, context, length, arity, data):  # type: ignore[no-untyped-def]
    """As `add_node`, with an Expression of it; 0: not the plain case."""
    node = add_node(context, length, arity, data)
    return expression_of(s, headers(context)[0], node) if node >= 0 else 0
