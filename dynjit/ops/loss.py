"""Losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dynjit.errors import ShapeError
from dynjit.jit import kernel
from dynjit.op import Case, define, native
from dynjit.scalars import ONE, ZERO, exp, log, log_sum_exp
from dynjit.shape import Result, Shape

# ---- pickneglogsoftmax -----------------------------------------------------------------------------------------------


def chosen_shape(operator: str, x: Shape, count: int | None) -> Shape:
    """Shape rule: a vector, and one index for all of its mini-batch items, or `count` indices, one for each."""
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


def pickneglogsoftmax_reference(x: np.ndarray, index: int) -> np.ndarray:
    return np.array([np.log(np.exp(x - x.max()).sum()) + x.max() - x[index]])


PICKNEGLOGSOFTMAX = define("pickneglogsoftmax", shape=pickneglogsoftmax_shape, params="xd",
    forward=pickneglogsoftmax_forward, backward=(pickneglogsoftmax_d0,), reference=pickneglogsoftmax_reference,
    cases=(Case(((5,),), arguments=(2,)), Case(((1,),), arguments=(0,)), Case(((5,),), -80, 80, (1,)),
           Case((((4,), 3),), arguments=(1,))))  # fmt: skip


@native(PICKNEGLOGSOFTMAX)
def pickneglogsoftmax(x: Any, v: int) -> Any:
    """-log softmax(x)_v = log(sum_i exp(x_i)) - x_v, in nats.

    x: (k,) x batch; the result: (1,) x batch.  Raises ShapeError unless x is a vector, IndexError unless 0 <= v < k.
    """
    return PICKNEGLOGSOFTMAX(x, v)


PICKNEGLOGSOFTMAX_BATCH = define("pickneglogsoftmax_batch", shape=pickneglogsoftmax_shape, params="xD",
    forward=pickneglogsoftmax_forward, backward=(pickneglogsoftmax_d0,), reference=pickneglogsoftmax_reference,
    cases=(Case((((5,), 2),), arguments=((2, 4),)), Case(((1,),), arguments=((0,),)),
           Case((((5,), 2),), -80, 80, ((1, 1),)), Case(((4,),), arguments=((1, 0, 3),))))  # fmt: skip


@native(PICKNEGLOGSOFTMAX_BATCH)
def pickneglogsoftmax_batch(x: Any, vs: Sequence[int]) -> Any:
    """-log softmax(x)_v with an index v of its own for each mini-batch item, in nats.

    x: (k,) x batch;  vs: one index per item; the result: (1,) x batch.  An x with mini-batch 1 serves all indices.
    Raises ShapeError unless x is a vector and `vs` has its mini-batch size, IndexError unless 0 <= v < k.
    """
    return PICKNEGLOGSOFTMAX_BATCH(x, list(vs))


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
