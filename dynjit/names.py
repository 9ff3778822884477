"""DyNet's public names, as `names.tsv` lists them: what each is, how it is called, and whether dynjit differs."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple


class Name(NamedTuple):
    """A public name of DyNet.

    kind: function, class, method, property, data, module or hidden;
    signature: as of a call, empty where there is none;
    better: what DyNet does wrong and dynjit does not, empty where both do the same.
    """

    name: str
    kind: str
    signature: str
    better: str


@functools.cache
def names() -> dict[str, Name]:
    """All names, those of methods with their class in front."""
    text = Path(__file__).with_name("names.tsv").read_text(encoding="utf-8")
    rows = [line.split("\t") for line in text.splitlines()[1:]]
    return {row[0]: Name(*row) for row in rows}


@functools.cache
def methods() -> dict[str, list[Name]]:
    """Methods and properties by their own name: those of all classes that have one."""
    found: dict[str, list[Name]] = {}
    for name in names().values():
        if name.kind in ("method", "property"):
            found.setdefault(name.name.rpartition(".")[2], []).append(name)
    return found
