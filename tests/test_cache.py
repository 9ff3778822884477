"""The compile cache: a second process compiles nothing, old code never runs, and no state of the folder is fatal."""

from __future__ import annotations

import ast
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import dynjit as dy
from dynjit import jit, kernels, op, settings

PACKAGE = Path(dy.__file__).parent
MODULES = sorted(
    "dynjit." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if path.stem != "__init__"
)


def double(x):  # type: ignore[no-untyped-def]
    return 2 * x


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder of this process."""
    monkeypatch.setattr(settings, "cache_candidates", lambda: [tmp_path / "cache"])
    monkeypatch.setattr(settings, "QUIET", False)
    jit.cache_folder.cache_clear()
    jit.say.cache_clear()
    yield tmp_path / "cache"
    jit.cache_folder.cache_clear()
    jit.say.cache_clear()


def unit() -> jit.Compiled:
    return jit.Compiled(double, "int64(int64)", "dynjit.settings")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- in this process -------------------------------------------------------------------------------------------------


def test_kernels_of_one_builder_have_symbols_of_their_own() -> None:
    # the loader takes one of two symbols of one name: two kernels that were compiled in different processes, where
    # Numba counts alike, would be the same one
    kernel_of: dict[str, object] = {}
    for operator in op.operators:
        for number, kernel in enumerate((operator.forward, *operator.backward)):
            unit = kernels.compiled(operator.code, number, kernels.NARROW) if kernel else None
            if unit is not None:
                run = unit.function.__globals__["run"].py_func
                assert "<locals>" not in run.__qualname__, f"{operator.name}: the symbol of its kernel is not its own"
                symbol = f"{run.__module__}.{run.__qualname__}"
                assert kernel_of.setdefault(symbol, kernel.__code__) == kernel.__code__, f"two kernels are {symbol}"


def test_a_second_unit_is_read_from_disk(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = unit(), unit()
    assert not first.is_cached()
    assert first.call(21) == 42
    assert not first.cache.was_hit
    kept = files(folder)
    assert len(kept) == 1
    assert second.is_cached()
    assert second.call(21) == 42
    assert second.cache.was_hit
    assert files(folder) == kept
    assert capsys.readouterr().err.count("compiling kernels that the cache does not hold; `dynjit warmup`") == 1


@pytest.mark.parametrize("damage", [
    lambda data: b"", lambda data: data[:100], lambda data: data[:-10], lambda data: bytes(len(data)), lambda data: b"garbage\n",
    lambda data: b"\x80\x04]\x94.", lambda data: b"\x80\x04K\x01.", lambda data: b"(I1\n", lambda data: b"cno.such\nthing\n.",
    lambda data: b"\x80\x04h\x05.", lambda data: data[:40] + b"\xff" * 40 + data[80:],
], ids=[str(i) for i in range(11)])  # fmt: skip
def test_a_damaged_file_is_replaced(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    unit().call(1)
    ((path, data),) = files(folder).items()
    Path(path).write_bytes(damage(data))
    again = unit()
    assert again.call(21) == 42
    assert not again.cache.was_hit
    assert unit().call(4) == 8
    assert list(files(folder)) == [path]
    last = unit()
    assert last.call(3) == 6
    assert last.cache.was_hit


def test_no_folder_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path, capsys: Any) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(settings, "cache_candidates", lambda: [tmp_path / "file" / "cache"])
    for _ in range(2):
        assert unit().call(21) == 42
    assert capsys.readouterr().err == (
        "dynjit: no cache folder can be written: kernels are compiled anew in every process (set DYNJIT_CACHE_DIR)\n"
    )
    assert not unit().is_cached()


@pytest.mark.parametrize("step", ["NamedTemporaryFile", "replace"])
def test_the_folder_turns_full_or_read_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, step: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(jit.tempfile if step == "NamedTemporaryFile" else os, step, fail)
    for _ in range(2):
        assert unit().call(21) == 42
    assert capsys.readouterr().err.count("the cache folder cannot be written: compiled kernels are lost at exit") == 1
    assert files(folder) == {}


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DYNJIT_CACHE_DIR", str(tmp_path / "own"))
    assert settings.cache_candidates() == [tmp_path / "own"]
    monkeypatch.delenv("DYNJIT_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert settings.cache_candidates() == [tmp_path / "xdg" / "dynjit"]
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert settings.cache_candidates() == [tmp_path / ".cache" / "dynjit"]


# ---- what a file's name is made from ---------------------------------------------------------------------------------


def imports_by_ast(module: str) -> set[str]:
    path = jit.module_path(module)
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if path else ():
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.update((node.module, *(f"{node.module}.{alias.name}" for alias in node.names)))
    return found & set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_all_imports_count(module: str) -> None:
    """A source that code is made from, and that the stamp leaves out, would leave old code in use after an edit."""
    assert imports_by_ast(module) <= set(jit.closure_of(module))


def test_different_kernels_have_different_files() -> None:
    from numba.core.registry import cpu_target

    codegen, known = cpu_target.target_context.codegen(), {}
    for operator in op.operators:
        for slot, kernel in enumerate((operator.forward, *operator.backward)):
            if kernel is not None:
                adapter = kernels.compiled(operator.code, slot, kernels.NARROW)
                path = adapter.cache.path(adapter.signature, codegen)
                assert known.setdefault(path, kernel) is kernel, f"{operator.name}, slot {slot}"


# ---- other processes -------------------------------------------------------------------------------------------------

HELPER = "from dynjit.jit import helper\n@helper\ndef f(x):\n    return x + {}\n"
ENTRY = "from dynjit.jit import entry\nfrom dynjit.inner import (\n    f,\n)\n@entry('int64(int64)')\ndef g(x):\n    return 10 * f(x)\n"
PROGRAM = "from dynjit import outer; print(outer.g.call(1), outer.g.cache.was_hit)"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder with a package of this name that has little more than jit.py."""
    folder = tmp_path / "dynjit"
    folder.mkdir()
    (folder / "__init__.py").touch()
    for name in ("jit.py", "settings.py"):
        shutil.copy(PACKAGE / name, folder)
    (folder / "inner.py").write_text(HELPER.format(1))
    (folder / "outer.py").write_text(ENTRY)
    return tmp_path


