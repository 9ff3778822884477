"""Nodes of the long short-term memory (LSTM).

The quarters of p = Wx x + Wh h + b, and of the gates, are those of i, f, o and g, in this order.  A step is

    c_t = sigmoid(p_f + forget_bias) c_before + sigmoid(p_i) tanh(p_g)        h_t = sigmoid(p_o) tanh(c_t)

Source: Hochreiter and Schmidhuber 1997; Gers, Schmidhuber and Cummins 2000 (forget gate).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dynjit.errors import ShapeError
from dynjit.jit import kernel
from dynjit.op import Case, define, native
from dynjit.ops import binary, layout, linear, noise  # functions to compose, no kernels
from dynjit.scalars import ONE, logistic, tanh
from dynjit.shape import Result, Shape, as_number


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def state_shape(name: str, gates: Shape, state: Shape, scratch: int = 0) -> Result:
    """Shape rule of a new state; scratch: in units of the state's size."""
    batch = max(gates.batch, state.batch)
    fits = state.cols == gates.cols == 1 and gates.rows == 4 * state.rows
    if not fits or any(x.batch not in (1, batch) for x in (gates, state)):
        raise ShapeError(name, "gates (4h,) and a state (h,), with mini-batches that are equal or 1", gates, state)
    return Result(Shape((state.rows,), batch), scratch=scratch * state.rows)


CASES = (
    ((12,), (3,)), ((4,), (1,)), (((80,), 2), ((20,), 2)), (((12,), 2), (3,)), ((12,), ((3,), 2)),
)  # fmt: skip

# ---- lstm_c ----------------------------------------------------------------------------------------------------------


def lstm_c_shape(p: Shape, c: Shape) -> Result:
    return state_shape("lstm_c", p, c, scratch=3)


@kernel
def lstm_c_forward(v, x0, x1, y, s, item, batch, step0, step1, f0):
    for b in range(batch):
        at, keep = x0 + b * step0, s + 3 * b * item
        x, i = v[at : at + item], v[keep : keep + item]
        for k in range(item):
            i[k] = logistic(x[k])
        x, f = v[at + item : at + 2 * item], v[keep + item : keep + 2 * item]
        for k in range(item):
            f[k] = logistic(x[k] + f0)
        x, u = v[at + 3 * item : at + 4 * item], v[keep + 2 * item : keep + 3 * item]
        for k in range(item):
            u[k] = tanh(x[k])
        c, out = v[x1 + b * step1 : x1 + b * step1 + item], v[y + b * item : y + (b + 1) * item]
        for k in range(item):
            out[k] = f[k] * c[k] + i[k] * u[k]


@kernel
def lstm_c_d0(v, g, x0, x1, y, s, item, batch, step0, step1):
    for b in range(batch):
        at, keep = x0 + b * step0, s + 3 * b * item
        i, f, u = v[keep : keep + item], v[keep + item : keep + 2 * item], v[keep + 2 * item : keep + 3 * item]
        c, dy = v[x1 + b * step1 : x1 + b * step1 + item], g[y + b * item : y + (b + 1) * item]
        dx = g[at : at + item]
        for k in range(item):
            dx[k] += dy[k] * u[k] * i[k] * (ONE - i[k])
        dx = g[at + item : at + 2 * item]
        for k in range(item):
            dx[k] += dy[k] * c[k] * f[k] * (ONE - f[k])
        dx = g[at + 3 * item : at + 4 * item]
        for k in range(item):
            dx[k] += dy[k] * i[k] * (ONE - u[k] * u[k])


@kernel
def lstm_c_d1(v, g, x1, y, s, item, batch, step1):
    for b in range(batch):
        f = v[s + (3 * b + 1) * item : s + (3 * b + 2) * item]
        dc, dy = g[x1 + b * step1 : x1 + b * step1 + item], g[y + b * item : y + (b + 1) * item]
        for k in range(item):
            dc[k] += dy[k] * f[k]


def lstm_c_reference(p: np.ndarray, c: np.ndarray, forget_bias: float) -> np.ndarray:
    i, f, _, u = p.reshape(4, -1)
    return sigmoid(f + forget_bias) * c + sigmoid(i) * np.tanh(u)


LSTM_C = define("lstm_c", shape=lstm_c_shape, params="xxf", forward=lstm_c_forward, backward=(lstm_c_d0, lstm_c_d1),
    reference=lstm_c_reference,
    cases=(*(Case(shapes, arguments=(1.0,)) for shapes in CASES), Case(CASES[0], -80, 80, (0.5,))))  # fmt: skip


