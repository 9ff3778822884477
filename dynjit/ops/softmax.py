"""The softmax family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dynjit import errors
from dynjit.errors import ShapeError
from dynjit.jit import kernel, scalar
from dynjit.lines import exponentials, joined, lines_of, own_line, shared_log_sum_exp, turn_in, width_of
from dynjit.op import Case, define, native
from dynjit.scalars import HALF, INF, ONE, ZERO, exp, log_sum_exp, maximum
from dynjit.shape import Result, Shape, as_integers

# ---- softmax ---------------------------------------------------------------------------------------------------------


def softmax_shape(x: Shape, axis: int) -> Result:
    if not 0 <= axis < len(x.dims):
        raise ShapeError("softmax", f"an axis below the rank, not {axis}", x)
    before, along, behind = x.around(axis)
    return Result(x, ints=(before, along), scratch=0 if before == 1 else 2 * before * behind)


@scalar
def softmax_line(x, out):  # type: ignore[no-untyped-def]
    top, total = x[0], ZERO
    for i in range(1, x.size):
        top = maximum(top, x[i])
    for i in range(x.size):
        e = exp(x[i] - top)
        out[i] = e
        total += e
    scale = ONE / total
    for i in range(x.size):
        out[i] *= scale


@kernel
def softmax_forward(v, x0, y, s, n, i0, i1):
    run = i0 * i1
    for b in range(n // run):
        x, out = v[x0 + b * run : x0 + (b + 1) * run], v[y + b * run : y + (b + 1) * run]
        if i0 == 1:
            softmax_line(x, out)
            continue
        top, total = v[s + 2 * b * i0 : s + (2 * b + 1) * i0], v[s + (2 * b + 1) * i0 : s + (2 * b + 2) * i0]
        for r in range(i0):
            top[r] = x[r]
            total[r] = ZERO
        for c in range(i0, run, i0):
            line = x[c : c + i0]
            for r in range(i0):
                top[r] = maximum(top[r], line[r])
        for c in range(0, run, i0):
            line, part = x[c : c + i0], out[c : c + i0]
            for r in range(i0):
                e = exp(line[r] - top[r])
                part[r] = e
                total[r] += e
        for c in range(0, run, i0):
            part = out[c : c + i0]
            for r in range(i0):
                part[r] /= total[r]


@kernel
def softmax_d0(v, g, x0, y, s, n, i0, i1):
    run = i0 * i1
    for b in range(n // run):
        out, dy = v[y + b * run : y + (b + 1) * run], g[y + b * run : y + (b + 1) * run]
        dx = g[x0 + b * run : x0 + (b + 1) * run]
        if i0 == 1:
            mean = ZERO
            for i in range(run):
                mean += out[i] * dy[i]
            for i in range(run):
                dx[i] += out[i] * (dy[i] - mean)
            continue
        means = v[s + 2 * b * i0 : s + (2 * b + 1) * i0]
        for r in range(i0):
            means[r] = ZERO
        for c in range(0, run, i0):
            p, dp = out[c : c + i0], dy[c : c + i0]
            for r in range(i0):
                means[r] += p[r] * dp[r]
        for c in range(0, run, i0):
            p, dp, to = out[c : c + i0], dy[c : c + i0], dx[c : c + i0]
            for r in range(i0):
                to[r] += p[r] * (dp[r] - means[r])


@kernel
def softmax_forward_cuda(v, x0, y, n, i0, i1, strip, part, parts):
    width, lines = width_of(i1), n // i1
    for first in lines_of(width, part, lines, parts):
        b = own_line(first, width)
        at, count = b // i0 * i0 * i1 + b % i0, i1 if b < lines else 0
        top, total = exponentials(v, x0 + at, i0, count, width, strip)
        for i in range(turn_in(width), count, width):
            v[y + at + i * i0] = exp(v[x0 + at + i * i0] - top) / total


@kernel
def softmax_d0_cuda(v, g, x0, y, n, i0, i1, strip, part, parts):
    width, lines = width_of(i1), n // i1
    for first in lines_of(width, part, lines, parts):
        b = own_line(first, width)
        at, count, mean = b // i0 * i0 * i1 + b % i0, i1 if b < lines else 0, ZERO
        for i in range(turn_in(width), count, width):
            mean += v[y + at + i * i0] * g[y + at + i * i0]
        mean = joined(mean, True, width, strip)
        for i in range(turn_in(width), count, width):
            g[x0 + at + i * i0] += v[y + at + i * i0] * (g[y + at + i * i0] - mean)


def softmax_reference(x: np.ndarray, axis: int) -> np.ndarray:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


SOFTMAX = define("softmax", shape=softmax_shape, params="xi", forward=softmax_forward, backward=(softmax_d0,),
    forward_cuda=softmax_forward_cuda, backward_cuda=(softmax_d0_cuda,), reference=softmax_reference,
    cases=(Case(((5,),), arguments=(0,)), Case(((1,),), arguments=(0,)), Case(((40,),), -80, 80, (0,)),
           Case((((3, 4), 2),), arguments=(0,)), Case((((3, 4), 2),), arguments=(1,)), Case(((4, 5),), -80, 80, (1,)),
           Case(((2, 3, 4),), arguments=(1,))))  # fmt: skip


@native(SOFTMAX)
def softmax(x: Any, d: int = 0) -> Any:
    """exp(x_i) / (sum over j of exp(x_j)), along axis `d`.

    x: any shape x batch; the result has the same.  Raises ShapeError for a missing axis.
    """
    return SOFTMAX(x, d)


# ---- log_softmax -----------------------------------------------------------------------------------------------------


def log_softmax_shape(x: Shape) -> Shape:
    return x


@kernel
def log_softmax_forward(v, x0, y, n, rows):
    for b in range(0, n, rows):
        x, out = v[x0 + b : x0 + b + rows], v[y + b : y + b + rows]
        z = log_sum_exp(x)
        for i in range(rows):
            out[i] = x[i] - z


@kernel
def log_softmax_d0(v, g, x0, y, n, rows):
    for b in range(0, n, rows):
        out, dy, dx = v[y + b : y + b + rows], g[y + b : y + b + rows], g[x0 + b : x0 + b + rows]
        total = ZERO
        for i in range(rows):
            total += dy[i]
        for i in range(rows):
            dx[i] += dy[i] - exp(out[i]) * total


@kernel
def log_softmax_forward_cuda(v, x0, y, n, rows, strip, part, parts):
    width, lines = width_of(rows), n // rows
    for first in lines_of(width, part, lines, parts):
        b = own_line(first, width)
        at, count = b * rows, rows if b < lines else 0
        z = shared_log_sum_exp(v, x0 + at, 1, count, width, strip)
        for i in range(turn_in(width), count, width):
            v[y + at + i] = v[x0 + at + i] - z


@kernel
def log_softmax_d0_cuda(v, g, x0, y, n, rows, strip, part, parts):
    width, lines = width_of(rows), n // rows
    for first in lines_of(width, part, lines, parts):
        b = own_line(first, width)
        at, count, total = b * rows, rows if b < lines else 0, ZERO
        for i in range(turn_in(width), count, width):
            total += g[y + at + i]
        total = joined(total, True, width, strip)
        for i in range(turn_in(width), count, width):
            g[x0 + at + i] += g[y + at + i] - exp(v[y + at + i]) * total


LOG_SOFTMAX = define("log_softmax", shape=log_softmax_shape, forward=log_softmax_forward, backward=(log_softmax_d0,),
    forward_cuda=log_softmax_forward_cuda, backward_cuda=(log_softmax_d0_cuda,),
    reference=lambda x: np.log(softmax_reference(x, 0)),
    cases=(Case(((5,),)), Case(((1,),)), Case(((40,),), -80, 80), Case((((3, 4), 2),)),
           Case(((2, 3, 4),))))  # fmt: skip


# ---- log_softmax over some indices -----------------------------------------------------------------------------------


def chosen(operator: str, x: Shape, result: Shape, count: int) -> Result:
    """Shape rule: some of a vector's elements, one or more, are chosen.  ints: how many."""
    if x.cols != 1:
        raise ShapeError(operator, "a vector (k,)", x)
    if count < 1:
        raise ValueError(errors.located(f"{operator}: needs one index or more, got none"))
    return Result(result, ints=(count,), bound=x.rows)


