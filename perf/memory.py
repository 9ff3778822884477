"""Memory of 10 000 graphs in a row, dynjit next to DyNet: `python -m perf.memory`.

Trains on one example after the other and prints the resident MiB when the toolkit is imported, after 500 graphs, after
all, and at the peak.
"""

from __future__ import annotations

import argparse
import json
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from perf.cases import CASES, case_named
from perf.contestants import KINDS, VANILLA, Contestant, ContestantError
from perf.measure import machine
from perf.report import table

FIRST = 500


def measure_memory(kind: str, name: str, graphs: int, data: str | None, memory_mib: int) -> dict[str, Any]:
    """MiB of a contestant over a run of so many graphs."""
    with closing(Contestant(kind, data=data, memory_mib=memory_mib)) as contestant:
        style = "fused" if kind == "torch" else VANILLA
        try:
            case = asdict(case_named(name))
            return contestant.ask("memory", case=case, style=style, graphs=graphs, first=FIRST)
        except ContestantError as error:
            return {"error": str(error)}


def memory_table(results: dict[str, dict[str, Any]], graphs: int) -> str:
    """A row for each case and contestant."""
    rows = [
        [
            f"{name} {kind}",
            *(f"{answer[key]:.0f}" if key in answer else "error" for key in ("start", "early", "late", "peak")),
        ]
        for name, answers in results.items()
        for kind, answer in answers.items()
    ]
    return table(["resident MiB", "at start", f"after {FIRST}", f"after {graphs}", "peak"], rows)


def main() -> None:
    """Measures, prints, writes perf/results/memory.json."""
    parser = argparse.ArgumentParser(prog="python -m perf.memory", description=__doc__.splitlines()[0])
    trained = [case.name for case in CASES if case.is_training]
    parser.add_argument("--cases", nargs="+", choices=trained, default=["tagger", "tree-128"], metavar="CASE")
    parser.add_argument("--contestants", nargs="+", choices=KINDS, default=["dynjit", "dynet-0", "dynet-1"])
    parser.add_argument("--graphs", type=int, default=10_000)
    parser.add_argument(
        "--dynet-memory", type=int, default=512, metavar="MIB", help="DyNet's pools; 512 is its default"
    )
    parser.add_argument("--data", metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "memory.json")
    options = parser.parse_args()
    results = {
        name: {
            kind: measure_memory(kind, name, options.graphs, options.data, options.dynet_memory)
            for kind in options.contestants
        }
        for name in options.cases
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"machine": machine(), "graphs": options.graphs, "cases": results}, indent=1))
    print(memory_table(results, options.graphs))


if __name__ == "__main__":
    main()
