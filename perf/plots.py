"""Plots of the raw results, as PNG."""

from __future__ import annotations

from math import isnan, nan
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from perf.cases import SWEEPS
from perf.report import TITLES, TOOLKITS, best_variant, least

SHOWN = ("dynjit", "torch")
COLOURS = {"dynjit": "C0", "dynet": "C1", "torch": "C2"}


def total(case: dict[str, Any], toolkit: str) -> float:
    """Milliseconds per example of the toolkit's best variant; not a number if it has none."""
    found = best_variant(case, toolkit)
    return found[1]["total"] if found else nan


def plot_speed(results: dict[str, Any], path: Path) -> None:
    """Speed of dynjit and PyTorch relative to DyNet's best, two bars for each case."""
    cases = {name: case for name, case in results["cases"].items() if best_variant(case, "dynet")}
    if not cases:
        return
    figure = Figure(figsize=(8, 0.8 + 0.42 * len(cases)), layout="constrained")
    axes = figure.subplots()
    for offset, toolkit in enumerate(SHOWN):
        speeds = [total(case, "dynet") / total(case, toolkit) for case in cases.values()]
        places = [row + 0.38 * (offset - 0.5) for row in range(len(cases))]
        bars = axes.barh(places, speeds, height=0.36, label=TITLES[toolkit], color=COLOURS[toolkit])
        axes.bar_label(bars, fmt=lambda speed: "" if isnan(speed) else f"{speed:.2g}", fontsize=6, padding=2)
    axes.set_yticks(range(len(cases)), list(cases), fontsize=8)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.6)
    axes.set_xlabel(f"speed, DyNet's best mode being 1; {results['options']['threads']} thread(s)")
    axes.legend()
    figure.savefig(path, dpi=150)


def plot_sweeps(results: dict[str, Any], path: Path) -> None:
    """Milliseconds per example over sizes, lengths and numbers of examples, so that a cliff would show."""
    figure = Figure(figsize=(10, 7), layout="constrained")
    grid = figure.subplots(2, 2)
    for axes, (title, points) in zip(grid.flat, SWEEPS.items(), strict=True):
        for toolkit in TOOLKITS:
            times = [least(results["cases"].get(case.name, {}), toolkit) for _, case in points]
            if not all(map(isnan, times)):
                axes.loglog([x for x, _ in points], times, "o-", label=TITLES[toolkit], color=COLOURS[toolkit])
        axes.set_title(title, fontsize=9)
        axes.set_ylabel("ms per example, fastest round")
        axes.grid(alpha=0.3)
    grid.flat[0].legend()
    figure.savefig(path, dpi=150)
