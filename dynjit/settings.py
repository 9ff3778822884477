"""Options of the process, read once from the environment."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

QUIET = bool(os.environ.get("DYNJIT_QUIET"))
DEVICE = os.environ.get("DYNJIT_DEVICE", "")


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
