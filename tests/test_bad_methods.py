"""Wrong arguments of methods and constructors: an error in Python that says what is needed; the object is as before.

Each is called with arguments that are right but for one, which is one of many wrong ones.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from test_bad_input import ERRORS, WORDS

import dynjit as dy
from dynjit.errors import ModelFileError, StaleExpressionError

collection = dy.ParameterCollection()
RECURRENT = ("SimpleRNNBuilder", "GRUBuilder", "VanillaLSTMBuilder", "CoupledLSTMBuilder", "SparseLSTMBuilder",
             "CompactVanillaLSTMBuilder", "FastLSTMBuilder")  # fmt: skip
TRAINERS = {
    "SimpleSGDTrainer": (0.1,), "CyclicalSGDTrainer": (0.01, 0.1, 20, 1.0), "MomentumSGDTrainer": (0.1, 0.9),
    "AdagradTrainer": (0.1, 1e-6), "AdadeltaTrainer": (1e-6, 0.9), "RMSPropTrainer": (0.1, 1e-6, 0.9),
    "AdamTrainer": (0.1, 0.9, 0.99, 1e-8), "AmsgradTrainer": (0.1, 0.9, 0.99, 1e-8), "EGTrainer": (0.1, 0.9),
}  # fmt: skip


class Made(NamedTuple):
    """An argument that is made anew for each call."""

    make: Callable[[], Any]


def filled() -> dy.ParameterCollection:
    m = dy.ParameterCollection()
    m.add_parameters((3, 2), name="W")
    m.add_lookup_parameters((4, 3), name="E")
    return m


def dense() -> dy.Parameters:
    return collection.add_parameters((3, 2))


def table() -> dy.LookupParameters:
    return collection.add_lookup_parameters((4, 3))


def vectors(*sizes: int) -> list[Made]:
    return [Made(lambda size=size: dy.constant((size,), 0.3)) for size in sizes]


def numbered() -> dy.ComputationGraph:
    dy.renew_cg()
    dy.squared_norm(dy.ones(3))
    return dy.cg()


def tree() -> dy.ChildSumTreeLSTMBuilder:
    return dy.ChildSumTreeLSTMBuilder(1, 3, 2, collection)


def tensor() -> dy.Tensor:
    return dy.inputTensor(np.arange(12.0).reshape(3, 4)).tensor_value()


def stacked() -> dy.StackedRNNState:
    return dy.StackedRNNState([dy.GRUBuilder(1, 3, 2, collection).initial_state()])


def pairs() -> dy.BiRNNBuilder:
    return dy.BiRNNBuilder(1, 3, 4, collection, dy.GRUBuilder)


def adam() -> dy.AdamTrainer:
    return dy.AdamTrainer(filled())


def standard() -> dy.StandardSoftmaxBuilder:
    return dy.StandardSoftmaxBuilder(3, 3, collection)


WHOLE = Made(lambda: collection)
X, BATCH = vectors(3)[0], Made(lambda: dy.inputTensor(np.full((3, 2), 0.3), batched=True))
CALLS: dict[str, tuple[Callable[[], Any], str, tuple[Any, ...]]] = {
    "Parameters.scale": (dense, "scale", (1.5,)), "Parameters.scale_gradient": (dense, "scale_gradient", (1.5,)),
    "Parameters.set_value": (dense, "set_value", (np.ones((3, 2)),)),
    "Parameters.clip_inplace": (dense, "clip_inplace", (-1.0, 1.0)), "Parameters[]": (dense, "__getitem__", (0,)),
    "LookupParameters.init_row": (table, "init_row", (0, [1, 2, 3])), "LookupParameters[]": (table, "__getitem__", (0,)),
    "LookupParameters.init_from_array": (table, "init_from_array", (np.ones((4, 3)),)),
    "LookupParameters.row_as_array": (table, "row_as_array", (1,)), "LookupParameters.batch": (table, "batch", ([0, 1],)),
    "LookupParameters.rows_as_array": (table, "rows_as_array", ([0, 1],)),
    "LookupParameters.row_grad_as_array": (table, "row_grad_as_array", (1,)),
    "LookupParameters.rows_grad_as_array": (table, "rows_grad_as_array", ([0, 1],)),
    "add_parameters": (filled, "add_parameters", ((3, 2), 0.5, "n")),
    "add_parameters normal": (lambda: lambda mean, std: filled().add_parameters(2, "normal", mean=mean, std=std), "__call__", (0.0, 1.0)),
    "add_parameters uniform": (lambda: lambda scale: filled().add_parameters(2, "uniform", scale=scale), "__call__", (1.0,)),
    "add_lookup_parameters": (filled, "add_lookup_parameters", ((3, 2), 0.5, "n")),
    "parameters_from_numpy": (filled, "parameters_from_numpy", (np.ones((2, 3)), "n")),
    "lookup_parameters_from_numpy": (filled, "lookup_parameters_from_numpy", (np.ones((2, 3)), "n")),
    "add_subcollection": (filled, "add_subcollection", ("n",)), "set_weight_decay": (filled, "set_weight_decay", (0.1,)),
    "set_weight_decay_lambda": (filled, "set_weight_decay_lambda", (0.1,)),
    **{f"{name}.set_dropout": (lambda name=name: getattr(dy, name)(1, 3, 2, collection), "set_dropout", (0.1,)) for name in RECURRENT},
    **{f"{name}()": (lambda name=name: getattr(dy, name), "__call__", (1, 3, 2, WHOLE)) for name in RECURRENT},
    **{
        f"{name} {method}": (lambda name=name: getattr(dy, name)(1, 3, 2, collection).initial_state(), method, arguments)
        for name in RECURRENT for method, arguments in (
            ("add_input", (X,)), ("add_inputs", ([X, X],)), ("transduce", ([X, X],)), ("set_h", (vectors(2),)), ("set_s", (vectors(2),)))
    },
    **{
        f"{name}.initial_state": (lambda name=name: getattr(dy, name)(1, 3, 2, collection), "initial_state", (vectors(2),))
        for name in RECURRENT
    },
    "initial_state_from_raw_vectors": (lambda: dy.GRUBuilder(1, 3, 2, collection), "initial_state_from_raw_vectors", ([[0.1, 0.2]],)),
    "forget_bias": (lambda: lambda bias: dy.VanillaLSTMBuilder(1, 3, 2, collection, False, bias), "__call__", (1.0,)),
    "set_dropouts": (lambda: dy.VanillaLSTMBuilder(1, 3, 2, collection), "set_dropouts", (0.1, 0.1)),
    "set_sparsity": (lambda: dy.SparseLSTMBuilder(1, 3, 2, collection), "set_sparsity", (0.3,)),
    "set_weightnoise": (lambda: dy.CompactVanillaLSTMBuilder(1, 3, 2, collection), "set_weightnoise", (0.3,)),
    "StackedRNNState()": (lambda: dy.StackedRNNState, "__call__", ([Made(lambda: dy.GRUBuilder(1, 3, 2, collection).initial_state())],)),
    "StackedRNNState.add_input": (stacked, "add_input", (X,)), "StackedRNNState.add_inputs": (stacked, "add_inputs", ([X],)),
    "BiRNNBuilder()": (lambda: dy.BiRNNBuilder, "__call__", (1, 3, 4, WHOLE, dy.GRUBuilder)),
    "BiRNNBuilder.transduce": (pairs, "transduce", ([X, X],)), "BiRNNBuilder.add_inputs": (pairs, "add_inputs", ([X, X],)),
    "BiRNNBuilder.set_dropout": (pairs, "set_dropout", (0.1,)),
    **{f"{name}()": (lambda name=name: getattr(dy, name), "__call__", (WHOLE, *numbers)) for name, numbers in TRAINERS.items()},
    "Trainer.update_subset": (adam, "update_subset", ([0], [0])), "Trainer.set_learning_rate": (adam, "set_learning_rate", (0.1,)),
    "Trainer.set_clip_threshold": (adam, "set_clip_threshold", (1.0,)),
    "Trainer.exponential_moving_average": (adam, "exponential_moving_average", (0.9, 1)),
    "Trainer.cumulative_moving_average": (adam, "cumulative_moving_average", (1,)),
    "SoftmaxBuilder()": (lambda: dy.StandardSoftmaxBuilder, "__call__", (3, 3, WHOLE)),
    "neg_log_softmax": (standard, "neg_log_softmax", (X, 1)), "neg_log_softmax_batch": (standard, "neg_log_softmax_batch", (BATCH, [0, 1])),
    "sample": (standard, "sample", (X,)), "full_logits": (standard, "full_logits", (X,)),
    "full_log_distribution": (standard, "full_log_distribution", (X,)),
    "tree()": (lambda: dy.NaryTreeLSTMBuilder, "__call__", (2, 1, 3, 2, WHOLE, 1.0)),
    "tree add_input": (tree, "add_input", (X, [Made(lambda: tree().add_input(dy.ones(3)))])),
    "tree add_inputs": (tree, "add_inputs", ([X, X], [[1], []])), "tree set_dropouts": (tree, "set_dropouts", (0.1, 0.1)),
    "Tensor.argmax": (tensor, "argmax", (0, 1)), "Tensor.topk": (tensor, "topk", (0, 2)),
    "Tensor.categorical_sample_log_prob": (tensor, "categorical_sample_log_prob", (0, 1)),
    **{name: (lambda name=name: getattr(dy, name), "__call__", (1.0,)) for name in ("UniformInitializer", "ConstInitializer", "SaxeInitializer")},
    "NormalInitializer": (lambda: dy.NormalInitializer, "__call__", (0.0, 1.0)),
    "GlorotInitializer": (lambda: lambda gain: dy.GlorotInitializer(False, gain), "__call__", (1.0,)),
    "NumpyInitializer": (lambda: dy.NumpyInitializer, "__call__", (np.ones(3),)), "UnsignedValue": (lambda: dy.UnsignedValue, "__call__", (3,)),
    "FloatValue": (lambda: dy.FloatValue, "__call__", (3.0,)), "UnsignedVectorValue": (lambda: dy.UnsignedVectorValue, "__call__", ([1, 2],)),
    "FloatVectorValue": (lambda: dy.FloatVectorValue, "__call__", ([1.0, 2.0],)),
    **{name: (numbered, name, (1,)) for name in ("forward", "inc_forward", "forward_scalar", "inc_forward_scalar", "forward_vec", "inc_forward_vec", "backward")},
    "inputMatrixLiteral": (numbered, "inputMatrixLiteral", ([1, 2], (2,), 1)),
    "inputSparseTensor": (numbered, "inputSparseTensor", ([0, 1], [1.0, 2.0], (3,), 1, 0.0)),
    "Expression.set": (lambda: dy.ones(3), "set", ([1.0, 2.0, 3.0],)),
    "DynetParams.set_random_seed": (lambda: dy.DynetParams(), "set_random_seed", (3,)),
    "DynetParams.from_config": (lambda: dy.DynetParams(), "from_config", ({"seed": 3},)),
}  # fmt: skip
# None stands for what is left out there; anything that is a list of numbers is a list of rows
MAY_BE_NONE = {"initial_state", "set_h", "set_s", "add_subcollection", "add_parameters", "add_lookup_parameters", "tree add_input",
               "tree add_inputs", "add_parameters normal", "inputMatrixLiteral", "set_value"}  # fmt: skip


def built(spec: Any) -> Any:
    if isinstance(spec, Made):
        return spec.make()
    return [built(item) for item in spec] if isinstance(spec, list) else spec


def called(name: str, wrong_at: int = -1, wrong: Any = None, inside: bool = False) -> Any:
    make, method, spec = CALLS[name]
    arguments = [built(item) for item in spec]
    if wrong_at >= 0:
        arguments[wrong_at] = [wrong, *arguments[wrong_at][1:]] if inside else wrong
    return getattr(make(), method)(*arguments)


@pytest.mark.parametrize("name", CALLS)
def test_words_are_refused(name: str) -> None:
    called(name)
    for i, right in enumerate(CALLS[name][2]):
        for wrong in WORDS:
            for inside in (False, True)[: 1 + isinstance(right, list)]:
                is_left_out = wrong is None or (isinstance(wrong, list) and wrong == [None])
                if is_left_out and {name, name.rpartition(" ")[2], name.rpartition(".")[2]} & MAY_BE_NONE:
                    continue
                if isinstance(wrong, dy.ParameterCollection) and right is WHOLE:
                    continue
                if right is dy.GRUBuilder and callable(wrong):
                    continue
                if isinstance(right, str) and wrong == "x":
                    continue
                if isinstance(right, dict) and isinstance(wrong, dict):
                    continue
                with pytest.raises(ERRORS) as caught:
                    called(name, i, wrong, inside)
                assert "needs" in str(caught.value), (i, wrong, inside)
    assert dy.ones(2).value() == [1, 1]


# ---- one by one ------------------------------------------------------------------------------------------------------

NAN = float("nan")
MESSAGES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "beta": (lambda: dy.AdamTrainer(collection, 0.1, 1.0), ValueError, "AdamTrainer: needs a beta_1 from 0 to below 1, got 1.0"),
    "rho": (lambda: dy.RMSPropTrainer(collection, 0.1, 1e-8, NAN), ValueError, "RMSPropTrainer: needs a rho from 0 to below 1, got nan"),
    "eps": (lambda: dy.AdagradTrainer(collection, 0.1, -1), ValueError, "AdagradTrainer: needs an eps of 0 or more, got -1"),
    "rate": (lambda: dy.SimpleSGDTrainer(collection, NAN), ValueError, "SimpleSGDTrainer.learning_rate: needs a finite number, got nan"),
    "momentum": (lambda: dy.MomentumSGDTrainer(collection, 0.1, NAN), ValueError, "MomentumSGDTrainer: needs a finite number, got nan"),
    "set rate": (lambda: adam().set_learning_rate(NAN), ValueError, "AdamTrainer.learning_rate: needs a finite number, got nan"),
    "attribute": (lambda: setattr(adam(), "learning_rate", "x"), TypeError, "AdamTrainer.learning_rate: needs a number, got str"),
    "step_size": (lambda: dy.CyclicalSGDTrainer(collection, step_size=0), ValueError, "CyclicalSGDTrainer: needs a step_size above 0, got 0"),
    "threshold": (lambda: adam().set_clip_threshold(NAN), ValueError, "set_clip_threshold: needs a number, got nan"),
    "freq": (lambda: adam().cumulative_moving_average(0), ValueError, "moving average: needs an update_freq of 1 or more, got 0"),
    "subset": (lambda: adam().update_subset([1], []), IndexError, "update_subset: needs positions from 0 to 0 of parameters, got 1"),
    "clip": (lambda: dense().clip_inplace(1, -1), ValueError, "clip_inplace: needs a left end up to the right one, got 1 and -1"),
    "sizes": (lambda: dy.GRUBuilder(1, NAN, 2, collection), ValueError, "GRUBuilder: needs layers, input_dim and hidden_dim of 1 or more"),
    "mean": (lambda: dy.NormalInitializer(NAN), ValueError, "NormalInitializer: needs a finite number, got nan"),
    "rows": (lambda: filled().add_lookup_parameters(()), ValueError, "add_lookup_parameters: needs a number of rows, got none"),
    "row": (lambda: table().rows_as_array([1.5]), TypeError, "needs an int, got float"),
    "huge": (lambda: filled().add_parameters(10**30), ValueError, "add_parameters: needs sizes of 63 bits, got"),
    "key": (lambda: filled().populate("file", 3), TypeError, "populate: needs a key as a string, got int"),
    "name": (lambda: filled().save("file", 3), TypeError, "save: needs a name as a string, got int"),
    "masks": (lambda: started().set_dropout_masks(0), ValueError, "VanillaLSTMBuilder.set_dropout_masks: needs a mini-batch of 1 or more, got 0"),
    "early masks": (lambda: dy.VanillaLSTMBuilder(1, 3, 2, collection).set_dropout_masks(), ValueError, r"needs initial_state\(\) in the current graph first"),
    "node": (lambda: numbered().forward(1.5), TypeError, "forward: needs an int, got float"),
    "positions": (lambda: dy.cg().inputSparseTensor([0], [1.0], (2**50,)), MemoryError, "inputSparseTensor: needs room for 1125899906842624 numbers"),
    "config": (lambda: dy.DynetParams().from_config({"sed": 1}), ValueError, "from_config: needs a dict of mem, seed"),
    "mask": (lambda: dy.DynetParams().set_gpu_mask(1), ValueError, "gpu_mask: should only contain 0 and 1s, got 1"),
    "dic": (lambda: dy.ClassFactoredSoftmaxBuilder(3, __file__, ["x"], collection), TypeError, "needs a dic of words to numbers, got list"),
    "child": (lambda: tree().add_input(dy.ones(3), [3]), TypeError, "ChildSumTreeLSTMBuilder: needs states of children, got int"),
    "nodes": (lambda: tree().add_inputs([dy.ones(3)], [["x"]]), TypeError, "bottom_up: needs an int, got str"),
    "factory": (lambda: dy.BiRNNBuilder(1, 3, 4, collection, "x"), TypeError, "BiRNNBuilder: needs a builder class, got str"),
    "no axes": (lambda: started().initial_state().transduce(np.array(3)), TypeError, "transduce: needs a list of expressions, got an array without axes"),
    "states": (lambda: dy.StackedRNNState([3]), TypeError, "StackedRNNState: needs a list of one RNNState or more"),
}  # fmt: skip


def started() -> dy.VanillaLSTMBuilder:
    builder = dy.VanillaLSTMBuilder(1, 3, 2, collection)
    builder.initial_state()
    return builder


@pytest.mark.parametrize(("call", "error", "text"), MESSAGES.values(), ids=MESSAGES)
def test_messages(call: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()
    assert dy.ones(2).value() == [1, 1]


@pytest.mark.parametrize("name", RECURRENT)
def test_vectors_that_are_gone_or_elsewhere(name: str) -> None:
    builder = getattr(dy, name)(1, 3, 2, collection)
    stale = dy.ones(2)
    dy.renew_cg()
    with dy.new_graph() as other:
        foreign = dy.ones(2)
    assert other.has(0)
    for vector in (stale, foreign, dy.Expression()):
        for call in (builder.initial_state().set_h, builder.initial_state().set_s, builder.initial_state):
            with pytest.raises(StaleExpressionError):
                call([vector])


def test_a_trainer_that_refuses_a_rate_keeps_its_moments() -> None:
    trainer = adam()
    dy.squared_norm(trainer.model.parameters_list()[0]).backward()
    trainer.update()
    with pytest.raises(ValueError, match="needs a finite number"):
        trainer.restart(NAN)
    assert trainer.learning_rate == 0.001
    assert trainer.model.parameters_list()[0].window(trainer.buffers[0]).any()


def test_a_state_without_numbers_is_refused(tmp_path: Path) -> None:
    file, trainer = tmp_path / "state", adam()
    trainer.save(file)
    file.write_text(file.read_text().replace('"learning_rate": 0.001', '"learning_rate": NaN'))
    with pytest.raises(ModelFileError, match="line 1: needs a number for learning_rate, got nan"):
        trainer.populate(file)
    assert trainer.learning_rate == 0.001


def test_files_may_be_named_by_bytes(tmp_path: Path) -> None:
    file, m = bytes(tmp_path / "model"), filled()
    m.save(file)
    m.populate(file)
    m.parameters_list()[0].populate(file, "/W")


def test_an_empty_subscript_is_the_whole() -> None:
    assert dy.inputVector([1, 2])[()].value() == [1, 2]
