"""Planted faults are found: each by the check that is meant for it."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ptx import build, compile
from ptx.emulator import ORDERS, Emulated, EmulationError

compile.require(compile.missing(), build.missing())

from numba import int32, int64  # noqa: E402

from ptx import kernels  # noqa: E402
from ptx.kernels import f1, f2, i1  # noqa: E402


def planted(function: Callable[..., None], right: str, wrong: str) -> Callable[..., None]:
    """The function with part of its source replaced."""
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(right) == 1
    names = dict(vars(kernels))
    exec(source.replace(right, wrong), names)
    return names[function.__name__]


def run_product(function: Callable[..., None], **how: Any) -> float:
    """Runs a tiled product of ragged matrices; the largest error."""
    draw = np.random.default_rng(2)
    a, b = (draw.standard_normal(shape).astype(np.float32) for shape in ((20, 40), (40, 18)))
    c = np.full((20, 18), np.nan, np.float32)
    Emulated(compile.to_ptx(function, (f2, f2, f2)))[(2, 2), (16, 16)](a, b, c, **how)
    return float(abs(c - a @ b).max())


FIRST_BARRIER = "        cuda.syncthreads()\n        for k"
SECOND_BARRIER = "        cuda.syncthreads()\n    if row"
PRODUCT_FAULTS = {
    "first barrier dropped": (FIRST_BARRIER, "        for k", "read of shared memory that was never written|race"),
    "second barrier dropped": (SECOND_BARRIER, "    if row", "race"),
    "shift in shared memory": ("tile_a[y, k]", "tile_a[y, k + 1]", "read of shared memory that was never written"),
    "beyond shared memory": ("tile_b[k, x]", "tile_b[k + 8, x]", "read of shared memory|out of bounds"),
    "no guard": ("if row < c.shape[0] and col < c.shape[1]:", "if row < 99:", "out of bounds|race: two threads write"),
    "every thread writes one element": ("c[row, col] = total", "c[0, 0] = total", "race: two threads write"),
    "barrier in a branch": (
        FIRST_BARRIER,
        "        if x < 8:\n    " + FIRST_BARRIER,
        "barrier divergence|race|read of shared memory",
    ),
}


def test_the_right_product_passes() -> None:
    for order in ORDERS:
        assert run_product(kernels.tiled_product, order=order) < 1e-5


@pytest.mark.parametrize("name", PRODUCT_FAULTS)
def test_faults_in_the_product_are_found(name: str) -> None:
    right, wrong, kind = PRODUCT_FAULTS[name]
    function = planted(kernels.tiled_product, right, wrong)
    for order in ORDERS:
        with pytest.raises(EmulationError, match=f"^({kind})"):
            run_product(function, order=order)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("total += tile_a", "total = tile_a"),
        ("tile_a[y, k] * tile_b[k, x]", "tile_a[y, k] * tile_b[x, k]"),
        ("start + x < a.shape[1]", "start + x + 1 < a.shape[1]"),
        ("range(TILE)", "range(TILE - 1)"),
    ],
)
def test_wrong_results_are_only_wrong_results(right: str, wrong: str) -> None:
    assert run_product(planted(kernels.tiled_product, right, wrong)) > 0.01


def test_without_the_check_a_race_shows_in_some_order() -> None:
    function = planted(kernels.tiled_product, SECOND_BARRIER, "    if row")
    errors = [run_product(function, order=order, check_races=False) for order in ORDERS]
    assert max(errors) > 0.01


KERNEL_FAULTS = {
    "adds without atomics": (kernels.unguarded_sum, (f1, f1), (2, 32), "race"),
    "shuffle from an idle lane": (kernels.half_a_shuffle, (f1,), (1, 32), "shuffle from a lane that takes no part"),
    "two barriers": (kernels.half_a_barrier, (f1,), (1, 32), "barrier divergence"),
    "crosswise waiting": (kernels.loop_of_barriers, (f1,), (1, 32), "deadlock"),
    "endless loop": (kernels.waits_forever, (i1,), (1, 1), "endless loop"),
}


@pytest.mark.parametrize("name", KERNEL_FAULTS)
def test_faults_of_threads_are_found(name: str) -> None:
    function, types, shapes, kind = KERNEL_FAULTS[name]
    kernel = Emulated(compile.to_ptx(function, types))
    for order in ORDERS:
        arrays = [np.zeros(64, np.int32 if each is i1 else np.float32) for each in types]
        with pytest.raises(EmulationError, match=f"^{kind}") as caught:
            kernel[shapes](*arrays, order=order, fuel=10**6)
        assert function.__name__ in str(caught.value) and "PTX line" in str(caught.value)


@pytest.mark.parametrize("shapes", [(1, 32), (1, 96), (96, 1), (3, 32)])
def test_every_kind_of_race_is_found_within_and_between_blocks(shapes: tuple[int, int]) -> None:
    count = shapes[0] * shapes[1]
    one, last = (Emulated(compile.to_ptx(function, (f1, f1))) for function in (kernels.one_writes, kernels.last_writes))
    every = Emulated(compile.to_ptx(kernels.unguarded_sum, (f1, f1)))
    reads, writes = "race: a thread reads what another writes", "race: a thread writes what another reads"
    for kernel, order, kind in [
        (one, "forward", reads),
        (one, "reverse", writes),
        (last, "forward", writes),
        (last, "reverse", reads),
        (every, "random", reads),
    ]:
        with pytest.raises(EmulationError) as caught:
            kernel[shapes](np.zeros(count, np.float32), np.zeros(count, np.float32), order=order)
        assert caught.value.kind == kind


def test_a_grid_that_is_not_synchronised_races_between_blocks() -> None:
    function = planted(kernels.relay, "        grid.sync()\n        x[i] = y[i]", "        x[i] = y[i]")
    kernel = Emulated(compile.to_ptx(function, (f1, f1, int64)))
    with pytest.raises(EmulationError, match="race"):
        kernel[3, 32](np.zeros(96, np.float32), np.zeros(96, np.float32), 2)


def test_a_warp_that_is_not_synchronised_races() -> None:
    for wrong in ("    pass\n    x[i] = kept[i ^ 1]", "    cuda.syncwarp()\n    x[i] = kept[i ^ 32]"):
        function = planted(kernels.neighbours, "    cuda.syncwarp()\n    x[i] = kept[i ^ 1]", wrong)
        kernel = Emulated(compile.to_ptx(function, (f1,)))
        for order in ORDERS:
            with pytest.raises(EmulationError, match="race|never written"):
                kernel[1, 64](np.zeros(64, np.float32), order=order)


def test_a_dropped_atomic_races_with_the_others() -> None:
    function = planted(kernels.counts, "cuda.atomic.add(bins, x[i] % bins.size, 1)", "bins[x[i] % bins.size] += 1")
    kernel = Emulated(compile.to_ptx(function, (i1, i1, i1, f1)))
    arrays = [np.arange(64, dtype=np.int32), np.zeros(5, np.int32), np.zeros(4, np.int32), np.zeros(2, np.float32)]
    with pytest.raises(EmulationError, match="race"):
        kernel[2, 32](*arrays)


def test_plain_and_atomic_access_race() -> None:
    function = planted(kernels.counts, "        seen = extremes[3]", "        seen = extremes[0]")
    kernel = Emulated(compile.to_ptx(function, (i1, i1, i1, f1)))
    arrays = [np.arange(64, dtype=np.int32), np.zeros(5, np.int32), np.zeros(4, np.int32), np.zeros(2, np.float32)]
    with pytest.raises(EmulationError, match="race: a thread (reads what another writes|writes what another reads)"):
        kernel[2, 32](*arrays)


def test_misaligned_addresses_and_those_of_other_arrays_are_found() -> None:
    kernel = Emulated(compile.to_ptx(kernels.halve, (int64, int64)))
    x = np.zeros(64, np.float32)
    memory = [np.lib.array_utils.byte_bounds(x)]
    kernel[2, 32](x.ctypes.data, 64, memory=memory)
    with pytest.raises(EmulationError, match="^misaligned"):
        kernel[2, 32](x.ctypes.data + 2, 60, memory=memory)
    with pytest.raises(EmulationError, match="^out of bounds: .* block 1, thread 31.*st.global.f32|ld.global.f32"):
        kernel[2, 32](x.ctypes.data + 4, 64, memory=memory)
    with pytest.raises(EmulationError, match="^out of bounds"):
        kernel[2, 32](0, 64, memory=memory)


def test_a_fault_leaves_the_emulator_usable() -> None:
    kernel = Emulated(compile.to_ptx(kernels.warp_sums, (f1, f1, int32[:, ::1])))
    sums, votes = np.zeros(1, np.float32), np.zeros((1, 3), np.int32)
    with pytest.raises(EmulationError, match="out of bounds"):
        kernel[1, 32](np.ones(16, np.float32), sums, votes)
    kernel[1, 32](np.ones(32, np.float32), sums, votes)
    assert sums == 32