def restricted_log_softmax_shape(x: Shape, count: int) -> Result:
    return chosen("log_softmax", x, x, count)


@kernel
def restricted_log_softmax_forward(v, x0, y, item, batch, i0, ids):
    for b in range(batch):
        x, out = v[x0 + b * item : x0 + (b + 1) * item], v[y + b * item : y + (b + 1) * item]
        for i in range(item):
            out[i] = -INF
        for j in range(b * i0, (b + 1) * i0):
            out[ids[j]] = x[ids[j]]
        z = log_sum_exp(out)
        for i in range(item):
            out[i] -= z


@kernel
def restricted_log_softmax_d0(v, g, x0, y, item, batch):
    for b in range(batch):
        out, dy, dx = v[y + b * item : y + (b + 1) * item], g[y + b * item : y + (b + 1) * item], g[x0 + b * item :]
        total = ZERO
        for i in range(item):
            total += dy[i] if out[i] > -INF else ZERO
        for i in range(item):
            dx[i] += dy[i] - exp(out[i]) * total if out[i] > -INF else ZERO


def restricted_log_softmax_reference(x: np.ndarray, indices: Sequence[int]) -> np.ndarray:
    y = np.full_like(x, -np.inf)
    y[list(indices)] = np.log(softmax_reference(x[list(indices)], 0))
    return y


