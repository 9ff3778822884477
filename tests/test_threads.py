"""Threads: how many, sharing of parts, and that results do not depend on them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

import dynjit as dy
from dynjit import graph, op, threads
from dynjit.arena import int64s
from dynjit.jit import entry

WAKING = int(threads.pool[threads.WAKING])


@entry("void(int64, int64)")
def count_up(address, part):  # type: ignore[no-untyped-def]
    """Takes a while, then counts in a place of the part's own."""
    total = 0
    for i in range(2000):
        total += i ^ part
    int64s(address)[part] += 1 + (total == 0)


@entry("void(int64, int64)")
def share_inside(address, part):  # type: ignore[no-untyped-def]
    """A part that shares out work itself."""
    threads.share(int64s(address)[0], address + 8 * (1 + 4 * part), 0, 4, WAKING)


@pytest.fixture
def three() -> Iterator[None]:
    threads.set_threads(3)
    threads.start()
    yield
    threads.set_threads(1)


def test_each_part_runs_once(three: None) -> None:
    done = np.zeros(60, np.int64)
    for _ in range(500):
        threads.run.call(count_up.address, done.ctypes.data, 60, WAKING)
    assert (done == 500).all()


def test_sleeping_workers_are_woken(three: None) -> None:
    done = np.zeros(8, np.int64)
    for _ in range(200):
        while threads.pool[threads.ASLEEP] < 2:
            time.sleep(1e-4)
        threads.run.call(count_up.address, done.ctypes.data, 8, WAKING)
    assert (done == 200).all()


def test_little_work_leaves_workers_asleep(three: None) -> None:
    done = np.zeros(8, np.int64)
    while threads.pool[threads.ASLEEP] < 2:
        time.sleep(1e-4)
    little = WAKING // 5
    for n in range(1, 5):
        threads.run.call(count_up.address, done.ctypes.data, 8, little)
        assert threads.pool[threads.ASLEEP] == 2
        assert threads.pool[threads.MISSED] == n * little
    threads.run.call(count_up.address, done.ctypes.data, 8, little)  # as much as waking costs: they are woken
    assert threads.pool[threads.MISSED] == 0
    assert (done == 5).all()


def test_one_part_is_nobody_elses_work(three: None) -> None:
    done = np.zeros(1, np.int64)
    while threads.pool[threads.ASLEEP] < 2:
        time.sleep(1e-4)
    for _ in range(3):
        threads.run.call(count_up.address, done.ctypes.data, 1, 10 * WAKING)
        assert threads.pool[threads.ASLEEP] == 2
    assert done[0] == 3 and threads.pool[threads.MISSED] == 0


def test_parts_may_share_out_work(three: None) -> None:
    done = np.zeros(13, np.int64)
    done[0] = count_up.address
    threads.run.call(share_inside.address, done.ctypes.data, 3, WAKING)
    assert (done[1:] == 1).all()


def test_set_threads_changes_the_number() -> None:
    for count in (2, 4, 1, 3):
        dy.set_threads(count)
        threads.start()
        assert threads.threads() == threads.pool[threads.COUNT] == count
        assert len(threads.workers) == count - 1
    dy.set_threads(1)


def test_set_threads_works_after_the_first_graph(python: Callable) -> None:
    program = """
import dynjit as dy
from dynjit import graph, op, threads
for count in (1, 3, 1, 2):
    dy.set_threads(count)
    dy.scalarInput(1).value()
    print(threads.pool[threads.COUNT], len(threads.workers))
"""
    assert python(program).stdout.split() == ["1", "0", "3", "2", "1", "0", "2", "1"]


@pytest.mark.parametrize("count", [0, -1, 65, 1.5, True, "2", None])
def test_bad_numbers_are_refused(count: object) -> None:
    before = threads.threads()
    with pytest.raises(ValueError, match="set_threads: needs a number from 1 to 64, got"):
        dy.set_threads(count)  # type: ignore[arg-type]
    assert threads.threads() == before


def test_the_environment_gives_the_number(python: Callable) -> None:
    program = "import dynjit as dy; dy.scalarInput(1).value(); print(dy.threads.pool[dy.threads.COUNT])"
    assert python(program, DYNJIT_THREADS=2).stdout.split() == ["2"]
    assert python(program, DYNJIT_THREADS=1).stdout.split() == ["1"]
    failed = python(program, check=False, DYNJIT_THREADS="two")
    assert failed.returncode == 1
    assert "DYNJIT_THREADS: needs a number from 1 to 64, got 'two'" in failed.stderr


