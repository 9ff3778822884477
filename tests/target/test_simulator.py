"""The host code for GPUs in numba-cuda's simulator, which is chosen when numba is imported: hence a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba_cuda", reason="the simulator needs the package numba-cuda: pip install dynjit[cuda]")

HERE = Path(__file__).parent


def test_host_code_on_a_simulated_gpu_equals_the_cpu() -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(HERE / "in_simulator.py")]
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1"}
    root = HERE.parent.parent
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
