"""Subscripts of expressions, as in NumPy: composed of operators that select elements."""

from __future__ import annotations

import operator
from typing import Any

from dynjit import errors
from dynjit.ops import layout, select
from dynjit.shape import Shape


def whole(number: Any) -> int:
    """An int of a subscript."""
    try:
        return operator.index(number)
    except TypeError:
        raise TypeError(errors.located(f"[]: needs ints and slices of ints, got {type(number).__name__}")) from None


def position(index: Any, size: int) -> int:
    """An int entry of a subscript, counted from the end if negative."""
    number = whole(index)
    if not -size <= number < size:
        raise IndexError(errors.located(f"[]: needs an index from {-size} to {size - 1}, got {number}"))
    return number % size


def span(index: slice, size: int) -> tuple[int, int, int]:
    """Step, start and stop of a slice of a subscript; ends are counted from the end of the axis if negative."""
    given = ((index.start, 0), (index.stop, size), (index.step, 1))
    start, stop, step = (missing if number is None else whole(number) for number, missing in given)
    first, behind = (number + size if number < 0 else number for number in (start, stop))
    if step < 1 or not 0 <= first < behind <= size:
        raise ValueError(
            errors.located(f"[]: needs a step of 1 or more and a range within 0:{size} that is not empty, "
                           f"got {start}:{stop}:{step}")
        )  # fmt: skip
    return step, first, behind


def subscript(e: Any, shape: Shape, index: Any) -> Any:
    """e[index] of an expression with a shape, as in NumPy: an entry per axis, one more for the mini-batch.

    An int picks a position and removes the axis, a slice keeps a range; both may count from the end.
    Raises IndexError for a position out of range and for too many entries, TypeError for what is neither int nor slice,
    ValueError for a step below 1 and for a range that is empty or leaves the axis.
    """
    entries = index if isinstance(index, tuple) else (index,)
    if not entries:
        return e
    rank, sizes = len(shape.dims), (*shape.dims, shape.batch)
    if len(entries) > rank + 1:
        raise IndexError(errors.located(f"[]: needs at most {rank + 1} entries for {shape}, got {len(entries)}"))
    places = [
        span(entry, size) if isinstance(entry, slice) else position(entry, size)
        for entry, size in zip(entries, sizes, strict=False)
    ]
    for axis in reversed(range(len(places))):
        place = places[axis]
        if isinstance(place, int):
            e = select.pick(e, place, axis) if axis < rank else select.pick_batch_elem(e, place)
    kept = [(place, size) for place, size in zip(places, sizes, strict=False) if not isinstance(place, int)]
    ranges = [place for place, _ in kept]
    parts = [axis for axis, (place, size) in enumerate(kept) if place != (1, 0, size)]
    has_items = len(places) > rank and isinstance(places[rank], tuple)  # the last range is that of the mini-batch
    if not parts and len(kept) < len(places):
        return e
    if len(parts) == 1 and ranges[parts[0]][0] == 1 and not (has_items and parts[0] == len(ranges) - 1):
        return select.pick_range(e, *ranges[parts[0]][1:], parts[0])
    if has_items and len(ranges) == 1:  # all axes have been picked: (1,) is left
        ranges.insert(0, (1, 0, layout.END))
    return layout.STRIDED_SELECT(e, *zip(*ranges, strict=True))
