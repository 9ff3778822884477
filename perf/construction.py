"""Nanoseconds that it takes to build a node from Python, operator by operator, net of the empty loop."""

from __future__ import annotations

from timeit import Timer
from typing import Any

NODES = 2000
SIZE = 8

# name: the expression that the loop evaluates, with vectors x and y, a table of vectors, weights W and V, a bias b
OPERATORS = {
    "x + y": "x + y",
    "x - y": "x - y",
    "x + number": "x + 1.5",
    "number * x": "2.0 * x",
    "cmult": "dy.cmult(x, y)",
    "cdiv": "dy.cdiv(x, y)",
    "tanh": "dy.tanh(x)",
    "logistic": "dy.logistic(x)",
    "rectify": "dy.rectify(x)",
    "exp": "dy.exp(x)",
    "square": "dy.square(x)",
    "W * x": "W * x",
    "affine_transform": "dy.affine_transform([b, W, x])",
    "affine_transform, 5": "dy.affine_transform([b, W, x, V, y])",
    "dot_product": "dy.dot_product(x, y)",
    "concatenate, 2": "dy.concatenate([x, y])",
    "concatenate, 4": "dy.concatenate([x, y, x, y])",
    "esum, 4": "dy.esum([x, y, x, y])",
    "table[i]": "table[5]",
    "lookup": "dy.lookup(table, 5)",
    "lookup_batch, 4": "dy.lookup_batch(table, [1, 2, 3, 4])",
    "pick": "dy.pick(x, 3)",
    "x[i]": "x[3]",
    "x[i:j]": "x[2:5]",
    "reshape": "dy.reshape(x, (2, 4))",
    "softmax": "dy.softmax(x)",
    "log_softmax": "dy.log_softmax(x)",
    "pickneglogsoftmax": "dy.pickneglogsoftmax(x, 3)",
    "squared_distance": "dy.squared_distance(x, y)",
    "sum_elems": "dy.sum_elems(x)",
    "dropout": "dy.dropout(x, 0.5)",
    "scalarInput": "dy.scalarInput(2.5)",
    "inputVector, 8": "dy.inputVector(numbers)",
}


SETUP = "dy.renew_cg(); x = dy.inputVector(numbers); y = dy.inputVector(numbers); dy.affine_transform([b, W, x, V, y])"


def names(dy: Any) -> dict[str, Any]:
    """What the operators' code mentions, but x and y."""
    model = dy.ParameterCollection()
    return {
        "dy": dy,
        "table": model.add_lookup_parameters((100, SIZE)),
        "W": model.add_parameters((SIZE, SIZE)),
        "V": model.add_parameters((SIZE, SIZE)),
        "b": model.add_parameters(SIZE),
        "numbers": [0.5] * SIZE,
    }


def nanoseconds_per_node(dy: Any, rounds: int) -> dict[str, float | str]:
    """For each operator the best of some rounds, or what went wrong; each round has a fresh graph."""
    scope = names(dy)

    def best(code: str) -> float:
        return min(Timer(code, SETUP, globals=scope).repeat(rounds, NODES))

    results: dict[str, float | str] = {}
    empty = best("pass")
    for name, code in OPERATORS.items():
        try:
            results[name] = (best(code) - empty) / NODES * 1e9
        except Exception as error:  # an operator may be missing, the others still count
            results[name] = f"{type(error).__name__}: {error}"
    return results