@native(LSTM_C)
def lstm_c(p: Any, c: Any, forget_bias: float = 1.0) -> Any:
    """c_t = sigmoid(p_f + forget_bias) c + sigmoid(p_i) tanh(p_g), from gates before their activation.

    p: (4h,), quarters i, f, o, g;  c: (h,), the cell before;  mini-batches equal or 1.
    Raises ShapeError unless the shapes fit.
    """
    return LSTM_C(p, c, forget_bias)


# ---- lstm_h ----------------------------------------------------------------------------------------------------------


def lstm_h_shape(p: Shape, c: Shape) -> Result:
    return state_shape("lstm_h", p, c, scratch=2)


@kernel
def lstm_h_forward(v, x0, x1, y, s, item, batch, step0, step1):
    for b in range(batch):
        at, keep = x0 + b * step0 + 2 * item, s + 2 * b * item
        x, o = v[at : at + item], v[keep : keep + item]
        for k in range(item):
            o[k] = logistic(x[k])
        c, t = v[x1 + b * step1 : x1 + b * step1 + item], v[keep + item : keep + 2 * item]
        out = v[y + b * item : y + (b + 1) * item]
        for k in range(item):
            t[k] = tanh(c[k])
        for k in range(item):
            out[k] = o[k] * t[k]


@kernel
def lstm_h_d0(v, g, x0, y, s, item, batch, step0):
    for b in range(batch):
        at, keep = x0 + b * step0 + 2 * item, s + 2 * b * item
        o, h = v[keep : keep + item], v[y + b * item : y + (b + 1) * item]
        dx, dy = g[at : at + item], g[y + b * item : y + (b + 1) * item]
        for k in range(item):
            dx[k] += dy[k] * h[k] * (ONE - o[k])


@kernel
def lstm_h_d1(v, g, x1, y, s, item, batch, step1):
    for b in range(batch):
        keep = s + 2 * b * item
        o, t = v[keep : keep + item], v[keep + item : keep + 2 * item]
        dc, dy = g[x1 + b * step1 : x1 + b * step1 + item], g[y + b * item : y + (b + 1) * item]
        for k in range(item):
            dc[k] += dy[k] * o[k] * (ONE - t[k] * t[k])


def lstm_h_reference(p: np.ndarray, c: np.ndarray) -> np.ndarray:
    return sigmoid(p.reshape(4, -1)[2]) * np.tanh(c)


LSTM_H = define("lstm_h", shape=lstm_h_shape, params="xx", forward=lstm_h_forward, backward=(lstm_h_d0, lstm_h_d1),
    reference=lstm_h_reference, cases=(*map(Case, CASES), Case(CASES[0], -80, 80)))  # fmt: skip


@native(LSTM_H)
def lstm_h(p: Any, c: Any) -> Any:
    """h_t = sigmoid(p_o) tanh(c), from gates before their activation.

    p: (4h,), quarters i, f, o, g;  c: (h,), the cell of this step;  mini-batches equal or 1.
    Raises ShapeError unless the shapes fit.
    """
    return LSTM_H(p, c)


# ---- lstm_activation -------------------------------------------------------------------------------------------------


