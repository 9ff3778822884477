"""The exceptions of dynjit.  Each message names the operator, what it needs, what it got, and the user's line."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType

PACKAGE = str(Path(__file__).parent)


def user_line() -> str:
    """`file:line` of the innermost frame outside dynjit, empty if there is none."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith((PACKAGE, "<dynjit")):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame is not None else ""


def located(message: str) -> str:
    """The message with the user's line behind it."""
    line = user_line()
    return f"{message} (at {line})" if line else message


class ShapeError(ValueError):
    """Operands whose shapes do not fit the operator: `operator: needs WHAT, got SHAPES`."""

    def __init__(self, operator: str, needs: str, *shapes: object) -> None:
        got = " and ".join(str(shape) for shape in shapes)
        super().__init__(located(f"{operator}: needs {needs}, got {got}"))


class StaleExpressionError(RuntimeError):
    """An expression of a graph that has been renewed since."""


class ModelFileError(RuntimeError):
    """A model file that cannot be read, or does not fit the collection that is to be filled."""


class GradientError(RuntimeError):
    """A gradient norm that is NaN or infinite; the parameters were left as they are."""


class NoCudaError(RuntimeError):
    """A GPU was asked for where there is none, or for an operator without a CUDA variant."""
