"""Losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dynjit.errors import ShapeError
from dynjit.jit import kernel
from dynjit.lines import lines_of, own_line, shared_log_sum_exp, turn_in, width_of
from dynjit.op import MARGIN, Case, Range, define, native
from dynjit.scalars import ONE, ZERO, exp, log, log_sum_exp
from dynjit.shape import Result, Shape, as_number

# ---- pickneglogsoftmax -----------------------------------------------------------------------------------------------


def chosen_shape(operator: str, x: Shape, count: int | None) -> Shape:
    """Shape rule: a vector, and one index for all of its mini-batch items, or `count` indices, one for each."""
    operator += "_batch" if count is not None else ""
    if x.cols != 1:
        raise ShapeError(operator, "a vector (k,)", x)
    if count is not None and (count < 1 or x.batch not in (1, count)):
        raise ShapeError(operator, "one index per mini-batch item", x, f"{count} indices")
    return Shape((1,), count or x.batch)


def pickneglogsoftmax_shape(x: Shape, count: int | None = None) -> Result:
    return Result(chosen_shape("pickneglogsoftmax", x, count), ints=(), bound=x.rows, scratch=1)


@kernel
def pickneglogsoftmax_forward(v, x0, y, s, item0, batch, step0, ids):
    for b in range(batch):
        x = v[x0 + b * step0 : x0 + b * step0 + item0]
        v[s + b] = log_sum_exp(x)
        v[y + b] = v[s + b] - x[ids[b]]


@kernel
def pickneglogsoftmax_d0(v, g, x0, y, s, item0, batch, step0, ids):
    for b in range(batch):
        x, dx = v[x0 + b * step0 : x0 + b * step0 + item0], g[x0 + b * step0 : x0 + b * step0 + item0]
        z, dy = v[s + b], g[y + b]
        for i in range(item0):
            dx[i] += exp(x[i] - z) * dy
        dx[ids[b]] -= dy


@kernel
def pickneglogsoftmax_forward_cuda(v, x0, y, s, item0, batch, step0, ids, strip, part, parts):
    width = width_of(item0)
    for first in lines_of(width, part, batch, parts):
        b = own_line(first, width)
        x = x0 + b * step0
        z = shared_log_sum_exp(v, x, 1, item0 if b < batch else 0, width, strip)
        if b < batch and turn_in(width) == 0:
            v[s + b] = z
            v[y + b] = z - v[x + ids[b]]


@kernel
def pickneglogsoftmax_d0_cuda(v, g, x0, y, s, item0, batch, n0, ids, thread, threads):
    for e in range(thread, n0, threads):
        total, x = ZERO, v[x0 + e]
        for b in range(e // item0, batch, n0 // item0):  # one thread adds all items of an x that they share
            share = exp(x - v[s + b]) * g[y + b]
            total += share - g[y + b] if ids[b] == e % item0 else share
        g[x0 + e] += total


def pickneglogsoftmax_reference(x: np.ndarray, index: int) -> np.ndarray:
    return np.array([np.log(np.exp(x - x.max()).sum()) + x.max() - x[index]])


PICKNEGLOGSOFTMAX = define("pickneglogsoftmax", shape=pickneglogsoftmax_shape, params="xd",
    forward=pickneglogsoftmax_forward, backward=(pickneglogsoftmax_d0,), forward_cuda=pickneglogsoftmax_forward_cuda,
    backward_cuda=(pickneglogsoftmax_d0_cuda,), reference=pickneglogsoftmax_reference,
    cases=(Case(((5,),), arguments=(2,)), Case(((1,),), arguments=(0,)), Case(((5,),), -80, 80, (1,)),
           Case((((4,), 3),), arguments=(1,))))  # fmt: skip


@native(PICKNEGLOGSOFTMAX)
def pickneglogsoftmax(x: Any, v: int) -> Any:
    """-log softmax(x)_v = log(sum_i exp(x_i)) - x_v, in nats.

    x: (k,) x batch; the result: (1,) x batch.  Raises ShapeError unless x is a vector, IndexError unless 0 <= v < k.
    """
    return PICKNEGLOGSOFTMAX(x, v)


PICKNEGLOGSOFTMAX_BATCH = define("pickneglogsoftmax_batch", shape=pickneglogsoftmax_shape, params="xD",
    forward=pickneglogsoftmax_forward, backward=(pickneglogsoftmax_d0,), forward_cuda=pickneglogsoftmax_forward_cuda,
    backward_cuda=(pickneglogsoftmax_d0_cuda,), reference=pickneglogsoftmax_reference,
    cases=(Case((((5,), 2),), arguments=((2, 4),)), Case(((1,),), arguments=((0,),)),
           Case((((5,), 2),), -80, 80, ((1, 1),)), Case(((4,),), arguments=((1, 0, 3),))))  # fmt: skip


@native(PICKNEGLOGSOFTMAX_BATCH)
def pickneglogsoftmax_batch(x: Any, vs: Sequence[int]) -> Any:
    """-log softmax(x)_v with an index v of its own for each mini-batch item, in nats.

    x: (k,) x batch;  vs: one index per item; the result: (1,) x batch.  An x with mini-batch 1 serves all indices.
    Raises ShapeError unless x is a vector and `vs` has its mini-batch size, IndexError unless 0 <= v < k.
    """
    return PICKNEGLOGSOFTMAX_BATCH(x, vs)


# ---- binary_log_loss -------------------------------------------------------------------------------------------------

TINY = np.float32(2.0**-126)  # the smallest normal float32: logarithms of less are cut off there


def binary_log_loss_shape(x: Shape, y: Shape) -> Shape:
    if x.dims != y.dims or (x.batch != y.batch and 1 not in (x.batch, y.batch)):
        raise ShapeError("binary_log_loss", "two expressions of equal dims, with mini-batches equal or 1", x, y)
    return Shape((1,), max(x.batch, y.batch))


@kernel
def binary_log_loss_forward(v, x0, x1, y, item0, batch, step0, step1):
    for b in range(batch):
        x, target = v[x0 + b * step0 : x0 + b * step0 + item0], v[x1 + b * step1 : x1 + b * step1 + item0]
        total = ZERO
        for i in range(item0):
            total -= target[i] * log(max(x[i], TINY)) + (ONE - target[i]) * log(max(ONE - x[i], TINY))
        v[y + b] = total


@kernel
def binary_log_loss_d0(v, g, x0, x1, y, item0, batch, step0, step1):
    for b in range(batch):
        x, target = v[x0 + b * step0 : x0 + b * step0 + item0], v[x1 + b * step1 : x1 + b * step1 + item0]
        dx, dy = g[x0 + b * step0 : x0 + b * step0 + item0], g[y + b]
        for i in range(item0):
            dx[i] += dy * ((ONE - target[i]) / max(ONE - x[i], TINY) - target[i] / max(x[i], TINY))


@kernel
def binary_log_loss_d1(v, g, x0, x1, y, item0, batch, step0, step1):
    for b in range(batch):
        x, dtarget = v[x0 + b * step0 : x0 + b * step0 + item0], g[x1 + b * step1 : x1 + b * step1 + item0]
        dy = g[y + b]
        for i in range(item0):
            dtarget[i] += dy * (log(max(ONE - x[i], TINY)) - log(max(x[i], TINY)))


BINARY_LOG_LOSS = define("binary_log_loss", shape=binary_log_loss_shape, params="xx", forward=binary_log_loss_forward,
    backward=(binary_log_loss_d0, binary_log_loss_d1),
    reference=lambda x, y: -(y * np.log(x) + (1 - y) * np.log(1 - x)).sum(),
    cases=tuple(Case(shapes, 0.05, 0.95) for shapes in (
        ((5,), (5,)), ((1,), (1,)), (((3, 4), 2), ((3, 4), 2)), (((5,), 3), (5,)), ((5,), ((5,), 3)))))  # fmt: skip


@native(BINARY_LOG_LOSS)
def binary_log_loss(x: Any, y: Any) -> Any:
    """-(sum over i of y_i log(x_i) + (1 - y_i) log(1 - x_i)), in nats; logarithms are cut off at -87.33655.

    x, y: predicted and true probabilities (0 to 1), equal dims, mini-batches equal or 1; the result: (1,) x batch.
    Raises ShapeError for other shapes.
    """
    return BINARY_LOG_LOSS(x, y)


# ---- hinge -----------------------------------------------------------------------------------------------------------


def hinge_shape(x: Shape, count: int | None = None) -> Result:
    return Result(chosen_shape("hinge", x, count), ints=(), bound=x.rows)


@kernel
def hinge_forward(v, x0, y, item0, batch, step0, ids, f0):
    for b in range(batch):
        x, gold = v[x0 + b * step0 : x0 + b * step0 + item0], ids[b]
        limit, total = f0 - x[gold], ZERO
        for i in range(item0):
            total += max(limit + x[i], ZERO) if i != gold else ZERO
        v[y + b] = total


@kernel
def hinge_d0(v, g, x0, y, item0, batch, step0, ids, f0):
    for b in range(batch):
        x, dx = v[x0 + b * step0 : x0 + b * step0 + item0], g[x0 + b * step0 : x0 + b * step0 + item0]
        gold, dy, total = ids[b], g[y + b], ZERO
        limit = f0 - x[gold]
        for i in range(item0):
            share = dy if limit + x[i] > ZERO and i != gold else ZERO
            dx[i] += share
            total += share
        dx[gold] -= total


def hinge_reference(x: np.ndarray, gold: int, margin: float) -> float:
    return np.maximum(margin - x[gold] + np.delete(x, gold), 0).sum()  # type: ignore[no-any-return]


HINGE = define("hinge", shape=hinge_shape, params="xdf", floats=(MARGIN,), forward=hinge_forward, backward=(hinge_d0,),
    reference=hinge_reference,
    cases=(Case(((5,),), arguments=(2, 1.0)), Case(((1,),), arguments=(0, 1.0)), Case((((4,), 3),), arguments=(1, 0.5)),
           Case(((40,),), -80, 80, (1, 20.0))))  # fmt: skip
HINGE_BATCH = define("hinge_batch", shape=hinge_shape, params="xDf", floats=(MARGIN,), forward=hinge_forward,
    backward=(hinge_d0,),
    reference=hinge_reference,
    cases=(Case((((5,), 2),), arguments=((2, 4), 1.0)), Case(((1,),), arguments=((0,), 1.0)),
           Case(((4,),), arguments=((1, 0, 3), 0.5))))  # fmt: skip


@native(HINGE)
def hinge(x: Any, v: int, m: float = 1.0) -> Any:
    """Sum over j other than v of max(0, m - x_v + x_j).

    x: (k,) x batch; the result: (1,) x batch;  m: 0 or more.
    Raises ShapeError unless x is a vector, IndexError unless 0 <= v < k, ValueError for a negative m.
    """
    return HINGE(x, v, m)


@native(HINGE_BATCH)
def hinge_batch(x: Any, vs: Sequence[int], m: float = 1.0) -> Any:
    """Sum over j other than v of max(0, m - x_v + x_j), with an index v of its own for each mini-batch item.

    x: (k,) x batch;  vs: one index per item; the result: (1,) x batch;  m: 0 or more.
    An x with mini-batch 1 serves all indices.  Raises ShapeError unless x is a vector and `vs` has its mini-batch size,
    IndexError unless 0 <= v < k, ValueError for a negative m.
    """
    return HINGE_BATCH(x, vs, m)


# ---- hinge_dim -------------------------------------------------------------------------------------------------------


def hinge_dim_shape(x: Shape, axis: int, count: int) -> Result:
    """ints: elements of a line, steps along a line and from line to line."""
    if len(x.dims) != 2 or axis not in (0, 1) or count != x.dims[1 - axis]:
        needs = "a matrix, axis 0 with an index per column or axis 1 with an index per row"
        raise ShapeError("hinge_dim", f"{needs}, not axis {axis} with {count} indices", x)
    steps = (1, x.rows) if axis == 0 else (x.rows, 1)
    return Result(Shape((count,), x.batch), ints=(x.dims[axis], *steps), bound=x.dims[axis])


@kernel
def hinge_dim_forward(v, x0, y, item0, item, batch, i0, i1, i2, ids, f0):
    for b in range(batch):
        for r in range(item):
            x, gold, total = v[x0 + b * item0 + r * i2 : x0 + (b + 1) * item0], ids[b * item + r], ZERO
            limit = f0 - x[gold * i1]
            for i in range(i0):
                total += max(limit + x[i * i1], ZERO) if i != gold else ZERO
            v[y + b * item + r] = total


@kernel
def hinge_dim_d0(v, g, x0, y, item0, item, batch, i0, i1, i2, ids, f0):
    for b in range(batch):
        for r in range(item):
            start, end = x0 + b * item0 + r * i2, x0 + (b + 1) * item0
            x, dx, gold, dy, total = v[start:end], g[start:end], ids[b * item + r], g[y + b * item + r], ZERO
            limit = f0 - x[gold * i1]
            for i in range(i0):
                if limit + x[i * i1] > ZERO and i != gold:
                    dx[i * i1] += dy
                    total += dy
            dx[gold * i1] -= total


def hinge_dim_reference(x: np.ndarray, golds: Sequence[int], axis: int, margin: float) -> list[float]:
    return [hinge_reference(line, gold, margin) for line, gold in zip(x if axis else x.T, golds, strict=True)]


HINGE_DIM = define("hinge_dim", shape=hinge_dim_shape, params="xAif", floats=(MARGIN,), forward=hinge_dim_forward,
    backward=(hinge_dim_d0,), reference=hinge_dim_reference,
    cases=(Case(((3, 4),), arguments=((0, 1, 2, 1), 0, 1.0)), Case((((3, 4), 2),), arguments=((0, 3, 2), 1, 0.5)),
           Case(((1, 1),), arguments=((0,), 0, 1.0)), Case(((4, 5),), -80, 80, ((0, 3, 2, 4), 1, 20.0))))  # fmt: skip


@native(HINGE_DIM)
def hinge_dim(x: Any, v: Sequence[int], d: int = 0, m: float = 1.0) -> Any:
    """hinge(x, v_i, m) of each line i along axis `d` of a matrix.

    x: (rows, cols) x batch;  v: an index per column for d = 0, per row for d = 1, for all mini-batch items;
    the result: (len(v),) x batch;  m: 0 or more.
    Raises ShapeError for other shapes, IndexError for an index out of range, ValueError for a negative m.
    """
    return HINGE_DIM(x, v, d, m)


# ---- pairwise_rank_loss ----------------------------------------------------------------------------------------------


def pairwise_rank_loss_shape(x: Shape, y: Shape) -> Shape:
    if x.rows != 1 or x.dims != y.dims or (x.batch != y.batch and 1 not in (x.batch, y.batch)):
        needs = "two expressions of equal dims (1,) or (1, n), with mini-batches that are equal or 1"
        raise ShapeError("pairwise_rank_loss", needs, x, y)
    return Shape(x.dims, max(x.batch, y.batch))


@kernel
def pairwise_rank_loss_forward(v, x0, x1, y, item, batch, step0, step1, f0):
    for b in range(batch):
        good, bad = v[x0 + b * step0 : x0 + b * step0 + item], v[x1 + b * step1 : x1 + b * step1 + item]
        out = v[y + b * item : y + (b + 1) * item]
        for i in range(item):
            out[i] = max(f0 - good[i] + bad[i], ZERO)


@kernel
def pairwise_rank_loss_d0(v, g, x0, y, item, batch, step0):
    for b in range(batch):
        out, dy = v[y + b * item : y + (b + 1) * item], g[y + b * item : y + (b + 1) * item]
        dx = g[x0 + b * step0 : x0 + b * step0 + item]
        for i in range(item):
            dx[i] -= dy[i] if out[i] > ZERO else ZERO


@kernel
def pairwise_rank_loss_d1(v, g, x1, y, item, batch, step1):
    for b in range(batch):
        out, dy = v[y + b * item : y + (b + 1) * item], g[y + b * item : y + (b + 1) * item]
        dx = g[x1 + b * step1 : x1 + b * step1 + item]
        for i in range(item):
            dx[i] += dy[i] if out[i] > ZERO else ZERO


PAIRWISE_RANK_LOSS = define("pairwise_rank_loss", shape=pairwise_rank_loss_shape, params="xxf",
    forward=pairwise_rank_loss_forward, backward=(pairwise_rank_loss_d0, pairwise_rank_loss_d1),
    reference=lambda x, y, margin: np.maximum(margin - x + y, 0),
    cases=(Case(((1,), (1,)), arguments=(1.0,)), Case(((1, 5), (1, 5)), arguments=(0.1,)),
           Case((((1, 3), 2), ((1, 3), 2)), arguments=(0.5,)), Case((((1, 3), 2), (1, 3)), arguments=(0.5,)),
           Case(((1,), ((1,), 3)), arguments=(0.0,))))  # fmt: skip


@native(PAIRWISE_RANK_LOSS)
def pairwise_rank_loss(x: Any, y: Any, m: float = 1.0) -> Any:
    """max(0, m - x + y), elementwise: x should exceed y by the margin m.

    x, y: (1,) or (1, n) x batch, mini-batches equal or 1.  Raises ShapeError for other shapes.
    """
    return PAIRWISE_RANK_LOSS(x, y, as_number("pairwise_rank_loss", m))


# ---- poisson_loss ----------------------------------------------------------------------------------------------------


def poisson_loss_shape(x: Shape) -> Shape:
    if x.item != 1:
        raise ShapeError("poisson_loss", "a logarithm of a rate (1,)", x)
    return x


@kernel
def poisson_loss_forward(v, x0, y, n, f0):
    rate, out, constant = v[x0 : x0 + n], v[y : y + n], math.lgamma(f0 + ONE)
    for i in range(n):
        out[i] = exp(rate[i]) - f0 * rate[i] + constant


@kernel
def poisson_loss_d0(v, g, x0, y, n, f0):
    rate, dx, dy = v[x0 : x0 + n], g[x0 : x0 + n], g[y : y + n]
    for i in range(n):
        dx[i] += dy[i] * (exp(rate[i]) - f0)


COUNT = Range("a count of 0 or more", 0.0, float(np.finfo(np.float32).max))
POISSON_LOSS = define("poisson_loss", shape=poisson_loss_shape, params="xf", floats=(COUNT,),
    forward=poisson_loss_forward,
    backward=(poisson_loss_d0,), reference=lambda s, count: np.exp(s) - s * count + math.lgamma(count + 1),
    cases=(Case(((1,),), arguments=(3.0,)), Case((((1, 1), 3),), arguments=(0.0,)),
           Case(((1,),), 4, 5, (90.0,))))  # fmt: skip


@native(POISSON_LOSS)
def poisson_loss(log_lambda: Any, x: int) -> Any:
    """exp(s) - s * x + log(x!), the -log probability of a count x under a Poisson law of rate exp(s), s = log_lambda.

    log_lambda: (1,) x batch; the result has the same shape;  x: 0 or more; in nats.
    Raises ShapeError for other shapes, ValueError for a negative count.
    """
    return POISSON_LOSS(log_lambda, x)
