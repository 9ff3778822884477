"""Inputs out of Python's numbers, lists of numbers and arrays, made by compiled code."""

from __future__ import annotations

from dynjit.arena import append_leaf, find_signature, float32s, float64s, int32s, int64s, signatures_at, states
from dynjit.jit import helper
from dynjit.recording import (
    DATA,
    INTS,
    KEY,
    clear_error,
    close_buffer,
    count_of,
    entry_of,
    expression_of,
    int_of,
    load,
    number_of,
    open_buffer,
    overflow_flag,
    words,
)
from dynjit.scalars import ONE
from dynjit.views import view_of

characters = view_of("u1")
DOUBLE, SINGLE, LONG = (ord(letter) for letter in "dfl")  # of the formats of arrays
WITH_FORMAT = 0x1C  # PyBUF_RECORDS_RO: format, shape and strides
MAX_AXES = 64  # of NumPy's arrays


@helper
def open_array(s, h, o):  # type: ignore[no-untyped-def]
    """(address, format) of an array's numbers; shape and steps in bytes go to INTS and DATA.  0: not the plain case."""
    scratch, buffer = int64s(h.scratch), overflow_flag(h)
    if load(o + 8) != s.array:
        return 0, 0
    if open_buffer(o, buffer, WITH_FORMAT) != 0:
        clear_error()
        return 0, 0
    known, axes, size = words(buffer), int32s(buffer)[9], 1
    source, format, shape, steps = known[0], characters(known[5]), words(known[6]), words(known[7])
    scratch[INTS] = axes
    for axis in range(axes):
        scratch[INTS + 1 + axis] = shape[axis]
        scratch[DATA + axis] = steps[axis]
        size *= shape[axis]
    kind = int(format[0])
    is_plain = axes > 0 and size > 0 and format[1] == 0 and kind in (DOUBLE, SINGLE, LONG)
    if kind == LONG and known[3] != 8:
        is_plain = False
    close_buffer(buffer)  # the array outlives the call
    return source if is_plain else 0, kind


@helper
def copy_array(h, elements, source, kind, size):  # type: ignore[no-untyped-def]
    """Copies the numbers of an open array, first axis fastest."""
    scratch = int64s(h.scratch)
    axes, rows, step, place = scratch[INTS], scratch[INTS + 1], scratch[DATA], DATA + MAX_AXES
    for axis in range(1, axes):
        scratch[place + axis] = 0
    for first in range(0, size, rows):
        line = elements[first : first + rows]
        if kind == DOUBLE:
            for i in range(rows):
                line[i] = float64s(source + i * step)[0]
        elif kind == SINGLE:
            for i in range(rows):
                line[i] = float32s(source + i * step)[0]
        else:
            for i in range(rows):
                line[i] = int64s(source + i * step)[0]
        for axis in range(1, axes):
            scratch[place + axis] += 1
            source += scratch[DATA + axis]
            if scratch[place + axis] < scratch[INTS + 1 + axis]:
                break
            source -= scratch[DATA + axis] * scratch[INTS + 1 + axis]
            scratch[place + axis] = 0


@helper
def place_of(s, h, places, i, count):  # type: ignore[no-untyped-def]
    """The place of value i, of which `places` has an index per axis; -1: not the plain case."""
    scratch, result, step = int64s(h.scratch), 0, 1
    if count_of(s, places) != scratch[INTS]:
        return -1
    for axis in range(scratch[INTS]):
        indices, size = entry_of(s, places, axis), scratch[INTS + 1 + axis]
        if count_of(s, indices) != count:
            return -1
        index, is_plain = int_of(s, h, entry_of(s, indices, i))
        if not is_plain or index < 0 or index >= size:
            return -1
        result += step * index
        step *= size
    return result


@helper
def filled_leaf(s, h, length, is_batched, fill, ones, values, places, source, kind):  # type: ignore[no-untyped-def]
    """A leaf with the numbers of an open array, or with a number in all places but some; 0: not the plain case.

    is_batched: the mini-batch is the last axis;  ones: mini-batch items with a one each, at the places from DATA on;
    values: a list of numbers (0: none), for all elements, or for places (see `place_of`).
    Without dimensions it has as many elements as there are values.
    """
    scratch, count = int64s(h.scratch), 0
    if values != 0:
        count = count_of(s, values)
        if count <= 0:
            return 0
    if length == 2:
        scratch[KEY + 2] = 1
        scratch[KEY + 3] = count if values != 0 else 1
        scratch[KEY + 4] = 1
        length = 5
    if is_batched and scratch[KEY + 2] == 0:
        return 0
    if is_batched and scratch[KEY + 2] > 1:  # dimensions and mini-batch follow each other
        scratch[KEY + 2] -= 1
        length -= 1
    elif is_batched:
        scratch[KEY + 4] = scratch[KEY + 3]
        scratch[KEY + 3] = 1
    signature = find_signature(states(s.table)[0], h.scratch + KEY * 8, length)
    q, start = signatures_at(h.signatures)[signature], (h.value_top + 15) & ~15
    has_all = values != 0 and places == 0
    if signature == 0 or start + q.size > h.value_end or (has_all and count != q.size):
        return 0
    elements = float32s(h.v + 4 * start)
    if source != 0:
        copy_array(h, elements, source, kind, q.size)
    elif not has_all:
        for i in range(q.size):
            elements[i] = fill
    for i in range(ones):
        elements[i * q.item + scratch[DATA + i]] = ONE
    for i in range(count):
        place = i if has_all else place_of(s, h, places, i, count)
        value, is_plain = number_of(s, entry_of(s, values, i))
        if place < 0 or not is_plain:
            return 0
        elements[place] = value
    node = append_leaf(h, signature, start, 0)
    if node < 0:
        return 0
    h.value_top = start + q.size
    return expression_of(s, h, node)
