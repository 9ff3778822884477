"""Do dynjit and DyNet learn the same? `python -m perf.equality` compares their losses step by step.

Both start from equal parameters, DyNet's copied to dynjit or (`--reverse`) dynjit's to DyNet, and take 100 updates on
the same examples.  Ends with status 1 if two losses differ by more than 1e-4 of their size.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from perf.cases import CASES, Case, case_named
from perf.contestants import KINDS, VANILLA, Contestant, ContestantError

TOLERANCE = 1e-4
TRAINERS = ("SimpleSGDTrainer", "AdamTrainer")


def largest_difference(giver: Contestant, taker: Contestant, case: Case, trainer: str, updates: int) -> float:
    """Largest relative difference of two losses of the same step, after the taker has got the giver's parameters."""
    for contestant in (giver, taker):
        answer = contestant.prepare(case)[VANILLA]
        if "error" in answer:
            raise ContestantError(f"{contestant.kind}: {case.name}: {answer['error']}")
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "parameters.npz")
        giver.ask("save_parameters", style=VANILLA, path=path)
        taker.ask("load_parameters", style=VANILLA, path=path)
    first, second = (
        contestant.ask("losses", style=VANILLA, trainer=trainer, updates=updates) for contestant in (giver, taker)
    )
    return max(abs(a - b) / abs(a) for a, b in zip(first, second, strict=True))


def main() -> int:
    """Compares and prints a line for each case and trainer."""
    parser = argparse.ArgumentParser(prog="python -m perf.equality", description=__doc__.splitlines()[0])
    trained = [case.name for case in CASES if case.is_training]
    parser.add_argument("--cases", nargs="+", choices=trained, default=["tagger", "tree-128"], metavar="CASE")
    parser.add_argument("--contestants", nargs=2, default=["dynjit", "dynet-0"], help=f"two of {KINDS} or dynjit-0")
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--reverse", action="store_true", help="copy the first contestant's parameters to the second")
    parser.add_argument("--data", metavar="FOLDER")
    options = parser.parse_args()
    names = options.contestants if options.reverse else options.contestants[::-1]
    worst = 0.0
    with (
        closing(Contestant(names[0], data=options.data)) as giver,
        closing(Contestant(names[1], data=options.data)) as taker,
    ):
        for name in options.cases:
            for trainer in TRAINERS:
                difference = largest_difference(giver, taker, case_named(name), trainer, options.updates)
                worst = max(worst, difference)
                print(f"{name} {trainer}: losses differ by at most {difference:.1e}")
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
