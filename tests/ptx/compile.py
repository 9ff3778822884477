"""Compiles kernels with numba-cuda where there is no driver and no GPU."""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

CAPABILITY = (8, 0)
PACKAGES = ("numba_cuda", "cuda.core", "cuda.pathfinder")


@functools.cache
def missing() -> str | None:
    """Why kernels cannot be compiled here; None if they can."""
    if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":
        return "the simulator has no compiler"
    for package in PACKAGES:
        try:
            found = importlib.util.find_spec(package)
        except ModuleNotFoundError:
            found = None
        if found is None:
            return f"compiling CUDA kernels needs the extra cuda-test: no module {package}"
    try:
        to_ptx(lambda: None, ())
    except Exception as error:  # whatever the compiler lacks, it says in exceptions of its own
        return f"compiling CUDA kernels needs the extra cuda-test: {type(error).__name__}: {error}"
    return None


@functools.cache
def compiler() -> Callable[..., tuple[str, Any]]:
    """`cuda.compile`, made to work without a driver, which device functions ask for the compute capability."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from numba import cuda
        from numba.cuda import dispatcher
    if not cuda.is_available():
        dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=CAPABILITY)
    return cuda.compile


def to_ptx(function: Callable[..., Any], signature: tuple[Any, ...], **options: Any) -> str:
    """The PTX of a kernel, a Python function or what `cuda.jit` made of it, for argument types of Numba."""
    ptx, _ = compiler()(
        getattr(function, "py_func", function), signature, device=False, abi="numba", cc=CAPABILITY, **options
    )
    return ptx


def require(*reasons: str | None) -> None:
    """Skips the tests of a module if there is a reason to."""
    for reason in reasons:
        if reason:
            pytest.skip(reason, allow_module_level=True)
