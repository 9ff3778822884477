"""What is compiled is kept, several kernels to a file, and what cannot be compiled says why."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ptx import build, compile
from ptx.emulator import Emulated
from ptx.test_instructions import table_kernel

compile.require(build.missing())

PTX = [table_kernel("s32", [(f"add.s32 D, A, {number}", "s32", max)]) for number in range(5)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setattr(build, "folder", lambda: tmp_path)
    monkeypatch.setattr(build, "load", build.load.__wrapped__)
    return tmp_path


def test_several_kernels_share_a_file_and_are_compiled_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    started = build.compiler
    monkeypatch.setattr(build, "compiler", lambda *paths: calls.append(paths) or started(*paths))
    build.build(PTX)
    assert len(calls) == 2  # one for each core
    kept = {path.name: os.stat(path).st_ino for path in folder.iterdir()}
    assert sorted(kept) == sorted(f"{build.digest_of(ptx)}.so" for ptx in PTX)
    assert len(set(kept.values())) == 2
    build.build(PTX)
    assert len(calls) == 2
    assert build.load(build.digest_of(PTX[3])).shared_size == 0


def test_a_changed_kernel_has_another_name() -> None:
    assert len({build.digest_of(ptx) for ptx in PTX}) == len(PTX)


def test_errors_of_gcc_are_shown(tmp_path: Path) -> None:
    (tmp_path / "wrong.c").write_text("int wrong(void) { return nothing; }")
    with pytest.raises(RuntimeError, match="(?s)gcc failed: .*nothing. undeclared"):
        build.finish(build.compiler(tmp_path / "wrong.c", tmp_path / "wrong.so"))


def test_without_gcc_the_reason_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    reason = build.missing()
    assert reason == "the emulator of CUDA kernels needs gcc"
    with pytest.raises(pytest.skip.Exception, match="needs gcc"):
        compile.require(None, reason)


def test_without_the_compiler_the_reason_is_given(python: Callable) -> None:
    program = "import sys; sys.path.insert(0, 'tests')\n{}\nfrom ptx.compile import missing; print(missing())"
    absent = "class Absent:\n def find_spec(self, name, *rest):\n  if name == 'cuda': raise ModuleNotFoundError(name)"
    said = python(program.format(absent + "\nsys.meta_path.insert(0, Absent())")).stdout
    assert said.startswith("compiling CUDA kernels needs the extra cuda-test: no module ")
    assert python(program.format(""), NUMBA_ENABLE_CUDASIM=1).stdout == "the simulator has no compiler\n"


def test_an_emulated_kernel_is_compiled_when_it_is_needed(folder: Path) -> None:
    kernel, kept = Emulated(PTX[0]), folder / f"{build.digest_of(PTX[0])}.so"
    assert not kept.exists()
    assert kernel.description.cooperative == 0
    assert kept.exists()
