"""The norm of a tensor, and normalisations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dynjit.errors import ShapeError
from dynjit.jit import kernel
from dynjit.lines import joined, lines_of, own_line, turn_in, width_of
from dynjit.op import Case, define, native
from dynjit.scalars import ONE, ZERO
from dynjit.shape import Result, Shape

# ---- l2_norm ---------------------------------------------------------------------------------------------------------


def l2_norm_shape(x: Shape) -> Shape:
    return Shape((1,), x.batch)


@kernel
def l2_norm_forward(v, x0, y, item0, batch):
    for b in range(batch):
        x = v[x0 + b * item0 : x0 + (b + 1) * item0]
        total = ZERO
        for i in range(item0):
            total += x[i] * x[i]
        v[y + b] = math.sqrt(total)


@kernel
def l2_norm_d0(v, g, x0, y, item0, batch):
    for b in range(batch):
        x, dx = v[x0 + b * item0 : x0 + (b + 1) * item0], g[x0 + b * item0 : x0 + (b + 1) * item0]
        if v[y + b] > ZERO:  # at the zero vector the gradient is 0
            share = g[y + b] / v[y + b]
            for i in range(item0):
                dx[i] += share * x[i]


@kernel
def l2_norm_forward_cuda(v, x0, y, item0, batch, strip, part, parts):
    width = width_of(item0)
    for first in lines_of(width, part, batch, parts):
        b, total = own_line(first, width), ZERO
        for i in range(turn_in(width), item0 if b < batch else 0, width):
            total += v[x0 + b * item0 + i] * v[x0 + b * item0 + i]
        total = joined(total, True, width, strip)
        if b < batch and turn_in(width) == 0:
            v[y + b] = math.sqrt(total)


@kernel
def l2_norm_d0_cuda(v, g, x0, y, item0, n0, thread, threads):
    for e in range(thread, n0, threads):
        out = v[y + e // item0]
        if out > ZERO:
            g[x0 + e] += g[y + e // item0] / out * v[x0 + e]


L2_NORM = define("l2_norm", shape=l2_norm_shape, forward=l2_norm_forward, backward=(l2_norm_d0,),
                 forward_cuda=l2_norm_forward_cuda, backward_cuda=(l2_norm_d0_cuda,),
                 reference=lambda x: np.sqrt(np.sum(x * x)),
                 cases=(Case(((5,),)), Case(((1,),)), Case((((3, 4), 2),)), Case(((2, 3, 4),)),
                        Case(((40,),), -80, 80)))  # fmt: skip


@native(L2_NORM)
def l2_norm(x: Any) -> Any:
    """Square root of the sum of the squares of all elements of each mini-batch item; the gradient of 0 is 0.

    x: any shape x batch; the result: (1,) x batch.
    """
    return L2_NORM(x)


# ---- layer_norm ------------------------------------------------------------------------------------------------------

EPSILON = np.float32(1e-8)  # added to the standard deviation, as in DyNet


def layer_norm_shape(x: Shape, gain: Shape, bias: Shape) -> Result:
    first = [p.truncated().dims for p in (gain, bias)]
    fits = all(dims in (x.dims[: len(dims)], (1,)) for dims in first)
    batches = {x.batch, gain.batch, bias.batch} - {1}
    if not fits or len(batches) > 1:
        needs = "g and b of the dims of x, of its first ones, or (1,), and mini-batches that are equal or 1"
        raise ShapeError("layer_norm", needs, x, gain, bias)
    return Result(Shape(x.dims, max(batches, default=1)), scratch=2)


@kernel
def layer_norm_forward(v, x0, x1, x2, y, s, item, item1, item2, batch, step0, step1, step2):
    # the scratch holds mean and standard deviation
    count = type(v[y])(item)
    for b in range(batch):
        x, out = v[x0 + b * step0 : x0 + b * step0 + item], v[y + b * item : y + (b + 1) * item]
        gain, bias = v[x1 + b * step1 : x1 + b * step1 + item1], v[x2 + b * step2 : x2 + b * step2 + item2]
        mean, deviation, first = ZERO, ZERO, x[0]
        for i in range(item):
            mean += x[i] - first  # exact for equal elements, whose deviation is 0 then
        mean = first + mean / count
        for i in range(item):
            deviation += (x[i] - mean) * (x[i] - mean)
        deviation = math.sqrt(deviation / count)
        v[s + 2 * b], v[s + 2 * b + 1] = mean, deviation
        scale = ONE / (deviation + EPSILON)
        for c in range(0, item, item1):
            part, to = x[c : c + item1], out[c : c + item1]
            for i in range(item1):
                to[i] = (part[i] - mean) * scale * gain[i]
        for c in range(0, item, item2):
            to = out[c : c + item2]
            for i in range(item2):
                to[i] += bias[i]


@kernel
def layer_norm_d0(v, g, x0, x1, y, s, item, item1, batch, step0, step1):
    count = type(v[y])(item)
    for b in range(batch):
        x, dx = v[x0 + b * step0 : x0 + b * step0 + item], g[x0 + b * step0 : x0 + b * step0 + item]
        gain, dy = v[x1 + b * step1 : x1 + b * step1 + item1], g[y + b * item : y + (b + 1) * item]
        mean, deviation, total, product = v[s + 2 * b], v[s + 2 * b + 1], ZERO, ZERO
        for c in range(0, item, item1):
            part, share = x[c : c + item1], dy[c : c + item1]
            for i in range(item1):
                total += share[i] * gain[i]
                product += share[i] * gain[i] * (part[i] - mean)
        if deviation > ZERO:
            scale = ONE / (deviation + EPSILON)
            total /= count
            product *= scale / (deviation * count)
            for c in range(0, item, item1):
                part, share, to = x[c : c + item1], dy[c : c + item1], dx[c : c + item1]
                for i in range(item1):
                    to[i] += scale * (share[i] * gain[i] - total - (part[i] - mean) * product)


@kernel
def layer_norm_d1(v, g, x0, x1, y, s, item, item1, batch, step0, step1):
    for b in range(batch):
        mean, scale = v[s + 2 * b], ONE / (v[s + 2 * b + 1] + EPSILON)
        dgain = g[x1 + b * step1 : x1 + b * step1 + item1]
        for c in range(0, item, item1):
            x, dy = v[x0 + b * step0 + c : x0 + b * step0 + c + item1], g[y + b * item + c : y + b * item + c + item1]
            for i in range(item1):
                dgain[i] += dy[i] * (x[i] - mean) * scale


@kernel
def layer_norm_d2(g, x2, y, item, item2, batch, step2):
    for b in range(batch):
        dbias = g[x2 + b * step2 : x2 + b * step2 + item2]
        for c in range(y + b * item, y + (b + 1) * item, item2):
            dy = g[c : c + item2]
            for i in range(item2):
                dbias[i] += dy[i]


@kernel
def layer_norm_forward_cuda(v, x0, x1, x2, y, s, item, item1, item2, batch, step0, step1, step2, strip, part, parts):
    width, divisor = width_of(item), type(v[y])(item)
    for first in lines_of(width, part, batch, parts):
        b = own_line(first, width)
        x, out, count = x0 + b * step0, y + b * item, item if b < batch else 0
        gain, bias, start = x1 + b * step1, x2 + b * step2, v[x] if b < batch else ZERO
        mean, deviation = ZERO, ZERO
        for i in range(turn_in(width), count, width):
            mean += v[x + i] - start
        mean = start + joined(mean, True, width, strip) / divisor
        for i in range(turn_in(width), count, width):
            deviation += (v[x + i] - mean) * (v[x + i] - mean)
        deviation = math.sqrt(joined(deviation, True, width, strip) / divisor)
        scale = ONE / (deviation + EPSILON)
        for i in range(turn_in(width), count, width):
            v[out + i] = (v[x + i] - mean) * scale * v[gain + i % item1] + v[bias + i % item2]
        if b < batch and turn_in(width) == 0:
            v[s + 2 * b], v[s + 2 * b + 1] = mean, deviation


@kernel
def layer_norm_d0_cuda(v, g, x0, x1, y, s, item, item1, batch, batch0, step1, strip, part, parts):
    width, divisor = width_of(item), type(v[y])(item)
    for first in lines_of(width, part, batch0, parts):
        line = own_line(first, width)
        x, count = x0 + line * item, item if line < batch0 else 0
        for b in range(line, line + batch, batch0):  # all items of an x that they share
            dy, gain, total, product = y + b * item, x1 + b * step1, ZERO, ZERO
            mean, deviation = (v[s + 2 * b], v[s + 2 * b + 1]) if count else (ZERO, ZERO)
            for i in range(turn_in(width), count, width):
                share = g[dy + i] * v[gain + i % item1]
                total += share
                product += share * (v[x + i] - mean)
            total, product = joined(total, True, width, strip), joined(product, True, width, strip)
            if deviation > ZERO:
                scale = ONE / (deviation + EPSILON)
                total /= divisor
                product *= scale / (deviation * divisor)
                for i in range(turn_in(width), count, width):
                    share = g[dy + i] * v[gain + i % item1]
                    g[x + i] += scale * (share - total - (v[x + i] - mean) * product)


@kernel
def layer_norm_d1_cuda(v, g, x0, x1, y, s, item, item1, batch, n1, step0, thread, threads):
    for e in range(thread, n1, threads):
        total = ZERO
        for b in range(e // item1, batch, n1 // item1):  # all items of a gain that they share
            mean, scale = v[s + 2 * b], ONE / (v[s + 2 * b + 1] + EPSILON)
            for i in range(e % item1, item, item1):
                total += g[y + b * item + i] * (v[x0 + b * step0 + i] - mean) * scale
        g[x1 + e] += total


@kernel
def layer_norm_d2_cuda(g, x2, y, item, item2, batch, n2, thread, threads):
    for e in range(thread, n2, threads):
        total = ZERO
        for b in range(e // item2, batch, n2 // item2):
            for i in range(e % item2, item, item2):
                total += g[y + b * item + i]
        g[x2 + e] += total


def layer_norm_reference(x: np.ndarray, gain: np.ndarray, bias: np.ndarray) -> np.ndarray:
    gain, bias = (p.reshape(p.shape + (1,) * (x.ndim - p.ndim)) for p in (gain, bias))
    return gain * (x - x.mean()) / (x.std() + float(EPSILON)) + bias  # type: ignore[no-any-return]


LAYER_NORM = define("layer_norm", shape=layer_norm_shape, params="xxx", forward=layer_norm_forward,
    backward=(layer_norm_d0, layer_norm_d1, layer_norm_d2), forward_cuda=layer_norm_forward_cuda,
    backward_cuda=(layer_norm_d0_cuda, layer_norm_d1_cuda, layer_norm_d2_cuda), reference=layer_norm_reference,
    cases=(Case(((5,), (5,), (5,))), Case((((5,), 2), (5,), (5,))), Case(((5,), (5,), ((5,), 2))),
           Case((((3, 4), 2), (3,), (3, 1))), Case(((3, 4), (3, 4), (1,))), Case(((3, 4), (3, 4), ((3, 4), 2))),
           Case(((2, 3, 4), (2, 3, 4), (2,))), Case(((40,), (40,), (40,)), -80, 80),
           Case(((1,), (1,), (1,)))))  # fmt: skip


@native(LAYER_NORM)
def layer_norm(x: Any, g: Any, b: Any) -> Any:
    """g * (x - mean(x)) / (std(x) + 1e-8) + b, with mean and standard deviation over all elements of a mini-batch item.

    x: any shape x batch;  g, b: the dims of x, its first ones, or (1,); mini-batches equal or 1.
    Raises ShapeError for other shapes.  Where all elements of x are equal, its gradient is 0.
    Source: Ba et al. (2016), Layer normalization, section 3.
    """
    return LAYER_NORM(x, g, b)


# ---- weight_norm -----------------------------------------------------------------------------------------------------


def weight_norm_shape(w: Shape, gain: Shape) -> Result:
    if gain.item != 1 or (w.batch != gain.batch and 1 not in (w.batch, gain.batch)):
        raise ShapeError("weight_norm", "w and g of one element, with mini-batches that are equal or 1", w, gain)
    return Result(Shape(w.dims, max(w.batch, gain.batch)), scratch=1)


@kernel
def weight_norm_forward(v, x0, x1, y, s, item, batch, step0, step1):
    # the scratch holds 1 / |w|, and 0 for the zero vector
    for b in range(batch):
        w, out = v[x0 + b * step0 : x0 + b * step0 + item], v[y + b * item : y + (b + 1) * item]
        total = ZERO
        for i in range(item):
            total += w[i] * w[i]
        v[s + b] = ONE / math.sqrt(total) if total > ZERO else ZERO
        scale = v[x1 + b * step1] * v[s + b]
        for i in range(item):
            out[i] = w[i] * scale


@kernel
def weight_norm_d0(v, g, x0, x1, y, s, item, batch, step0, step1):
    for b in range(batch):
        w, dw = v[x0 + b * step0 : x0 + b * step0 + item], g[x0 + b * step0 : x0 + b * step0 + item]
        dy, inverse = g[y + b * item : y + (b + 1) * item], v[s + b]
        product = ZERO
        for i in range(item):
            product += w[i] * dy[i]
        scale, product = v[x1 + b * step1] * inverse, product * inverse * inverse
        for i in range(item):
            dw[i] += scale * (dy[i] - product * w[i])


@kernel
def weight_norm_d1(v, g, x0, x1, y, s, item, batch, step0, step1):
    for b in range(batch):
        w, dy = v[x0 + b * step0 : x0 + b * step0 + item], g[y + b * item : y + (b + 1) * item]
        product = ZERO
        for i in range(item):
            product += w[i] * dy[i]
        g[x1 + b * step1] += product * v[s + b]


@kernel
def weight_norm_forward_cuda(v, x0, x1, y, s, item, batch, step0, step1, strip, part, parts):
    width = width_of(item)
    for first in lines_of(width, part, batch, parts):
        b, total = own_line(first, width), ZERO
        w, count = x0 + b * step0, item if b < batch else 0
        for i in range(turn_in(width), count, width):
            total += v[w + i] * v[w + i]
        total = joined(total, True, width, strip)
        inverse = ONE / math.sqrt(total) if total > ZERO else ZERO
        for i in range(turn_in(width), count, width):
            v[y + b * item + i] = v[w + i] * (v[x1 + b * step1] * inverse)
        if b < batch and turn_in(width) == 0:
            v[s + b] = inverse


@kernel
def weight_norm_d0_cuda(v, g, x0, x1, y, s, item, batch, batch0, step1, strip, part, parts):
    width = width_of(item)
    for first in lines_of(width, part, batch0, parts):
        line = own_line(first, width)
        w, count = x0 + line * item, item if line < batch0 else 0
        for b in range(line, line + batch, batch0):  # all items of a w that they share
            product, inverse = ZERO, v[s + b] if count else ZERO
            for i in range(turn_in(width), count, width):
                product += v[w + i] * g[y + b * item + i]
            product = joined(product, True, width, strip) * inverse * inverse
            for i in range(turn_in(width), count, width):
                g[w + i] += v[x1 + b * step1] * inverse * (g[y + b * item + i] - product * v[w + i])


@kernel
def weight_norm_d1_cuda(v, g, x0, x1, y, s, item, batch, batch1, step0, strip, part, parts):
    width = width_of(item)
    for first in lines_of(width, part, batch1, parts):
        line, total = own_line(first, width), ZERO
        for b in range(line, batch if line < batch1 else 0, batch1):  # all items of a gain that they share
            for i in range(turn_in(width), item, width):
                total += v[x0 + b * step0 + i] * g[y + b * item + i] * v[s + b]
        total = joined(total, True, width, strip)
        if line < batch1 and turn_in(width) == 0:
            g[x1 + line] += total


WEIGHT_NORM = define("weight_norm", shape=weight_norm_shape, params="xx", forward=weight_norm_forward,
    forward_cuda=weight_norm_forward_cuda, backward=(weight_norm_d0, weight_norm_d1),
    backward_cuda=(weight_norm_d0_cuda, weight_norm_d1_cuda),
    reference=lambda w, gain: gain.item() * w / np.sqrt(np.sum(w * w)),
    cases=(Case(((5,), (1,))), Case(((1,), (1,)), 0.5, 2), Case((((3, 4), 2), (1,))), Case(((3, 4), ((1,), 2))),
           Case((((3, 4), 2), ((1, 1), 2)), -80, 80)))  # fmt: skip


@native(WEIGHT_NORM)
def weight_norm(w: Any, g: Any) -> Any:
    """g * w / |w|, with the square root of the sum of squares |w| of a mini-batch item; 0 for the zero vector.

    w: any shape x batch;  g: one element x batch; mini-batches equal or 1.  Raises ShapeError for other shapes.
    Source: Salimans and Kingma (2016), Weight normalization, equation 2.
    """
    return WEIGHT_NORM(w, g)
