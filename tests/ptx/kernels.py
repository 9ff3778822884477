"""Kernels that the tests of the tools compile: some right, some with a planted fault. Imported only where CUDA is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import cuda, float32, float64, int32, types
from numba.cuda.extending import intrinsic

HALF = np.float32(0.5)
ZERO = np.float32(0)
TILE = 16
PADDED = (16, 17)
f1, f2, i1 = float32[::1], float32[:, ::1], int32[::1]


@intrinsic
def floats_at(typing: Any, address: Any) -> Any:
    """The pointer to float32 at an address."""

    def code(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], target.get_value_type(signature.return_type))

    return types.CPointer(types.float32)(address), code


def halve(address, count):
    """Halves `count` numbers at an address of the device."""
    values = floats_at(address)
    i = cuda.grid(1)
    if i < count:
        values[i] *= HALF


def tiled_product(a, b, c):
    """C = A B, by a block of TILE x TILE threads for each tile of C."""
    tile_a = cuda.shared.array(PADDED, float32)
    tile_b = cuda.shared.array(PADDED, float32)
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    col, row = cuda.blockIdx.x * TILE + x, cuda.blockIdx.y * TILE + y
    total = ZERO
    for start in range(0, a.shape[1], TILE):
        tile_a[y, x] = a[row, start + x] if row < a.shape[0] and start + x < a.shape[1] else ZERO
        tile_b[y, x] = b[start + y, col] if start + y < b.shape[0] and col < b.shape[1] else ZERO
        cuda.syncthreads()
        for k in range(TILE):
            total += tile_a[y, k] * tile_b[k, x]
        cuda.syncthreads()
    if row < c.shape[0] and col < c.shape[1]:
        c[row, col] = total


def warp_sums(x, sums, votes):
    """The sum of every warp by shuffles; which of its threads hold a positive number, and whether any or all do."""
    i = cuda.grid(1)
    warp = i // 32
    total = x[i]
    by = 16
    while by > 0:
        total += cuda.shfl_xor_sync(0xFFFFFFFF, total, by)
        by >>= 1
    positive = x[i] > ZERO
    ballot = cuda.ballot_sync(0xFFFFFFFF, positive)
    some = cuda.any_sync(0xFFFFFFFF, positive)
    every = cuda.all_sync(0xFFFFFFFF, positive)
    if cuda.laneid == 0:
        sums[warp] = total
        votes[warp, 0] = ballot
        votes[warp, 1] = some
        votes[warp, 2] = every


def shuffles(x, y):
    """Every kind of shuffle."""
    i = cuda.threadIdx.x
    y[0, i] = cuda.shfl_up_sync(0xFFFFFFFF, x[i], 3)
    y[1, i] = cuda.shfl_down_sync(0xFFFFFFFF, x[i], 5)
    y[2, i] = cuda.shfl_xor_sync(0xFFFFFFFF, x[i], 9)
    y[3, i] = cuda.shfl_sync(0xFFFFFFFF, x[i], 7)


def half_a_shuffle(x):
    """Half of the warp reads from lanes that take no part."""
    i = cuda.threadIdx.x
    if i < 16:
        x[i] = cuda.shfl_sync(0xFFFF, x[i], i + 16)


def counts(x, bins, extremes, floats):
    """A histogram, the extremes and a sum by atomics; extremes[2] counts threads through compare and swap."""
    i = cuda.grid(1)
    if i < x.size:
        cuda.atomic.add(bins, x[i] % bins.size, 1)
        cuda.atomic.min(extremes, 0, x[i])
        cuda.atomic.max(extremes, 1, x[i])
        cuda.atomic.add(floats, 0, float32(x[i]))
        cuda.atomic.max(floats, 1, float32(x[i]))
        seen = extremes[3]
        while True:
            before = cuda.atomic.cas(extremes, 2, seen, seen + 1)
            if before == seen:
                break
            seen = before


def unguarded_sum(x, total):
    """Every thread adds to one number without an atomic."""
    i = cuda.grid(1)
    if i < x.size:
        total[0] += x[i]


def relay(x, y, rounds):
    """Each round every thread takes its right neighbour's number, across blocks: needs the grid synchronised."""
    grid = cuda.cg.this_grid()
    i = cuda.grid(1)
    for _ in range(rounds):
        y[i] = x[(i + 1) % x.size]
        grid.sync()
        x[i] = y[i]
        grid.sync()


