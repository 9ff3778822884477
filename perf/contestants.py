"""Starts contestants and talks to them."""

from __future__ import annotations

import json
import subprocess
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from perf.cases import TAGGERS, Case
from perf.environments import REPOSITORY, interpreter, worker_environment

KINDS = ("dynjit", "dynet-0", "dynet-1", "dynet-2", "torch")
VANILLA, COMPACT = "VanillaLSTMBuilder", "CompactVanillaLSTMBuilder"


class ContestantError(RuntimeError):
    """A contestant could not do what it was told to, or died."""


def styles(kind: str, case: Case) -> list[str]:
    """The ways in which a contestant may run a case; its fastest counts."""
    if kind == "torch":
        return ["eager"] if case.model == "parser" else ["eager", "fused"]
    return [VANILLA, COMPACT] if kind.startswith("dynet") and case.model in TAGGERS else [VANILLA]


class Contestant:
    """A child process; whoever makes it closes it."""

    def __init__(self, kind: str, threads: int = 1, data: str | None = None, memory_mib: int = 512) -> None:
        self.kind = kind
        command = [str(interpreter(kind.partition("-")[0])), "-m", "perf.worker", kind]
        command += ["--threads", str(threads), "--memory-mib", str(memory_mib)]
        if data:
            command += ["--data", data]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if kind.startswith("dynet") else None,  # DyNet tells of its memory there
            text=True,
            env=worker_environment(threads),
            cwd=REPOSITORY,
        )

    def ask(self, command: str, **arguments: Any) -> Any:
        """Answer to a command."""
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise ContestantError(f"{self.kind}: ended with status {self.process.wait()} at {command}")
        answer = json.loads(line)
        if "error" in answer:
            raise ContestantError(f"{self.kind}: {command}: {answer['error']}")
        return answer["answer"]

    def prepare(self, case: Case) -> dict[str, Any]:
        """Lets the contestant make the case's models; what went wrong, or the first loss, by style."""
        return self.ask("prepare", case=asdict(case), styles=styles(self.kind, case))

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin
        with suppress(BrokenPipeError):  # of a process that has died
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
