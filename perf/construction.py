"""Nanoseconds that it takes to build a node from Python, operator by operator, net of the empty loop."""

from __future__ import annotations

from timeit import Timer
from typing import Any

import numpy as np

NODES = 1000
SIZE = 8

# the expressions that the loops evaluate, with vectors x, y, p (probabilities) and m (a mini-batch), matrices A and B,
# an image and filters, a table of vectors, weights W and V, biases b and gates, a number `one`
HOT = (
    "x + y", "x - y", "x + 1.5", "2.0 * x", "-x", "dy.cmult(x, y)", "dy.cdiv(x, y)", "dy.tanh(x)", "dy.logistic(x)",
    "dy.rectify(x)", "dy.exp(x)", "dy.log(x)", "dy.square(x)", "W * x", "dy.affine_transform([b, W, x])",
    "dy.affine_transform([b, W, x, V, y])", "dy.dot_product(x, y)", "dy.concatenate([x, y])",
    "dy.concatenate([x, y, x, y])", "dy.esum([x, y, x, y])", "table[5]", "dy.lookup(table, 5)",
    "dy.lookup_batch(table, [1, 2, 3, 4])", "dy.pick(x, 3)", "x[3]", "x[2:5]", "dy.pick_range(x, 2, 5)",
    "dy.reshape(x, (2, 4))", "dy.transpose(A)", "dy.softmax(x)", "dy.log_softmax(x)", "dy.pickneglogsoftmax(x, 3)",
    "dy.squared_distance(x, y)", "dy.sum_elems(x)", "dy.sum_batches(m)", "dy.dropout(x, 0.5)", "dy.scalarInput(2.5)",
    "dy.inputVector(numbers)",
)  # fmt: skip
OTHERS = (
    "x / 2.0", "1.5 - x", "x**2", "x**3", "dy.abs(x)", "dy.acos(x)", "dy.acosh(x)",
    "dy.argmax(x, gradient_mode='zero_gradient')",
    "dy.asin(x)", "dy.asinh(x)", "dy.atan(x)", "dy.atanh(x)", "dy.average([x, y])", "dy.binary_log_loss(p, p)",
    "dy.block_dropout(x, 0.5)", "dy.bmax(x, y)", "dy.bmin(x, y)", "dy.ceil(x, gradient_mode='zero_gradient')",
    "dy.circ_conv(x, y)", "dy.circ_corr(x, y)", "dy.colwise_add(A, x)", "dy.concatenate([A, B], d=1)",
    "dy.concatenate_cols([x, y])", "dy.concatenate_to_batch([x, y])", "dy.constant(8, 0.5)",
    "dy.constrained_softmax(x, p)", "dy.contract3d_1d(cube, x)", "dy.contract3d_1d_1d(cube, x, y)",
    "dy.contract3d_1d_1d_bias(cube, x, y, b)", "dy.contract3d_1d_bias(cube, x, A)",
    "dy.conv2d(image, filters, [1, 1])", "dy.conv2d(image, filters, stride=[2, 2], is_valid=False)",
    "dy.conv2d_bias(image, filters, channels, [1, 1])", "dy.cos(x)", "dy.cosh(x)", "dy.cube(x)", "dy.cumsum(A, 1)",
    "dy.dropout_batch(m, 0.5)", "dy.dropout_dim(A, 0, 0.5)", "dy.elu(x)", "dy.elu(x, 0.5)", "dy.emax([x, y])",
    "dy.erf(x)", "dy.filter1d_narrow(A, B)", "dy.flip_gradient(x)", "dy.floor(x, gradient_mode='zero_gradient')",
    "dy.fold_rows(A, 2)", "dy.hinge(x, 3)", "dy.hinge(x, 3, 2.0)", "dy.hinge_batch(m, [1, 2, 3, 4])",
    "dy.hinge_dim(A, [1, 2, 3, 4, 5, 6, 7, 0])", "dy.huber_distance(x, y)", "dy.inputMatrix(numbers, (2, 4))",
    "dy.inputTensor(array)", "dy.inverse(A)", "dy.kmax_pooling(A, 2)", "dy.kmh_ngram(A, 2)", "dy.l1_distance(x, y)",
    "dy.l2_norm(x)", "dy.layer_norm(x, y, b)", "dy.lgamma(x)", "dy.log_sigmoid(x)", "dy.log_softmax(x, [1, 2])",
    "dy.logdet(A)", "dy.logsumexp([x, y])", "dy.logsumexp_dim(A, 1)", "dy.max_dim(A)", "dy.max_dim(A, 1)",
    "dy.maxpooling2d(image, [2, 2], [2, 2])", "dy.mean_batches(m)", "dy.mean_dim(A, [0], False)", "dy.mean_elems(x)",
    "dy.min_dim(A, 1)", "dy.moment_batches(m, 2)", "dy.moment_dim(A, [0], 2, False)", "dy.moment_elems(x, 2)",
    "dy.nobackprop(x)", "dy.noise(x, 0.5)", "dy.one_hot(8, 3)", "dy.ones(8)", "dy.pairwise_rank_loss(one, one)",
    "dy.pick(A, 3, 1)", "dy.pick(A, 3, dim=1)", "A[3]", "A[2:5]", "A[1:3, 2]", "A[-1]",
    "dy.pick_batch(m, [1, 2, 3, 4])",
    "dy.pick_batch_elem(m, 2)", "dy.pick_batch_elems(m, [1, 2])", "dy.pick_range(A, 2, 5, 1)", "dy.pickrange(x, 2, 5)",
    "dy.pickneglogsoftmax_batch(m, [1, 2, 3, 4])", "dy.poisson_loss(one, 3)", "dy.pow(x, one)",
    "dy.random_bernoulli(8, 0.5)", "dy.random_gumbel(8)", "dy.random_normal(8)", "dy.random_uniform((2, 4), -1.0, 1.0)",
    "dy.reshape(m, (2, 4), batch_size=4)", "dy.round(x, gradient_mode='zero_gradient')", "dy.scale_gradient(x, 0.5)",
    "dy.select_cols(A, [1, 2])", "dy.select_rows(A, [1, 2])", "dy.selu(x)", "dy.silu(x)", "dy.sin(x)", "dy.sinh(x)",
    "dy.softmax(A, d=1)", "dy.softsign(x)", "dy.sparse_inputTensor(([1, 2],), [0.5, 1.5], (8,))", "dy.sparsemax(x)",
    "dy.sparsemax_loss(x, [1, 2])",
    "dy.sqrt(x)", "dy.squared_norm(x)", "dy.std_batches(m)", "dy.std_dim(A, [0], False)", "dy.std_elems(x)",
    "dy.strided_select(A, [2, 1], [0, 1], [8, 4])", "dy.sum_dim(A, [0])", "dy.tan(x)", "dy.to_device(x, 'CPU')",
    "dy.trace_of_product(A, B)", "dy.transpose(cube, [2, 0, 1])", "dy.vanilla_lstm_c(x, gates)",
    "dy.vanilla_lstm_gates(x, y, U, U, gate_bias)", "dy.vanilla_lstm_gates_concat([x], y, U, U, gate_bias)",
    "dy.vanilla_lstm_gates_dropout(x, y, U, U, gate_bias, p, p)",
    "dy.vanilla_lstm_gates_dropout_concat([x], y, U, U, gate_bias, p, p)", "dy.vanilla_lstm_h(x, gates)",
    "dy.vecInput(8)", "dy.weight_norm(W, one)", "dy.zeros(8)",
)  # fmt: skip
BUILDERS = (
    "simple",
    "gru",
    "vanilla",
    "compact",
    "coupled",
    "fast",
)
STEPS = (
    *(f"{builder}_state.add_input(x)" for builder in BUILDERS),
    *(f"{builder}.initial_state().transduce(sequence)" for builder in BUILDERS),
    "gru.initial_state().add_inputs(sequence)", "vanilla.initial_state().add_inputs(sequence)",
    "stacked.initial_state().transduce(sequence)", "birnn.transduce(sequence)", "vanilla.initial_state()",
    "vanilla_state.output()",
)  # fmt: skip


