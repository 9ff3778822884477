"""Messages: they name the operator, what it needs, what it got and the user's line; and every one has a test."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dynjit as dy
from dynjit import errors, kernels, memory, op, shape
from dynjit.errors import GradientError, ModelFileError, NoCudaError, ShapeError, StaleExpressionError

ROOT = Path(__file__).parent.parent


# ---- form ------------------------------------------------------------------------------------------------------------


def test_a_shape_error_says_all() -> None:
    w, x = dy.inputTensor(np.ones((3, 4))), dy.zeros((5,), batch_size=2)
    with pytest.raises(ShapeError) as caught:
        w * x
    text = str(caught.value)
    line = next(i for i, code in enumerate(Path(__file__).read_text().splitlines(), 1) if code.strip() == "w * x")
    assert text.endswith(f", got (3, 4) and (5,) x 2 (at {__file__}:{line})")
    assert text.startswith("*: needs W (rows, k) and x (k, cols)")


def in_a_helper_of_the_user(x: dy.Expression) -> dy.Expression:
    return dy.affine_transform([x, x, x])


def test_the_line_is_the_innermost_of_the_user() -> None:
    with pytest.raises(ShapeError, match="affine_transform: needs ") as caught:
        in_a_helper_of_the_user(dy.zeros((3, 2)))
    line = in_a_helper_of_the_user.__code__.co_firstlineno + 1
    assert str(caught.value).endswith(f"(at {__file__}:{line})")


def test_code_without_a_file_has_a_line_too() -> None:
    with pytest.raises(IndexError, match=r"pick: needs .*\(at <my notebook>:2\)"):
        exec(compile("x = dy.inputVector([1, 2])\ndy.pick(x, 7)", "<my notebook>", "exec"), {"dy": dy})


def test_the_classes_of_errors() -> None:
    assert issubclass(ShapeError, ValueError)
    for kind in (StaleExpressionError, ModelFileError, GradientError, NoCudaError):
        assert issubclass(kind, RuntimeError)
        assert getattr(dy, kind.__name__) is kind
    assert str(ShapeError("f", "a vector", (2, 3), (4,))).startswith("f: needs a vector, got (2, 3) and (4,) (at ")


def test_no_user_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "user_line", lambda: "")
    assert errors.located("x: needs y") == "x: needs y"


def vector() -> dy.Expression:
    return dy.inputVector([1, 2, 3])


MESSAGES: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: vector() + "x", TypeError, r"\+: needs an expression or a number, got str"),
    (lambda: vector() - None, TypeError, "-: needs an expression or a number, got NoneType"),
    (lambda: vector() * [1], TypeError, r"\*: needs an expression or a number, got list"),
    (lambda: vector() / "x", TypeError, "/: needs an expression or a number, got str"),
    (lambda: vector() ** "x", TypeError, r"\*\*: needs an expression or a number, got str"),
    (lambda: vector() @ 2, TypeError, "@: needs two expressions, got int"),
    (lambda: vector() / 0, ZeroDivisionError, "/: needs a divisor that is not zero"),
    (lambda: dy.tanh(3), TypeError, "tanh: needs expressions, got int"),
    (lambda: dy.esum([vector(), 3]), TypeError, "esum: needs expressions, got int"),
    (lambda: dy.esum([]), ValueError, r"esum: needs a list of one expression or more, got \[\]"),
    (lambda: dy.esum(vector), ValueError, "esum: needs a list of one expression or more, got <function"),
    (lambda: dy.pick(vector(), 1.5), TypeError, "pick: needs an int, got float"),
    (lambda: dy.pick(vector(), 3), IndexError, "pick: needs .*from -?[0-3] to 2, got 3"),
    (lambda: dy.pickneglogsoftmax(vector(), 3), IndexError, "pickneglogsoftmax: needs indices from 0 to 2, got 3"),
    (lambda: vector().backward(), ValueError, r"backward: needs a scalar \(one element, batch 1\), got \(3,\)"),
    (lambda: vector().scalar_value(), ValueError, r"scalar_value: needs one element, got \(3,\)"),
    (lambda: dy.scalarInput("x"), (TypeError, ValueError), "scalarInput: needs|could not convert"),
    (lambda: dy.zeros((2,), batch_size=0), ValueError, "constant: needs a mini-batch of 1 or more, got 0"),
    (lambda: dy.zeros(-1), ValueError, r"constant: needs up to 7 sizes of 0 or more, got \(-1,\)"),
    (lambda: dy.zeros(2.5), TypeError, "constant: needs dimensions as an int or a tuple of ints, got .*2.5"),
    (lambda: dy.inputTensor(3.0), TypeError, "inputTensor: needs an array or a list of numbers, got float"),
]


@pytest.mark.parametrize(("call", "error", "text"), MESSAGES, ids=[m[2][:40] for m in MESSAGES])
def test_messages(call: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text) as caught:
        call()
    assert "could not convert" in text or __file__ in str(caught.value), "the user's line is missing"


# ---- limits that a user does not meet easily -------------------------------------------------------------------------


def test_unknown_kernel_parameters_stop_the_import() -> None:
    def tanh_forward(v, y, nonsense):  # type: ignore[no-untyped-def]
        pass

    with pytest.raises(TypeError, match="tanh_forward: unknown kernel parameter 'nonsense'"):
        kernels.adapter(op.operators[0], tanh_forward, kernels.NARROW)


def test_address_space_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def fail(nbytes: int) -> None:
        tried.append(nbytes)
        raise OSError("no")

    monkeypatch.setattr(memory, "map_pages", fail)
    with pytest.raises(MemoryError, match="cannot reserve 8388608 bytes of address space"):
        memory.reserve(1 << 20, np.int64)
    assert tried[0] >= 8 << 20
    assert tried[1] == tried[0] // 2


def test_equal_indices_of_arrays_do_not_meet_in_a_cache() -> None:
    places = [memory.reserve(1 << 20, np.float32).ctypes.data for _ in range(8)]
    assert all(place % 64 == 0 for place in places)
    assert len({place % 4096 // 64 for place in places}) == len(places)


def test_too_many_shapes_and_signatures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shape, "TABLE", shape.TABLE[: len(shape.shapes)])
    with pytest.raises(MemoryError, match=r"more than \d+ different shapes"):
        dy.zeros((3, 1, 4, 1, 5, 9, 2))
    monkeypatch.undo()
    monkeypatch.setattr(op, "SIGNATURES", op.SIGNATURES[: op.used["signatures"]])
    with pytest.raises(MemoryError, match=r"more than \d+ different calls of operators"):
        dy.zeros((2, 7, 1, 8, 2, 8, 1))
    monkeypatch.undo()
    assert dy.zeros((2, 7, 1)).npvalue().shape == (2, 7, 1)


def test_parameters_that_cannot_be_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    array = memory.reserve(1 << 20, np.float32)
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda *_, **__: type("C", (), {"mmap": lambda *_: None}))
    with pytest.raises(OSError, match="parameters cannot be shared"):
        memory.share(array, array.size, 4)
    monkeypatch.delattr(memory.mmap, "MAP_SHARED")
    with pytest.raises(OSError, match="parameters cannot be shared on this system"):
        memory.share(array, array.size, 4)


def test_too_many_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    from dynjit.arena import space

    monkeypatch.setattr(space, "free_spans", [])
    with pytest.raises(MemoryError, match=r"too many graphs alive at once: the limit is \d+"):
        space.take_span()


# ---- every raise has a test ------------------------------------------------------------------------------------------

CORE = ("graph", "parameters", "initializers", "averages", "trainer_state", "trainer_base", "trainers", "saving",
        "gradcheck", "shape", "op", "memory", "kernels", "arena", "errors", "cli", "jit", "plan", "cpu", "frontend",
        "calls")  # fmt: skip
WINDOW = 18  # letters in a row of a message that a test must have
SIMPLE = re.compile(r"[^a-z0-9]+")


def raised(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line, the literal parts of the message) of each raise that makes an exception."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            parts = [c.value for c in ast.walk(node.exc) if isinstance(c, ast.Constant) and isinstance(c.value, str)]
            yield node.lineno, [part for part in parts if len(SIMPLE.sub("", part.lower())) >= 5]


def plain(text: str) -> str:
    """Letters and digits alone, so that escapes of regular expressions do not count."""
    return SIMPLE.sub("", re.sub(r"\\[dSswWb]", "", text).lower())


@pytest.mark.parametrize("name", CORE)
def test_every_raise_has_a_test_of_its_text(name: str) -> None:
    path = ROOT / "dynjit" / f"{name}.py"
    if not path.exists():
        pytest.skip("there is no such file any more")
    tests = "\n".join(file.read_text(encoding="utf-8") for file in sorted((ROOT / "tests").rglob("test_*.py")))
    known = plain(tests)
    missing = []
    for line, parts in raised(path):
        texts = [text for text in map(plain, parts) if len(text) >= WINDOW] or [
            max(map(plain, parts), key=len, default="")
        ]
        if not any(words in known for text in texts for words in windows(text)):
            missing.append(f"{path.name}:{line}: {' ... '.join(parts)}")
    assert not missing, "\n".join(missing)


def windows(text: str) -> list[str]:
    """All parts of a message that are long enough to be recognised in a test."""
    return [text[i : i + WINDOW] for i in range(max(1, len(text) - WINDOW + 1))]
