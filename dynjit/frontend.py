"""The native front end: recording a node costs one short call of compiled code.

Numba compiles C functions that CPython calls directly: the number slots of the type that Expression inherits from, and
a builtin that serves all public operator functions.  Each takes the plain case (operands of the current graph, a
signature met before, indices in range) and hands every other case, unchanged, to the function's twin in Python, which
also says what is wrong.  Where the interpreter's objects do not look as expected, the twins serve alone.
"""

from __future__ import annotations

import ctypes
import inspect
import platform
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from dynjit import op
from dynjit.arena import (
    HEADER,
    SCRATCH,
    Storage,
    append,
    append_leaf,
    find_signature,
    float32s,
    float64s,
    headers,
    int64s,
    nodes_at,
    operators_at,
    random_state,
    shapes_at,
    signatures_at,
    states,
    view_of,
)
from dynjit.arena import state as signature_state
from dynjit.cpu import forward
from dynjit.jit import Compiled, add_symbol, entry, external, helper, python_symbol, read_sources
from dynjit.memory import reserve
from dynjit.plan import plan

SLOTS = ("add", "subtract", "multiply", "divide", "negative", "matmul", "subscript")
PLAIN = ("add", "subtract", "product", "add_number", "number_minus", "scale", "negate", "pick", "pick_range", "lookup",
         "input")  # fmt: skip
STATE = np.dtype(
    [("header", "i8"), ("table", "i8"), ("parameters", "i8"), ("formats", "i8")]
    + [(name, "i8") for name in ("expression", "dense", "lookup_table", "int", "float", "list", "tuple", "slice")]
    + [(f"slow_{name}", "i8") for name in (*SLOTS, "scalar", "vector")]
    + [(f"op_{name}", "i8") for name in PLAIN]
)
PARAMETER = np.dtype([("signature", "i8"), ("value", "i8"), ("flags", "i8")])
MAX_PARAMS = 8
FORMAT = np.dtype(
    [("count", "i8"), ("required", "i8"), ("floats", "i8"), ("unary", "i8"), ("public", "i8"), ("record", "i8")]
    + [(f"{what}{i}", "i8") for what in ("letter", "default") for i in range(MAX_PARAMS)]
)
FORMAT_BYTES, LETTERS = FORMAT.itemsize, int(FORMAT.fields["letter0"][1])  # type: ignore[index]
HANDLE, NUMBER = 16, 24  # offsets of an expression's handle, and of a parameter's number, behind the object's head
MAX_LIST = 1 << 20
PLACE = 1 << 26  # more than there are numbers of shapes
OWN = 1 << 32  # added to an operator's code: what the compiled function declines goes to the recorder

state = np.zeros(1, STATE)
parameters = reserve(1 << 24, PARAMETER)
formats = reserve(op.TABLE.size, FORMAT)
state[0]["table"], state[0]["parameters"] = signature_state.ctypes.data, parameters.ctypes.data
state[0]["formats"] = formats.ctypes.data
# until there is a graph: a header without room, so that compiled code hands everything over to the twins
nothing = np.zeros(1, HEADER)
scratch_of_nothing = reserve(SCRATCH, np.int64)
for _name, _array in (("scratch", scratch_of_nothing), ("seed", random_state), ("signatures", op.SIGNATURES),
                      ("operators", op.TABLE)):  # fmt: skip
    nothing[0][_name] = _array.ctypes.data
nothing[0]["version"], state[0]["header"] = -1, nothing.ctypes.data
add_symbol("dynjit_front_end", state.ctypes.data)
for symbol in ("PyType_GenericAlloc", "PyObject_Vectorcall", "PyLong_AsLongLongAndOverflow", "PyFloat_AsDouble",
               "PyList_Size", "PyList_GetItem", "PyErr_Clear",
               "PyTuple_Size", "PyTuple_GetItem", "PySlice_Unpack", "PyList_New", "PyList_SetItem",
               "PyFloat_FromDouble",
               "PyLong_FromLongLong"):  # fmt: skip
    python_symbol(symbol)