PRODUCTS = """
import numpy as np, dynjit as dy
random = np.random.default_rng(1)
collection = dy.ParameterCollection()
w = [collection.parameters_from_numpy(random.uniform(-0.1, 0.1, (300, 200)).astype(np.float32)) for _ in range(2)]
found = []
for count in (1, 2, 2):
    dy.set_threads(count)
    dy.renew_cg()
    x = dy.inputTensor(np.random.default_rng(2).uniform(-1, 1, (200, 90)), batched=True)
    dy.sum_batches(dy.squared_norm(dy.tanh(w[0] * x) + w[1] * x)).backward()
    found.append([p.grad_as_array() for p in w])
    for p in w:
        p.scale_gradient(0)
np.testing.assert_array_equal(found[1], found[2])
np.testing.assert_allclose(found[0], found[1], rtol=1e-5, atol=1e-4)
"""


def test_products_are_the_same_but_for_rounding_and_reproducible(python: Callable) -> None:
    python(PRODUCTS)


def test_a_group_of_large_and_small_calls(every_call_is_shared: None, model: dy.ParameterCollection) -> None:
    threads.pool[threads.LARGE], threads.pool[threads.WIDE] = (
        30,
        1 << 20,
    )  # some calls are shared, the graph is not divided
    random = np.random.default_rng(3)
    vectors = model.add_parameters((4, 24), init="uniform", scale=1.0)
    partners = [0, 1, 2, 3, 4, 5, 11, 9, 7, 12, 13, 14, 15, 16, 6, 8, 10, 17, 23, 22, 18, 19, 20, 21]
    weights = random.standard_normal((24, 8))
    found = []
    for count in (1, 2):
        dy.set_threads(count)
        dy.renew_cg()
        columns = [dy.pick(vectors, i, 1) for i in range(24)]
        left, right = [dy.tanh(x) for x in columns], [dy.logistic(x) for x in columns]
        pairs = [dy.concatenate([left[i], right[partner]]) for i, partner in enumerate(partners)]
        loss = dy.esum([dy.dot_product(pair, dy.inputVector(w)) for pair, w in zip(pairs, weights)])
        vectors.scale_gradient(0)
        loss.backward()
        found.append([loss.value(), *vectors.grad_as_array().ravel()])
    header, storage = graph.current.header, graph.current.storage
    calls = storage.arrays["calls"][: header.call_count]
    names = [op.operators[int(op.SIGNATURES[call["signature"]]["op"])].name for call in calls]
    sizes = [int(call["count"]) for call, name in zip(calls, names, strict=True) if name == "concatenate"]
    assert max(sizes) * 8 >= 30 and min(sizes[1:]) * 8 < 30 <= sizes[0] * 8, sizes
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6, atol=1e-6)


UPDATES = """
import numpy as np, dynjit as dy
from dynjit import passes
found = []
for count in (1, 3, 3):
    dy.set_threads(count)
    dy.reset_random_seed(1)
    collection = dy.ParameterCollection()
    w, b, table = collection.add_parameters((700, 400)), collection.add_parameters(400), collection.add_lookup_parameters((90, 400))
    assert dy.AdamTrainer(collection).storage().sizes[True] >= passes.SHARED
    collection.set_weight_decay(0.01)
    trainer = dy.AdamTrainer(collection)
    trainer.set_clip_threshold(0.5)
    trainer.exponential_moving_average(0.5)
    for step in range(3):
        dy.renew_cg()
        dy.squared_norm(w * (table[step] + table[80] + b)).backward()
        trainer.update()
    trainer.swap_params_to_moving_average()
    found.append([item.values().copy() for item in collection.stored])
for one, three, again in zip(*found):
    np.testing.assert_array_equal(three, again)
    np.testing.assert_allclose(one, three, rtol=1e-5, atol=1e-7)
"""


def test_updates_are_the_same_but_for_rounding_and_reproducible(python: Callable) -> None:
    python(UPDATES)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_computes(python: Callable) -> None:
    program = f"{PRODUCTS}\nimport os\npid = os.fork()\n" + PRODUCTS + "\nif pid: assert os.waitpid(pid, 0)[1] == 0"
    python(program, DYNJIT_THREADS=2)
