"""DyNet's names: which functions are public, and how the process-wide graph is started anew."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from dynjit import frontend, graph, op
from dynjit.graph import ComputationGraph, Expression
from dynjit.parameters import LookupParameters, Parameters

PUBLIC = {  # family: its public functions
    "unary": "tanh sin cos tan asin acos atan sinh cosh asinh acosh atanh exp log sqrt square cube abs erf lgamma "
    "log_sigmoid logistic rectify elu selu silu softsign round ceil floor nobackprop flip_gradient scale_gradient "
    "to_device",
    "binary": "cmult cdiv pow bmin bmax colwise_add esum average emax logsumexp",
    "reduce": "sum_elems mean_elems std_elems moment_elems sum_batches mean_batches std_batches moment_batches sum_dim "
    "mean_dim std_dim moment_dim cumsum max_dim min_dim logsumexp_dim kmax_pooling squared_norm l2_norm dot_product "
    "squared_distance l1_distance huber_distance trace_of_product argmax layer_norm weight_norm",
    "softmax": "softmax log_softmax sparsemax sparsemax_loss constrained_softmax",
    "loss": "pickneglogsoftmax pickneglogsoftmax_batch hinge hinge_batch hinge_dim binary_log_loss "
    "pairwise_rank_loss poisson_loss",
    "linear": "affine_transform contract3d_1d contract3d_1d_bias contract3d_1d_1d contract3d_1d_1d_bias circ_conv "
    "circ_corr inverse logdet",
    "layout": "pick pick_batch pick_range pickrange pick_batch_elem pick_batch_elems select_rows select_cols "
    "strided_select concatenate concatenate_cols concatenate_to_batch reshape transpose fold_rows",
    "recurrent": "vanilla_lstm_gates vanilla_lstm_gates_concat vanilla_lstm_gates_dropout "
    "vanilla_lstm_gates_dropout_concat vanilla_lstm_c vanilla_lstm_h",
    "conv": "conv2d conv2d_bias maxpooling2d filter1d_narrow kmh_ngram",
    "noise": "dropout dropout_dim dropout_batch block_dropout noise random_normal random_uniform random_bernoulli "
    "random_gumbel",
    "leaf": "inputTensor inputVector vecInput scalarInput inputMatrix inputTensorTranspose constant zeros ones "
    "lookup lookup_batch one_hot sparse_inputTensor",
}


def public_functions() -> dict[str, Callable]:
    """All public operator functions by name, in their compiled form where they have one."""
    found: dict[str, Callable] = {}
    for family, names in PUBLIC.items():
        try:
            module = importlib.import_module(f"dynjit.ops.{family}")
        except ImportError:
            continue  # TEMPORARY
        for name in names.split():
            function = getattr(module, name, None)
            if function is None:
                continue  # TEMPORARY
            found[name] = frontend.builtin(function) if function in op.fast else function
    for name, is_vector in (("scalarInput", False), ("inputVector", True)):
        found[name] = frontend.input_builtin(found[name], is_vector)
    found["zeroes"] = found["zeros"]
    return found


def connect() -> None:
    """Tells the native front end which types and operators it serves; all families are imported by then."""
    by_name = {operator.name: operator for operator in op.operators}
    frontend.connect(Expression, Parameters, LookupParameters, by_name, graph.slow)


# ---- the graph of the process ----------------------------------------------------------------------------------------


def renew_cg(
    immediate_compute: bool = False, check_validity: bool = False, autobatching: bool | None = None
) -> ComputationGraph:
    """Drops all nodes of the current graph; expressions made before are stale."""
    return graph.current.renew(immediate_compute, check_validity, autobatching)


def cg() -> ComputationGraph:
    """The current graph."""
    return graph.current


def cg_version() -> int:
    """Number of the current graph's generation; grows at each renew."""
    return graph.current.version()


def cg_checkpoint() -> None:
    """Pushes a mark to which `cg_revert` returns."""
    graph.current.checkpoint()


def cg_revert() -> None:
    """Drops the nodes made since the last mark."""
    graph.current.revert()


def forward(exps: Sequence[Expression], recalculate: bool = False) -> None:
    """Computes the values of a list of expressions in one run."""
    graph.current.evaluate([e._node() for e in exps], recalculate)


def values(exps: Sequence[Expression], recalculate: bool = False) -> list[Any]:
    """The expressions' `value()`s, from one run."""
    forward(exps, recalculate)
    return [e.value() for e in exps]


def npvalues(exps: Sequence[Expression], recalculate: bool = False) -> list[Any]:
    """The expressions' `npvalue()`s, from one run."""
    forward(exps, recalculate)
    return [e.npvalue() for e in exps]


def parameter(*args: Any) -> Any:
    """Its argument, or the list of its arguments: parameters join the graph by themselves."""
    return args[0] if len(args) == 1 else list(args)


def const_parameter(*args: Any) -> Any:
    """Parameters as constants of the current graph: no gradient flows to them."""
    found = [p.expr(False) for p in args]
    return found[0] if len(found) == 1 else found
