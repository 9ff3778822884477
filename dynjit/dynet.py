"""DyNet's names: its functions, in their compiled form where they have one, its classes, and the process's graph."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from dynjit import config as dynet_config
from dynjit import frontend, graph, op
from dynjit.errors import located
from dynjit.expressions import Expression, slow
from dynjit.graph import ComputationGraph
from dynjit.graphviz import dump_cg, print_graphviz, print_text_graphviz
from dynjit.initializers import (
    ConstInitializer,
    FromFileInitializer,
    GlorotInitializer,
    IdentityInitializer,
    NormalInitializer,
    NumpyInitializer,
    PyInitializer,
    SaxeInitializer,
    UniformInitializer,
    reset_random_seed,
)
from dynjit.legacy import (
    HAVE_CUDA,
    DeviceInfo,
    FloatValue,
    FloatVectorValue,
    UnsignedValue,
    UnsignedVectorValue,
    available_devices,
    get_device_info,
)
from dynjit.models import Model, ParameterCollection
from dynjit.ops.axis import (
    argmax,
    cumsum,
    kmax_pooling,
    logsumexp_dim,
    max_dim,
    min_dim,
)
from dynjit.ops.binary import (
    bmax,
    bmin,
    cdiv,
    cmult,
    colwise_add,
    pow,
)
from dynjit.ops.contract import (
    contract3d_1d,
    contract3d_1d_1d,
    contract3d_1d_1d_bias,
    contract3d_1d_bias,
)
from dynjit.ops.conv import (
    conv2d,
    conv2d_bias,
    maxpooling2d,
)
from dynjit.ops.conv1d import (
    circ_conv,
    circ_corr,
    filter1d_narrow,
    kmh_ngram,
)
from dynjit.ops.distance import (
    dot_product,
    huber_distance,
    l1_distance,
    squared_distance,
    trace_of_product,
)
from dynjit.ops.layout import (
    concatenate,
    concatenate_cols,
    concatenate_to_batch,
    fold_rows,
    reshape,
    strided_select,
    transpose,
)
from dynjit.ops.leaf import (
    constant,
    inputMatrix,
    inputTensor,
    inputTensorTranspose,
    inputVector,
    lookup,
    lookup_batch,
    one_hot,
    ones,
    scalarInput,
    sparse_inputTensor,
    vecInput,
    zeros,
)
from dynjit.ops.linear import (
    affine_transform,
)
from dynjit.ops.loss import (
    binary_log_loss,
    hinge,
    hinge_batch,
    hinge_dim,
    pairwise_rank_loss,
    pickneglogsoftmax,
    pickneglogsoftmax_batch,
    poisson_loss,
)
from dynjit.ops.matrix import (
    inverse,
    logdet,
)
from dynjit.ops.nary import (
    average,
    emax,
    esum,
    logsumexp,
)
from dynjit.ops.noise import (
    block_dropout,
    dropout,
    dropout_batch,
    dropout_dim,
    noise,
    random_bernoulli,
    random_gumbel,
    random_normal,
    random_uniform,
)
from dynjit.ops.norm import (
    l2_norm,
    layer_norm,
    weight_norm,
)
from dynjit.ops.recurrent import (
    vanilla_lstm_c,
    vanilla_lstm_gates,
    vanilla_lstm_gates_concat,
    vanilla_lstm_gates_dropout,
    vanilla_lstm_gates_dropout_concat,
    vanilla_lstm_h,
)
from dynjit.ops.reduce import (
    mean_batches,
    mean_dim,
    mean_elems,
    moment_batches,
    moment_dim,
    moment_elems,
    squared_norm,
    std_batches,
    std_dim,
    std_elems,
    sum_batches,
    sum_dim,
    sum_elems,
)
from dynjit.ops.select import (
    pick,
    pick_batch,
    pick_batch_elem,
    pick_batch_elems,
    pick_range,
    pickrange,
    select_cols,
    select_rows,
)
from dynjit.ops.softmax import (
    constrained_softmax,
    log_softmax,
    softmax,
    sparsemax,
)
from dynjit.ops.unary import (
    abs,
    acos,
    acosh,
    asin,
    asinh,
    atan,
    atanh,
    ceil,
    cos,
    cosh,
    cube,
    elu,
    erf,
    exp,
    flip_gradient,
    floor,
    lgamma,
    log,
    log_sigmoid,
    logistic,
    nobackprop,
    rectify,
    round,
    scale_gradient,
    selu,
    silu,
    sin,
    sinh,
    softsign,
    sqrt,
    square,
    tan,
    tanh,
    to_device,
)
from dynjit.options import DynetParams, init, init_from_params
from dynjit.parameters import LookupParameters, Parameters
from dynjit.rnn import (
    BiRNNBuilder,
    CompactVanillaLSTMBuilder,
    CoupledLSTMBuilder,
    FastLSTMBuilder,
    GRUBuilder,
    LSTMBuilder,
    RNNState,
    SimpleRNNBuilder,
    SparseLSTMBuilder,
    StackedRNNState,
    VanillaLSTMBuilder,
)
from dynjit.saving import load, load_generator, save
from dynjit.shape import kind_of
from dynjit.softmax_builders import ClassFactoredSoftmaxBuilder, SoftmaxBuilder, StandardSoftmaxBuilder
from dynjit.tensor import Tensor
from dynjit.trainers import (
    AdadeltaTrainer,
    AdagradTrainer,
    AdamTrainer,
    AmsgradTrainer,
    CyclicalSGDTrainer,
    MomentumSGDTrainer,
    RMSPropTrainer,
    SimpleSGDTrainer,
    Trainer,
)

__all__ = [
    "HAVE_CUDA", "AdadeltaTrainer", "AdagradTrainer", "AdamTrainer", "AmsgradTrainer", "BiRNNBuilder",
    "ClassFactoredSoftmaxBuilder", "CompactVanillaLSTMBuilder", "ComputationGraph", "ConstInitializer",
    "CoupledLSTMBuilder", "CyclicalSGDTrainer", "DeviceInfo", "DynetParams", "Expression", "FastLSTMBuilder",
    "FloatValue", "FloatVectorValue", "FromFileInitializer", "GRUBuilder", "GlorotInitializer", "IdentityInitializer",
    "LSTMBuilder", "LookupParameters", "Model", "MomentumSGDTrainer", "NormalInitializer", "NumpyInitializer",
    "ParameterCollection", "Parameters", "PyInitializer", "RMSPropTrainer", "RNNState", "SaxeInitializer",
    "SimpleRNNBuilder", "SimpleSGDTrainer", "SoftmaxBuilder", "SparseLSTMBuilder", "StackedRNNState",
    "StandardSoftmaxBuilder", "Tensor", "Trainer", "UniformInitializer", "UnsignedValue", "UnsignedVectorValue",
    "VanillaLSTMBuilder", "abs", "acos", "acosh", "affine_transform", "argmax", "asin", "asinh", "atan", "atanh",
    "available_devices", "average", "binary_log_loss", "block_dropout", "bmax", "bmin", "cdiv", "ceil", "cg",
    "cg_checkpoint", "cg_revert", "cg_version", "circ_conv", "circ_corr", "cmult", "colwise_add", "concatenate",
    "concatenate_cols", "concatenate_to_batch", "const_parameter", "constant", "constrained_softmax", "contract3d_1d",
    "contract3d_1d_1d", "contract3d_1d_1d_bias", "contract3d_1d_bias", "conv2d", "conv2d_bias", "cos", "cosh", "cube",
    "cumsum", "dot_product", "dropout", "dropout_batch", "dropout_dim", "dump_cg", "dynet_config", "elu", "emax", "erf",
    "esum", "exp", "filter1d_narrow", "flip_gradient", "floor", "fold_rows", "forward", "get_device_info", "hinge",
    "hinge_batch", "hinge_dim", "huber_distance", "init", "init_from_params", "inputMatrix", "inputTensor",
    "inputTensorTranspose", "inputVector", "inverse", "kmax_pooling", "kmh_ngram", "l1_distance", "l2_norm",
    "layer_norm", "lgamma", "load", "load_generator", "log", "log_sigmoid", "log_softmax", "logdet", "logistic",
    "logsumexp", "logsumexp_dim", "lookup", "lookup_batch", "matInput", "max_dim", "maxpooling2d", "mean_batches",
    "mean_dim", "mean_elems", "min_dim", "moment_batches", "moment_dim", "moment_elems", "nobackprop", "noise",
    "npvalues", "one_hot", "ones", "pairwise_rank_loss", "parameter", "pick", "pick_batch", "pick_batch_elem",
    "pick_batch_elems", "pick_range", "pickneglogsoftmax", "pickneglogsoftmax_batch", "pickrange", "poisson_loss",
    "pow", "print_graphviz", "print_text_graphviz", "random_bernoulli", "random_gumbel", "random_normal",
    "random_uniform", "rectify", "renew_cg", "reset_random_seed", "reshape", "round", "save", "scalarInput",
    "scale_gradient", "select_cols", "select_rows", "selu", "silu", "sin", "sinh", "softmax", "softsign",
    "sparse_inputTensor", "sparsemax", "sqrt", "square", "squared_distance", "squared_norm", "std_batches", "std_dim",
    "std_elems", "strided_select", "sum_batches", "sum_dim", "sum_elems", "tan", "tanh", "to_device",
    "trace_of_product", "transpose", "values", "vanilla_lstm_c", "vanilla_lstm_gates", "vanilla_lstm_gates_concat",
    "vanilla_lstm_gates_dropout", "vanilla_lstm_gates_dropout_concat", "vanilla_lstm_h", "vecInput", "weight_norm",
    "zeroes", "zeros",
]  # fmt: skip

zeroes = zeros


def matInput(d1: int, d2: int) -> Expression:
    """A matrix of zeros; `.set(values)` fills it."""
    return constant((d1, d2), 0.0)  # type: ignore[no-any-return]


# ---- the graph of the process ----------------------------------------------------------------------------------------


def renew_cg(
    immediate_compute: bool = False, check_validity: bool = False, autobatching: bool | None = None
) -> ComputationGraph:
    """Drops all nodes of the current graph; expressions made before are stale.

    immediate_compute: compute each node when it is made, which is slow: for finding mistakes.
    check_validity: raise RuntimeError where a computed value is NaN or infinite.
    autobatching: compute equal nodes together (None: as the process is set).
    """
    return graph.here().renew(immediate_compute, check_validity, autobatching)


def cg() -> ComputationGraph:
    """The current graph."""
    return graph.here()


def cg_version() -> int:
    """Number of the current graph's generation; grows at each renew."""
    return graph.here().version()