INFINITE = "the result has infinite elements, which have no differences"
RESTRICTED_LOG_SOFTMAX = define("restricted_log_softmax", shape=restricted_log_softmax_shape, params="xA",
    forward=restricted_log_softmax_forward, backward=(restricted_log_softmax_d0,),
    reference=restricted_log_softmax_reference,
    cases=(Case(((5,),), arguments=((0, 1, 2, 3, 4),)), Case(((1,),), arguments=((0,),)),
           Case((((4,), 3),), -80, 80, ((0, 1, 2, 3),)),
           Case((((5,), 2),), arguments=((1, 3, 4),), no_difference=True, reason=INFINITE)))  # fmt: skip


@native(LOG_SOFTMAX)
@native(RESTRICTED_LOG_SOFTMAX)
def log_softmax(x: Any, restrict: Sequence[int] | None = None) -> Any:
    """x_i - log(sum over j of exp(x_j)), along the first axis, in nats.

    x: (k, ...) x batch; the result has the same shape.
    restrict: the indices that take part; the others get -inf.  x is a vector then.
    Raises ShapeError for indices and no vector, ValueError for an empty list, IndexError for indices out of range.
    """
    return LOG_SOFTMAX(x) if restrict is None else RESTRICTED_LOG_SOFTMAX(x, restrict)


# ---- sparsemax -------------------------------------------------------------------------------------------------------


def sparsemax_shape(x: Shape) -> Shape:
    if x.cols != 1:
        raise ShapeError("sparsemax", "a vector (k,)", x)
    return x


@scalar
def sparsemax_threshold(x):  # type: ignore[no-untyped-def]
    """The maximum of a window, and (relative to it) the threshold tau with sum of max(x_i - tau, 0) = 1.

    Source: Michelot (1986), A finite algorithm for finding the projection of a point onto the canonical simplex.
    """
    top = x[0]
    for i in range(1, x.size):
        top = maximum(top, x[i])
    count, tau = -1, -INF
    while True:  # elements only leave the support
        total, found = top - top, 0
        for i in range(x.size):
            if x[i] - top > tau:
                total += x[i] - top
                found += 1
        if found == count or found == 0:  # none: NaN
            return top, tau
        count, tau = found, (total - ONE) / type(total)(found)


@kernel
def sparsemax_forward(v, x0, y, item, batch):
    for b in range(batch):
        x, out = v[x0 + b * item : x0 + (b + 1) * item], v[y + b * item : y + (b + 1) * item]
        top, tau = sparsemax_threshold(x)
        for i in range(item):
            out[i] = max(x[i] - top - tau, ZERO)


@kernel
def sparsemax_d0(v, g, x0, y, item, batch):
    for b in range(batch):
        out, dy = v[y + b * item : y + (b + 1) * item], g[y + b * item : y + (b + 1) * item]
        dx, total, count = g[x0 + b * item : x0 + (b + 1) * item], ZERO, ZERO
        for i in range(item):
            if out[i] > ZERO:
                total += dy[i]
                count += ONE
        for i in range(item):
            if out[i] > ZERO:
                dx[i] += dy[i] - total / count