allocate = types.ExternalFunction("PyType_GenericAlloc", types.intp(types.intp, types.intp))
vectorcall = types.ExternalFunction("PyObject_Vectorcall", types.intp(types.intp, types.intp, types.intp, types.intp))
as_integer = types.ExternalFunction("PyLong_AsLongLongAndOverflow", types.int64(types.intp, types.intp))
as_double = types.ExternalFunction("PyFloat_AsDouble", types.float64(types.intp))
list_size = types.ExternalFunction("PyList_Size", types.intp(types.intp))
list_item = types.ExternalFunction("PyList_GetItem", types.intp(types.intp, types.intp))

tuple_size = types.ExternalFunction("PyTuple_Size", types.intp(types.intp))
tuple_item = types.ExternalFunction("PyTuple_GetItem", types.intp(types.intp, types.intp))
unpack_slice = types.ExternalFunction("PySlice_Unpack", types.intc(types.intp, types.intp, types.intp, types.intp))
new_list = types.ExternalFunction("PyList_New", types.intp(types.intp))
set_item = types.ExternalFunction("PyList_SetItem", types.intc(types.intp, types.intp, types.intp))
new_float = types.ExternalFunction("PyFloat_FromDouble", types.intp(types.float64))
integer = types.ExternalFunction("PyLong_FromLongLong", types.intp(types.int64))
clear_error = types.ExternalFunction("PyErr_Clear", types.void())

words, front_ends, parameters_at, formats_at = view_of("i8"), view_of(STATE), view_of(PARAMETER), view_of(FORMAT)
OPEN_END = (1 << 63) - 1  # what a slice without an end says
KEY, OPERANDS, DATA = 0, 2 * MAX_LIST, 4 * MAX_LIST  # where they lie in the header's scratch numbers


@intrinsic
def state_address(typing):  # type: ignore[no-untyped-def]
    """Address of the front end's state, by its symbol (the cache may not hold addresses)."""

    def codegen(target, builder, signature, args):  # type: ignore[no-untyped-def]
        symbol = ir.GlobalVariable(builder.module, ir.IntType(64), "dynjit_front_end")
        symbol.linkage = "external"
        return builder.ptrtoint(symbol, ir.IntType(64))

    return types.int64(), codegen


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
    """A new Expression object."""
    result = allocate(s.expression, 0)
    if result != 0:
        words(result + HANDLE)[0] = h.version << 32 | node
    return result


@external("int64(int64, int64, int64)")
def add_node(length, arity, data):  # type: ignore[no-untyped-def]
    """Appends the node whose key, operands and data lie in the scratch numbers; -1: not the plain case."""
    s = front_ends(state_address())[0]
    h = headers(s.header)[0]
    scratch = int64s(h.scratch)
    nodes, known = nodes_at(h.nodes), signatures_at(h.signatures)
    for k in range(arity):
        scratch[KEY + 2 + k] = known[nodes[scratch[OPERANDS + k]].signature].shape
    signature = find_signature(states(s.table)[0], h.scratch + KEY * 8, length)
    if signature == 0:
        return -1
    q = known[signature]
    floats = formats_at(s.formats)[q.op].floats
    for i in range(floats, data):
        if scratch[DATA + i] < 0 or scratch[DATA + i] >= q.bound:
            return -1
    if q.ids > 0 and data == floats + 1:
        step = 1 if operators_at(h.operators)[q.op].flags & op.RANDOM else 0
        while data < floats + q.ids:  # one index for all mini-batch items, or one random stream for each
            scratch[DATA + data] = scratch[DATA + data - 1] + step
            data += 1
        if step:
            words(h.seed)[1] += q.ids
    if data != floats + q.ids:
        return -1
    return append(h, signature, h.scratch + OPERANDS * 8, arity, h.scratch + DATA * 8, data)


@helper
def finish(s, h, length, arity, data):  # type: ignore[no-untyped-def]
    """As `add_node`, with an Expression of it; 0: not the plain case."""
    node = add_node(length, arity, data)
    return expression_of(s, h, node) if node >= 0 else 0


@helper
def binary(s, code, a, b):  # type: ignore[no-untyped-def]
    """A node with two operands."""
    h = headers(s.header)[0]
    scratch = int64s(h.scratch)
    left = operand(s, h, a)
    right = operand(s, h, b) if left >= 0 else -1
    if right < 0:
        return 0
    scratch[KEY] = code
    scratch[KEY + 1] = 2
    scratch[OPERANDS] = left
    scratch[OPERANDS + 1] = right
    return finish(s, h, 4, 2, 0)


