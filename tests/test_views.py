"""Views: entries, records and windows of memory at an address."""

from __future__ import annotations

import ctypes

import numpy as np

from dynjit.jit import entry
from dynjit.views import Reference, view_of

ROW = np.dtype([("small", "i4"), ("real", "f4"), ("large", "i8"), ("size", "i8")])
rows_at = view_of(ROW, changing=("small", "real", "large"))
int32s, int64s, float32s = view_of("i4"), view_of("i8"), view_of("f4")


@entry("int64(int64, int64)")
def change_rows(address, count):  # type: ignore[no-untyped-def]
    """Each row becomes the sum of those before; the last one is written through another reference."""
    rows, total = rows_at(address), 0
    for i in range(count):
        row = rows[i]
        total += row.small + row.large * row.size
        row.real += 0.5
        rows[i].large = total
    rows[count - 1].small -= 7
    return rows[count - 1].small


@entry("int64(int64, int64)")
def mix(address, other):  # type: ignore[no-untyped-def]
    """Numbers of 32 bits are cut off; a negative index lies in front of the address."""
    small, large = int32s(address), int64s(other)
    large[0] = (1 << 32) + 5
    small[2] = large[0]
    small[-1] += small[2]
    large[1] = small[-1]
    return large[1] + int32s(address)[-1]


@entry("void(int64, int64, int64)")
def double_some(address, first, last):  # type: ignore[no-untyped-def]
    """A window is an array over the same memory."""
    some = float32s(address)[first:last]
    for i in range(some.size):
        some[i] *= 2
    some[0] = some[some.size - 1]


def test_records_are_references() -> None:
    rows = np.array([(1, 0.5, 10, 2), (2, 1.5, 20, 1), (3, 2.5, 30, 0)], ROW)
    assert change_rows.run(rows.ctypes.data, 3) == -4
    assert rows["large"].tolist() == [21, 43, 46]
    assert rows["small"].tolist() == [1, 2, -4]
    assert rows["real"].tolist() == [1.0, 2.0, 3.0]


def test_numbers_are_of_the_views_type() -> None:
    small, large = np.arange(10, 16, dtype=np.int32), np.zeros(2, np.int64)
    assert mix.run(small.ctypes.data + 2 * small.itemsize, large.ctypes.data) == 2 * (11 + 5)
    assert small.tolist() == [10, 16, 12, 13, 5, 15]
    assert large.tolist() == [(1 << 32) + 5, 16]


def test_windows_stay_where_they_are() -> None:
    numbers = (ctypes.c_float * 6)(*range(6))
    double_some.run(ctypes.addressof(numbers), 2, 5)
    assert list(numbers) == [0, 1, 8, 6, 8, 5]


def test_types_are_told_apart() -> None:
    kinds = [Reference(ROW, frozenset(names)) for names in ((), ("size",), ("size", "real"))]
    assert len({str(kind) for kind in kinds}) == 3
    assert Reference(np.dtype(ROW.descr), frozenset(["size"])) == kinds[1]
    assert Reference(np.dtype(ROW.descr[:3]), frozenset()) != kinds[0]