def lstm_activation_shape(p: Shape) -> Result:
    if len(p.dims) != 1 or p.rows % 4:
        raise ShapeError("lstm_activation", "a vector (4h,)", p)
    return Result(p, ints=(p.rows // 4,))


@kernel
def lstm_activation_forward(v, x0, y, item, batch, i0, f0):
    for b in range(batch):
        at, to = x0 + b * item, y + b * item
        x, out = v[at : at + i0], v[to : to + i0]
        for k in range(i0):
            out[k] = logistic(x[k])
        x, out = v[at + i0 : at + 2 * i0], v[to + i0 : to + 2 * i0]
        for k in range(i0):
            out[k] = logistic(x[k] + f0)
        x, out = v[at + 2 * i0 : at + 3 * i0], v[to + 2 * i0 : to + 3 * i0]
        for k in range(i0):
            out[k] = logistic(x[k])
        x, out = v[at + 3 * i0 : at + 4 * i0], v[to + 3 * i0 : to + 4 * i0]
        for k in range(i0):
            out[k] = tanh(x[k])


@kernel
def lstm_activation_d0(v, g, x0, y, item, batch, i0):
    for b in range(batch):
        at, to = x0 + b * item, y + b * item
        out, dy, dx = v[to : to + 3 * i0], g[to : to + 3 * i0], g[at : at + 3 * i0]
        for k in range(3 * i0):
            dx[k] += dy[k] * out[k] * (ONE - out[k])
        out, dy, dx = v[to + 3 * i0 : to + item], g[to + 3 * i0 : to + item], g[at + 3 * i0 : at + item]
        for k in range(i0):
            dx[k] += dy[k] * (ONE - out[k] * out[k])


def lstm_activation_reference(p: np.ndarray, forget_bias: float) -> np.ndarray:
    i, f, o, u = p.reshape(4, -1)
    return np.concatenate([sigmoid(i), sigmoid(f + forget_bias), sigmoid(o), np.tanh(u)])


LSTM_ACTIVATION = define("lstm_activation", shape=lstm_activation_shape, params="xf",
    forward=lstm_activation_forward, backward=(lstm_activation_d0,), reference=lstm_activation_reference,
    cases=(Case(((12,),), arguments=(1.0,)), Case(((4,),), arguments=(0.0,)), Case((((12,), 2),), arguments=(1.0,)),
           Case(((12,),), -80, 80, (1.0,))))  # fmt: skip


@native(LSTM_ACTIVATION)
def lstm_activation(p: Any, forget_bias: float = 1.0) -> Any:
    """Gates [sigmoid(p_i), sigmoid(p_f + forget_bias), sigmoid(p_o), tanh(p_g)].

    p: (4h,) x batch, quarters i, f, o, g; the result: the same shape.  Raises ShapeError for other shapes.
    """
    return LSTM_ACTIVATION(p, forget_bias)


# ---- vanilla_lstm_c --------------------------------------------------------------------------------------------------


def vanilla_lstm_c_shape(c: Shape, gates: Shape) -> Result:
    return state_shape("vanilla_lstm_c", gates, c)


@kernel
def vanilla_lstm_c_forward(v, x0, x1, y, item, batch, step0, step1):
    for b in range(batch):
        at = x1 + b * step1
        i, f, u = v[at : at + item], v[at + item : at + 2 * item], v[at + 3 * item : at + 4 * item]
        c, out = v[x0 + b * step0 : x0 + b * step0 + item], v[y + b * item : y + (b + 1) * item]
        for k in range(item):
            out[k] = f[k] * c[k] + i[k] * u[k]


@kernel
def vanilla_lstm_c_d0(v, g, x0, x1, y, item, batch, step0, step1):
    for b in range(batch):
        f = v[x1 + b * step1 + item : x1 + b * step1 + 2 * item]
        dc, dy = g[x0 + b * step0 : x0 + b * step0 + item], g[y + b * item : y + (b + 1) * item]
        for k in range(item):
            dc[k] += dy[k] * f[k]


@kernel
def vanilla_lstm_c_d1(v, g, x0, x1, y, item, batch, step0, step1):
    for b in range(batch):
        at = x1 + b * step1
        dy = g[y + b * item : y + (b + 1) * item]
        for of, by in ((0, at + 3 * item), (1, x0 + b * step0), (3, at)):
            dx, x = g[at + of * item : at + (of + 1) * item], v[by : by + item]
            for k in range(item):
                dx[k] += dy[k] * x[k]


def vanilla_lstm_c_reference(c: np.ndarray, gates: np.ndarray) -> np.ndarray:
    i, f, _, u = gates.reshape(4, -1)
    return f * c + i * u


VANILLA_LSTM_C = define("vanilla_lstm_c", shape=vanilla_lstm_c_shape, params="xx", forward=vanilla_lstm_c_forward,
    backward=(vanilla_lstm_c_d0, vanilla_lstm_c_d1), reference=vanilla_lstm_c_reference,
    cases=tuple(Case(shapes[::-1]) for shapes in CASES))  # fmt: skip


@native(VANILLA_LSTM_C)
def vanilla_lstm_c(c_tm1: Any, gates_t: Any) -> Any:
    """c_t = f c_tm1 + i g, of gates [i, f, o, g].

    c_tm1: (h,);  gates_t: (4h,);  mini-batches equal or 1.  Raises ShapeError unless the shapes fit.
    """
    return VANILLA_LSTM_C(c_tm1, gates_t)


# ---- vanilla_lstm_h --------------------------------------------------------------------------------------------------


def vanilla_lstm_h_shape(c: Shape, gates: Shape) -> Result:
    return state_shape("vanilla_lstm_h", gates, c)


@kernel
def vanilla_lstm_h_forward(v, x0, x1, y, item, batch, step0, step1):
    for b in range(batch):
        c, o = v[x0 + b * step0 : x0 + b * step0 + item], v[x1 + b * step1 + 2 * item : x1 + b * step1 + 3 * item]
        out = v[y + b * item : y + (b + 1) * item]
        for k in range(item):
            out[k] = o[k] * tanh(c[k])


@kernel
def vanilla_lstm_h_d0(v, g, x0, x1, y, item, batch, step0, step1):
    for b in range(batch):
        at0, at1 = x0 + b * step0, x1 + b * step1 + 2 * item
        c, o, dc = v[at0 : at0 + item], v[at1 : at1 + item], g[at0 : at0 + item]
        dy = g[y + b * item : y + (b + 1) * item]
        for k in range(item):
            t = tanh(c[k])
            dc[k] += dy[k] * o[k] * (ONE - t * t)


@kernel
def vanilla_lstm_h_d1(v, g, x0, x1, y, item, batch, step0, step1):
    for b in range(batch):
        c, do = v[x0 + b * step0 : x0 + b * step0 + item], g[x1 + b * step1 + 2 * item : x1 + b * step1 + 3 * item]
        dy = g[y + b * item : y + (b + 1) * item]
        for k in range(item):
            do[k] += dy[k] * tanh(c[k])


VANILLA_LSTM_H = define("vanilla_lstm_h", shape=vanilla_lstm_h_shape, params="xx", forward=vanilla_lstm_h_forward,
    backward=(vanilla_lstm_h_d0, vanilla_lstm_h_d1),
    reference=lambda c, gates: gates.reshape(4, -1)[2] * np.tanh(c),
    cases=tuple(Case(shapes[::-1]) for shapes in CASES))  # fmt: skip


@native(VANILLA_LSTM_H)
def vanilla_lstm_h(c_t: Any, gates_t: Any) -> Any:
    """h_t = o tanh(c_t), of gates [i, f, o, g].

    c_t: (h,);  gates_t: (4h,);  mini-batches equal or 1.  Raises ShapeError unless the shapes fit.
    """
    return VANILLA_LSTM_H(c_t, gates_t)


# ---- vanilla_lstm_gates ----------------------------------------------------------------------------------------------


def noisy(weightnoise_std: float, *weights: Any) -> Iterator[Any]:
    """Weights with normal noise; as they are for a deviation of 0."""
    is_noisy = as_number("vanilla_lstm_gates", weightnoise_std) != 0
    return (noise.noise(weight, weightnoise_std) if is_noisy else weight for weight in weights)


@native(None, "xxxxx")
def vanilla_lstm_gates(x_t: Any, h_tm1: Any, Wx: Any, Wh: Any, b: Any, weightnoise_std: float = 0.0) -> Any:
    """Gates [i, f, o, g] of p = Wx x_t + Wh h_tm1 + b: sigmoid(p_i), sigmoid(p_f + 1), sigmoid(p_o), tanh(p_g).

    x_t: (k,);  h_tm1: (h,);  Wx: (4h, k);  Wh: (4h, h);  b: (4h,);  the result: (4h,);  mini-batches equal or 1.
    weightnoise_std: standard deviation of normal noise on Wx, Wh and b, new in each call.
    Raises ShapeError unless the shapes fit, ValueError for a negative deviation.
    """
    if weightnoise_std != 0.0:
        Wx, Wh, b = noisy(weightnoise_std, Wx, Wh, b)
    return lstm_activation(linear.affine_transform([b, Wx, x_t, Wh, h_tm1]))


@native(None, "Xxxxx")
def vanilla_lstm_gates_concat(
    x_t: Sequence[Any], h_tm1: Any, Wx: Any, Wh: Any, b: Any, weightnoise_std: float = 0.0
) -> Any:
    """`vanilla_lstm_gates` of the vectors of the list x_t, joined."""
    return vanilla_lstm_gates(layout.concatenate(x_t), h_tm1, Wx, Wh, b, weightnoise_std)


@native(None, "xxxxxxx")
def vanilla_lstm_gates_dropout(
    x_t: Any, h_tm1: Any, Wx: Any, Wh: Any, b: Any, dropout_mask_x: Any, dropout_mask_h: Any,
    weightnoise_std: float = 0.0,
) -> Any:  # fmt: skip
    """`vanilla_lstm_gates` of x_t * dropout_mask_x and h_tm1 * dropout_mask_h, elementwise."""
    x, h = binary.cmult(x_t, dropout_mask_x), binary.cmult(h_tm1, dropout_mask_h)
    return vanilla_lstm_gates(x, h, Wx, Wh, b, weightnoise_std)


@native(None, "Xxxxxxx")
def vanilla_lstm_gates_dropout_concat(
    x_t: Sequence[Any], h_tm1: Any, Wx: Any, Wh: Any, b: Any, dropout_mask_x: Any, dropout_mask_h: Any,
    weightnoise_std: float = 0.0,
) -> Any:  # fmt: skip
    """`vanilla_lstm_gates_dropout` of the vectors of the list x_t, joined."""
    joined = layout.concatenate(x_t)
    return vanilla_lstm_gates_dropout(joined, h_tm1, Wx, Wh, b, dropout_mask_x, dropout_mask_h, weightnoise_std)
