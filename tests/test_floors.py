"""Who may import whom: a file imports only from lower floors, and operator families never import each other."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "dynjit"
FLOORS = (  # a file imports from lower floors, and on its own floor from those listed before it
    "errors settings jit threads memory space textformat names dlpack",
    "shape legacy scalars vectors views routines blas tiles lines op",
    "ops families",
    "arena kernels calls deferred steps bundles merging parts marking cuts pieces dividing plan cudakernels",
    "cpu backprop program lowering cublas device gpu cudapasses timing recording slots inputs calling frontend",
    "subscripts tensor nodes graph expressions",
    "initializers sequence graphviz",
    "parameters models",
    "rnn_state rnn_base rnn_lstm rnn tree softmax_builders saving gradcheck",
    "passes averages late trainer_state trainer_base trainers",
    "profiling batching options",
    "config dynet",
    "__init__",
    "demo run spawned check cli",
)
PLACE = {name: (floor, place) for floor, names in enumerate(FLOORS) for place, name in enumerate(names.split())}
EXCEPTIONS = {  # importing file: (imported module, why)
    "ops/recurrent.py": (
        {"ops.binary", "ops.layout", "ops.linear", "ops.noise"},
        "the variants that DyNet has with dropout or without concatenation are composed of other families' functions",
    ),
    "ops/contract.py": ({"ops.linear"}, "contractions over two axes end in a product"),
    "nodes.py": ({"graphviz"}, "imported when a picture is asked for"),
}
FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """A file's entry in the table."""
    return "ops" if path.parent.name == "ops" else path.stem


def imported(path: Path) -> set[tuple[str, str]]:
    """(entry in the table, module) of all modules of the package that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute"
            names = [node.module or ""]
            if node.module in ("dynjit", "dynjit.ops"):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "dynjit":
                found.add((parts[1] if len(parts) > 1 else "__init__", ".".join(parts[1:])))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_come_from_lower_floors(path: Path) -> None:
    own = name_of(path)
    allowed, _ = EXCEPTIONS.get(str(path.relative_to(PACKAGE)), (set(), ""))
    assert own in PLACE, f"{path.name} has no place in the table of floors"
    for entry, module in sorted(imported(path)):
        if module in allowed:
            continue
        assert entry in PLACE, f"{path.name} imports {module}, which has no place in the table of floors"
        assert PLACE[entry] < PLACE[own], f"{path.name}, at {PLACE[own]}, imports {module}, at {PLACE[entry]}"


def test_exceptions_are_needed() -> None:
    for name, (modules, reason) in EXCEPTIONS.items():
        assert reason
        assert modules <= {module for _, module in imported(PACKAGE / name)}
