"""C into machine code: several kernels to a call of gcc, and each kernel only once, as the cache keeps them."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from dynjit.settings import cache_candidates, usable
from ptx.parse import parse
from ptx.translate import translate

HERE = Path(__file__).parent
FLAGS = ["-O0", "-fPIC", "-shared", "-w", "-ffp-contract=off", "-fno-strict-aliasing", "-fno-math-errno"]
FLAGS += ["-mfma"] if platform.machine() == "x86_64" else []
KERNELS_PER_FILE = 8
SOURCES = ("parse.py", "operands.py", "arithmetic.py", "translate.py", "build.py", "runtime.h", "runtime.c")


class KernelDescription(ctypes.Structure):
    """`Kernel` of runtime.h."""

    _fields_ = [
        (name, ctypes.c_uint64) for name in ["run", "registers_size", "local_size", "shared_size", "cooperative"]
    ]
    _fields_ += [("statics", ctypes.c_uint64), ("statics_size", ctypes.c_uint64)]


def missing() -> str | None:
    """Why kernels cannot be emulated here; None if they can."""
    return None if shutil.which("gcc") else "the emulator of CUDA kernels needs gcc"


@functools.cache
def folder() -> Path:
    """Where compiled kernels are kept."""
    candidates = [path / "ptx-emulator" for path in cache_candidates()]
    return next(filter(usable, candidates), Path(tempfile.gettempdir()) / "dynjit-ptx-emulator")


@functools.cache
def version() -> bytes:
    """A digest of the emulator itself and of the compiler."""
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    digest.update(subprocess.run(["gcc", "--version"], capture_output=True, check=True).stdout)
    for name in SOURCES:
        digest.update((HERE / name).read_bytes())
    return digest.digest()


def digest_of(ptx: str) -> str:
    """The name under which a kernel is kept."""
    return "kernel_" + hashlib.sha256(version() + ptx.encode()).hexdigest()[:20]


def compiler(source: Path, target: Path, *more: str) -> subprocess.Popen[bytes]:
    """gcc, started."""
    command = ["gcc", *FLAGS, *more, "-I", str(HERE), str(source), "-o", str(target), "-lm"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
    """Waits for gcc; RuntimeError with what it said if it failed."""
    _, said = process.communicate()
    if process.returncode:
        raise RuntimeError(f"gcc failed: {said.decode()[:2000]}")


@functools.cache
def runtime() -> ctypes.CDLL:
    """The scheduler, which every kernel calls."""
    path = folder() / f"runtime_{version().hex()[:20]}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=folder()) as room:
            finish(compiler(HERE / "runtime.c", Path(room) / "runtime.so", "-O2"))
            os.replace(Path(room) / "runtime.so", path)
    return ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


def build(kernels: Sequence[str]) -> None:
    """Compiles the kernels (PTX) that are not yet in the cache, two calls of gcc at a time."""
    wanted = {digest_of(ptx): ptx for ptx in kernels}
    absent = [(name, ptx) for name, ptx in wanted.items() if not (folder() / f"{name}.so").exists()]
    if not absent:
        return
    per_file = min(KERNELS_PER_FILE, -(-len(absent) // 2))
    chunks = [absent[start : start + per_file] for start in range(0, len(absent), per_file)]
    with tempfile.TemporaryDirectory(dir=folder()) as room:
        running: list[tuple[subprocess.Popen[bytes], Path, list[str]]] = []
        for number, chunk in enumerate(chunks):
            source, target = Path(room) / f"{number}.c", Path(room) / f"{number}.so"
            texts = [translate(parse(ptx), name) for name, ptx in chunk]
            source.write_text("\n".join(['#include "runtime.h"', *texts]), encoding="utf-8")
            running.append((compiler(source, target), target, [name for name, _ in chunk]))
            if len(running) == 2:
                keep(*running.pop(0))
        for each in running:
            keep(*each)


def keep(process: subprocess.Popen[bytes], target: Path, names: list[str]) -> None:
    """Enters a compiled file under the name of each of its kernels."""
    finish(process)
    for name in names:
        link = target.with_name(f"{name}.so")
        os.link(target, link)
        os.replace(link, folder() / link.name)


@functools.cache
def load(name: str) -> KernelDescription:
    """The description of a compiled kernel."""
    runtime()
    return KernelDescription.in_dll(ctypes.CDLL(str(folder() / f"{name}.so")), name)
