"""Whole graphs, forward, backward and updates, on an emulated GPU: equal to the CPU, in few launches."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from ptx import build, compile
from ptx.emulator import EmulationError, Order

import dynjit as dy
from dynjit import cudakernels, dlpack, gpu, graph, op
from dynjit.errors import StaleExpressionError
from dynjit.space import space

compile.require(compile.missing(), build.missing())

import test_random_graphs as random_graphs  # noqa: E402

from target.emulated import Device, Executor  # noqa: E402
from target.networks import TRAINERS, Tagger, Trees, close, computing_on, trained  # noqa: E402


def random_programs(count: int) -> list[list[tuple[int, int, int, int]]]:
    random = np.random.default_rng(11)
    kinds = len(random_graphs.STEPS) + 2
    return [
        [(int(random.integers(kinds)), *(int(n) for n in random.integers(0, 30, 3))) for _ in range(length)]
        for length in random.integers(5, 60, count)
    ]


PROGRAMS = random_programs(12)
FEW = (2, 5, 7, 9, 10, 11, 16, 17, 23, 24, 25)  # kinds of steps whose operators are those of trees, and three others


def outcome(program: list[tuple[int, int, int, int]], stops: bool) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return random_graphs.run(random_graphs.build(program, True, stops), random_graphs.Builder.total)


def with_few_operators(program: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """As many steps, but of kinds that one kernel has: how blocks wait for each other is the same for all operators."""
    return [(FEW[kind % len(FEW)], a, b, c) for kind, a, b, c in program]


def used_pairs() -> set[int]:
    """The pairs of all operators in the current graph."""
    nodes = graph.current.nodes[: graph.current.header.node_count]
    codes = set(op.SIGNATURES["op"][nodes["signature"]].tolist())
    return {first for pair, first in cudakernels.representatives().items() if pair // op.SLOTS in codes}


@pytest.fixture(scope="module")
def pairs() -> set[int]:
    """What trees and programs of few operators use: one kernel serves all tests that need one for a whole graph."""
    found: set[int] = set()
    steps = with_few_operators([step for program in PROGRAMS for step in program])
    for make in (lambda: outcome(steps, False), lambda: Trees().loss()):
        dy.renew_cg()
        make()
        found |= used_pairs()
    dy.renew_cg()
    return found


@pytest.fixture
def together(pairs: set[int]) -> Executor:
    """An executor with one kernel for all operators."""
    executor = Executor(Device())
    executor.pairs |= pairs
    return executor


def compare(programs: list[list[tuple[int, int, int, int]]], executor: Executor) -> None:
    """What an executor computes of programs against what the CPU does."""
    for number, program in enumerate(programs):
        expected = outcome(program, False)
        with computing_on(executor):
            found = outcome(program, stops=number % 3 == 1)
        for a, b in zip((*found[0], *found[1]), (*expected[0], *expected[1]), strict=True):
            close(a, b)


@pytest.mark.parametrize("order", ["forward", "reverse"])
def test_random_graphs_equal_the_cpu(order: Order) -> None:
    compare(PROGRAMS, Executor(Device(order=order)))


def test_random_graphs_in_one_launch_equal_the_cpu(together: Executor) -> None:
    compiled = set(together.pairs)
    together.device.together = 3
    compare([with_few_operators(program) for program in PROGRAMS], together)
    assert together.pairs == compiled
    assert together.device.persistent >= 2 * len(PROGRAMS)


def test_results_are_the_same_bit_for_bit_in_every_order_of_threads() -> None:
    found = []
    for order in ("forward", "reverse", "random"):
        with computing_on(Executor(Device(order=order))):
            found.append([[array for part in outcome(program, False) for array in part] for program in PROGRAMS[:4]])
    for other in found[1:]:
        for program, same in zip(found[0], other, strict=True):
            for a, b in zip(program, same, strict=True):
                np.testing.assert_array_equal(a, b)


# ---- models ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def apart() -> Executor:
    """An executor with a kernel for each operator."""
    return Executor(Device())


@pytest.mark.parametrize("trainer", TRAINERS)
def test_tagger_learns_as_on_the_cpu(apart: Executor, trainer: str) -> None:
    for found, wanted in zip(trained(Tagger, trainer, 3, apart), trained(Tagger, trainer, 3, None), strict=True):
        close(found, wanted, 2e-5)


def test_tree_lstm_needs_few_launches(apart: Executor, together: Executor) -> None:
    wanted = trained(lambda: Trees(64), "adam", 1, None)
    for found, value in zip(trained(lambda: Trees(64), "adam", 1, apart), wanted, strict=True):
        close(found, value, 2e-5)
    executor, device = together, together.device
    with computing_on(executor):
        network = Trees(64)
        device.launches.clear()
        loss = network.loss()
        loss.forward()
        levels = int(executor.lowering.record["levels"])
        assert len(device.launches) == levels < 50  # the trees' depth is 4; calls of one node lie below each other
        loss.backward()
        assert len(device.launches) == levels + int(executor.lowering.record["levels"])
        device.together = 2
        device.launches.clear()
        dy.renew_cg()
        network.loss().backward()
        assert device.launches == []
        assert device.persistent == 2  # forward and backward, whatever the depth
        device.together = 0


def test_a_node_in_its_inputs_level_is_a_race(monkeypatch: pytest.MonkeyPatch, together: Executor) -> None:
    """A seeded fault of the schedule: two levels run at once."""
    executor = together
    call = gpu.lower_forward.call

    def faulty(context: int, state: int) -> int:
        result = call(context, state)
        record, program = executor.lowering.record, executor.lowering.program
        program[int(record["table"]) + 2] = program[int(record["table"]) + 3]  # level 1 takes level 2 in
        return int(result)

    class Faulty:
        call = staticmethod(faulty)

    monkeypatch.setattr(gpu, "lower_forward", Faulty)
    with computing_on(executor), pytest.raises(EmulationError, match="race"):
        Trees().loss().forward()


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_graphs_take_turns_and_memory_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "LEAST", 64)
    executor = Executor(Device())
    with computing_on(executor):
        w = dy.ParameterCollection().add_parameters((3,), init=2.0)
        x = dy.inputVector([1, 2, 3])
        y = dy.cmult(x, w)
        assert y.value() == [2, 4, 6]
        other = dy.ComputationGraph()
        with other:
            z = dy.cmult(dy.inputVector([5, 6, 7]), w)
            assert z.value() == [10, 12, 14]
        long = dy.cmult(y, dy.inputVector([1, 1, 1]))
        for _ in range(40):
            long = dy.cmult(long, dy.inputVector([1, 0.5, 1]))
        assert long.value()[::2] == [2, 6]
        x.set([2, 2, 2])
        assert y.value() == [4, 4, 4]
        total = dy.sum_elems(y)
        total.backward()
        assert w.grad_as_array().tolist() == [2, 2, 2]
        w.set_value([1, 1, 1])
        dy.renew_cg()
        assert dy.cmult(dy.inputVector([1, 2, 3]), w).value() == [1, 2, 3]
        with other:
            assert z.value() == [10, 12, 14]


def test_no_room_leaves_the_graph_usable() -> None:
    device = Device()
    executor = Executor(device)
    with computing_on(executor):
        x = dy.inputVector([1.0] * 100)
        device.most_bytes = 1000
        y = dy.cmult(x, x)
        with pytest.raises(MemoryError, match=r"no room on the GPU for \d+ numbers of parameters and \d+ of a graph"):
            y.value()
        device.most_bytes = None
        assert y.value() == [1.0] * 100


def test_values_move_along_with_the_device() -> None:
    graph.use_executor(Executor(Device()))
    try:
        x = dy.inputVector([1, 2])
        y = dy.cmult(x, x)
        assert y.value() == [1, 4]
        graph.use_executor(None)
        assert space.executor is None
        assert dy.cmult(y, x).value() == [1, 8]
    finally:
        graph.use_executor(None)


def test_tensors_tell_where_they_lie() -> None:
    device, others = Device(), dlpack.kept.copy()  # capsules of other tests
    with computing_on(Executor(device)):
        x = dy.inputTensor(np.arange(6.0).reshape(2, 3))
        tensor = (x + x).tensor_value()
        place = tensor.__cuda_array_interface__
        assert (place["shape"], place["strides"], place["typestr"]) == ((2, 3), (4, 8), "<f4")
        assert device.download(place["data"][0], 6, np.float32).tolist() == [0, 6, 2, 8, 4, 10]
        assert place["stream"] == 1
        assert tensor.__dlpack_device__() == (dlpack.CUDA, 0)
        taken = tensor.__dlpack__(stream=-1, dl_device=(dlpack.CUDA, 0), copy=False)
        (address,) = dlpack.kept.keys() - others.keys()
        assert ctypes.pythonapi.PyCapsule_GetPointer(ctypes.py_object(taken), dlpack.FRESH) == address
        managed = dlpack.Managed.from_address(address)
        assert (managed.data, managed.device_kind, managed.device_number) == (place["data"][0], dlpack.CUDA, 0)
        assert (managed.ndim, managed.code, managed.bits, managed.lanes, managed.byte_offset) == (2, 2, 32, 1, 0)
        numbers = ctypes.c_int64 * 2
        assert list(numbers.from_address(managed.shape)) == [2, 3]
        assert list(numbers.from_address(managed.strides)) == [1, 2]
        del taken  # nobody took it
        assert dlpack.kept.keys() <= others.keys()
        taken = tensor.__dlpack__()
        ctypes.pythonapi.PyCapsule_SetName(ctypes.py_object(taken), b"used_dltensor")
        del taken  # who took it calls the deleter
        (address,) = dlpack.kept.keys() - others.keys()
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(dlpack.Managed.from_address(address).deleter)(address)
        assert dlpack.kept.keys() <= others.keys()
        with pytest.raises(BufferError, match="Tensor: needs to be taken as it is, got a request for a copy"):
            tensor.__dlpack__(copy=True)
        for place, name in (((dlpack.CPU, 0), "the CPU"), ((dlpack.CUDA, 1), "GPU:1")):
            with pytest.raises(BufferError, match=f"Tensor: needs GPU:0, where its memory is, got {name}"):
                tensor.__dlpack__(dl_device=place)
        np.testing.assert_array_equal(tensor.as_numpy(), 2 * np.arange(6.0).reshape(2, 3))
        assert tensor.argmax(1).as_numpy().tolist() == [[2], [2]]
        dy.renew_cg()
        with pytest.raises(StaleExpressionError, match="needs a graph that is still on the GPU"):
            tensor.as_numpy()
        with pytest.raises(StaleExpressionError, match="needs a graph that is still on the GPU"):
            tensor.__dlpack__()


def test_memory_given_back_while_the_gpu_works_loses_no_update() -> None:
    """The garbage collector may free parameters between a copy to the device and the end of the work there."""
    executor = Executor(Device())
    with computing_on(executor):
        model = dy.ParameterCollection()
        w = model.add_parameters((3,), init=1.0)
        dy.sum_elems(dy.cmult(dy.inputVector([1, 2, 3]), w)).forward()
        launch = executor.device.launch

        def launch_and_free(*arguments: object) -> None:
            executor.to_host(executor.gradients)  # what giving parameters back does
            launch(*arguments)

        executor.device.launch = launch_and_free
        dy.renew_cg()
        dy.sum_elems(dy.cmult(dy.inputVector([1, 2, 3]), w)).backward()
        assert w.grad_as_array().tolist() == [1, 2, 3]