@helper
def with_number(s, code, x, o, sign, inverse):  # type: ignore[no-untyped-def]
    """A node with one operand and a number: sign * o, or sign / o."""
    if load(o + 8) != s.float and load(o + 8) != s.int:
        return 0
    value = as_double(o) * sign
    if value == 0 and inverse:
        return 0  # the twin says what is wrong
    if value == -1:
        clear_error()  # an int without a float, perhaps: the twin finds out
        return 0
    h = headers(s.header)[0]
    node = operand(s, h, x)
    if node < 0:
        return 0
    scratch = int64s(h.scratch)
    scratch[KEY] = code
    scratch[KEY + 1] = 1
    scratch[OPERANDS] = node
    float64s(h.scratch)[DATA] = 1 / value if inverse else value
    return finish(s, h, 3, 1, 1)


@helper
def unary(s, code, x):  # type: ignore[no-untyped-def]
    """A node with one operand."""
    h = headers(s.header)[0]
    node = operand(s, h, x)
    if node < 0:
        return 0
    scratch = int64s(h.scratch)
    scratch[KEY] = code
    scratch[KEY + 1] = 1
    scratch[OPERANDS] = node
    return finish(s, h, 3, 1, 0)


@helper
def is_expression(s, o):  # type: ignore[no-untyped-def]
    kind = load(o + 8)
    return kind == s.expression or kind == s.dense or kind == s.lookup_table


@helper
def slow_pair(s, function, a, b):  # type: ignore[no-untyped-def]
    """Calls a twin with two objects."""
    scratch = words(overflow_flag(headers(s.header)[0]))
    scratch[1] = a
    scratch[2] = b
    return vectorcall(function, overflow_flag(headers(s.header)[0]) + 8, 2, 0)


BINARY, UNARY = "intp(intp, intp)", "intp(intp)"


@entry(BINARY)
def native_add(a, b):  # type: ignore[no-untyped-def]
    s = front_ends(state_address())[0]
    result = 0
    if is_expression(s, a):
        result = binary(s, s.op_add, a, b) if is_expression(s, b) else with_number(s, s.op_add_number, a, b, 1, False)
    else:
        result = with_number(s, s.op_add_number, b, a, 1, False)
    return result if result != 0 else slow_pair(s, s.slow_add, a, b)


@entry(BINARY)
def native_subtract(a, b):  # type: ignore[no-untyped-def]
    s = front_ends(state_address())[0]
    result = 0
    if is_expression(s, a):
        if is_expression(s, b):
            result = binary(s, s.op_subtract, a, b)
        else:
            result = with_number(s, s.op_add_number, a, b, -1, False)
    else:
        result = with_number(s, s.op_number_minus, b, a, 1, False)
    return result if result != 0 else slow_pair(s, s.slow_subtract, a, b)


@entry(BINARY)
def native_multiply(a, b):  # type: ignore[no-untyped-def]
    s = front_ends(state_address())[0]
    result = 0
    if is_expression(s, a):
        result = binary(s, s.op_product, a, b) if is_expression(s, b) else with_number(s, s.op_scale, a, b, 1, False)
    else:
        result = with_number(s, s.op_scale, b, a, 1, False)
    return result if result != 0 else slow_pair(s, s.slow_multiply, a, b)


@entry(BINARY)
def native_divide(a, b):  # type: ignore[no-untyped-def]
    s = front_ends(state_address())[0]
    result = 0
    if is_expression(s, a) and not is_expression(s, b):
        result = with_number(s, s.op_scale, a, b, 1, True)
    return result if result != 0 else slow_pair(s, s.slow_divide, a, b)


@entry(BINARY)
def native_matmul(a, b):  # type: ignore[no-untyped-def]
    s = front_ends(state_address())[0]
    result = binary(s, s.op_product, a, b) if is_expression(s, a) and is_expression(s, b) else 0
    return result if result != 0 else slow_pair(s, s.slow_matmul, a, b)


@entry(UNARY)
def native_negative(a):  # type: ignore[no-untyped-def]
    s = front_ends(state_address())[0]
    result = unary(s, s.op_negate, a)
    return result if result != 0 else slow_pair(s, s.slow_negative, a, a)


