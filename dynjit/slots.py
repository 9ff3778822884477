"""The operators of expressions and their subscripts, and what is asked of an expression, as C functions."""

from __future__ import annotations

import numpy as np

from dynjit.arena import FROZEN, float32s, float64s, headers, int64s, nodes_at, shapes_at, signatures_at
from dynjit.backprop import start_backward
from dynjit.cpu import forward
from dynjit.jit import entry, helper, inline
from dynjit.plan import plan
from dynjit.recording import (
    A_NUMBER,
    AN_INDEX,
    BYTES,
    DATA,
    NO_DATA,
    OPERANDS,
    PLACE,
    START,
    STEP,
    STOP,
    add_short,
    expression_of,
    front_ends,
    header_of,
    int_of,
    integer,
    load,
    new_float,
    new_list,
    number_of,
    operand,
    overflow_flag,
    set_item,
    state_address,
    vectorcall,
    words,
)


@inline
def binary(s, context, code, a, b):  # type: ignore[no-untyped-def]
    """A node with two operands."""
    left = operand(s, context, a)
    right = operand(s, context, b) if left >= 0 else -1
    if right < 0:
        return 0
    node = add_short(s, context, code, left, right, -1, 0, 0, 0, NO_DATA, 0)
    return expression_of(s, headers(context)[0], node) if node >= 0 else 0


@inline
def with_number(s, context, code, x, o, sign, inverse):  # type: ignore[no-untyped-def]
    """A node with one operand and a number: sign * o, or sign / o."""
    value, is_plain = number_of(s, o)
    value *= sign
    if not is_plain or (value == 0 and inverse):
        return 0  # the twin says what is wrong
    h, source = headers(context)[0], operand(s, context, x)
    if source < 0:
        return 0
    float64s(h.scratch)[DATA] = 1 / value if inverse else value
    node = add_short(s, context, code, source, -1, -1, 0, 0, 0, A_NUMBER, int64s(h.scratch)[DATA])
    return expression_of(s, h, node) if node >= 0 else 0


@inline
def unary(s, context, code, x):  # type: ignore[no-untyped-def]
    """A node with one operand."""
    source = operand(s, context, x)
    if source < 0:
        return 0
    node = add_short(s, context, code, source, -1, -1, 0, 0, 0, NO_DATA, 0)
    return expression_of(s, headers(context)[0], node) if node >= 0 else 0


@inline
def is_expression(s, o):  # type: ignore[no-untyped-def]
    kind = load(o + 8)
    return kind == s.expression or kind == s.dense or kind == s.lookup_table


@helper
def slow_three(s, function, count, a, b, c):  # type: ignore[no-untyped-def]
    """Calls a twin with the first `count` of three objects."""
    scratch = words(overflow_flag(headers(header_of(s))[0]))
    scratch[1] = a
    scratch[2] = b
    scratch[3] = c
    return vectorcall(function, overflow_flag(headers(header_of(s))[0]) + 8, count, 0)


@helper
def slow_pair(s, function, a, b):  # type: ignore[no-untyped-def]
    return slow_three(s, function, 2, a, b, 0)


AXIS = 0  # that a subscript is about
BINARY, UNARY = "intp(intp, intp)", "intp(intp)"


@entry(BINARY)
def native_add(a, b):  # type: ignore[no-untyped-def]
    s = front_ends(state_address())[0]
    context = header_of(s)
    if not is_expression(s, a):
        result = with_number(s, context, s.op_add_number, b, a, 1, False)
    elif is_expression(s, b):
        result = binary(s, context, s.op_add, a, b)
    else:
        result = with_number(s, context, s.op_add_number, a, b, 1, False)
    return result if result != 0 else slow_pair(s, s.slow_add, a, b)


@entry(BINARY)
def native_subtract(a, b):  # type: ignore[no-untyped-def]
    s = front_ends(state_address())[0]
    context = header_of(s)
    if not is_expression(s, a):
        result = with_number(s, context, s.op_number_minus, b, a, 1, False)
    elif is_expression(s, b):
        result = binary(s, context, s.op_subtract, a, b)
    else:
        result = with_number(s, context, s.op_add_number, a, b, -1, False)
    return result if result != 0 else slow_pair(s, s.slow_subtract, a, b)


