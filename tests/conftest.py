"""What all tests share: each starts with an empty graph and known random numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("DYNJIT_THREADS", "1")  # tests run side by side
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy's threads, too

import dynjit as dy
from dynjit import graph, initializers, models, threads

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def new_graph() -> None:
    """An empty graph, grouping on, no weight decay, a fixed seed."""
    graph.settings["autobatch"] = 1
    models.default_weight_decay[0] = 0.0
    dy.renew_cg()
    initializers.reset_random_seed(1)


@pytest.fixture
def model() -> dy.ParameterCollection:
    """An empty collection."""
    return dy.ParameterCollection()


@pytest.fixture
def every_call_is_shared() -> Iterator[None]:
    """Threads share each graph and each call that can be divided, however small, and are woken for it."""
    places = [threads.LARGE, threads.WAKING, threads.WIDE]
    before = threads.pool[places]
    threads.pool[places] = 1, 0, 0
    yield
    threads.pool[places] = before
    threads.set_threads(1)


@pytest.fixture
def python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a program in a Python of its own; raises CalledProcessError if it fails."""

    def run(program: str, *arguments: object, cwd: Path = ROOT, check: bool = True, **environment: object):
        variables = {**os.environ, **{name: str(value) for name, value in environment.items()}}
        command = [sys.executable, "-c", program, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=cwd, timeout=300, check=False)
        if check:
            assert done.returncode == 0, done.stderr
        return done

    return run
