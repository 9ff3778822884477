"""Elementwise functions of a list of operands: sum, mean, maximum, logarithm of the sum of exponentials."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dynjit.errors import ShapeError
from dynjit.jit import kernel
from dynjit.op import Case, Operator, define, native
from dynjit.scalars import INF, ZERO, exp, log, maximum
from dynjit.shape import Result, Shape

# ---- lists of operands -----------------------------------------------------------------------------------------------
# Operand p lies at arg[a + p]; its mini-batch arg[a + k + p] is the result's, or 1 and serves all items.


def list_shape(operator: str) -> Callable[[list[Shape]], Shape]:
    """The shape rule: equal dims, where axes of size 1 behind may be missing; the result has those of the first."""

    def rule(operands: list[Shape]) -> Shape:
        batches = {x.batch for x in operands} - {1}
        rank = max(len(x.dims) for x in operands)
        if len({x.dims + (1,) * (rank - len(x.dims)) for x in operands}) > 1 or len(batches) > 1:
            raise ShapeError(operator, "expressions of equal dims, with mini-batches that are equal or 1", *operands)
        return Shape(operands[0].dims, max(batches, default=1))

    return rule


def stacked(*operands: np.ndarray) -> np.ndarray:
    """Operands of the dims of the first along a new first axis."""
    return np.stack([x.reshape(operands[0].shape, order="F") for x in operands])


LISTS = (
    Case(((5,), (5,), (5,))), Case(((1,),) * 20), Case(((4,),)), Case((((3, 4), 2), (3, 4), ((3, 4), 2))),
    Case(((3,), (3, 1), ((3,), 2))), Case(((40,), (40,)), -80, 80),
)  # fmt: skip


def public_list(operator: Operator, name: str, doc: str) -> Callable[[list[Any]], Any]:
    """The public function of an operator on a list."""

    def public(xs):  # type: ignore[no-untyped-def]
        return operator(xs)

    public.__name__ = public.__qualname__ = name
    public.__module__ = __name__
    public.__doc__ = f"""{doc}

    xs: expressions of equal dims (axes of size 1 behind may be missing), mini-batches equal or 1.
    Raises ValueError for an empty list, ShapeError for unequal dims.
    """
    return native(operator)(public)


# ---- esum, average ---------------------------------------------------------------------------------------------------


def summed(name: str, is_mean: bool, reference: Callable, doc: str) -> Callable[[list[Any]], Any]:
    """The public function of the sum, or the mean, of a list."""

    def forward(v, y, arg, a, k, item, batch):  # type: ignore[no-untyped-def]
        n = item * batch
        if n == 1:
            total = ZERO
            for p in range(k):
                total += v[arg[a + p]]
            v[y] = total
        else:
            for p in range(k):
                run = n if arg[a + k + p] == batch else item
                x = v[arg[a + p] : arg[a + p] + run]
                for at in range(y, y + n, run):
                    out = v[at : at + run]
                    if p == 0:
                        for i in range(run):
                            out[i] = x[i]
                    else:
                        for i in range(run):
                            out[i] += x[i]
        if is_mean:
            out, count = v[y : y + n], type(v[y])(k)
            for i in range(n):
                out[i] /= count

    def d(g, y, arg, a, k, j, item, batch):  # type: ignore[no-untyped-def]
        n = item * batch
        run = n if arg[a + k + j] == batch else item
        dx, count = g[arg[a + j] : arg[a + j] + run], type(g[y])(k if is_mean else 1)
        for at in range(y, y + n, run):
            dy = g[at : at + run]
            for i in range(run):
                dx[i] += dy[i] / count if is_mean else dy[i]

    def forward_cuda(v, y, arg, a, k, item, batch, thread, threads):  # type: ignore[no-untyped-def]
        for e in range(thread, item * batch, threads):
            total = ZERO
            for p in range(k):
                total += v[arg[a + p] + (e if arg[a + k + p] == batch else e % item)]
            v[y + e] = total / type(total)(k) if is_mean else total

    def d_cuda(g, y, arg, a, k, j, item, batch, thread, threads):  # type: ignore[no-untyped-def]
        run = item * batch if arg[a + k + j] == batch else item
        for i in range(thread, run, threads):
            for e in range(y + i, y + item * batch, run):
                g[arg[a + j] + i] += g[e] / type(g[e])(k) if is_mean else g[e]

    forward.__name__, d.__name__ = f"{name}_forward", f"{name}_d"
    operator = define(name, shape=list_shape(name), params="X", forward=forward, backward=(d,),
                      forward_cuda=forward_cuda, backward_cuda=(d_cuda,), reference=reference, cases=LISTS)  # fmt: skip
    return public_list(operator, name, doc)


esum = summed("esum", False, lambda *xs: stacked(*xs).sum(0), "Sum of a list of expressions, elementwise.")
average = summed("average", True, lambda *xs: stacked(*xs).mean(0), "Mean of a list of expressions, elementwise.")


# ---- emax ------------------------------------------------------------------------------------------------------------


def emax_shape(operands: list[Shape]) -> Result:
    shape = list_shape("emax")(operands)
    return Result(shape, scratch=shape.item)


@kernel
def emax_forward(v, y, s, arg, a, k, item, batch):
    # the scratch holds each element's winner, the later one of equals
    for p in range(k):
        step = item if arg[a + k + p] == batch else 0
        for b in range(batch):
            x = v[arg[a + p] + b * step : arg[a + p] + b * step + item]
            out, winner = v[y + b * item : y + (b + 1) * item], v[s + b * item : s + (b + 1) * item]
            for i in range(item):
                if p == 0 or not x[i] < out[i]:
                    out[i] = x[i]
                    winner[i] = p


@kernel
def emax_d(v, g, y, s, arg, a, k, j, item, batch):
    step = item if arg[a + k + j] == batch else 0
    for b in range(batch):
        dx = g[arg[a + j] + b * step : arg[a + j] + b * step + item]
        dy, winner = g[y + b * item : y + (b + 1) * item], v[s + b * item : s + (b + 1) * item]
        for i in range(item):
            if winner[i] == j:
                dx[i] += dy[i]


@kernel
def emax_forward_cuda(v, y, s, arg, a, k, item, batch, thread, threads):
    for e in range(thread, item * batch, threads):
        for p in range(k):
            x = v[arg[a + p] + (e if arg[a + k + p] == batch else e % item)]
            if p == 0 or not x < v[y + e]:
                v[y + e] = x
                v[s + e] = p


@kernel
def emax_d_cuda(v, g, y, s, arg, a, k, j, item, batch, thread, threads):
    run = item * batch if arg[a + k + j] == batch else item
    for i in range(thread, run, threads):
        for e in range(i, item * batch, run):
            if int(v[s + e]) == j:  # a float and an integer would meet in float64
                g[arg[a + j] + i] += g[y + e]


EMAX = define("emax", shape=emax_shape, params="X", forward=emax_forward, backward=(emax_d,),
              forward_cuda=emax_forward_cuda, backward_cuda=(emax_d_cuda,),
              reference=lambda *xs: stacked(*xs).max(0), cases=LISTS)  # fmt: skip
emax = public_list(EMAX, "emax", "Maximum of a list of expressions, elementwise; the last of equals gets the gradient.")


# ---- logsumexp -------------------------------------------------------------------------------------------------------


def logsumexp_shape(operands: list[Shape]) -> Result:
    shape = list_shape("logsumexp")(operands).truncated()
    return Result(shape, scratch=shape.item)


@kernel
def logsumexp_forward(v, y, s, arg, a, k, item, batch):
    n = item * batch
    out, total = v[y : y + n], v[s : s + n]
    for i in range(n):
        out[i] = -INF
        total[i] = ZERO
    for p in range(k):
        run = n if arg[a + k + p] == batch else item
        x = v[arg[a + p] : arg[a + p] + run]
        for at in range(y, y + n, run):
            top = v[at : at + run]
            for i in range(run):
                top[i] = maximum(top[i], x[i])
    for p in range(k):
        run = n if arg[a + k + p] == batch else item
        x = v[arg[a + p] : arg[a + p] + run]
        for at in range(0, n, run):
            top, part = v[y + at : y + at + run], v[s + at : s + at + run]
            for i in range(run):
                part[i] += exp(x[i] - top[i])
    for i in range(n):
        if out[i] - out[i] == ZERO:  # neither infinite nor NaN
            out[i] += log(total[i])


@kernel
def logsumexp_d(v, g, y, arg, a, k, j, item, batch):
    n = item * batch
    run = n if arg[a + k + j] == batch else item
    x, dx = v[arg[a + j] : arg[a + j] + run], g[arg[a + j] : arg[a + j] + run]
    for at in range(y, y + n, run):
        out, dy = v[at : at + run], g[at : at + run]
        for i in range(run):
            dx[i] += exp(x[i] - out[i]) * dy[i] if out[i] > -INF else ZERO


def logsumexp_reference(*operands: np.ndarray) -> np.ndarray:
    return np.logaddexp.reduce(stacked(*operands), axis=0)


@kernel
def logsumexp_forward_cuda(v, y, arg, a, k, item, batch, thread, threads):
    for e in range(thread, item * batch, threads):
        top, total = -INF, ZERO
        for p in range(k):
            top = maximum(top, v[arg[a + p] + (e if arg[a + k + p] == batch else e % item)])
        for p in range(k):
            total += exp(v[arg[a + p] + (e if arg[a + k + p] == batch else e % item)] - top)
        v[y + e] = top + log(total) if top - top == ZERO else top


@kernel
def logsumexp_d_cuda(v, g, y, arg, a, k, j, item, batch, thread, threads):
    run = item * batch if arg[a + k + j] == batch else item
    for i in range(thread, run, threads):
        x = v[arg[a + j] + i]
        for e in range(y + i, y + item * batch, run):
            g[arg[a + j] + i] += exp(x - v[e]) * g[e] if v[e] > -INF else ZERO


LOGSUMEXP = define("logsumexp", shape=logsumexp_shape, params="X", forward=logsumexp_forward, backward=(logsumexp_d,),
                   forward_cuda=logsumexp_forward_cuda, backward_cuda=(logsumexp_d_cuda,),
                   reference=logsumexp_reference, cases=LISTS)  # fmt: skip
logsumexp = public_list(
    LOGSUMEXP, "logsumexp", "log(sum over the list of exp(x)), elementwise, in nats, without overflow or underflow."
)
