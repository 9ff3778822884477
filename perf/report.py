"""Tables and a plot from the raw results."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import isnan, nan
from statistics import median
from typing import Any

from perf.cases import SWEEPS, Case
from perf.runners import PARTS

TOOLKITS = ("dynjit", "dynet", "torch")
TITLES = {"dynjit": "dynjit", "dynet": "DyNet", "torch": "PyTorch"}
LEGEND = (
    "Time of a tree or sentence, all of build, forward, backward and update (Adam); `sum64` has 64 examples in one "
    "graph, `mb16` minibatches of 16; DyNet and PyTorch at their best, which is named. "
    "A ratio above 1 means that dynjit is faster. GFLOP/s: dynjit's operations, forward and backward, by the time of "
    "all; of sgemm: beside NumPy's product of two 1024 x 1024 float32 matrices, after each round, with as many threads."
)
SHORT = {"VanillaLSTMBuilder": "", "CompactVanillaLSTMBuilder": " compact"}


def best_variant(case: dict[str, Any], toolkit: str) -> tuple[str, dict[str, float]] | None:
    """The toolkit's fastest variant of a case with its medians; None if it has none."""
    medians = {
        name: result["median"] for name, result in case.items() if name.startswith(toolkit) and "median" in result
    }
    if not medians:
        return None
    name = min(medians, key=lambda variant: medians[variant]["total"])
    return name, medians[name]


def short_name(variant: str) -> str:
    """dynet-1/CompactVanillaLSTMBuilder becomes "1 compact", torch/fused becomes "fused"."""
    kind, _, style = variant.partition("/")
    return kind.partition("-")[2] + SHORT.get(style, style)


def least(case: dict[str, Any], toolkit: str) -> float:
    """Total of the toolkit's fastest round of all variants; not a number if it has none."""
    return min(
        (result["least"] for name, result in case.items() if name.startswith(toolkit) and "least" in result),
        default=nan,
    )


def unrest(cases: dict[str, Any]) -> str:
    """How quiet the machine was: the spread of the rounds, and in how many of them others took a core away."""
    found = [result for case in cases.values() for result in case.values() if "median" in result]
    if not found:
        return ""
    spread = 100 * median(result["median"]["total"] / result["least"] - 1 for result in found)
    disturbed, rounds = (
        sum(counts) for counts in zip(*((r["disturbed"], len(r["rounds"])) for r in found), strict=True)
    )
    without = sum(result["disturbed"] == len(result["rounds"]) for result in found)
    text = f" Median rounds are {spread:.0f} % slower than the fastest."
    if disturbed:
        text += (
            f" {disturbed} of {rounds} rounds were disturbed by other programs and do not count, except for the "
            f"variants without an undisturbed one ({without}, marked with *)."
        )
    return text


