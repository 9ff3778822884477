"""Matrix products for CUDA kernels: all threads of a block work on one tile of the result.

Matrices lie in buffers, column-major, from an offset on.  A tile of TILE x TILE elements of C is the work of one block
of THREADS threads, four elements each; strips of A and B, DEPTH deep, are copied to shared memory first.  Each element
is added up by one thread in the order of the depth, so that results do not depend on the launch.

Compiled only for CUDA: `cuda` is filled in when that is needed (device.py), so that users of the CPU do not load it.
"""

from __future__ import annotations

from typing import Any

from dynjit.jit import scalar
from dynjit.scalars import ZERO

cuda: Any = None
THREADS = 256  # of a block, of all kernels
TILE, SIDE, DEPTH = 32, 16, 16
STRIP = (16, 33)  # of A, of B in shared memory: DEPTH x TILE, and one more, so that columns begin in different banks


@scalar
def multiply(a, a0, ai, ap, b, b0, bp, bj, c, c0, m, n, k, adds, left, right, part, parts):  # type: ignore[no-untyped-def]
    """C (m, n) = A (m, k) B (k, n), or C += A B: part number `part` of `parts` blocks; all threads of a block call it.

    a, a0, ai, ap: buffer, offset, and the distances of A's rows and columns;  b, b0, bp, bj: the same of B.
    adds: whether to add to C.  left, right: shared memory for the strips.
    """
    thread = cuda.threadIdx.x
    tx, ty = thread % SIDE, thread // SIDE
    # a thread copies two elements of each strip; neighbours copy neighbouring ones, whichever way the matrix lies
    ra, pa, next_ra, next_pa = (
        (thread % TILE, thread // TILE, 0, THREADS // TILE)
        if ai == 1
        else (thread // DEPTH, thread % DEPTH, THREADS // DEPTH, 0)
    )
    rb, pb, next_rb, next_pb = (
        (thread % TILE, thread // TILE, 0, THREADS // TILE)
        if bj == 1
        else (thread // DEPTH, thread % DEPTH, THREADS // DEPTH, 0)
    )
    next_a, next_b = next_ra * ai + next_pa * ap, next_rb * bj + next_pb * bp
    down = (m + TILE - 1) // TILE
    for tile in range(part % parts, down * ((n + TILE - 1) // TILE), parts):
        i0, j0 = tile % down * TILE, tile // down * TILE
        at_a, at_b = a0 + (i0 + ra) * ai + pa * ap, b0 + pb * bp + (j0 + rb) * bj
        c00 = c01 = c10 = c11 = ZERO
        for p0 in range(0, k, DEPTH):
            for e in range(2):
                r, p = ra + e * next_ra, pa + e * next_pa
                left[p, r] = a[at_a + e * next_a] if i0 + r < m and p0 + p < k else ZERO
                r, p = rb + e * next_rb, pb + e * next_pb
                right[p, r] = b[at_b + e * next_b] if j0 + r < n and p0 + p < k else ZERO
            at_a += DEPTH * ap
            at_b += DEPTH * bp
            cuda.syncthreads()
            for p in range(min(DEPTH, k - p0)):
                x0, x1, y0, y1 = left[p, tx], left[p, tx + SIDE], right[p, ty], right[p, ty + SIDE]
                c00 += x0 * y0
                c01 += x0 * y1
                c10 += x1 * y0
                c11 += x1 * y1
            cuda.syncthreads()
        i, j = i0 + tx, j0 + ty
        at = c0 + j * m + i
        if j < n:
            if i < m:
                c[at] = c00 + c[at] if adds else c00
            if i + SIDE < m:
                c[at + SIDE] = c10 + c[at + SIDE] if adds else c10
        if j + SIDE < n:
            at += SIDE * m
            if i < m:
                c[at] = c01 + c[at] if adds else c01
            if i + SIDE < m:
                c[at + SIDE] = c11 + c[at + SIDE] if adds else c11


@scalar
def spread(c, c0, m, n, s0, wide, narrow, step, part, parts):  # type: ignore[no-untyped-def]
    """C_ij = c[s0 + i + (j % wide) * narrow + (j // wide) * step], by the threads that then `multiply`."""
    tx, ty = cuda.threadIdx.x % SIDE, cuda.threadIdx.x // SIDE
    down = (m + TILE - 1) // TILE
    for tile in range(part % parts, down * ((n + TILE - 1) // TILE), parts):
        for j in range(tile // down * TILE + ty, min(n, (tile // down + 1) * TILE), SIDE):
            for i in range(tile % down * TILE + tx, min(m, (tile % down + 1) * TILE), SIDE):
                c[c0 + j * m + i] = c[s0 + i + j % wide * narrow + j // wide * step]


@scalar
def tiles_nn(a, a0, b, b0, c, c0, m, n, k, adds, left, right, part, parts):  # type: ignore[no-untyped-def]
    """C (m, n) = A (m, k) B (k, n), or C += A B."""
    multiply(a, a0, 1, m, b, b0, 1, k, c, c0, m, n, k, adds, left, right, part, parts)


@scalar
def tiles_tn(a, a0, b, b0, c, c0, m, n, k, left, right, part, parts):  # type: ignore[no-untyped-def]
    """C (m, n) += A' B, A (k, m)."""
    multiply(a, a0, k, 1, b, b0, 1, k, c, c0, m, n, k, True, left, right, part, parts)


@scalar
def tiles_nt(a, a0, b, b0, c, c0, m, n, k, left, right, part, parts):  # type: ignore[no-untyped-def]
    """C (m, n) += A (m, k) B', B (n, k)."""
    multiply(a, a0, 1, m, b, b0, n, 1, c, c0, m, n, k, True, left, right, part, parts)


# ---- products of one thread, in place of those of blas.py ------------------------------------------------------------


@scalar
def serial(a, a_row, a_depth, b, b_column, b_depth, c, m, n, k, beta):  # type: ignore[no-untyped-def]
    """C (m, n) = beta C + A B, with the distances of A's rows and of its columns, of B's columns and of its rows."""
    for j in range(n):
        for i in range(m):
            total = c[j * m + i] if beta else ZERO
            for p in range(k):
                total += a[i * a_row + p * a_depth] * b[j * b_column + p * b_depth]
            c[j * m + i] = total


@scalar
def serial_nn(a, b, c, m, n, k, beta):  # type: ignore[no-untyped-def]
    serial(a, 1, m, b, k, 1, c, m, n, k, beta)


@scalar
def serial_tn(a, b, c, m, n, k, beta):  # type: ignore[no-untyped-def]
    serial(a, k, 1, b, k, 1, c, m, n, k, beta)


@scalar
def serial_nt(a, b, c, m, n, k, beta):  # type: ignore[no-untyped-def]
    serial(a, 1, m, b, 1, n, c, m, n, k, beta)
