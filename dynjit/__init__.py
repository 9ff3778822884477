"""dynjit: neural networks whose structure changes with every example, with DyNet's Python API.

import dynjit as dy
"""

from dynjit import dynet, errors, options
from dynjit.averages import MovingAverage
from dynjit.batching import explain_batching
from dynjit.dynet import *  # noqa: F403
from dynjit.dynet import new_graph
from dynjit.errors import GradientError, ModelFileError, NoCudaError, ShapeError, StaleExpressionError
from dynjit.gradcheck import gradcheck
from dynjit.graph import no_grad
from dynjit.ops.softmax import sparsemax_loss
from dynjit.profiling import profile
from dynjit.rnn import RNNBuilder
from dynjit.softmax_builders import HierarchicalSoftmaxBuilder
from dynjit.threads import set_threads
from dynjit.trainers import EGTrainer
from dynjit.tree import (
    BidirectionalTreeLSTMBuilder,
    ChildSumTreeLSTMBuilder,
    NaryTreeLSTMBuilder,
    TreeBuilder,
    TreeState,
    UnidirectionalTreeLSTMBuilder,
)

__version__ = "0.1.0"
__all__ = [
    "BidirectionalTreeLSTMBuilder", "ChildSumTreeLSTMBuilder", "EGTrainer", "GradientError",
    "HierarchicalSoftmaxBuilder", "ModelFileError", "MovingAverage", "NaryTreeLSTMBuilder", "NoCudaError", "RNNBuilder",
    "ShapeError", "StaleExpressionError", "TreeBuilder", "TreeState", "UnidirectionalTreeLSTMBuilder", "errors",
    "explain_batching", "gradcheck", "new_graph", "no_grad", "profile", "set_threads", "sparsemax_loss",
]  # fmt: skip
__all__ += dynet.__all__

options.start()