@helper
def slice_of(s, a, b):  # type: ignore[no-untyped-def]
    """x[start:stop] along the first axis, counted from the front."""
    h = headers(s.header)[0]
    node = operand(s, h, a)
    bounds = overflow_flag(h)
    if node < 0 or load(a + 8) == s.lookup_table or unpack_slice(b, bounds, bounds + 8, bounds + 16) < 0:
        clear_error()
        return 0
    start, stop, step = words(bounds)[0], words(bounds)[1], words(bounds)[2]
    rows = shapes_at(h.shapes)[signatures_at(h.signatures)[nodes_at(h.nodes)[node].signature].shape].rows
    if stop == OPEN_END:
        stop = rows
    if step != 1 or start < 0 or stop <= start or stop > rows:
        return 0
    scratch = int64s(h.scratch)
    scratch[KEY] = s.op_pick_range
    scratch[KEY + 1] = 1
    scratch[KEY + 3] = stop - start
    scratch[KEY + 4] = 0  # the axis
    scratch[OPERANDS] = node
    scratch[DATA] = start
    return finish(s, h, 5, 1, 1)


@entry(BINARY)
def native_subscript(a, b):  # type: ignore[no-untyped-def]
    """x[i] of an expression, table[i] of a lookup table."""
    s = front_ends(state_address())[0]
    result = 0
    if load(b + 8) == s.slice:
        result = slice_of(s, a, b)
    elif load(b + 8) == s.int:
        h = headers(s.header)[0]
        index, overflow = integer_of(h, b)
        node = operand(s, h, a) if overflow == 0 and index >= 0 else -1
        if node >= 0:
            scratch = int64s(h.scratch)
            is_table = load(a + 8) == s.lookup_table
            scratch[KEY] = s.op_lookup if is_table else s.op_pick
            scratch[KEY + 1] = 1
            scratch[KEY + 3] = 0  # pick's axis
            scratch[OPERANDS] = node
            scratch[DATA] = index
            result = finish(s, h, 3 if is_table else 4, 1, 1)
    return result if result != 0 else slow_pair(s, s.slow_subscript, a, b)


@entry("intp(intp, intp, intp, intp)")
def native_value(self, args, nargs, names):  # type: ignore[no-untyped-def]
    """The value of an expression, computed if it is not there; -1: not the plain case.

    `self` 0: a float, or for a vector a list;  1: where it lies, as offset * PLACE + number of the shape.
    """
    s = front_ends(state_address())[0]
    h = headers(s.header)[0]
    number = operand(s, h, load(args))
    if number < 0:
        return integer(-1)
    node = nodes_at(h.nodes)[number]
    if node.signature == 0:  # dropped by `revert`
        return integer(-1)
    if node.value < 0:
        int64s(h.scratch)[OPERANDS] = number
        if plan(s.header, h.scratch + OPERANDS * 8, 1) != 0:
            return integer(-1)
    if h.calls_done < h.call_count and forward(s.header) >= 0:
        return integer(-1)
    q = signatures_at(h.signatures)[node.signature]
    wants_place, _ = integer_of(h, self)
    if wants_place:
        return integer(node.value * PLACE + q.shape)
    values = float32s(h.v)[node.value : node.value + q.size]
    if q.size == 0 or shapes_at(h.shapes)[q.shape].rank > 1:
        return integer(-1)
    if q.size == 1:
        return new_float(values[0])
    result = new_list(q.size)
    for i in range(q.size):
        set_item(result, i, new_float(values[i]))
    return result


X, XS, INT, INTS, F, D, DS, R = (ord(letter) for letter in "xXiIfdDr")


