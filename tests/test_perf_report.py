"""The report of perf/: the tables of a sweep."""

from __future__ import annotations

import pytest

from dynjit import device
from perf.__main__ import parse
from perf.cases import SWEEPS
from perf.report import markdown, speed, sweep_table


def result(milliseconds: float) -> dict:
    """What `perf.measure` says of a variant."""
    parts = dict.fromkeys(("build", "forward", "backward", "update"), milliseconds / 4)
    median = {**parts, "total": milliseconds, "share": 1.0}
    return {"rounds": [median], "median": median, "least": milliseconds, "disturbed": 0}


def test_sweep_table_shows_growth() -> None:
    title, points = next(iter(SWEEPS.items()))
    times = [(1.0, 3.0), (2.0, 6.0), (12.0, 15.0)]
    cases = {
        case.name: {"dynjit/VanillaLSTMBuilder": result(own), "dynet-1/VanillaLSTMBuilder": result(rival)}
        for (_, case), (own, rival) in zip(points, times)
    }
    lines = sweep_table(title, points, cases).splitlines()
    assert lines[0] == f"| {title} | dynjit | DyNet | DyNet/dynjit | dynjit grows | DyNet grows |"
    assert lines[2] == "| 32 | 1 | 3 | 3.00 |  |  |"
    assert lines[3] == "| 64 | 2 | 6 | 3.00 | 2.00 | 2.00 |"
    assert lines[4] == "| 128 | 12 | 15 | 1.25 | 6.00 | 2.50 |"
    assert lines[5] == "| 256 |  |  |  |  |  |"


def test_speed_is_that_of_the_fastest_style_beside_sgemm() -> None:
    fast, slow = result(2.0), result(3.0)
    for found, mflop in ((fast, 100.0), (slow, 120.0)):
        found["mflop"] = mflop
        found["median"]["peak"] = 80.0
    assert speed({"dynjit/a": slow, "dynjit/b": fast}) == ["50.0", "62 %"]
    assert speed({"dynjit/a": result(1.0)}) == ["", ""]
    assert speed({"dynet-1/a": fast}) == ["", ""]


def test_report_of_a_sweep() -> None:
    title, points = next(iter(SWEEPS.items()))
    results = {
        "machine": {"processor": "P", "cores": 1, "date": "2000-01-01"}, "data": "D", "contestants": {},
        "options": {"rounds": 1, "seconds": 1, "threads": 1, "sweep": True}, "construction": {},
        "cases": {points[0][1].name: {"dynjit/VanillaLSTMBuilder": result(1.0)}},
    }  # fmt: skip
    text = markdown(results)
    assert all(f"| {name} |" in text for name in SWEEPS)
    results["options"]["sweep"] = False
    assert title not in markdown(results)


@pytest.mark.skipif(device.count() > 0, reason="there is a GPU")
def test_a_missing_gpu_ends_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("sys.argv", ["perf", "--device", "gpu"])
    with pytest.raises(SystemExit):
        parse()
    assert "--device gpu: GPU: needs" in capsys.readouterr().err
