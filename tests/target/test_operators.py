"""Each operator's kernels for CUDA, run in the emulator against the CPU's on the table's cases."""

from __future__ import annotations

import numpy as np
import pytest
from ptx import build, compile
from records import call
from test_ops import operands_of, random_of

import dynjit as dy
from dynjit import backprop, cudakernels, device, gpu, graph, op
from dynjit.space import space

compile.require(compile.missing(), build.missing())

from target.emulated import Device, Executor  # noqa: E402
from target.networks import close, computing_on  # noqa: E402

OPERATORS = [pytest.param(operator, id=operator.name) for operator in op.operators if operator.forward]
COPIES = 14  # more than are called one by one


def inputs_of(operator: op.Operator, case: op.Case, copies: int, random: np.random.Generator) -> tuple[list, list]:
    """(all inputs, the operands of each copy): some shared by copies, as a group may have them."""
    shared = operands_of(operator, case, random)
    inputs, given = list(shared), []
    for copy in range(copies):
        operands = operands_of(operator, case, random)
        for k in range(len(operands)):
            if operator.kind(k) == op.SHARED or (copy % 3 == 2 and k == 0):
                operands[k] = shared[k]
        inputs += operands
        given.append(operands)
    return inputs, given


def computed(operator: op.Operator, case: op.Case, copies: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(values of all copies, gradients of all inputs) by the present executor."""
    dy.renew_cg()
    graph.current.header.overwriting = 0  # gradients of all inputs are looked at
    dy.reset_random_seed(3)
    random = random_of(operator, case)
    inputs, given = inputs_of(operator, case, copies, random)
    results = [call(operator, operands, case) for operands in given]
    target = dy.esum(results) if copies > 1 else results[0]
    dy.forward([*results, target])
    values = [np.array(y.npvalue()) for y in results]
    if op.TABLE[operator.code]["flags"] & op.NO_GRADIENT:
        return values, []
    number = target._node()
    gradient = random.uniform(0.5, 1, graph.current.shape(number).size).astype(np.float32)
    graph.current.header.backward_from = number
    graph.current.header.backward_top = graph.current.header.value_top
    if space.executor is None:
        backprop.start_backward.call(graph.current.address, number, 1)
        graph.current.gradient(number)[:] = gradient
        graph.current.run_backward()
    else:
        space.executor.backward(graph.current, number, True, gradient)
    return values, [np.array(x.gradient()) for x in inputs]


def compare(operator: op.Operator, executor: gpu.Executor) -> None:
    """What an executor computes at the operator's cases against what the CPU does."""
    for case in operator.cases:
        for copies in (1, COPIES):
            expected = computed(operator, case, copies)
            with computing_on(executor):
                found = computed(operator, case, copies)
            for a, b in zip((*found[0], *found[1]), (*expected[0], *expected[1]), strict=True):
                close(a, b)


@pytest.mark.parametrize("operator", OPERATORS)
def test_emulated_equals_cpu(operator: op.Operator) -> None:
    compare(operator, Executor(Device()))


@pytest.mark.skipif(device.count() == 0, reason="there is no GPU")
@pytest.mark.parametrize("is_persistent", [False, True], ids=["levels", "persistent"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_gpu_equals_cpu(operator: op.Operator, is_persistent: bool) -> None:
    executor = gpu.Executor(device.Device())
    executor.is_persistent = is_persistent
    compare(operator, executor)


def test_every_kernel_has_a_form() -> None:
    """The table is the list: no operator can miss."""
    pairs = list(cudakernels.all_pairs())
    assert len(pairs) == sum(
        kernel is not None for operator in op.operators for kernel in (operator.forward, *operator.backward)
    )
    for pair in pairs:
        function, kind = cudakernels.form(pair)
        assert callable(function)
        assert kind not in (cudakernels.SERIAL, cudakernels.NONE), function
