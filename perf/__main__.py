"""Compares dynjit with DyNet and PyTorch: `python -m perf` writes a table, the raw figures and a plot to perf/results.

The first run makes an environment for DyNet and one for PyTorch in the user's cache folder (dynjit/perf).
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dynjit.device import Device
from dynjit.errors import NoCudaError
from perf.cases import CASES, SWEEPS, Case
from perf.contestants import KINDS, styles
from perf.environments import interpreter
from perf.measure import describe, machine, measure_case, measure_construction
from perf.plots import plot_speed, plot_sweeps
from perf.report import markdown

RESULTS = Path(__file__).parent / "results"


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m perf", description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="*", metavar="PATTERN", help="tree* lm-mb16; by default all; none: no cases")
    parser.add_argument(
        "--sweep", action="store_true", help="by default no cases, but a sweep over sizes, lengths and numbers of trees"
    )
    parser.add_argument("--list", action="store_true", help="list the cases and stop")
    parser.add_argument("--contestants", nargs="+", choices=KINDS, metavar="KIND", help=str(KINDS))
    parser.add_argument("--no-construction", action="store_true", help="leave out the time per node of building")
    parser.add_argument("--rounds", type=int, help="default: 5")
    parser.add_argument("--seconds", type=float, help="of each variant in each round; default: 1")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu", help="what dynjit and PyTorch compute on")
    parser.add_argument(
        "--quick", action="store_true", help="by default 2 rounds of 0.2 seconds; writes quick.* unless named"
    )
    parser.add_argument(
        "--data", metavar="FOLDER", help="with trees/ and tags/ (see perf/data.py); else synthetic data"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER")
    parser.add_argument("--name", help="of the files written; default: latest, or sweep")
    options = parser.parse_args()
    options.rounds = options.rounds or (2 if options.quick else 5)
    options.seconds = options.seconds or (0.2 if options.quick else 1.0)
    options.name = options.name or ("quick" if options.quick else "sweep" if options.sweep else "latest")
    if options.cases is None:
        options.cases = [] if options.sweep else ["*"]
    if options.contestants is None:
        options.contestants = [kind for kind in KINDS if kind != "torch" or not options.sweep]
    if options.device == "gpu":
        ask_for_gpu(options, parser)
    options.no_construction |= options.sweep
    options.data = str(Path(options.data).resolve()) if options.data else None
    return options


def ask_for_gpu(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Lets contestants that can compute on the GPU, and only them; ends the program if there is none."""
    try:
        Device()
    except NoCudaError as error:
        parser.error(f"--device gpu: {error}")
    os.environ["DYNJIT_DEVICE"] = "gpu"  # the workers' environment; PyTorch's does likewise
    options.contestants = [kind for kind in options.contestants if not kind.startswith("dynet")]


def chosen_cases(patterns: list[str]) -> list[Case]:
    """Cases whose name fits one of the patterns."""
    return [case for case in CASES if any(fnmatch.fnmatch(case.name, pattern) for pattern in patterns)]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All results."""
    cases = chosen_cases(options.cases)
    if options.sweep:
        chosen = {case.name: case for points in SWEEPS.values() for _, case in points}
        cases = list({**chosen, **{case.name: case for case in cases}}.values())
    builders = [] if options.no_construction else [k for k in options.contestants if k in ("dynjit", "dynet-0")]
    for toolkit in {kind.partition("-")[0] for kind in options.contestants}:
        interpreter(toolkit)
    turns = sum(len(styles(kind, case)) for case in cases for kind in options.contestants) + len(builders)
    contestants = describe(options.contestants, options.threads, options.data)
    results: dict[str, Any] = {
        "machine": machine(),
        "options": {key: getattr(options, key) for key in ("rounds", "seconds", "threads", "sweep", "device")},
        "data": next((answer["data"] for answer in contestants.values() if "data" in answer), ""),
        "contestants": contestants,
        "cases": {},
        "construction": {},
    }
    with tqdm(total=turns * options.rounds, unit="turn") as bar:

        def progress(text: str) -> None:
            bar.set_postfix_str(text)
            bar.update()

        for case in cases:
            results["cases"][case.name] = measure_case(
                case,
                options.contestants,
                options.rounds,
                options.seconds,
                options.threads,
                options.data,
                progress,
            )
        if builders:
            results["construction"] = measure_construction(builders, options.rounds, progress)
    return results


def main() -> int:
    """Measures, writes, prints the report."""
    options = parse()
    if options.list:
        print("\n".join(case.name for case in CASES))
        return 0
    results = measure(options)
    report = markdown(results)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / options.name
    path.with_suffix(".json").write_text(json.dumps(results, indent=1))
    path.with_suffix(".md").write_text(report)
    plot = plot_sweeps if options.sweep else plot_speed
    plot(results, path.with_suffix(".png"))
    print(report)
    print(f"written: {path}.md .json .png", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
