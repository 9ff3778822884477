"""Files of trainers' states: a line of settings, then moments and averages as the blocks of a model file.

    #Trainer# MomentumSGDTrainer {"settings": {"learning_rate": 0.01, ...}, "average": null}
    #Parameter# /moment0/W {2,3} 97 ZERO_GRAD
    +0.00000000e+00 +4.28571433e-01 +1.42857149e-01 +5.71428597e-01 +2.85714298e-01 +7.14285731e-01

Settings are written in full, moments with nine digits, which hold a float32 exactly.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

from dynjit import textformat
from dynjit.errors import ModelFileError
from dynjit.parameters import Stored

HEADER = re.compile(r"#Trainer# (?P<kind>\w+) (?P<numbers>\{.*\})")
HEADER_RULE = 'a trainer\'s file starts with `#Trainer# CLASS {"settings": ..., "average": ...}`'


def write_state(
    path: str | os.PathLike[str], kind: str, numbers: dict[str, Any], blocks: Iterable[textformat.Block]
) -> None:
    """Writes the file, or leaves the old one as it is."""
    with textformat.atomic_writer(os.path.realpath(os.fsdecode(path))) as file:
        file.write(f"#Trainer# {kind} {json.dumps(numbers)}\n".encode())
        for block in blocks:
            textformat.write_block(file, block)


def read_state(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Any], list[textformat.Block]]:
    """Settings and blocks of a file; raises ModelFileError for one that is none, or of another class."""
    with textformat.open_to_read(path) as file:
        reader = textformat.BlockReader(file, os.fspath(path))
        line = reader.line(textformat.MAX_HEADER_NBYTES, "the trainer's settings")
        try:
            header = HEADER.fullmatch(line.decode().rstrip("\r\n"))
            numbers = json.loads(header["numbers"]) if header else {}
        except (ValueError, RecursionError) as error:
            raise reader.error(f"{HEADER_RULE}: {error}") from None
        if header is None or set(numbers) != {"settings", "average"}:
            raise reader.error(f"{HEADER_RULE}; this is {line[:100]!r}")
        if header["kind"] != kind:
            raise reader.error(f"this is the state of a trainer of class {header['kind']}, not {kind}")
        blocks = []
        while found := reader.header():
            blocks.append(reader.block(found))
    return numbers, blocks


def checked_numbers(path: str | os.PathLike[str], found: Any, own: dict[str, Any]) -> dict[str, Any]:
    """Numbers of a file, if they have the names and types of a trainer's own; else raises ModelFileError."""
    wanted = {name: type(value) for name, value in own.items()}
    if not isinstance(found, dict) or {name: type(value) for name, value in found.items()} != wanted:
        names = ", ".join(f"{name} ({kind.__name__})" for name, kind in wanted.items())
        raise ModelFileError(f"{os.fspath(path)}, line 1: needs {names}, got {json.dumps(found)}")
    for name, value in found.items():
        if isinstance(value, int) and not 0 <= value < 1 << 62:
            raise ModelFileError(f"{os.fspath(path)}, line 1: needs a count of 0 or more for {name}, got {value}")
        if value != value:
            raise ModelFileError(f"{os.fspath(path)}, line 1: needs a number for {name}, got {value}")
    return found


def matched(
    path: str | os.PathLike[str], blocks: list[textformat.Block], names: Iterable[str], stored: Sequence[Stored]
) -> list[tuple[str, Stored, textformat.Block]]:
    """The block of each buffer and parameter; raises ModelFileError where there are others."""
    wanted = [(name, item) for name in names for item in stored]
    if len(blocks) != len(wanted):
        raise ModelFileError(f"{os.fspath(path)}: {len(blocks)} blocks, where this trainer has {len(wanted)}")
    for (name, item), block in zip(wanted, blocks):
        if block.kind != item.kind or not block.name.startswith(f"/{name}/"):
            raise ModelFileError(
                f"{os.fspath(path)}: {block.kind} {block.name} stands where {name} of {item.name()} is needed"
            )
        item.check_fits(block, os.fspath(path))
    return [(name, item, block) for (name, item), block in zip(wanted, blocks)]
