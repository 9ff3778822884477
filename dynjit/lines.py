"""Long lines for CUDA kernels: neighbouring threads share a line, and add up what each of them has found.

A *line* is what an operator goes over to find one number: a mini-batch item, or what lies along an axis.  The longer it
is, the more threads share it (its *width*); a block of THREADS threads works on THREADS / width lines at the same time.
Each sum has one order, that of the width, so that results do not depend on the launch.

Compiled only for CUDA: `cuda` is filled in when that is needed (cudakernels.py).
"""

from __future__ import annotations

from typing import Any

from dynjit.jit import scalar
from dynjit.scalars import INF, ZERO, exp, log, maximum
from dynjit.tiles import THREADS, TILE

cuda: Any = None
EACH = 8  # elements of a line that a thread has at least, if the line has more than one thread


@scalar
def width_of(count):  # type: ignore[no-untyped-def]
    """How many threads share a line of so many elements: a power of 2."""
    width = 1
    while width < THREADS and 2 * EACH * width <= count:
        width *= 2
    return width


@scalar
def lines_of(width, part, lines, parts):  # type: ignore[no-untyped-def]
    """The first lines on which a block works at the same time; all its threads go through the same numbers."""
    at_once = THREADS // width
    return range(part * at_once, lines, parts * at_once)


@scalar
def own_line(first, width):  # type: ignore[no-untyped-def]
    """Which line a thread shares, of those from `first` on; there may be fewer."""
    return first + cuda.threadIdx.x // width


@scalar
def turn_in(width):  # type: ignore[no-untyped-def]
    """The number of a thread among those that share its line."""
    return cuda.threadIdx.x % width


@scalar
def joined(value, is_sum, width, strip):  # type: ignore[no-untyped-def]
    """The sum, or the maximum, of what the threads of a line have found; all threads of a block call it.

    strip: shared memory.
    """
    if width == 1:
        return value
    lane = cuda.threadIdx.x
    strip[lane // TILE, lane % TILE] = value
    half = width // 2
    while half > 0:
        cuda.syncthreads()
        if lane % width < half:
            own, other = strip[lane // TILE, lane % TILE], strip[(lane + half) // TILE, (lane + half) % TILE]
            strip[lane // TILE, lane % TILE] = own + other if is_sum else maximum(own, other)
        half //= 2
    cuda.syncthreads()
    first = lane // width * width
    result = strip[first // TILE, first % TILE]
    cuda.syncthreads()  # the strip may be written again
    return result


@scalar
def exponentials(x, start, step, count, width, strip):  # type: ignore[no-untyped-def]
    """The largest of `count` elements of a line, `step` apart, and the sum of exp(element - largest)."""
    top, total = -INF, ZERO
    for i in range(turn_in(width), count, width):
        top = maximum(top, x[start + i * step])
    top = joined(top, False, width, strip)
    for i in range(turn_in(width), count, width):
        total += exp(x[start + i * step] - top)
    return top, joined(total, True, width, strip)


@scalar
def shared_log_sum_exp(x, start, step, count, width, strip):  # type: ignore[no-untyped-def]
    """log(sum of exp of `count` elements of a line, `step` apart)."""
    top, total = exponentials(x, start, step, count, width, strip)
    return top + log(total) if -INF < top < INF else top  # NaN stays NaN