@external("int64(int64, int64, int64)")
def collect(code, args, nargs):  # type: ignore[no-untyped-def]
    """A node of an operator from the positional arguments of a call; 0: not the plain case."""
    s = front_ends(state_address())[0]
    h = headers(s.header)[0]
    form, scratch, doubles = formats_at(s.formats)[code], int64s(h.scratch), float64s(h.scratch)
    letters = words(s.formats + code * FORMAT_BYTES + LETTERS)
    if nargs < form.required or nargs > form.count:
        return 0
    arity, ints, floats, data, counted = 0, 0, 0, form.floats, -1
    spare = DATA + MAX_LIST + 16  # integer parameters, until the number of operands is known
    passed = 0
    for p in range(form.count):
        letter = letters[p]
        if letter == R:
            scratch[DATA + data] = words(h.seed)[1]
            data += 1
            continue
        o = load(args + 8 * passed) if passed < nargs else 0
        passed += 1
        if letter == X:
            node = operand(s, h, o) if o != 0 else -1
            if node < 0:
                return 0
            scratch[OPERANDS + arity] = node
            arity += 1
        elif letter == XS:
            if o == 0 or load(o + 8) != s.list:
                return 0
            size = list_size(o)
            if size == 0 or size >= MAX_LIST:
                return 0
            for i in range(size):
                node = operand(s, h, list_item(o, i))
                if node < 0:
                    return 0
                scratch[OPERANDS + i] = node
            arity = size
        elif letter == F:
            if o == 0:
                scratch[DATA + floats] = letters[MAX_PARAMS + p]
            elif load(o + 8) == s.float:
                doubles[DATA + floats] = as_double(o)
            else:
                return 0
            floats += 1
        elif letter == INTS:
            if o == 0 or load(o + 8) != s.tuple:
                return 0
            for i in range(tuple_size(o)):
                item = tuple_item(o, i)
                if load(item + 8) != s.int:
                    return 0
                value, overflow = integer_of(h, item)
                if overflow != 0:
                    return 0
                scratch[spare + ints] = value
                ints += 1
        elif letter == DS:
            if o == 0 or load(o + 8) != s.list:
                return 0
            counted = list_size(o)
            if counted >= MAX_LIST:
                return 0
            for i in range(counted):
                item = list_item(o, i)
                if load(item + 8) != s.int:
                    return 0
                value, overflow = integer_of(h, item)
                if overflow != 0:
                    return 0
                scratch[DATA + data] = value
                data += 1
        else:
            value = letters[MAX_PARAMS + p]
            if o != 0:
                if load(o + 8) != s.int:
                    return 0
                value, overflow = integer_of(h, o)
                if overflow != 0:
                    return 0
            if letter == D:
                scratch[DATA + data] = value
                data += 1
            else:
                scratch[spare + ints] = value
                ints += 1
    scratch[KEY] = code
    scratch[KEY + 1] = arity
    for i in range(ints):
        scratch[KEY + 2 + arity + i] = scratch[spare + i]
    length = 2 + arity + ints
    if counted >= 0:
        scratch[KEY + length] = counted
        length += 1
    return finish(s, h, length, arity, data)


@entry("intp(intp, intp, intp, intp)")
def native_call(self, args, nargs, names):  # type: ignore[no-untyped-def]
    """Serves all operators; `self` is an int object: the operator's code, plus OWN for calls inside of dynjit."""
    s = front_ends(state_address())[0]
    h = headers(s.header)[0]
    number, _ = integer_of(h, self)
    code = number % OWN
    form = formats_at(s.formats)[code]
    result = 0
    if names == 0:
        result = unary(s, code, load(args)) if form.unary and nargs == 1 else collect(code, args, nargs)
    if result != 0:
        return result
    return vectorcall(form.public if number < OWN else form.record, args, nargs, names)


@entry("intp(intp, intp, intp, intp)")
def native_input(self, args, nargs, names):  # type: ignore[no-untyped-def]
    """Serves scalarInput(number) (`self` 0) and inputVector(list of floats) (`self` 1)."""
    s = front_ends(state_address())[0]
    h = headers(s.header)[0]
    is_vector, _ = integer_of(h, self)
    result = 0
    if names == 0 and nargs == 1:
        o = load(args)
        if is_vector == 0 and load(o + 8) == s.float:
            result = input_node(s, h, o, 1, False)
        elif is_vector == 1 and load(o + 8) == s.list:
            result = input_node(s, h, o, list_size(o), True)
    return result if result != 0 else vectorcall(s.slow_vector if is_vector else s.slow_scalar, args, nargs, names)