def block_counts(x, out):
    """Barriers that reduce: how many, whether any and whether all threads of the block hold a positive number."""
    positive = int32(x[cuda.grid(1)] > ZERO)
    count = cuda.syncthreads_count(positive)
    some = cuda.syncthreads_or(positive)
    every = cuda.syncthreads_and(positive)
    if cuda.threadIdx.x == 0:
        out[cuda.blockIdx.x, 0] = count
        out[cuda.blockIdx.x, 1] = some
        out[cuda.blockIdx.x, 2] = every


def mirror(x):
    """Turns each block's numbers round, in dynamic shared memory."""
    kept = cuda.shared.array(0, float32)
    i = cuda.threadIdx.x
    kept[i] = x[cuda.grid(1)]
    cuda.syncthreads()
    x[cuda.grid(1)] = kept[cuda.blockDim.x - 1 - i]


def chosen(x, places):
    """An array of its own in every thread, read at places known only then."""
    i = cuda.grid(1)
    own = cuda.local.array(8, float32)
    for k in range(8):
        own[k] = x[i] * float32(k)
    x[i] = own[places[i]]


def waits_forever(x):
    """Waits for a number that nobody writes."""
    while cuda.atomic.add(x, 0, 0) == 0:
        pass


def half_a_barrier(x):
    """Half of the block waits at one barrier, half at another."""
    i = cuda.threadIdx.x
    if i < 16:
        x[i] = 0
        cuda.syncthreads()
        x[i] += 1
    else:
        x[i] = 2
        cuda.syncthreads()
        x[i] += 3


def loop_of_barriers(x):
    """Thread 0 waits at a barrier that the others wait at only after a shuffle with it."""
    i = cuda.threadIdx.x
    if i == 0:
        cuda.syncthreads()
    x[i] = cuda.shfl_sync(0xFFFFFFFF, x[i], 0)
    if i > 0:
        cuda.syncthreads()


def many_registers(x, y):
    """An outer product of 12 x 12 numbers kept in registers over a loop."""
    total = cuda.local.array((12, 12), float32)
    for i in range(12):
        for j in range(12):
            total[i, j] = ZERO
    for k in range(x.shape[0]):
        for i in range(12):
            for j in range(12):
                total[i, j] += x[k, i] * x[k, 12 + j]
    for i in range(12):
        for j in range(12):
            y[i, j] = total[i, j]


def much_shared(x):
    """60 KiB of shared memory."""
    kept = cuda.shared.array(15360, float32)
    i = cuda.grid(1)
    kept[i] = x[i]
    cuda.syncthreads()
    x[i] = kept[i + 1]


def promoted(x):
    """Computes in float64 because of a literal."""
    i = cuda.grid(1)
    x[i] = x[i] * 0.1


def sine(x):
    """The sine."""
    i = cuda.grid(1)
    x[i] = math.sin(x[i])


def neighbours(x):
    """Each thread of a warp takes its neighbour's number through shared memory, ordered within the warp alone."""
    kept = cuda.shared.array(64, float32)
    i = cuda.threadIdx.x
    kept[i] = x[i]
    cuda.syncwarp()
    x[i] = kept[i ^ 1]


def shared_counts(x, bins, largest, total):
    """Atomics in shared memory, and on numbers of 64 bits."""
    own = cuda.shared.array(8, int32)
    i = cuda.threadIdx.x
    if i < 8:
        own[i] = 0
    cuda.syncthreads()
    number = x[cuda.grid(1)]
    cuda.atomic.add(own, number % 8, 1)
    cuda.atomic.max(largest, 0, number)
    cuda.atomic.exch(largest, 1, number)
    cuda.atomic.add(total, 0, float64(number))
    cuda.syncthreads()
    if i < 8:
        cuda.atomic.add(bins, i, own[i])


def one_writes(x, y):
    """Thread 0 writes what all others read."""
    i = cuda.grid(1)
    if i == 0:
        x[0] = HALF
    else:
        y[i] = x[0]


def last_writes(x, y):
    """All threads read what the last one writes afterwards."""
    i = cuda.grid(1)
    y[i] = x[0]
    if i == y.size - 1:
        x[0] = HALF
