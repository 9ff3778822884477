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
NOTHING = -1  # no start: sums begin at zero


@scalar
def multiply(a, a0, ai, ap, b, b0, bp, bj, c, c0, m, n, k, start, s0, wide, narrow, step, left, right, part, parts):  # type: ignore[no-untyped-def]
    """C (m, n) = S + A (m, k) B (k, n): part number `part` of `parts` blocks; all threads of a block call it together.

    a, a0, ai, ap: buffer, offset, and the distances of A's rows and columns;  b, b0, bp, bj: the same of B.
    left, right: shared memory for the strips.
    S_ij is start[s0 + i + (j % wide) * narrow + (j // wide) * step], or zero if s0 is NOTHING.
    """
    thread = cuda.threadIdx.x
    tx, ty = thread % SIDE, thread // SIDE
    down = (m + TILE - 1) // TILE
    for tile in range(part % parts, down * ((n + TILE - 1) // TILE), parts):
        i0, j0 = tile % down * TILE, tile // down * TILE
        i, j = i0 + tx, j0 + ty
        c00 = c01 = c10 = c11 = ZERO
        if s0 != NOTHING:
            near, far = s0 + i + j % wide * narrow + j // wide * step, j + SIDE
            far = s0 + i + far % wide * narrow + far // wide * step
            if j < n:
                if i < m:
                    c00 = start[near]
                if i + SIDE < m:
                    c10 = start[near + SIDE]
            if j + SIDE < n:
                if i < m:
                    c01 = start[far]
                if i + SIDE < m:
                    c11 = start[far + SIDE]
        for p0 in range(0, k, DEPTH):
            for e in range(thread, TILE * DEPTH, THREADS):
                # neighbouring threads read neighbouring elements, whichever way the matrix lies
                r, p = (e % TILE, e // TILE) if ai == 1 else (e // DEPTH, e % DEPTH)
                left[p, r] = a[a0 + (i0 + r) * ai + (p0 + p) * ap] if i0 + r < m and p0 + p < k else ZERO
                r, p = (e % TILE, e // TILE) if bj == 1 else (e // DEPTH, e % DEPTH)
                right[p, r] = b[b0 + (p0 + p) * bp + (j0 + r) * bj] if j0 + r < n and p0 + p < k else ZERO
            cuda.syncthreads()
            for p in range(DEPTH):
                x0, x1, y0, y1 = left[p, tx], left[p, tx + SIDE], right[p, ty], right[p, ty + SIDE]
                c00 += x0 * y0
                c01 += x0 * y1
                c10 += x1 * y0
                c11 += x1 * y1
            cuda.syncthreads()
        at = c0 + j * m + i
        if j < n:
            if i < m:
                c[at] = c00
            if i + SIDE < m:
                c[at + SIDE] = c10
        if j + SIDE < n:
            if i < m:
                c[at + SIDE * m] = c01
            if i + SIDE < m:
                c[at + SIDE * m + SIDE] = c11


@scalar
def tiles_nn(a, a0, b, b0, c, c0, m, n, k, s0, left, right, part, parts):  # type: ignore[no-untyped-def]
    """C (m, n) = A (m, k) B (k, n), added to C if s0 is c0."""
    multiply(a, a0, 1, m, b, b0, 1, k, c, c0, m, n, k, c, s0, n, m, 0, left, right, part, parts)


@scalar
def tiles_tn(a, a0, b, b0, c, c0, m, n, k, left, right, part, parts):  # type: ignore[no-untyped-def]
    """C (m, n) += A' B, A (k, m)."""
    multiply(a, a0, k, 1, b, b0, 1, k, c, c0, m, n, k, c, c0, n, m, 0, left, right, part, parts)


@scalar
def tiles_nt(a, a0, b, b0, c, c0, m, n, k, left, right, part, parts):  # type: ignore[no-untyped-def]
    """C (m, n) += A (m, k) B', B (n, k)."""
    multiply(a, a0, 1, m, b, b0, n, 1, c, c0, m, n, k, c, c0, n, m, 0, left, right, part, parts)


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