@helper
def input_node(s, h, o, count, is_list):  # type: ignore[no-untyped-def]
    """A leaf with the values of a float, or of a list of floats; 0: not the plain case."""
    scratch = int64s(h.scratch)
    start = (h.value_top + 15) & ~15
    if count == 0 or start + count > h.value_end:
        return 0
    scratch[KEY] = s.op_input
    scratch[KEY + 1] = 0
    scratch[KEY + 2] = count
    scratch[KEY + 3] = 1  # the mini-batch
    signature = find_signature(states(s.table)[0], h.scratch + KEY * 8, 4)
    if signature == 0:
        return 0
    values = float32s(h.v)
    for i in range(count):
        item = list_item(o, i) if is_list else o
        if load(item + 8) != s.float:
            return 0
        values[start + i] = as_double(item)
    node = append_leaf(h, signature, start, 0)
    if node < 0:
        return 0
    h.value_top = start + count
    return expression_of(s, h, node)


# ---- types and builtins ----------------------------------------------------------------------------------------------


class Slot(ctypes.Structure):
    _fields_ = [("slot", ctypes.c_int), ("function", ctypes.c_void_p)]


class Spec(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p), ("basicsize", ctypes.c_int), ("itemsize", ctypes.c_int),
        ("flags", ctypes.c_uint), ("slots", ctypes.POINTER(Slot)),
    ]  # fmt: skip


class Member(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p), ("type", ctypes.c_int), ("offset", ctypes.c_ssize_t),
        ("flags", ctypes.c_int), ("doc", ctypes.c_char_p),
    ]  # fmt: skip


class Method(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p), ("function", ctypes.c_void_p), ("flags", ctypes.c_int), ("doc", ctypes.c_char_p),
    ]  # fmt: skip


SUBCLASSABLE, LONGLONG = 1 << 10, 17  # Py_TPFLAGS_BASETYPE, T_LONGLONG
FASTCALL_KEYWORDS = 0x82
SUBSCRIPT, MEMBERS = 5, 72  # Py_mp_subscript, Py_tp_members
NUMBER_SLOTS = {7: native_add, 36: native_subtract, 29: native_multiply, 37: native_divide, 30: native_negative,
                75: native_matmul, SUBSCRIPT: native_subscript}  # fmt: skip

is_native = (
    platform.python_implementation() == "CPython"
    and object.__basicsize__ == HANDLE
    and getattr(sys, "_is_gil_enabled", lambda: True)()
)
kept: list[Any] = []  # what the interpreter holds only the address of


def make_type(name: str, size: int, member: str, slots: dict[int, int], bases: tuple[type, ...]) -> type:
    """A type with one more 64-bit integer field, and C functions in its slots."""
    members = (Member * 2)(Member(member.encode(), LONGLONG, size - 8, 0, None), Member())
    entries = [Slot(*slot) for slot in slots.items()]
    table = (Slot * (len(slots) + 2))(*entries, Slot(MEMBERS, ctypes.addressof(members)))
    spec = Spec(name.encode(), size, 0, SUBCLASSABLE, table)
    make = ctypes.pythonapi.PyType_FromSpecWithBases
    make.restype, make.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.py_object]
    kept.extend((members, table, spec))
    return make(ctypes.addressof(spec), bases)  # type: ignore[no-any-return]


def twin_type(slow: dict[str, Callable]) -> type:
    """The same type in Python, for interpreters that the compiled functions do not know."""

    class Native:
        __slots__ = ("handle",)

        def __add__(self, other: Any) -> Any:
            return slow["add"](self, other)

        def __radd__(self, other: Any) -> Any:
            return slow["add"](other, self)

        def __sub__(self, other: Any) -> Any:
            return slow["subtract"](self, other)

        def __rsub__(self, other: Any) -> Any:
            return slow["subtract"](other, self)

        def __mul__(self, other: Any) -> Any:
            return slow["multiply"](self, other)

        def __rmul__(self, other: Any) -> Any:
            return slow["multiply"](other, self)

        def __truediv__(self, other: Any) -> Any:
            return slow["divide"](self, other)

        def __rtruediv__(self, other: Any) -> Any:
            return slow["divide"](other, self)

        def __matmul__(self, other: Any) -> Any:
            return slow["matmul"](self, other)

        def __neg__(self) -> Any:
            return slow["negative"](self, self)

        def __getitem__(self, index: Any) -> Any:
            return slow["subscript"](self, index)

    return Native


def expression_base(slow: dict[str, Callable]) -> type:
    """The type that Expression inherits its handle and its operators from.

    slow: the twins in Python, by the names of SLOTS.
    """
    if not is_native:
        return twin_type(slow)
    slots = {number: function.address for number, function in NUMBER_SLOTS.items()}
    return make_type("dynjit.Native", HANDLE + 8, "handle", slots, (object,))


