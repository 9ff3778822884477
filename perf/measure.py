"""Runs cases on contestants in interleaved rounds and gathers what they answer."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from contextlib import ExitStack, closing
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

from perf.cases import Case
from perf.contestants import Contestant, ContestantError, styles
from perf.environments import BLAS_OVERRIDES

Progress = Callable[[str], None]
QUIET = 0.9  # a round in which the process got less of a core than this was disturbed by others


def machine() -> dict[str, Any]:
    """The machine, its versions, and the date."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor()
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "processor": processor,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        "unset_for_workers": {name: os.environ[name] for name in BLAS_OVERRIDES if name in os.environ},
    }


def measure_case(
    case: Case, kinds: list[str], rounds: int, seconds: float, threads: int, data: str | None, progress: Progress
) -> dict[str, Any]:
    """Medians over the rounds, by variant: `kind/style`; or what went wrong with it.

    Each contestant is a fresh process; one round goes through all of them before the next begins.
    """
    results: dict[str, Any] = {}
    with ExitStack() as stack:
        contestants = [stack.enter_context(closing(Contestant(kind, threads, data, case.memory_mib))) for kind in kinds]
        variants: list[tuple[Contestant, str, str]] = []
        for contestant in contestants:
            for style, answer in prepared(contestant, case).items():
                name = f"{contestant.kind}/{style}"
                results[name] = answer
                if "error" not in answer:
                    variants.append((contestant, style, name))
        for _ in range(rounds):
            for contestant, style, name in list(variants):
                progress(f"{case.name} {name}")
                try:
                    results[name].setdefault("rounds", []).append(
                        contestant.ask("measure", style=style, seconds=seconds)
                    )
                except ContestantError as error:
                    results[name] = {"error": str(error)}
                    variants.remove((contestant, style, name))
    return {name: summary(result) for name, result in results.items()}


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """The result with medians over its rounds, over the undisturbed ones if there are any."""
    if "rounds" not in result:
        return result
    quiet = [found for found in result["rounds"] if found["share"] >= QUIET]
    rounds = quiet or result["rounds"]
    return result | {
        "median": {part: median(found[part] for found in rounds) for part in rounds[0]},
        "least": min(found["total"] for found in rounds),
        "disturbed": len(result["rounds"]) - len(quiet),
    }


def prepared(contestant: Contestant, case: Case) -> dict[str, Any]:
    """What the contestant says of its styles of the case; an error in each if it cannot even answer."""
    try:
        return contestant.prepare(case)
    except ContestantError as error:
        return {style: {"error": str(error)} for style in styles(contestant.kind, case)}


def describe(kinds: list[str], threads: int, data: str | None) -> dict[str, Any]:
    """Versions of each contestant, or why it does not start; the peak of float32 products with the first's NumPy."""
    results: dict[str, Any] = {}
    for kind in kinds:
        with closing(Contestant(kind, threads, data)) as contestant:
            try:
                results[kind] = contestant.ask("describe")
                results[kind]["sgemm_gflops"] = contestant.ask("sgemm_peak")
            except ContestantError as error:
                results[kind] = {"error": str(error)}
    return results


def measure_construction(kinds: list[str], rounds: int, progress: Progress) -> dict[str, dict[str, Any]]:
    """Best nanoseconds per node over interleaved rounds, by contestant and operator."""
    results: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        contestants = [stack.enter_context(closing(Contestant(kind))) for kind in kinds]
        for _ in range(rounds):
            for contestant in contestants:
                progress(f"construction {contestant.kind}")
                try:
                    answer = contestant.ask("construction", rounds=10)
                except ContestantError as error:
                    answer = {"": str(error)}
                results[contestant.kind] = least(results.get(contestant.kind, {}), answer)
    return results


def least(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The smaller number of each entry; an error stands only where no number is known."""
    best = dict(old)
    for name, value in new.items():
        known = best.get(name)
        if not isinstance(known, float):
            best[name] = value
        elif isinstance(value, float):
            best[name] = min(known, value)
    return best
