"""The environments that the contestants live in, made once in a cache folder."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
REQUIREMENTS = {
    "dynet": ["dynet38==2.1", "numpy<2.4", "tqdm"],
    "torch": ["torch==2.13.0", "numpy"],
}
# PyTorch's wheels without CUDA; PyPI's own need gigabytes
TORCH_INDEX = ["--extra-index-url", "https://download.pytorch.org/whl/cpu", "--retries", "0"]
# set on some machines for old OpenBLAS builds; they slow the current one, and are unset together
BLAS_OVERRIDES = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "DYNJIT_THREADS")


def cache_folder() -> Path:
    """Where the environments are: `dynjit/perf` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dynjit" / "perf"


def interpreter(toolkit: str) -> Path:
    """Python that can import the toolkit; makes its environment if there is none.

    DYNJIT_PERF_DYNET and DYNJIT_PERF_TORCH may name an interpreter to use instead.
    """
    if toolkit == "dynjit":
        return Path(sys.executable)
    given = os.environ.get(f"DYNJIT_PERF_{toolkit.upper()}")
    if given:
        return Path(given)
    folder = cache_folder() / f"{toolkit}-{sys.version_info.major}.{sys.version_info.minor}"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    finished = folder / "finished"
    wanted = "\n".join(REQUIREMENTS[toolkit])
    if not finished.exists() or finished.read_text() != wanted:
        print(f"making an environment for {toolkit} in {folder}", file=sys.stderr)
        venv.create(folder, clear=True, with_pip=True)
        index = TORCH_INDEX if toolkit == "torch" and sys.platform == "linux" else []
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *index]
        subprocess.run([*command, *REQUIREMENTS[toolkit]], check=True)
        finished.write_text(wanted)
    return python


def worker_environment(threads: int) -> dict[str, str]:
    """Environment variables of a contestant: so many threads, no BLAS overrides, this repository importable."""
    environment = {key: value for key, value in os.environ.items() if key not in BLAS_OVERRIDES}
    return environment | dict.fromkeys(THREAD_VARIABLES, str(threads)) | {"PYTHONPATH": str(REPOSITORY)}
