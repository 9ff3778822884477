"""Passes over the parameters on a GPU: norms of gradients, updates, weight decay; passes.py has those of the CPU."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dynjit import cudakernels
from dynjit.ops.leaf import TOGETHER
from dynjit.scalars import ONE, ZERO
from dynjit.tiles import THREADS

WIDTH = 6  # numbers of a span: start, item, part, rows, marks, updated
BLOCKS = 64

SQUARED_NORM = """
def squared_norm(g, spans, sums, count, sparse):
    shared = cuda.shared.array({threads}, float32)
    lane = cuda.threadIdx.x
    first, stride = cuda.blockIdx.x * {threads} + lane, cuda.gridDim.x * {threads}
    total = ZERO
    for s in range(0, {width} * count, {width}):
        start, item, marks = spans[s], spans[s + 1], spans[s + 4]
        for e in range(first, item * spans[s + 3], stride):
            if marks < 0 or sparse == 0 or g[marks + e // item] != ZERO:
                total += g[start + e] * g[start + e]
    shared[lane] = total
    cuda.syncthreads()
    half = {threads} // 2
    while half > 0:
        if lane < half:
            shared[lane] += shared[lane + half]
        cuda.syncthreads()
        half //= 2
    if lane == 0:
        sums[cuda.blockIdx.x] = shared[0]
"""
UPDATE = """
def update(v, g, a, b, c, spans, numbers, count, sparse):
    first, stride = cuda.blockIdx.x * {threads} + cuda.threadIdx.x, cuda.gridDim.x * {threads}
    for s in range(0, {width} * count, {width}):
        start, item, marks = spans[s], spans[s + 1], spans[s + 4]
        part = spans[s + 2] if {by_columns} else 1
        units = item // part * spans[s + 3] if spans[s + 5] else 0
        for unit in range(first, units, stride):
            at = start + unit * part
            if marks < 0 or sparse == 0 or g[marks + unit * part // item] != ZERO:
                end = at + part
                step(v[at:end], g[at:end], a[at:end], b[at:end], c[at:end], numbers)
                for i in range(at, end):
                    g[i] = ZERO
"""
FINISH = """
def finish(v, g, spans, numbers, count):
    first, stride = cuda.blockIdx.x * {threads} + cuda.threadIdx.x, cuda.gridDim.x * {threads}
    for s in range(0, {width} * count, {width}):
        start, rows, marks = spans[s], spans[s + 3], spans[s + 4]
        if spans[s + 5]:
            for mark in range(first, rows + (rows + {together} - 1) // {together} if marks >= 0 else 0, stride):
                g[marks + mark] = ZERO
            if numbers[0] != ONE:
                for e in range(start + first, start + spans[s + 1] * rows, stride):
                    v[e] *= numbers[0]
"""


@functools.cache
def compiled(text: str, arrays: str, scalars: int, step: Callable | None, capability: tuple[int, int]) -> str:
    """PTX of a pass; arrays: a letter each, f for float32 and i for int64."""

    def make() -> str:
        from numba import float32, int64

        scope: dict[str, Any] = {"ZERO": ZERO, "ONE": ONE, "float32": float32, "cuda": cudakernels.compiler(),
                                 "__name__": __name__}  # fmt: skip
        if step is not None:
            scope["step"] = cudakernels.for_device(step)
        exec(compile(text, "<dynjit CUDA pass>", "exec"), scope)
        kernel = next(value for name, value in scope.items() if name in ("squared_norm", "update", "finish"))
        signature = [{"f": float32[::1], "i": int64[::1]}[letter] for letter in arrays] + [int64] * scalars
        return cudakernels.compiled_ptx(kernel, tuple(signature), capability)

    modules = (__name__, step.__module__) if step else (__name__,)
    name = f"{text} {step.__qualname__ if step else ''}"
    return cudakernels.stored_ptx(cudakernels.cache_path(name, capability, modules), make)


def norm_kernel(capability: tuple[int, int]) -> str:
    return compiled(SQUARED_NORM.format(threads=THREADS, width=WIDTH), "fif", 2, None, capability)


def update_kernel(step: Callable, by_columns: bool, capability: tuple[int, int]) -> str:
    text = UPDATE.format(threads=THREADS, width=WIDTH, by_columns=by_columns)
    return compiled(text, "fffffif", 2, step, capability)


def finish_kernel(capability: tuple[int, int]) -> str:
    return compiled(FINISH.format(threads=THREADS, width=WIDTH, together=TOGETHER), "ffif", 1, None, capability)


def flat(spans: np.ndarray) -> np.ndarray:
    """The spans as int64 numbers, end to end."""
    return spans.view(np.int64)


def blocks_of(spans: np.ndarray) -> int:
    """How many blocks have work in the largest span."""
    largest = int((spans["item"] * spans["rows"]).max(initial=1))
    return max(1, min(BLOCKS, -(-largest // THREADS)))


def squared_norm(executor: Any, spans: np.ndarray, sparse: bool) -> float:
    """Sum of the squares of all gradients; of tables, over the marked rows only if `sparse`."""
    executor.reserve(None)
    executor.gradients.to_device()
    blocks, numbers = blocks_of(spans), flat(spans)
    with executor.lent(numbers) as table, executor.lent(np.zeros(blocks, np.float32)) as sums:
        arguments = (*executor.gradients.argument(), *table.argument(), *sums.argument(), len(spans), int(sparse))
        executor.device.launch(norm_kernel(executor.device.capability), blocks, THREADS, arguments)
        return float(sums.download(0, blocks).astype(np.float64).sum())


def update(
    executor: Any, step: Callable, by_columns: bool, moments: Sequence[np.ndarray], spans: np.ndarray, sparse: bool,
    numbers: np.ndarray, factor: float,
) -> None:  # fmt: skip
    """Changes the parameters by a rule, sets gradients and marks to zero, and multiplies the values by a factor."""
    executor.reserve(None)
    buffers = [executor.values, executor.gradients, *(executor.moment(moment) for moment in moments)]
    for buffer in buffers:
        buffer.to_device()
    arrays = [*buffers, *[executor.values] * (5 - len(buffers))]
    blocks, capability = blocks_of(spans), executor.device.capability
    with (
        executor.lent(flat(spans)) as table,
        executor.lent(numbers) as given,
        executor.lent(np.array([factor], np.float32)) as last,
    ):
        arguments = [number for array in (*arrays, table, given) for number in array.argument()]
        kernel = update_kernel(step, by_columns, capability)
        executor.device.launch(kernel, blocks, THREADS, (*arguments, len(spans), int(sparse)))
        arguments = [number for array in (*buffers[:2], table, last) for number in array.argument()]
        executor.device.launch(finish_kernel(capability), blocks, THREADS, (*arguments, len(spans)))
    for buffer in buffers:
        buffer.changed()
