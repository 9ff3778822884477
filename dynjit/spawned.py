"""Main file of processes that a program under `dynjit run` spawns: runs the program with dynjit in DyNet's place."""

from __future__ import annotations

import os
import runpy

from dynjit import run

if __name__ == "__mp_main__":
    run.install()
    run.follow_spawned(os.environ[run.SCRIPT])
    globals().update(runpy.run_path(os.environ[run.SCRIPT], run_name="__mp_main__"))