@entry(BINARY)
def native_multiply(a, b):  # type: ignore[no-untyped-def]
    s = front_ends(state_address())[0]
    context = header_of(s)
    if not is_expression(s, a):
        result = with_number(s, context, s.op_scale, b, a, 1, False)
    elif is_expression(s, b):
        result = binary(s, context, s.op_product, a, b)
    else:
        result = with_number(s, context, s.op_scale, a, b, 1, False)
    return result if result != 0 else slow_pair(s, s.slow_multiply, a, b)


@entry(BINARY)
def native_divide(a, b):  # type: ignore[no-untyped-def]
    s = front_ends(state_address())[0]
    context = header_of(s)
    result = 0
    if is_expression(s, a) and not is_expression(s, b):
        result = with_number(s, context, s.op_scale, a, b, 1, True)
    return result if result != 0 else slow_pair(s, s.slow_divide, a, b)


@entry(BINARY)
def native_matmul(a, b):  # type: ignore[no-untyped-def]
    s = front_ends(state_address())[0]
    context = header_of(s)
    result = binary(s, context, s.op_product, a, b) if is_expression(s, a) and is_expression(s, b) else 0
    return result if result != 0 else slow_pair(s, s.slow_matmul, a, b)


@entry(UNARY)
def native_negative(a):  # type: ignore[no-untyped-def]
    s = front_ends(state_address())[0]
    result = unary(s, header_of(s), s.op_negate, a)
    return result if result != 0 else slow_pair(s, s.slow_negative, a, a)


@entry("intp(intp, intp, intp)")
def native_power(a, b, modulus):  # type: ignore[no-untyped-def]
    s = front_ends(state_address())[0]
    context, result = header_of(s), 0
    if is_expression(s, a) and modulus == s.none:
        if is_expression(s, b):
            result = binary(s, context, s.op_pow, a, b)
        else:
            value, is_plain = number_of(s, b)
            if is_plain and value == 2:
                result = unary(s, context, s.op_second_power, a)
            else:
                result = with_number(s, context, s.op_number_power, a, b, 1, False)
    return result if result != 0 else slow_three(s, s.slow_power, 3, a, b, modulus)


@inline
def bound_of(s, h, o, missing, size):  # type: ignore[no-untyped-def]
    """A start or stop of a slice, counted from the front; -1: not the plain case."""
    if o == s.none:
        return missing
    value, is_plain = int_of(s, h, o)
    if not is_plain or value > size:
        return np.int64(-1)
    return value + size if value < 0 else value


@inline
def first_axis(s, context, a):  # type: ignore[no-untyped-def]
    """(node, size of its first axis) of an expression; node -1: not the plain case."""
    h, node = headers(context)[0], operand(s, context, a)
    if node < 0:
        return node, np.int64(0)
    return node, shapes_at(h.shapes)[nodes_at(h.nodes)[node].shape].rows


@inline
def slice_of(s, context, a, b):  # type: ignore[no-untyped-def]
    """x[start:stop]; 0: not the plain case."""
    h = headers(context)[0]
    source, rows = first_axis(s, context, a)
    if source < 0 or load(a + 8) == s.lookup_table or load(b + STEP) != s.none:
        return 0
    start = bound_of(s, h, load(b + START), np.int64(0), rows)
    stop = bound_of(s, h, load(b + STOP), rows, rows)
    if start < 0 or stop <= start or stop - start == rows:
        return 0
    node = add_short(s, context, s.op_pick_range, source, -1, -1, 2, stop - start, AXIS, AN_INDEX, start)
    return expression_of(s, h, node) if node >= 0 else 0


@inline
def entry_at(s, context, a, b):  # type: ignore[no-untyped-def]
    """x[i] of an expression, table[i] of a lookup table; 0: not the plain case."""
    h = headers(context)[0]
    index, is_plain = int_of(s, h, b)
    source, rows = first_axis(s, context, a)
    if not is_plain or source < 0:
        return 0
    if load(a + 8) == s.lookup_table:
        node = add_short(s, context, s.op_lookup, source, -1, -1, 0, 0, 0, AN_INDEX, index)
    else:
        index += rows if index < 0 else 0
        node = add_short(s, context, s.op_pick, source, -1, -1, 1, AXIS, 0, AN_INDEX, index)
    return expression_of(s, h, node) if node >= 0 else 0