SETUP = """
dy.renew_cg()
x, y, p = dy.inputVector(numbers), dy.inputVector(numbers), dy.inputVector(numbers)
A, B, cube = dy.inputTensor(square), dy.inputTensor(square), dy.inputTensor(np.ones((8, 8, 8)))
m, image, filters = dy.inputTensor(batch, batched=True), dy.inputTensor(pixels), dy.inputTensor(windows)
channels, one, gates = dy.inputVector([1.0, 2.0]), dy.scalarInput(0.5), dy.inputVector(numbers * 4)
sequence = [dy.inputVector(numbers) for _ in range(8)]
dy.affine_transform([b, W, x, V, y])
"""
SETUP += "".join(f"{builder}_state = {builder}.initial_state().add_input(x)\n" for builder in BUILDERS)


def names(dy: Any) -> dict[str, Any]:
    """What the expressions mention, but the nodes."""
    model = dy.ParameterCollection()
    classes = (dy.SimpleRNNBuilder, dy.GRUBuilder, dy.VanillaLSTMBuilder, dy.CompactVanillaLSTMBuilder,
               dy.CoupledLSTMBuilder, dy.FastLSTMBuilder)  # fmt: skip
    return {
        "dy": dy,
        "np": np,
        "table": model.add_lookup_parameters((100, SIZE)),
        "W": model.add_parameters((SIZE, SIZE)),
        "V": model.add_parameters((SIZE, SIZE)),
        "U": model.add_parameters((4 * SIZE, SIZE)),
        "b": model.add_parameters(SIZE),
        "gate_bias": model.add_parameters(4 * SIZE),
        "numbers": [0.5] * SIZE,
        "array": np.full((2, 4), 0.5),
        "square": np.eye(SIZE) + 0.5,
        "batch": np.full((SIZE, 4), 0.5),
        "pixels": np.ones((8, 8, 1)),
        "windows": np.ones((3, 3, 1, 2)),
        "stacked": dy.GRUBuilder(2, SIZE, SIZE, model),
        "birnn": dy.BiRNNBuilder(1, SIZE, 2 * SIZE, model, dy.VanillaLSTMBuilder),
        **{name: kind(1, SIZE, SIZE, model) for name, kind in zip(BUILDERS, classes, strict=True)},
    }


def nanoseconds_per_node(dy: Any, rounds: int) -> dict[str, float | str]:
    """For each expression the best of some rounds, or what went wrong; each round has a fresh graph."""
    scope = names(dy)

    def best(code: str) -> float:
        return min(Timer(code, SETUP, globals=scope).repeat(rounds, NODES))

    results: dict[str, float | str] = {}
    empty = best("pass")
    for code in (*HOT, *OTHERS, *STEPS):
        try:
            results[code] = (best(code) - empty) / NODES * 1e9
        except Exception as error:  # an operator may be missing, the others still count
            results[code] = f"{type(error).__name__}: {error}"
    return results
