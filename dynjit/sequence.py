"""Records an LSTM over a whole sequence in one crossing into compiled code.

Per step and layer the same four nodes as the twin in Python makes: input projection, product with the last output
added, c and h.  The planner makes one product of the projections of all steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from dynjit import frontend
from dynjit.arena import float64s, headers, int64s, view_of
from dynjit.frontend import (
    DATA,
    KEY,
    OPERANDS,
    add_node,
    as_double,
    expression_of,
    front_ends,
    list_item,
    list_size,
    load,
    new_list,
    operand,
    set_item,
    state_address,
    vectorcall,
)
from dynjit.jit import add_symbol, entry, helper, python_symbol
from dynjit.ops import linear, recurrent

CODES = np.dtype([(name, "i8") for name in ("affine", "add_product", "c", "h", "slow")])
codes = np.zeros(1, CODES)
add_symbol("dynjit_sequence_codes", codes.ctypes.data)
python_symbol("Py_DecRef")
drop = types.ExternalFunction("Py_DecRef", types.void(types.intp))
codes_at = view_of(CODES)
STATE = 6 << 20  # where the present vectors lie in the header's scratch numbers
MAX_LAYERS = 1 << 10


@intrinsic
def codes_address(typing):  # type: ignore[no-untyped-def]
    """Address of the operators' codes, by its symbol."""

    def codegen(target, builder, signature, args):  # type: ignore[no-untyped-def]
        symbol = ir.GlobalVariable(builder.module, ir.IntType(64), "dynjit_sequence_codes")
        symbol.linkage = "external"
        return builder.ptrtoint(symbol, ir.IntType(64))

    return types.int64(), codegen


@helper
def node_of(s, h, code, arity, a, b, c, floats):  # type: ignore[no-untyped-def]
    """A node of up to three operands; its float, if it has one, lies in the scratch data.  -1: not the plain case."""
    if a < 0 or b < 0 or c < 0:
        return -1
    scratch = int64s(h.scratch)
    scratch[KEY] = code
    scratch[KEY + 1] = arity
    scratch[OPERANDS] = a
    scratch[OPERANDS + 1] = b
    scratch[OPERANDS + 2] = c
    return add_node(2 + arity, arity, floats)


@helper
def step(s, h, code, weights, layers, x, bias):  # type: ignore[no-untyped-def]
    """One step of all layers; the vectors at STATE (c of each layer, h of each layer; h -1: none) are replaced."""
    scratch, doubles = int64s(h.scratch), float64s(h.scratch)
    for layer in range(layers):
        w_x = operand(s, h, list_item(weights, 3 * layer))
        w_h = operand(s, h, list_item(weights, 3 * layer + 1))
        b = operand(s, h, list_item(weights, 3 * layer + 2))
        pre = node_of(s, h, code.affine, 3, b, w_x, x, 0)
        before = scratch[STATE + layers + layer]
        if before >= 0:
            pre = node_of(s, h, code.add_product, 3, pre, w_h, before, 0)
        doubles[DATA] = bias
        c = node_of(s, h, code.c, 2, pre, scratch[STATE + layer], 0, 1)
        x = node_of(s, h, code.h, 2, pre, c, 0, 0)
        if x < 0:
            return -1
        scratch[STATE + layer] = c
        scratch[STATE + layers + layer] = x
    return x


@helper
def record_all(s, h, code, args):  # type: ignore[no-untyped-def]
    """The list that the builtin returns; 0: not the plain case."""
    weights, zero, others, before, xs = load(args), load(args + 8), load(args + 16), load(args + 24), load(args + 32)
    bias, whole = as_double(load(args + 40)), list_size(load(args + 48)) > 0
    if load(xs + 8) != s.list:
        return 0
    layers, steps = list_size(weights) // 3, list_size(xs)
    if layers > MAX_LAYERS or steps == 0:
        return 0
    scratch = int64s(h.scratch)
    start = operand(s, h, zero)
    for layer in range(layers):
        scratch[STATE + layer] = start if list_size(others) == 0 else operand(s, h, list_item(others, layer))
        scratch[STATE + layers + layer] = -1 if list_size(before) == 0 else operand(s, h, list_item(before, layer))
        if scratch[STATE + layer] < 0 or (list_size(before) > 0 and scratch[STATE + layers + layer] < 0):
            return 0
    result = new_list(2 * layers if whole else steps)
    for t in range(steps):
        top = step(s, h, code, weights, layers, operand(s, h, list_item(xs, t)), bias)
        if top < 0:
            return -1 - result  # half a list: given back by the caller
        if not whole:
            set_item(result, t, expression_of(s, h, top))
    if whole:
        for k in range(2 * layers):
            set_item(result, k, expression_of(s, h, scratch[STATE + k]))
    return result


@entry("intp(intp, intp, intp, intp)")
def native_lstm(self, args, nargs, names):  # type: ignore[no-untyped-def]
    s = front_ends(state_address())[0]
    h = headers(s.header)[0]
    code = codes_at(codes_address())[0]
    nodes, used, data = h.node_count, h.arg_count, h.data_count
    result = record_all(s, h, code, args)
    if result > 0:
        return result
    h.node_count = nodes
    h.arg_count = used
    h.data_count = data
    if result < -1:
        drop(-1 - result)
    return vectorcall(code.slow, args, nargs, 0)


def record_lstm_slowly(
    weights: list[Any], zero: Any, others: list[Any], before: list[Any], xs: list[Any], bias: float, whole: list[int]
) -> list[Any]:
    """The twin in Python of the compiled function: it makes the same nodes, and says what is wrong."""
    layers = len(weights) // 3
    c, h = others or [zero] * layers, before or [None] * layers
    outputs = []
    for x in xs:
        c, h = list(c), list(h)
        for layer in range(layers):
            w_x, w_h, b = weights[3 * layer : 3 * layer + 3]
            pre = linear.affine_transform([b, w_x, x])
            if h[layer] is not None:
                pre = linear.add_product(pre, w_h, h[layer])
            c[layer] = recurrent.lstm_c(pre, c[layer], bias)
            x = h[layer] = recurrent.lstm_h(pre, c[layer])
        outputs.append(x)
    return [*c, *h] if whole else outputs


native: list[Callable] = []


def connect() -> Callable:
    """The compiled function, made when it is first needed."""
    if not native:
        if frontend.is_native:
            codes[0] = (
                linear.AFFINE_TRANSFORM.code, linear.ADD_PRODUCT.code, recurrent.LSTM_C.code, recurrent.LSTM_H.code,
                id(record_lstm_slowly),
            )  # fmt: skip
            text = "record_lstm(weights, zero, others, before, xs, bias, whole)\n--\n\n"
            native.append(frontend.c_function("record_lstm", text, native_lstm, 0, record_lstm_slowly))
        else:
            native.append(record_lstm_slowly)
    return native[0]


def record_lstm(
    weights: list[Any], zero: Any, others: Sequence[Any], before: Sequence[Any], xs: list[Any], bias: float, whole: bool
) -> tuple[Any, ...]:
    """Records an LSTM over the inputs `xs`.

    weights: Wx, Wh, b of each layer, end to end;  zero: the c before the first input, where `others` is empty;
    others, before: each layer's c and h so far;  bias: of the forget gate.
    Returns the top layer's outputs, or (whole) c of each layer, then h of each layer, after the last input.
    """
    return tuple(connect()(weights, zero, list(others), list(before), xs, bias, [1] if whole else []))