def sparsemax_reference(x: np.ndarray) -> np.ndarray:
    z = np.sort(x)[::-1]
    taus = (np.cumsum(z) - 1) / np.arange(1, z.size + 1)
    return np.maximum(x - taus[z > taus][-1], 0)


SPARSEMAX = define("sparsemax", shape=sparsemax_shape, forward=sparsemax_forward, backward=(sparsemax_d0,),
    reference=sparsemax_reference,
    cases=(Case(((5,),)), Case(((1,),)), Case((((4,), 3),)), Case(((40,),), -80, 80)))  # fmt: skip


@native(SPARSEMAX)
def sparsemax(x: Any) -> Any:
    """The probabilities nearest to x: y_i = max(x_i - tau, 0), with the tau for which they add up to 1.

    x: (k,) x batch; the result has the same shape.  Raises ShapeError unless x is a vector.
    Source: Martins and Astudillo (2016), From softmax to sparsemax, algorithm 1.
    """
    return SPARSEMAX(x)


# ---- sparsemax_loss --------------------------------------------------------------------------------------------------


def sparsemax_loss_shape(x: Shape, count: int) -> Result:
    return chosen("sparsemax_loss", x, Shape((1,), x.batch), count)


@kernel
def sparsemax_loss_forward(v, x0, y, item0, batch, i0, ids):
    for b in range(batch):
        x = v[x0 + b * item0 : x0 + (b + 1) * item0]
        top, tau = sparsemax_threshold(x)
        total, gold, size = ZERO, ZERO, type(v[y])(i0)
        for i in range(item0):
            if x[i] - top > tau:
                total += (x[i] - top) * (x[i] - top) - tau * tau
        for j in range(b * i0, (b + 1) * i0):
            gold += x[ids[j]] - top
        v[y + b] = max(HALF * (total + ONE / size) - gold / size, ZERO)


@kernel
def sparsemax_loss_d0(v, g, x0, y, item0, batch, i0, ids):
    for b in range(batch):
        x, dx, dy = v[x0 + b * item0 : x0 + (b + 1) * item0], g[x0 + b * item0 : x0 + (b + 1) * item0], g[y + b]
        top, tau = sparsemax_threshold(x)
        if v[y + b] > ZERO:
            for i in range(item0):
                dx[i] += dy * max(x[i] - top - tau, ZERO)
            for j in range(b * i0, (b + 1) * i0):
                dx[ids[j]] -= dy / type(dy)(i0)


def sparsemax_loss_reference(x: np.ndarray, support: Sequence[int]) -> float:
    p = sparsemax_reference(x)
    tau = (x - p)[p > 0][0]
    return float(((x[p > 0] ** 2 - tau**2).sum() + 1 / len(support)) / 2 - x[list(support)].mean())


SPARSEMAX_LOSS = define("sparsemax_loss", shape=sparsemax_loss_shape, params="xA", forward=sparsemax_loss_forward,
    backward=(sparsemax_loss_d0,), reference=sparsemax_loss_reference,
    cases=(Case(((5,),), arguments=((1, 3),)), Case(((1,),), arguments=((0,),)), Case((((4,), 3),), arguments=((2,),)),
           Case(((40,),), -80, 80, ((1, 3, 7),))))  # fmt: skip


def sparsemax_loss(x: Any, support: Sequence[int]) -> Any:
    """(sum over x_i > tau of (x_i^2 - tau^2) + 1 / k) / 2 - (mean of x over the k indices of `support`).

    The loss of sparsemax(x), whose threshold is tau, for equal true probabilities on the support; never negative.
    x: (k,) x batch; the result: (1,) x batch.
    Raises ShapeError unless x is a vector, ValueError for an empty support, IndexError for an index out of range.
    Source: Martins and Astudillo (2016), From softmax to sparsemax, section 3.
    """
    return SPARSEMAX_LOSS(x, sorted(set(as_integers("sparsemax_loss", support))))


# ---- constrained_softmax ---------------------------------------------------------------------------------------------


