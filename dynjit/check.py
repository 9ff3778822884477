"""Which of DyNet's names a program uses, and whether dynjit has them: `dynjit check script.py`.

Names are found by reading the program, not by running it: attributes of the imported module, imported names, methods of
variables whose class is plain to see, and other methods with names that hardly anything else has.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import dynjit
from dynjit.names import Name, methods, names

MODULES = ("dynet", "_dynet", "dynjit")
SAME, BETTER, MISSING = "same", "better", "missing"


@dataclass
class Use:
    """A name, where it stands, and what becomes of it under dynjit."""

    name: str
    verdict: str
    reason: str = ""
    lines: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        lines = ", ".join(map(str, self.lines[:8])) + " ..." * (len(self.lines) > 8)
        return f"{self.verdict:8}{self.name:44} line {lines}{': ' * bool(self.reason)}{self.reason}"


def of_module(name: str) -> tuple[str, str]:
    """(verdict, reason) of a name of the module."""
    known = names().get(name)
    if known is not None and known.better:
        return BETTER, known.better
    if known is not None or name in dynjit.__all__:
        return SAME, ""
    return MISSING, "not one of DyNet's names"


def of_methods(found: list[Name]) -> tuple[str, str]:
    """(verdict, reason) of a method that several classes may have: better if it is so in all of them."""
    reasons = dict.fromkeys(method.better for method in found)
    return (BETTER, "; ".join(reasons)) if all(reasons) else (SAME, "")


def of_class(kind: str, method: str) -> tuple[str, str]:
    """(verdict, reason) of a method of a class."""
    known = names().get(f"{kind}.{method}")
    if known is not None:
        return of_methods([known])
    return (SAME, "") if hasattr(getattr(dynjit, kind), method) else (MISSING, f"{kind} has no such method")


def is_clear(method: str) -> bool:
    """Whether the name of a method is DyNet's beyond doubt."""
    return method in methods() and not method.startswith("_") and ("_" in method or method in ("npvalue", "whoami"))


class Reader(ast.NodeVisitor):
    """Collects the uses of a program."""

    def __init__(self, tree: ast.AST) -> None:
        self.uses: dict[str, Use] = {}
        self.modules: set[str] = set()  # names of the module in the program
        self.is_star = False
        self.bound: set[str] = set()  # names that the program itself gives a meaning
        self.classes: dict[str, str] = {}  # variable or attribute -> class of DyNet
        self.made: list[tuple[str, str]] = []  # variables and the classes whose objects they are made
        self.stores: list[str] = []  # variables, once for each time that they are given a value
        for node in ast.walk(tree):
            self.learn(node)
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign):
                self.learn_classes(node)
        self.visit(tree)

    def learn(self, node: ast.AST) -> None:
        """Takes note of imports and bindings, before the uses are collected."""
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in MODULES:
                    self.modules.add(alias.asname or alias.name)
        elif isinstance(node, ast.ImportFrom):
            self.is_star |= node.module in MODULES and node.names[0].name == "*"
            self.bound |= {alias.asname or alias.name for alias in node.names if node.module not in MODULES}
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            self.bound.add(node.name)
        elif isinstance(node, ast.arg):
            self.bound.add(node.arg)
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            self.bound.add(node.id)
            self.stores.append(node.id)

    def learn_classes(self, node: ast.Assign) -> None:
        """Takes note of variables and attributes that are objects of one class wherever they are given a value."""
        kind = self.name_of(node.value.func) if isinstance(node.value, ast.Call) else None
        if kind not in names() or names()[kind].kind != "class":
            return
        for target in node.targets:
            if isinstance(target, ast.Attribute):
                self.classes[target.attr] = kind
            elif isinstance(target, ast.Name):
                self.made.append((target.id, kind))
                if self.made.count((target.id, kind)) == self.stores.count(target.id):
                    self.classes[target.id] = kind

    def name_of(self, node: ast.AST) -> str | None:
        """DyNet's name that an expression stands for."""
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in self.modules:
            return node.attr
        if isinstance(node, ast.Name) and self.is_star and node.id not in self.bound and node.id in names():
            return node.id
        return None

    def use(self, name: str, node: ast.AST, verdict: str, reason: str) -> None:
        lines = self.uses.setdefault(name, Use(name, verdict, reason)).lines
        if node.lineno not in lines:  # type: ignore[attr-defined]
            lines.append(node.lineno)  # type: ignore[attr-defined]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names if node.module in MODULES else ():
            if alias.name != "*":
                self.use(alias.name, node, *of_module(alias.name))
                if alias.name in names() and names()[alias.name].kind == "class":
                    self.classes.setdefault(alias.asname or alias.name, alias.name)

    def visit_Name(self, node: ast.Name) -> None:
        name = self.name_of(node)
        if name:
            self.use(name, node, *of_module(name))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        name = self.name_of(node)
        if name:
            if not name.startswith("__"):
                self.use(name, node, *of_module(name))
            return
        owner = node.value
        last = owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""
        kind = self.classes.get(last)
        if kind:
            self.use(f"{kind}.{node.attr}", node, *of_class(kind, node.attr))
        elif is_clear(node.attr) and node.attr not in self.bound:
            self.use(f".{node.attr}", node, *of_methods(methods()[node.attr]))
        self.generic_visit(node)


def check(source: str, path: str) -> list[Use]:
    """The uses of a program's text, missing ones first.  Raises SyntaxError for what is no Python."""
    uses = Reader(ast.parse(source, path)).uses.values()
    return sorted(uses, key=lambda use: ((MISSING, BETTER, SAME).index(use.verdict), use.name))


def report(path: str) -> Iterator[str]:
    """Lines about a program, the first a summary."""
    uses = check(Path(path).read_text(encoding="utf-8"), path)
    counts = {verdict: sum(use.verdict == verdict for use in uses) for verdict in (SAME, BETTER, MISSING)}
    yield f"{path}: {len(uses)} names of DyNet, {', '.join(f'{count} {verdict}' for verdict, count in counts.items())}"
    for use in uses:
        yield f"  {use}"


def main(paths: list[str]) -> int:
    """Prints a report on each program.  Returns 0; 1 if a name is missing; 2 if a program cannot be read."""
    result = 0
    for path in paths:
        try:
            lines = list(report(path))
        except (OSError, SyntaxError, UnicodeDecodeError, ValueError) as error:
            print(f"dynjit check: cannot read {path}: {error}", file=sys.stderr)
            result = 2
            continue
        print("\n".join(lines))
        if any(line.startswith(f"  {MISSING}") for line in lines):
            result = max(result, 1)
    return result
