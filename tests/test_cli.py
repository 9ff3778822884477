"""The command: warmup and info, over a cache of three functions so that they are quick."""

from __future__ import annotations

import json
import multiprocessing.pool
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import dynjit as dy
from dynjit import cli, jit, settings


def double(x):  # type: ignore[no-untyped-def]
    return 2 * x


def triple(x):  # type: ignore[no-untyped-def]
    return 3 * x


def half(x):  # type: ignore[no-untyped-def]
    return x // 2


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and three functions that can be compiled; workers are threads."""
    monkeypatch.setattr(settings, "cache_candidates", lambda: [tmp_path / "cache"])
    monkeypatch.setattr(cli, "units", lambda *_: {
        function.__name__: jit.Compiled(function, "int64(int64)", "dynjit.settings") for function in (double, triple, half)
    })  # fmt: skip
    threads = SimpleNamespace(Pool=multiprocessing.pool.ThreadPool)
    monkeypatch.setattr(cli.multiprocessing, "get_context", lambda method: threads)
    jit.cache_folder.cache_clear()
    yield tmp_path / "cache"
    jit.cache_folder.cache_clear()


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = cli.main(arguments)
    return code, capsys.readouterr().out


def test_warmup_from_nothing_to_all(folder: Path, capsys: Any) -> None:
    code, text = run(capsys, "warmup", "--check")
    assert (code, text) == (1, f"kernels 3, missing 3, folder {folder}\n")
    assert cli.units()["triple"].address  # one is there already
    code, text = run(capsys, "warmup", "--list")
    assert (code, text.splitlines()[:3]) == (1, ["missing double", "cached  triple", "missing half"])
    assert json.loads(run(capsys, "warmup", "--check", "--json")[1]) == {
        "kernels": 3, "missing": 2, "folder": str(folder),
    }  # fmt: skip
    code, text = run(capsys, "warmup", "--json", "--jobs", "2")
    facts = json.loads(text)
    assert (code, facts["kernels"], facts["compiled"], facts["files"]) == (0, 3, 2, 3)
    assert facts["folder"] == str(folder)
    assert facts["seconds"] >= 0
    assert run(capsys, "warmup", "--check")[0] == 0
    code, text = run(capsys, "warmup")  # again: nothing to do
    assert code == 0
    assert "kernels 3, compiled 0, " in text


def test_progress_is_shown(folder: Path, capsys: Any) -> None:
    assert cli.main(["warmup"]) == 0
    assert "3/3" in capsys.readouterr().err


def test_clear_removes_what_is_ours_alone(folder: Path, capsys: Any) -> None:
    assert run(capsys, "warmup")[0] == 0
    part = next(folder.iterdir())
    (part / "tmpabcd").touch()  # of a process that was killed while it wrote
    others = [folder / "notes.txt", folder / "ab" / "notes.txt", folder / "photos" / "x.png"]
    for path in others:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    code, text = run(capsys, "warmup", "--clear")
    assert (code, text) == (0, f"removed 4 files from {folder}\n")
    assert {path for path in folder.rglob("*") if path.is_file()} == set(others)
    assert run(capsys, "warmup", "--check")[0] == 1


def test_an_unusable_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(settings, "cache_candidates", lambda: [tmp_path / "file" / "cache"])
    for arguments in (["--check"], [], ["--list"], ["--clear"]):
        assert cli.main(["warmup", *arguments]) == 2


@pytest.mark.parametrize("jobs", ["0", "-1", "x"])
def test_jobs_are_positive(folder: Path, capsys: Any, jobs: str) -> None:
    with pytest.raises(SystemExit):
        cli.main(["warmup", "--jobs", jobs])
    assert "--jobs" in capsys.readouterr().err


def test_interrupted(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def interrupt(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "compile_all", lambda *_, **__: interrupt(""))
    assert cli.main(["warmup"]) == 130
    assert capsys.readouterr().err.endswith("interrupted\n")
    assert run(capsys, "warmup", "--check")[0] == 1


def test_units_are_all_there_is() -> None:
    known = cli.units()
    assert {"plan", "forward", "backward", "native_add", "adam_update"} <= set(known)
    assert {"tanh_forward_narrow", "product_d0_narrow", "concatenate_d_narrow"} <= set(known)
    assert len(known) > 200


def test_info(capsys: Any) -> None:
    code, text = run(capsys, "info")
    assert code == 0
    assert f"dynjit        {dy.__version__}" in text
    facts = json.loads(run(capsys, "info", "--json")[1])
    assert {"dynjit", "python", "numpy", "numba", "llvmlite", "cpu", "cores", "cache", "devices"} <= set(facts)


def test_bad_commands(capsys: Any) -> None:
    for arguments in ([], ["nonsense"], ["warmup", "--nonsense"]):
        with pytest.raises(SystemExit):
            cli.main(arguments)
    assert "usage: dynjit" in capsys.readouterr().err
