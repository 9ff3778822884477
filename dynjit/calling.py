"""Calls of the functions that stand for an operator, or are composed of some: one C function serves them all.

A *form* says how a function is called: which operator it stands for, and of each argument its letter (see `op.define`),
name, default and range.  Of a composed function it has a program instead (see `frontend.program_of`).
"""

from __future__ import annotations

from dynjit import op
from dynjit.arena import float64s, headers, int64s, operators_at
from dynjit.inputs import filled_leaf, open_array
from dynjit.jit import entry, external, helper, inline
from dynjit.recording import (
    ARGUMENTS,
    BYTES,
    DATA,
    INTS,
    KEY,
    MADE,
    MAX_FIELDS,
    OPERANDS,
    add_node,
    add_programmed,
    count_of,
    entry_of,
    expression_of,
    fields_at,
    forms_at,
    front_ends,
    header_of,
    int_of,
    load,
    number_of,
    operand,
    state_address,
    take,
    tuple_item,
    tuple_size,
    vectorcall,
    words,
)
from dynjit.slots import binary, unary

X, XS, INT, LENGTHS, END, FLOAT, INDEX, INDICES, SHARED, TABLE = (ord(letter) for letter in "xXiIefdDAt")
VALUES, ARRAY, ONES, PLACES, BATCHED = (ord(letter) for letter in "vahpb")
NOTHING = 0  # of an argument without effect: it must be the default, or what the form says


@helper
def place(s, h, number, args, nargs, names):  # type: ignore[no-untyped-def]
    """Lays a call's arguments, or their defaults, in the order of the form's fields; False: not the plain case."""
    form, scratch, given = forms_at(s.forms)[number], int64s(h.scratch), words(args)
    first = number * MAX_FIELDS
    if nargs > form.count:
        return False
    for p in range(form.count):
        scratch[ARGUMENTS + p] = given[p] if p < nargs else 0
    if names != 0:
        for k in range(tuple_size(names)):
            name, p = tuple_item(names, k), nargs
            while p < form.count and fields_at(s.fields)[first + p].name != name:
                p += 1
            if p == form.count:
                return False
            scratch[ARGUMENTS + p] = given[nargs + k]
    for p in range(nargs, form.count):
        if scratch[ARGUMENTS + p] == 0:
            scratch[ARGUMENTS + p] = fields_at(s.fields)[first + p].default
            if scratch[ARGUMENTS + p] == 0:
                return False
    return True


@helper
def lay_operands(s, h, context, letter, o, arity):  # type: ignore[no-untyped-def]
    """Lays an operand, or those of a list, behind `arity` others; returns how many there are then.

    -1: not the plain case.
    """
    scratch, is_list = int64s(h.scratch), letter == XS
    size = count_of(s, o) if is_list else 1
    for i in range(size):
        node = operand(s, context, entry_of(s, o, i) if is_list else o)
        if node < 0:
            return -1
        scratch[OPERANDS + arity + i] = node
    return arity + size if size > 0 else -1


@inline
def collect(s, h, context, number):  # type: ignore[no-untyped-def]
    """A node from the arguments of a call of a form; 0: not the plain case."""
    form, scratch = forms_at(s.forms)[number], int64s(h.scratch)
    operator = operators_at(h.operators)[form.code]
    arity, ints, floats, data, counted = 0, 0, 0, operator.floats, -1
    values, places, source, kind, ones, is_batched = 0, 0, 0, 0, 0, False  # of leaves
    for p in range(form.count):
        field, o = fields_at(s.fields)[number * MAX_FIELDS + p], scratch[ARGUMENTS + p]
        letter = field.letter
        if letter in (X, XS, TABLE):
            arity = lay_operands(s, h, context, letter, o, arity)
            if arity < 0 or (letter == TABLE and load(o + 8) != s.lookup_table):
                return 0
        elif letter == FLOAT:
            value, is_plain = number_of(s, o)
            if not is_plain or (field.low == field.low and not field.low <= value <= field.high):
                return 0
            float64s(h.scratch)[DATA + floats] = value
            floats += 1
        elif letter in (LENGTHS, INDICES, SHARED):
            size = count_of(s, o)
            start, is_single = DATA + data, size < 0 and letter == LENGTHS
            if is_single:
                size = 1
            if letter == LENGTHS:
                scratch[INTS + ints] = size
                start = INTS + ints + 1
                ints += size + 1
            else:
                counted = size
                data += size
            for i in range(size):
                whole, is_plain = int_of(s, h, o if is_single else entry_of(s, o, i))
                if not is_plain:
                    return 0
                scratch[start + i] = whole
            if size < 0:
                return 0
        elif letter == NOTHING:
            if o != field.only:
                return 0
        elif letter == VALUES:
            values = o
        elif letter == PLACES:
            places = o
        elif letter == ARRAY:
            source, kind = open_array(s, h, o)
            if source == 0:
                return 0
            ints = 1 + scratch[INTS]
        elif letter == ONES:  # the mini-batch and its indices, behind the length of a vector
            size = count_of(s, o)
            scratch[INTS + 1] = scratch[INTS]
            scratch[INTS] = 1
            ones = size if size >= 0 else 1
            scratch[INTS + 2] = ones
            ints = 3
            for i in range(ones):
                whole, is_plain = int_of(s, h, entry_of(s, o, i) if size >= 0 else o)
                if not is_plain or whole < 0 or whole >= scratch[INTS + 1]:
                    return 0
                scratch[DATA + i] = whole
        else:
            whole, is_plain = int_of(s, h, o)
            if not is_plain:
                return 0
            if letter == INDEX:
                scratch[DATA + data] = whole
                data += 1
            elif letter == BATCHED:
                is_batched = whole != 0
                scratch[INTS + ints] = 1  # the mini-batch, if it is not the last axis
                ints += 1
            else:
                scratch[INTS + ints] = whole - scratch[DATA + data - 1] if letter == END else whole
                ints += 1
    scratch[KEY] = form.code
    scratch[KEY + 1] = arity
    for i in range(ints):
        scratch[KEY + 2 + arity + i] = scratch[INTS + i]
    length = 2 + arity + ints
    if counted >= 0:
        scratch[KEY + length] = counted
        length += 1
    if operator.flags & op.LEAF:
        fill = float64s(h.scratch)[DATA] if floats else form.fill
        return filled_leaf(s, h, length, is_batched, fill, ones, values, places, source, kind)
    node = add_node(context, length, arity, data)
    return expression_of(s, h, node) if node >= 0 else 0