def parameter_base(expression: type) -> type:
    """The type that Parameters and LookupParameters inherit their number from."""
    if not is_native:
        return type("NativeParameter", (expression,), {"__slots__": ("number",)})
    return make_type("dynjit.NativeParameter", NUMBER + 8, "number", {}, (expression,))


def builtin(function: Callable) -> Callable:
    """The compiled form of a public operator function; the function itself where there is none."""
    operator = op.fast[function]
    if not is_native or len(operator.params) > MAX_PARAMS:
        return function
    fill_format(operator, function)
    return c_function(function.__name__, text_of(function), native_call, operator.code, function)


def text_of(function: Callable) -> str:
    """A function's signature and docstring, as the interpreter wants them of builtins."""
    parameters = inspect.signature(function).parameters.values()
    names = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters]
    return f"{function.__name__}({', '.join(names)})\n--\n\n{function.__doc__}"


def input_builtin(function: Callable, is_vector: bool) -> Callable:
    """The compiled form of scalarInput or inputVector."""
    if not is_native:
        return function
    return c_function(function.__name__, text_of(function), native_input, int(is_vector), function)


def fill_format(operator: op.Operator, function: Callable | None) -> None:
    """Tells compiled code how an operator, and its public function, are called."""
    passed = len(operator.params.replace("r", ""))
    defaults = (function.__defaults__ or ()) if function else ()
    given = (function.__code__.co_argcount if function else passed) - len(defaults)  # arguments without a default
    form = formats[operator.code]
    form["count"], form["required"], form["unary"] = len(operator.params), min(given, passed), operator.params == "x"
    form["floats"], form["public"] = operator.params.count("f"), id(function) if function else 0
    values = iter([*[None] * given, *defaults])
    for i, letter in enumerate(operator.params):
        form[f"letter{i}"] = ord(letter)
        value = next(values) if letter != "r" else None
        if isinstance(value, (int, float)):
            form[f"default{i}"] = np.float64(value).view(np.int64) if letter == "f" else int(value)


def serve(operator: op.Operator) -> None:
    """Lets compiled code serve the calls of an operator inside of dynjit."""
    if not is_native or len(operator.params) > MAX_PARAMS:
        return
    if not formats[operator.code]["count"]:
        fill_format(operator, None)
    formats[operator.code]["record"] = id(operator.record)
    kept.append(operator.record)
    operator.call = c_function(operator.name, "", native_call, OWN + operator.code, operator.record)


def c_function(name: str, text: str, compiled: Compiled, number: int, twin: Callable) -> Callable:
    """A builtin of the compiled function, which gets `number` as its self."""
    method = Method(name.encode(), compiled.address, FASTCALL_KEYWORDS, text.encode())
    make = ctypes.pythonapi.PyCFunction_NewEx
    make.restype, make.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.py_object, ctypes.py_object]
    kept.extend((method, twin))
    return make(ctypes.addressof(method), number, "dynjit")  # type: ignore[no-any-return]


def value_builtin(wants_place: bool) -> Callable | None:
    """The compiled function behind an expression's value, or behind where it lies; None where there is none."""
    if not is_native:
        return None
    return c_function("value", "", native_value, int(wants_place), value_builtin)


def use(storage: Storage | None) -> None:
    """Makes a graph the one that compiled code appends to; without one it hands everything over to the twins."""
    state[0]["header"] = nothing.ctypes.data if storage is None else storage.address


def connect(
    expression: type, dense: type, lookup_table: type, operators: dict[str, op.Operator], slow: dict[str, Callable]
) -> None:
    """Tells compiled code the types and operators that it serves, and the twins that it hands over to."""
    for name in (*SLOTS, "scalar", "vector"):
        state[0][f"slow_{name}"] = id(slow[name])
    kinds = {"expression": expression, "dense": dense, "lookup_table": lookup_table, "int": int, "float": float,
             "list": list, "tuple": tuple, "slice": slice}  # fmt: skip
    for name, kind in kinds.items():
        state[0][name] = id(kind)
    for name in PLAIN:
        state[0][f"op_{name}"] = operators[name].code
    for operator in operators.values():
        serve(operator)
    kept.extend((kinds, slow))
    read_sources()
