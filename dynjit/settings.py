"""Options of the process, read once from the environment."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

QUIET = bool(os.environ.get("DYNJIT_QUIET"))
DEVICE = os.environ.get("DYNJIT_DEVICE", "")


def threads() -> int:
    """How many threads compute: DYNJIT_THREADS, else as many as the process has processors."""
    given = os.environ.get("DYNJIT_THREADS", "")
    if given:
        if not given.isdecimal() or not 1 <= int(given) <= 64:
            raise ValueError(f"DYNJIT_THREADS: needs a number from 1 to 64, got {given!r}")
        return int(given)
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(count, 64)


def cache_candidates() -> list[Path]:
    """Folders for the compile cache, in the order in which they are tried."""
    own = os.environ.get("DYNJIT_CACHE_DIR")
    if own:
        return [Path(own)]
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return [Path(base) / "dynjit"] if os.path.isabs(base) else []


def usable(folder: Path) -> bool:
    """Whether files can be made in the folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