def cg_checkpoint() -> None:
    """Pushes a mark to which `cg_revert` returns."""
    graph.here().checkpoint()


def cg_revert() -> None:
    """Drops the nodes made since the last mark."""
    graph.here().revert()


def forward(exps: Sequence[Expression], recalculate: bool = False) -> None:
    """Computes the values of a list of expressions in one run.

    Raises TypeError for what is no list of expressions.
    """
    graph.here().evaluate([e._node() for e in expressions_of("forward", exps)], recalculate)


def expressions_of(operator: str, exps: Sequence[Expression]) -> list[Expression]:
    """A list of expressions; raises TypeError for what is none."""
    if not isinstance(exps, Iterable) or isinstance(exps, (str, bytes, dict)):
        raise TypeError(located(f"{operator}: needs a list of expressions, got {kind_of(exps)}"))
    found = list(exps)
    for e in found:
        if not isinstance(e, Expression):
            raise TypeError(located(f"{operator}: needs expressions, got {kind_of(e)}"))
    return found


def values(exps: Sequence[Expression], recalculate: bool = False) -> list[Any]:
    """The expressions' `value()`s, from one run."""
    found = expressions_of("values", exps)
    forward(found, recalculate)
    return [e.value() for e in found]


def npvalues(exps: Sequence[Expression], recalculate: bool = False) -> list[Any]:
    """The expressions' `npvalue()`s, from one run."""
    found = expressions_of("npvalues", exps)
    forward(found, recalculate)
    return [e.npvalue() for e in found]


def parameter(*args: Any) -> Any:
    """Its argument, or the list of its arguments: parameters join the graph by themselves."""
    return args[0] if len(args) == 1 else list(args)


def const_parameter(*args: Any) -> Any:
    """Parameters as constants of the current graph: no gradient flows to them."""
    for p in args:
        if not isinstance(p, (Parameters, LookupParameters)):
            raise TypeError(located(f"const_parameter: needs parameters, got {kind_of(p)}"))
    found = [p.expr(False) for p in args]
    return found[0] if len(found) == 1 else found


def new_graph(autobatching: bool | None = None) -> ComputationGraph:
    """A graph of its own: `with new_graph():` makes nodes in it, and leaves the graph that was current before alone.

    It lives as long as a reference to it; so long its expressions can be asked for values and gradients.
    autobatching: compute equal nodes together (None: as the process is set).
    """
    made = ComputationGraph()
    if autobatching is not None:
        made.header.autobatch = bool(autobatching)
    return made


frontend.connect(Expression, Parameters, LookupParameters, {operator.name: operator for operator in op.operators}, slow)
