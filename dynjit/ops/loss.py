"""Losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dynjit.errors import ShapeError
from dynjit.jit import kernel
from dynjit.op import Case, define, native
from dynjit.scalars import exp, log_sum_exp
from dynjit.shape import Result, Shape

# ---- pickneglogsoftmax -----------------------------------------------------------------------------------------------


def pickneglogsoftmax_shape(x: Shape, count: int = 0) -> Result:
    if x.cols != 1 or (count and count != x.batch and x.batch != 1):
        raise ShapeError("pickneglogsoftmax", "a vector (k,), and for a list one index per mini-batch item", x)
    return Result(Shape((1,), max(count, x.batch)), ints=(), bound=x.rows, scratch=1)


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