@helper
def make_all(s, h, context, number):  # type: ignore[no-untyped-def]
    """Makes the nodes of a composed function; False: not the plain case."""
    form, scratch = forms_at(s.forms)[number], int64s(h.scratch)
    numbers, at = int64s(form.program), 2
    for k in range(numbers[0]):
        arity = 0
        for i in range(numbers[at + 1]):
            p = numbers[at + 4 + i]
            if p >= form.count:
                scratch[OPERANDS + arity] = scratch[MADE + p - form.count]
                arity += 1
            else:
                letter = fields_at(s.fields)[number * MAX_FIELDS + p].letter
                arity = lay_operands(s, h, context, letter, scratch[ARGUMENTS + p], arity)
                if arity < 0:
                    return False
        scratch[MADE + k], at = add_programmed(context, form.program, at, arity)
        if scratch[MADE + k] < 0:
            return False
    return True


@inline
def compose(s, h, context, number):  # type: ignore[no-untyped-def]
    """The result of a composed function for the arguments that have been laid down; 0: not the plain case."""
    form, scratch = forms_at(s.forms)[number], int64s(h.scratch)
    for p in range(form.count):
        field = fields_at(s.fields)[number * MAX_FIELDS + p]
        if field.letter == NOTHING and scratch[ARGUMENTS + p] != field.only:
            return 0
    nodes, used, data, result = h.node_count, h.arg_count, h.data_count, words(form.program)[1]
    if not make_all(s, h, context, number):
        h.node_count = nodes
        h.arg_count = used
        h.data_count = data
        return 0
    if result >= form.count:
        return expression_of(s, h, scratch[MADE + result - form.count])
    if operand(s, context, scratch[ARGUMENTS + result]) < 0:
        return 0
    take(scratch[ARGUMENTS + result])
    return scratch[ARGUMENTS + result]


@external("int64(int64, int64, int64, int64, int64)")
def try_forms(context, number, args, nargs, names):  # type: ignore[no-untyped-def]
    """The result of a call that is a plain case of a form, or of one of those that follow; 0: of none of them."""
    s, h = front_ends(state_address())[0], headers(context)[0]
    result, is_left = 0, True
    while is_left and result == 0 and place(s, h, number, args, nargs, names):
        form = forms_at(s.forms)[number]
        result = compose(s, h, context, number) if form.program != 0 else collect(s, h, context, number)
        number, is_left = form.next, form.next != 0
    return result


@entry("intp(intp, intp, intp, intp)")
def native_call(self, args, nargs, names):  # type: ignore[no-untyped-def]
    """Serves all functions that stand for an operator; `self` is a bytes object: the form's number."""
    s = front_ends(state_address())[0]
    context = header_of(s)
    number = load(self + BYTES)
    form = forms_at(s.forms)[number]
    if form.operands != nargs or names != 0:
        result = try_forms(context, number, args, nargs, names)
    elif nargs == 1:
        result = unary(s, context, form.code, load(args))
    else:
        result = binary(s, context, form.code, load(args), load(args + 8))
    return result if result != 0 else vectorcall(form.slow, args, nargs, names)
