"""Do the examples learn as well under dynjit as under DyNet? `python -m perf.accuracy --tags FILE --trees FOLDER`.

Runs examples/tagger.py and examples/treelstm.py under both with some seeds, and prints the accuracy on the test data
after the last epoch.  Ends with status 1 if dynjit's mean is more than half a point below DyNet's.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from tqdm import tqdm

from perf.environments import REPOSITORY, interpreter, worker_environment
from perf.measure import machine
from perf.report import table

TOLERANCE = 0.5  # points
TOOLKITS = ("dynjit", "dynet")


def accuracy(toolkit: str, example: str, arguments: list[str]) -> float:
    """Percent that the example gets right on its test data at its end."""
    command = [str(interpreter(toolkit)), str(REPOSITORY / "examples" / f"{example}.py"), "--quiet", *arguments]
    if toolkit == "dynet":
        command += ["--dynet", "--dynet-autobatch", "1"]
    done = subprocess.run(command, capture_output=True, text=True, env=worker_environment(1), check=False)
    found = re.findall(r"test: accuracy ([0-9.]+)%", done.stdout)
    if done.returncode or not found:
        raise SystemExit(f"{' '.join(command)}: status {done.returncode}\n{done.stderr[-2000:]}")
    return float(found[-1])


def runs(options: argparse.Namespace) -> dict[str, list[str]]:
    """Arguments by name of the example."""
    epochs = ["--epochs", str(options.epochs)]
    tags = ["--data", options.tags, "--train", str(options.train)] if options.tags else []
    trees = ["--data", options.trees] if options.trees else []
    return {"tagger": [*tags, *epochs], "treelstm": [*trees, *epochs]}


def accuracy_table(results: dict[str, dict[str, list[float]]]) -> str:
    """Mean and standard deviation by example and toolkit."""
    rows = [
        [
            name,
            *(f"{mean(found[toolkit]):.2f} ± {spread(found[toolkit]):.2f}" for toolkit in TOOLKITS),
            f"{difference(found):+.2f}",
        ]
        for name, found in results.items()
    ]
    return table(["% right", *TOOLKITS, "difference"], rows)


def spread(values: list[float]) -> float:
    """Standard deviation; 0 of a single value."""
    return stdev(values) if len(values) > 1 else 0.0


def difference(found: dict[str, list[float]]) -> float:
    """How many points dynjit is better than DyNet in the mean."""
    return mean(found["dynjit"]) - mean(found["dynet"])


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m perf.accuracy", description=__doc__.splitlines()[0])
    parser.add_argument("--tags", metavar="FILE", help="tokens word|TAG; else the example's own data")
    parser.add_argument("--trees", metavar="FOLDER", help="bracketed trees; else the example's own data")
    parser.add_argument("--train", type=int, default=1300, help="sentences of FILE to train on, the rest tests")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--examples", nargs="+", choices=("tagger", "treelstm"), default=["tagger", "treelstm"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "accuracy.json")
    return parser.parse_args()


def main() -> int:
    """Runs everything, prints, writes perf/results/accuracy.json."""
    options = parse()
    arguments = {name: values for name, values in runs(options).items() if name in options.examples}
    results: dict[str, dict[str, list[float]]] = {name: {toolkit: [] for toolkit in TOOLKITS} for name in arguments}
    turns = [(seed, name, toolkit) for seed in options.seeds for name in arguments for toolkit in TOOLKITS]
    bar = tqdm(turns, unit="run")
    for seed, name, toolkit in bar:
        bar.set_postfix_str(f"{name} {toolkit} seed {seed}")
        results[name][toolkit].append(accuracy(toolkit, name, [*arguments[name], "--seed", str(seed)]))
    written: dict[str, Any] = {"machine": machine(), "epochs": options.epochs, "accuracy": results}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(written, indent=1))
    print(accuracy_table(results))
    return int(any(difference(found) < -TOLERANCE for found in results.values()))


if __name__ == "__main__":
    sys.exit(main())