def test_an_edited_source_is_compiled_anew(package: Path, python: Callable[..., Any]) -> None:
    def run() -> str:
        return python(PROGRAM, cwd=package, DYNJIT_CACHE_DIR=package / "cache").stdout.strip()

    assert [run(), run()] == ["20 False", "20 True"]
    kept = files(package / "cache")
    (package / "dynjit" / "inner.py").write_text(HELPER.format(2))  # a file that the entry's own file imports
    assert [run(), run()] == ["30 False", "30 True"]
    (package / "dynjit" / "inner.py").write_text(HELPER.format(1))
    assert run() == "20 True"
    assert kept.items() <= files(package / "cache").items()


def test_two_processes_at_once(package: Path) -> None:
    environment = {**os.environ, "DYNJIT_CACHE_DIR": str(package / "cache")}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM], cwd=package, env=environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    assert [process.communicate(timeout=120)[0].split()[0] for process in started] == ["20"] * 3
    assert len(files(package / "cache")) == 1


TWICE = """
import gc, tempfile
written, mkstemp = [], tempfile.mkstemp
tempfile.mkstemp = lambda *a, **k: written.append(k) or mkstemp(*a, **k)
import dynjit as dy
from dynjit import jit
m = dy.ParameterCollection()
table, lstm, w = m.add_lookup_parameters((5, 4)), dy.BiRNNBuilder(1, 4, 6, m, dy.VanillaLSTMBuilder), m.add_parameters((3, 6))
trainer = dy.AdamTrainer(m)
for sentence in ([1, 2, 3, 4, 0, 1], [2, 2, 3]):
    dy.renew_cg()
    loss = dy.esum([dy.pickneglogsoftmax(w * h, 1) for h in lstm.transduce([table[i] for i in sentence])])
    loss.value()
    loss.backward()
    trainer.update()
units = [o for o in gc.get_objects() if isinstance(o, jit.Compiled) and o.cfunc is not None]
print(len(units), len([u for u in units if not u.cache.was_hit]), len(written))
"""


def test_a_second_process_has_no_miss_and_writes_no_file(python: Callable[..., Any]) -> None:
    python(TWICE)
    second = python(TWICE, DYNJIT_QUIET="")
    count, misses, written = map(int, second.stdout.split())
    assert count > 30
    assert (misses, written) == (0, 0)
    assert second.stderr == ""
