"""All families of operators; their order is that of the operators' codes."""

from __future__ import annotations

from dynjit.ops import (
    axis,
    binary,
    contract,
    conv,
    conv1d,
    distance,
    layout,
    leaf,
    linear,
    loss,
    matrix,
    nary,
    noise,
    norm,
    recurrent,
    reduce,
    select,
    softmax,
    unary,
)

FAMILIES = (
    axis, binary, contract, conv, conv1d, distance, layout, leaf, linear, loss, matrix, nary, noise, norm, recurrent,
    reduce, select, softmax, unary,
)  # fmt: skip
