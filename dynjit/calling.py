"""Calls of the functions that stand for an operator: one C function serves them all.

A *form* says how a function is called: which operator it stands for, and of each argument its letter (see `op.define`),
name, default and range.
"""

from __future__ import annotations

from dynjit import op
from dynjit.arena import (
    append_leaf,
    find_signature,
    float32s,
    float64s,
    headers,
    int64s,
    operators_at,
    signatures_at,
    states,
)
from dynjit.jit import entry, external, helper
from dynjit.recording import (
    ARGUMENTS,
    BYTES,
    DATA,
    INTS,
    KEY,
    MAX_FIELDS,
    OPERANDS,
    add_node,
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
    tuple_item,
    tuple_size,
    vectorcall,
    words,
)
from dynjit.slots import binary, unary

X, XS, INT, LENGTHS, END, FLOAT, INDEX, INDICES, SHARED, VALUES, TABLE = (ord(letter) for letter in "xXiIefdDAvt")
NOTHING = 0  # of an argument without effect: it must be the default


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


@external("int64(int64, int64, int64, int64, int64)")
def collect(context, number, args, nargs, names):  # type: ignore[no-untyped-def]
    """A node from the arguments of a call of a form; 0: not the plain case."""
    s = front_ends(state_address())[0]
    h = headers(context)[0]
    form, scratch = forms_at(s.forms)[number], int64s(h.scratch)
    operator = operators_at(h.operators)[form.code]
    if not place(s, h, number, args, nargs, names):
        return 0
    arity, ints, floats, data, counted, values = 0, 0, 0, operator.floats, -1, 0
    for p in range(form.count):
        field, o = fields_at(s.fields)[number * MAX_FIELDS + p], scratch[ARGUMENTS + p]
        letter = field.letter
        if letter in (X, TABLE):
            node = operand(s, context, o)
            if node < 0 or (letter == TABLE and load(o + 8) != s.lookup_table):
                return 0
            scratch[OPERANDS + arity] = node
            arity += 1
        elif letter == XS:
            arity = count_of(s, o)
            if arity <= 0:
                return 0
            for i in range(arity):
                node = operand(s, context, entry_of(s, o, i))
                if node < 0:
                    return 0
                scratch[OPERANDS + i] = node
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
        elif letter == VALUES:
            values = o
        elif letter == NOTHING:
            if o != field.default:
                return 0
        else:
            whole, is_plain = int_of(s, h, o)
            if not is_plain:
                return 0
            if letter == INDEX:
                scratch[DATA + data] = whole
                data += 1
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
        return filled_leaf(s, h, length, floats, values)
    node = add_node(context, length, arity, data)
    return expression_of(s, h, node) if node >= 0 else 0


@helper
def filled_leaf(s, h, length, floats, values):  # type: ignore[no-untyped-def]
    """A leaf with the values of a list, or filled with a number (0 if none is given); 0: not the plain case.

    Without dimensions it has as many elements as there are values.
    """
    scratch, count = int64s(h.scratch), 1
    if values != 0:
        count = count_of(s, values)
        if count <= 0:
            return 0
    if length == 2:
        scratch[KEY + 2] = 1
        scratch[KEY + 3] = count
        scratch[KEY + 4] = 1
        length = 5
    signature = find_signature(states(s.table)[0], h.scratch + KEY * 8, length)
    size, start = signatures_at(h.signatures)[signature].size, (h.value_top + 15) & ~15
    if signature == 0 or start + size > h.value_end or (values != 0 and count != size):
        return 0
    elements = float32s(h.v)
    fill = float64s(h.scratch)[DATA] if floats else 0.0
    for i in range(size):
        if values != 0:
            value, is_plain = number_of(s, entry_of(s, values, i))
            if not is_plain:
                return 0
            elements[start + i] = value
        else:
            elements[start + i] = fill
    node = append_leaf(h, signature, start, 0)
    if node < 0:
        return 0
    h.value_top = start + size
    return expression_of(s, h, node)


@entry("intp(intp, intp, intp, intp)")
def native_call(self, args, nargs, names):  # type: ignore[no-untyped-def]
    """Serves all functions that stand for an operator; `self` is a bytes object: the form's number."""
    s = front_ends(state_address())[0]
    context = header_of(s)
    number = load(self + BYTES)
    form = forms_at(s.forms)[number]
    if form.operands != nargs or names != 0:
        result = collect(context, number, args, nargs, names)
    elif nargs == 1:
        result = unary(s, context, form.code, load(args))
    else:
        result = binary(s, context, form.code, load(args), load(args + 8))
    return result if result != 0 else vectorcall(form.slow, args, nargs, names)