def constrained_softmax_shape(x: Shape, y: Shape) -> Shape:
    if x.cols != 1 or y.cols != 1 or x.rows != y.rows or (x.batch != y.batch and 1 not in (x.batch, y.batch)):
        needs = "two vectors of equal length, with mini-batches that are equal or 1"
        raise ShapeError("constrained_softmax", needs, x, y)
    return Shape(x.dims, max(x.batch, y.batch))


@kernel
def constrained_softmax_forward(v, x0, x1, y, item, batch, step0, step1):
    for b in range(batch):
        x, bound = v[x0 + b * step0 : x0 + b * step0 + item], v[x1 + b * step1 : x1 + b * step1 + item]
        out = v[y + b * item : y + (b + 1) * item]
        for i in range(item):
            out[i] = -ONE  # free, not at its bound
        is_done = False
        while not is_done:  # elements only go to their bounds
            is_done, top, total, mass = True, -INF, ZERO, ONE
            for i in range(item):
                if out[i] < ZERO:
                    top = max(top, x[i])
                else:
                    mass -= out[i]
            for i in range(item):
                if out[i] < ZERO:
                    total += exp(x[i] - top)
            for i in range(item):
                if out[i] < ZERO and exp(x[i] - top) * mass > bound[i] * total:
                    out[i] = max(bound[i], ZERO)
                    is_done = False
        for i in range(item):
            if out[i] < ZERO:
                out[i] = exp(x[i] - top) * mass / total


@kernel
def constrained_softmax_d0(v, g, x0, x1, y, item, batch, step0, step1):
    for b in range(batch):
        bound, dx = v[x1 + b * step1 : x1 + b * step1 + item], g[x0 + b * step0 : x0 + b * step0 + item]
        out, dy = v[y + b * item : y + (b + 1) * item], g[y + b * item : y + (b + 1) * item]
        total = product = ZERO
        for i in range(item):
            if out[i] < bound[i]:
                total += out[i]
                product += out[i] * dy[i]
        for i in range(item):
            if out[i] < bound[i] and total > ZERO:
                dx[i] += out[i] * (dy[i] - product / total)


@kernel
def constrained_softmax_d1(v, g, x1, y, item, batch, step1):
    for b in range(batch):
        bound, dbound = v[x1 + b * step1 : x1 + b * step1 + item], g[x1 + b * step1 : x1 + b * step1 + item]
        out, dy = v[y + b * item : y + (b + 1) * item], g[y + b * item : y + (b + 1) * item]
        total = product = ZERO
        for i in range(item):
            if out[i] < bound[i]:
                total += out[i]
                product += out[i] * dy[i]
        mean = product / total if total > ZERO else ZERO  # what a bound takes, the free elements lose
        for i in range(item):
            if not out[i] < bound[i]:
                dbound[i] += dy[i] - mean


def constrained_softmax_reference(x: np.ndarray, bound: np.ndarray) -> np.ndarray:
    free, y = np.ones(x.shape, bool), bound.copy()
    while True:
        y[free] = softmax_reference(x[free], 0) * (1 - bound[~free].sum())
        if not (free & (y > bound)).any():
            return y
        free &= y <= bound
        y = bound.copy()


CONSTRAINED_SOFTMAX = define("constrained_softmax", shape=constrained_softmax_shape, params="xx",
    forward=constrained_softmax_forward, backward=(constrained_softmax_d0, constrained_softmax_d1),
    reference=constrained_softmax_reference,
    cases=(Case(((5,), (5,)), 0.15, 0.35), Case(((1,), (1,)), 1.5, 2), Case((((4,), 3), ((4,), 3)), 0.24, 1),
           Case((((5,), 3), (5,)), 0.15, 0.4), Case(((5,), ((5,), 3)), 0.15, 0.4)))  # fmt: skip


@native(CONSTRAINED_SOFTMAX)
def constrained_softmax(x: Any, y: Any) -> Any:
    """softmax(x) with upper bounds y: what exceeds them goes to the others, in proportion to their exp(x_i).

    x, y: (k,) x batch, mini-batches equal or 1.  Bounds that add up to less than 1 are the result themselves.
    Raises ShapeError for other shapes.
    Source: Martins and Kreutzer (2017), Learning what's easy: fully differentiable neural easy-first taggers.
    """
    return CONSTRAINED_SOFTMAX(x, y)