def milliseconds(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def ratio(rival: Any, own: Any) -> str:
    """How many times the rival's time is the own one."""
    return f"{rival[1]['total'] / own[1]['total']:.2f}" if rival and own else ""


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Markdown table whose first column holds names, the others numbers."""
    header = list(header)
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, rule, *rows])


def best_cell(case: dict[str, Any], toolkit: str) -> str:
    """Time of the toolkit's best variant with its name; an asterisk if all its rounds were disturbed."""
    found = best_variant(case, toolkit)
    if not found:
        return ""
    variant, times = found
    name = f" ({short_name(variant)})" if short_name(variant) else ""
    mark = "*" if case[variant]["disturbed"] == len(case[variant]["rounds"]) else ""
    return milliseconds(times["total"]) + mark + name


def case_table(cases: dict[str, Any]) -> str:
    """Milliseconds per tree or sentence of each toolkit's best variant, and the ratios."""
    rows = []
    for name, case in cases.items():
        dynjit, dynet, torch = (best_variant(case, toolkit) for toolkit in TOOLKITS)
        fastest = least(case, "dynet") / least(case, "dynjit")
        cells = [best_cell(case, toolkit) for toolkit in TOOLKITS]
        ratios = [ratio(dynet, dynjit), "" if isnan(fastest) else f"{fastest:.2f}", ratio(torch, dynjit)]
        rows.append([name, *cells, *ratios])
    header = ["dynjit", "DyNet (autobatch)", "PyTorch", "DyNet/dynjit", "fastest rounds", "PyTorch/dynjit"]
    return table(["ms per example", *header], rows)


def sweep_table(title: str, points: list[tuple[int, Case]], cases: dict[str, Any]) -> str:
    """Milliseconds per example at each point, and how many times those of the point before: a cliff is a jump."""

    def cell(value: float, text: Callable[[float], str] = "{:.2f}".format) -> str:
        return "" if isnan(value) else text(value)

    rows = []
    before = {toolkit: nan for toolkit in ("dynjit", "dynet")}
    for size, case in points:
        now = {toolkit: least(cases.get(case.name, {}), toolkit) for toolkit in before}
        growth = [cell(now[toolkit] / before[toolkit]) for toolkit in now]
        times = [cell(spent, milliseconds) for spent in now.values()]
        rows.append([str(size), *times, cell(now["dynet"] / now["dynjit"]), *growth])
        before = now
    return table([title, "dynjit", "DyNet", "DyNet/dynjit", "dynjit grows", "DyNet grows"], rows)


def split_table(cases: dict[str, Any]) -> str:
    """Where the time of dynjit and of DyNet's best variant goes, and how fast dynjit computes."""
    rows = []
    for name, case in cases.items():
        cells = [name]
        for toolkit in ("dynjit", "dynet"):
            found = best_variant(case, toolkit)
            cells += [milliseconds(found[1][part]) if found else "" for part in PARTS]
        rows.append([*cells, *speed(case)])
    header = [f"{TITLES[toolkit]} {part}" for toolkit in ("dynjit", "dynet") for part in PARTS]
    return table(["ms per example", *header, "GFLOP/s", "of sgemm"], rows)


def speed(case: dict[str, Any]) -> list[str]:
    """GFLOP/s of dynjit's best variant, and the share of what sgemm reached in the same rounds."""
    found = best_variant(case, "dynjit")
    if found is None or "mflop" not in case[found[0]]:
        return ["", ""]
    gflops = case[found[0]]["mflop"] / found[1]["total"]
    return [f"{gflops:.1f}", f"{100 * gflops / found[1]['peak']:.0f} %"]


def variant_table(cases: dict[str, Any]) -> str:
    """Total of every variant, or "error"."""
    names = sorted({variant for case in cases.values() for variant in case})
    rows = [
        [
            name,
            *(
                milliseconds(case[variant]["median"]["total"])
                if "median" in case.get(variant, {})
                else ("error" if variant in case else "")
                for variant in names
            ),
        ]
        for name, case in cases.items()
    ]
    return table(["ms per example", *(short_variant(name) for name in names)], rows)


def short_variant(variant: str) -> str:
    """Column title of a variant."""
    kind, _, style = variant.partition("/")
    return kind + SHORT.get(style, " " + style)


def construction_table(construction: dict[str, dict[str, Any]]) -> str:
    """Nanoseconds per node by operator."""
    kinds = list(construction)
    operators = [name for name in dict.fromkeys(name for kind in kinds for name in construction[kind]) if name]
    rows = []
    for name in operators:
        values = [construction[kind].get(name) for kind in kinds]
        cells = [f"{value:.0f}" if isinstance(value, float) else "error" for value in values]
        if "dynjit" in kinds and len(kinds) == 2:
            own, rival = (construction[kind].get(name) for kind in ("dynjit", next(k for k in kinds if k != "dynjit")))
            cells.append(f"{own / rival:.2f}" if isinstance(own, float) and isinstance(rival, float) else "")
        rows.append([f"`{name}`", *cells])
    share = ["dynjit/DyNet"] if "dynjit" in kinds and len(kinds) == 2 else []
    return table(["ns per node", *(TITLES[kind.partition("-")[0]] for kind in kinds), *share], rows)


def errors(results: dict[str, Any]) -> str:
    """What went wrong, a line each."""
    lines = [
        f"- {name} {variant}: {result['error']}"
        for name, case in results["cases"].items()
        for variant, result in case.items()
        if "error" in result
    ]
    lines += [f"- {kind}: {answer['error']}" for kind, answer in results["contestants"].items() if "error" in answer]
    lines += [
        f"- building {operator or 'nodes'} with {kind}: {value}"
        for kind, values in results["construction"].items()
        for operator, value in values.items()
        if isinstance(value, str)
    ]
    return "\n".join(lines)


def markdown(results: dict[str, Any]) -> str:
    """The whole report."""
    machine, options = results["machine"], results["options"]
    versions = ", ".join(f"{kind} {answer.get('toolkit', '?')}" for kind, answer in results["contestants"].items())
    head = (
        f"{machine['processor']}, {machine['cores']} cores, {machine['date'][:10]}; {versions}; "
        f"{options['threads']} thread(s); medians of {options['rounds']} interleaved rounds of {options['seconds']} s; "
        f"data: {results['data']}."
    )
    if results["cases"]:
        head += unrest(results["cases"])
    parts = [head]
    if results["cases"]:
        parts.append(LEGEND)
        if options["sweep"]:
            parts.append("Fastest rounds, ms per example, and how many times those of the point before:")
            parts += [sweep_table(title, points, results["cases"]) for title, points in SWEEPS.items()]
        parts += [
            case_table(results["cases"]),
            split_table(results["cases"]),
            "All variants:",
            variant_table(results["cases"]),
        ]
    if results["construction"]:
        parts += ["Building one node from Python:", construction_table(results["construction"])]
    failed = errors(results)
    if failed:
        parts += ["What went wrong:", failed]
    return "\n\n".join(parts) + "\n"
