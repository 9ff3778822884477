"""What test_simulator.py runs in a process of its own: dynjit's host code for GPUs, on a simulated one, against the CPU."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import dynjit as dy
from dynjit import gpu, tiles
from target.networks import Tagger, Trees, close, computing_on, trained
from target.simulated import Device


def shapes(device: Device) -> list[tuple[int, int]]:
    """(blocks, threads) of the launches since it was last asked."""
    found = [(launched.blocks, launched.threads) for launched in device.launches]
    device.launches.clear()
    return found


def test_memory_grows_by_doubling_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "LEAST", 64)
    executor = gpu.Executor(Device())
    with computing_on(executor):
        w = dy.ParameterCollection().add_parameters((3,), init=2.0)
        y = dy.cmult(dy.inputVector([1, 2, 3]), w)
        long, rooms = y, []
        for n in range(6):  # two results each, in 16 numbers each
            long = dy.cmult(long, dy.inputVector([1, 0.5, 1]))
            assert long.value() == [2, 4 * 0.5 ** (n + 1), 6]
            rooms.append(executor.room[1])
        assert rooms == [64, 128, 128, 256, 256, 256]
        assert y.value() == [2, 4, 6]
        sizes = sorted(array.size for array in executor.device.pieces.values())
        assert sizes[-2:] == [4 * sum(executor.room)] * 2  # values and gradients; what was too small is given back
        assert len(sizes) == 3  # and the program


def test_numbers_are_copied_both_ways() -> None:
    executor = gpu.Executor(Device())
    with computing_on(executor):
        w = dy.ParameterCollection().add_parameters((3,), init=2.0)
        x = dy.inputVector([1, 2, 3])
        y = dy.cmult(x, w)
        assert y.value() == [2, 4, 6]
        other = dy.ComputationGraph()
        with other:
            z = dy.cmult(dy.inputVector([5, 6, 7]), w)
            assert z.value() == [10, 12, 14]
        x.set([3, 3, 3])  # the graph's values came home, and go back with it
        assert y.value() == [6, 6, 6]
        dy.sum_elems(y).backward()
        assert w.grad_as_array().tolist() == [3, 3, 3]
        w.set_value([1, 1, 1])
        with other:
            assert z.value() == [10, 12, 14]
        dy.renew_cg()
        assert dy.cmult(dy.inputVector([1, 2, 3]), w).value() == [1, 2, 3]


@pytest.mark.parametrize("is_persistent", [False, True], ids=["levels", "persistent"])
def test_launches_have_a_block_for_each_part(monkeypatch: pytest.MonkeyPatch, is_persistent: bool) -> None:
    executor = gpu.Executor(Device(cooperates=is_persistent))
    device, threads = executor.device, tiles.THREADS
    with computing_on(executor):
        w = dy.ParameterCollection().add_parameters((2 * tiles.TILE + 1, 2), init=0.5)
        x = dy.inputVector([2, 4])
        wide = dy.inputVector([1.0] * (2 * threads + 1))
        y, z = w * x, dy.tanh(wide)
        dy.forward([y, z])
        assert shapes(device) == [(6, threads)]  # three tiles, and three times as many elements as threads
        np.testing.assert_array_equal(y.npvalue(), np.full(2 * tiles.TILE + 1, 3, np.float32))
        np.testing.assert_allclose(z.npvalue(), np.tanh(1), rtol=1e-6)
        total = dy.sum_elems(dy.square(y))
        assert total.value() == 9 * (2 * tiles.TILE + 1)
        # one after the other; the simulator lets one block run at a time
        assert shapes(device) == ([(1, threads)] if is_persistent else [(1, threads)] * 2)
        monkeypatch.setattr(gpu, "MOST_BLOCKS", 2)
        np.testing.assert_allclose(dy.tanh(2 * wide).npvalue(), np.tanh(2), rtol=1e-6)
        assert shapes(device) == ([(1, threads)] if is_persistent else [(2, threads)] * 2)


@pytest.mark.parametrize("make", [lambda: Tagger((2, 1)), lambda: Trees(1)], ids=["tagger", "trees"])
def test_networks_learn_as_on_the_cpu(make: Callable[[], Tagger | Trees]) -> None:
    """Losses before and after an update by Adam, gradients, parameters and moments."""
    executor = gpu.Executor(Device())
    found, wanted = trained(make, "adam", 1, executor), trained(make, "adam", 1, None)
    assert len(executor.device.launches) > 10
    for a, b in zip(found, wanted, strict=True):
        close(a, b)