@entry(BINARY)
def native_subscript(a, b):  # type: ignore[no-untyped-def]
    s = front_ends(state_address())[0]
    context = header_of(s)
    result = slice_of(s, context, a, b) if load(b + 8) == s.slice else entry_at(s, context, a, b)
    return result if result != 0 else slow_pair(s, s.slow_subscript, a, b)


# ---- what is asked of an expression ----------------------------------------------------------------------------------

NOT_PLAIN = -1  # the answer of what follows if the twin has to find it out
# kinds of values: a float, or for a vector a list;  a float;  a list in memory order;  where it lies
NATURAL, SCALAR, FLAT, LIES = 0, 1, 2, 3
VECTORCALL = "intp(intp, intp, intp, intp)"


@inline
def node_asked(s, context, args):  # type: ignore[no-untyped-def]
    """The node of an expression of the current graph; -1: not the plain case."""
    number = operand(s, context, load(args))
    if number >= 0 and nodes_at(headers(context)[0].nodes)[number].signature == 0:  # dropped by `revert`
        return np.int64(-1)
    return number


@entry(VECTORCALL)
def native_value(self, args, nargs, names):  # type: ignore[no-untyped-def]
    """The value of an expression, computed if it is not there; where it lies: as offset * PLACE + number of the shape.

    `self`: which kind of value.
    """
    s = front_ends(state_address())[0]
    context, kind = header_of(s), load(self + BYTES)
    h, number = headers(context)[0], node_asked(s, context, args)
    if number < 0 or s.may_run == 0 or h.check_validity:
        return integer(NOT_PLAIN)
    node = nodes_at(h.nodes)[number]
    q = signatures_at(h.signatures)[node.signature]
    if kind == SCALAR and q.size != 1:
        return integer(NOT_PLAIN)
    if node.value < 0:
        int64s(h.scratch)[OPERANDS] = number
        if plan(context, h.scratch + OPERANDS * 8, 1) != 0:
            return integer(NOT_PLAIN)
    if h.calls_done < h.call_count and forward(context) >= 0:
        return integer(NOT_PLAIN)
    if kind == LIES:
        return integer(node.value * PLACE + q.shape)
    if node.value < h.value_base and int64s(h.late)[0] > 0:  # rows of a table may wait for updates
        return integer(NOT_PLAIN)
    values = float32s(h.v)[node.value : node.value + q.size]
    if kind == NATURAL and (q.size == 0 or shapes_at(h.shapes)[q.shape].rank > 1):
        return integer(NOT_PLAIN)
    if kind == SCALAR or (kind == NATURAL and q.size == 1):
        return new_float(values[0])
    result = new_list(q.size)
    for i in range(q.size):
        set_item(result, i, new_float(values[i]))
    return result


@entry(VECTORCALL)
def native_shape(self, args, nargs, names):  # type: ignore[no-untyped-def]
    """The number of an expression's shape."""
    s = front_ends(state_address())[0]
    context = header_of(s)
    number = node_asked(s, context, args)
    if number < 0:
        return integer(NOT_PLAIN)
    h = headers(context)[0]
    return integer(signatures_at(h.signatures)[nodes_at(h.nodes)[number].signature].shape)


@entry(VECTORCALL)
def native_start_backward(self, args, nargs, names):  # type: ignore[no-untyped-def]
    """Prepares the backward pass from an expression that has a value, one number; 0 if it did."""
    s = front_ends(state_address())[0]
    context = header_of(s)
    h, number = headers(context)[0], node_asked(s, context, args)
    if number < 0 or s.may_run == 0 or h.calls_done < h.call_count:
        return integer(NOT_PLAIN)
    node = nodes_at(h.nodes)[number]
    if node.value < 0 or node.flags & FROZEN or signatures_at(h.signatures)[node.signature].size != 1:
        return integer(NOT_PLAIN)
    return integer(start_backward(context, number, 0))
