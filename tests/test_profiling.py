"""Profiles: counts, bytes and FLOPs of known graphs, traces, the flag of DyNet, and that nothing is left behind."""

from __future__ import annotations

import json

import numpy as np
import pytest

import dynjit as dy
from dynjit import graph, op, profiling, timing
from dynjit.ops import contract, conv, conv1d, layout, leaf, linear, matrix
from dynjit.shape import Shape


def row(p: profiling.Profile, operator: str) -> profiling.Row:
    """A profile's row of an operator."""
    return next(row for row in p.rows if row.operator == operator)


def events(p: profiling.Profile, tmp_path) -> list[dict]:
    """The events of a profile's trace."""
    p.save_trace(tmp_path / "trace.json")
    return json.loads((tmp_path / "trace.json").read_text())["traceEvents"]


def calls(p: profiling.Profile, tmp_path) -> list[tuple]:
    """(operator, part, group size, bytes, FLOPs) of a trace's calls."""
    return [
        (e["name"], e["cat"], e["args"]["group size"], e["args"]["bytes"], e["args"]["FLOPs"])
        for e in events(p, tmp_path)
        if e["cat"] != "dynjit"
    ]


# ---- counts ----------------------------------------------------------------------------------------------------------


def test_calls_and_groups(model) -> None:
    w, b = model.add_parameters((8, 16)), model.add_parameters(8)
    table, trainer = model.add_lookup_parameters((10, 16)), dy.SimpleSGDTrainer(model)
    with dy.profile() as p:
        for _ in range(2):
            dy.renew_cg()
            hidden = [dy.tanh(dy.affine_transform([b, w, table[i % 10]])) for i in range(20)]
            loss = dy.sum_elems(dy.esum(hidden))
            loss.value()
            loss.backward()
            trainer.update()
    found = {r.operator: (r.calls, r.groups, r.mean_group_size) for r in p.rows}
    assert found == {
        "lookup": (40, 2, 20.0), "affine_transform": (40, 2, 20.0), "tanh": (40, 2, 20.0), "esum": (2, 2, 1.0),
        "sum_elems": (2, 2, 1.0),
    }  # fmt: skip
    assert {"planning", "clearing gradients", "updates", profiling.PYTHON} <= set(p.parts)
    assert all(r.forward_ms > 0 and r.backward_ms > 0 for r in p.rows)
    assert sum(p.parts.values()) + sum(r.ms for r in p.rows) == pytest.approx(p.ms)


def test_values_asked_for_one_by_one() -> None:
    with dy.profile() as p:
        for i in range(5):
            assert dy.exp(dy.scalarInput(float(i))).value() == pytest.approx(np.exp(i), rel=1e-6)
            assert dy.exp(dy.inputVector([0.0, 1.0])).npvalue()[0] == 1
    assert (row(p, "exp").calls, row(p, "exp").groups) == (10, 10)


def test_without_batching() -> None:
    dy.renew_cg(autobatching=False)
    with dy.profile() as p:
        dy.esum([dy.exp(dy.scalarInput(1.0)) for _ in range(20)]).value()
    assert (row(p, "exp").calls, row(p, "exp").groups) == (20, 20)


def test_operands_that_lie_apart_are_copied(model, tmp_path) -> None:
    w = model.add_parameters((3, 3))
    inputs = [dy.inputVector([1.0, 2.0, 3.0]) for _ in range(20)]
    with dy.profile() as p:
        dy.esum([w * x for x in inputs]).value()
    assert (row(p, "product").groups, row(p, profiling.GATHERS).calls) == (1, 20)
    assert (profiling.GATHERS, "forward", 20, 2 * 4 * 60, 0) in calls(p, tmp_path)


def test_only_what_the_target_depends_on_goes_back(model, tmp_path) -> None:
    table = model.add_lookup_parameters((20, 16))
    y = [dy.tanh(table[i]) for i in range(20)]
    dy.esum(y).value()
    target = dy.sum_elems(dy.esum(y[:7]))
    with dy.profile() as p:
        target.backward()
    assert ("tanh", "backward", 7, 7 * 16 * 3 * 4, 7 * 16) in calls(p, tmp_path)


# ---- bytes and FLOPs -------------------------------------------------------------------------------------------------


def test_bytes_and_flops_of_a_product(model, tmp_path) -> None:
    w, x = model.add_parameters((16, 32)), model.add_lookup_parameters((50, 32))
    with dy.profile() as p:
        dy.squared_norm(dy.esum([w * x[i] for i in range(20)])).backward()
    wide, high, n = 32, 16, 20
    found = calls(p, tmp_path)
    flops = 2 * wide * high * n
    weights, columns, results = 4 * wide * high, 4 * wide * n, 4 * high * n
    assert ("lookup", "forward", n, 2 * columns, 0) in found
    assert ("product", "forward", n, weights + columns + results, flops) in found
    assert ("product", "backward", n, weights + 2 * columns + results, flops) in found
    assert ("product", "backward, weights", n, 2 * weights + columns + results, flops) in found
    assert ("lookup", "backward, weights", n, 3 * columns, 0) in found
    assert ("squared_norm", "forward", 1, 4 * (high + 1), high) in found
    assert ("squared_norm", "backward", 1, 4 * (2 * high + 1), high) in found
    product = row(p, "product")
    assert (product.flops, product.nbytes) == (3 * flops, 4 * (weights + columns) + 3 * results)
    assert product.flops_per_second == pytest.approx(3 * flops / product.ms * 1e3)


@pytest.mark.parametrize(
    ("operator", "y", "operands", "flops"),
    [
        (linear.PRODUCT, ((3,), 2), [((3, 4),), ((4,), 2)], (48, 48, 48)),
        (linear.AFFINE_TRANSFORM, ((3,),), [((3,),), ((3, 4),), ((4,),), ((3, 2),), ((2,),)], (36, 3, 24, 24, 12, 12)),
        (linear.ADD_PRODUCT, ((3,), 2), [((3,), 2), ((3, 4),), ((4,), 2)], (48, 6, 48, 48)),
        (contract.CONTRACT3D_1D, ((2, 3),), [((2, 3, 4),), ((4,),)], (48, 48, 48)),
        (contract.CONTRACT3D_1D_BIAS, ((2, 3),), [((2, 3, 4),), ((4,),), ((2, 3),)], (48, 48, 48, 6)),
        (conv1d.CIRC_CONV, ((5,),), [((5,),), ((5,),)], (50, 50, 50)),
        (matrix.INVERSE, ((3, 3),), [((3, 3),)], (108, 108)),
        (matrix.LOGDET, ((1,),), [((3, 3),)], (108, 9)),
        (conv.CONV2D, ((4, 5, 3),), [((5, 6, 2),), ((2, 2, 2, 3),)], (960, 960, 960)),
        (conv.CONV2D_BIAS, ((4, 5, 3),), [((5, 6, 2),), ((2, 2, 2, 3),), ((3,),)], (960, 960, 960, 60)),
        (conv1d.FILTER1D_NARROW, ((4, 5),), [((3, 6),), ((3, 2, 4),)], (240, 240, 240)),
        (layout.CONCATENATE, ((6,),), [((2,),), ((4,),)], (0, 0, 0)),
        (leaf.LOOKUP, ((6,),), [((6, 100),)], (0, 0)),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_flops(operator, y, operands, flops) -> None:
    assert operator.flops(Shape(*y), *(Shape(*shape) for shape in operands)) == flops


def test_flops_of_lists_and_sums() -> None:
    three, one = Shape((3,)), Shape((1,))
    assert op.elementwise(three, three, three, three) == (6, 3, 3, 3)
    assert op.elementwise(one, three) == (3, 3)
    assert op.elementwise(Shape((3, 4)), Shape((3, 4)), three) == (12, 12, 12)
    assert op.elementwise(three) == (0,)


@pytest.mark.parametrize("operator", op.operators, ids=lambda operator: operator.name)
def test_every_operator_has_flops(operator) -> None:
    for case in operator.cases:
        shapes = [Shape(*shape) if shape and isinstance(shape[0], tuple) else Shape(shape) for shape in case.shapes]
        flops = operator.flops(Shape((2,)), *shapes)
        assert len(flops) == 1 + len(shapes)
        assert all(type(count) is int and count >= 0 for count in flops)


# ---- what stays as it was --------------------------------------------------------------------------------------------


def train(model: dy.ParameterCollection) -> list[float]:
    """Losses of some steps of a small model."""
    w, table = model.add_parameters((4, 4)), model.add_lookup_parameters((6, 4))
    trainer, losses = dy.AdamTrainer(model), []
    for _ in range(3):
        dy.renew_cg()
        x = [table[i % 6] for i in range(15)]
        for _ in range(3):
            x = [dy.tanh(w * a) for a in x]
        loss = dy.squared_norm(dy.esum(x))
        losses.append(loss.value())
        loss.backward()
        trainer.update()
    return losses


def test_a_profile_changes_no_result() -> None:
    dy.reset_random_seed(3)
    plain = train(dy.ParameterCollection())
    dy.reset_random_seed(3)
    with dy.profile():
        assert train(dy.ParameterCollection()) == plain


def test_nothing_is_recorded_outside() -> None:
    def state() -> tuple:
        return graph.engine, dy.Trainer.update, timing.totals[:200].tobytes()

    with dy.profile():
        train(dy.ParameterCollection())
    before, stretches = state(), dict(timing.stretches)
    assert before[0] is graph.PLAIN
    train(dy.ParameterCollection())
    assert state() == before
    assert timing.stretches == stretches
    with pytest.raises(KeyError), dy.profile():
        raise KeyError
    assert state()[:2] == before[:2]
    assert timing.listeners == []


def test_profiles_may_be_nested() -> None:
    with dy.profile() as outer:
        dy.exp(dy.scalarInput(1.0)).value()
        with dy.profile() as inner:
            dy.exp(dy.scalarInput(1.0)).value()
        assert graph.engine is not graph.PLAIN
        dy.exp(dy.scalarInput(1.0)).value()
        assert row(outer, "exp").calls == 3
    dy.exp(dy.scalarInput(1.0)).value()
    assert (row(outer, "exp").calls, row(inner, "exp").calls) == (3, 1)
    assert graph.engine is graph.PLAIN


# ---- table and trace -------------------------------------------------------------------------------------------------


def test_table() -> None:
    empty = profiling.Profile()
    assert (empty.rows, empty.ms) == ([], 0.0)
    with dy.profile() as p:
        dy.esum([dy.exp(dy.scalarInput(1.0)) for _ in range(20)]).value()
    lines = [line.split() for line in str(p).splitlines()]
    assert " ".join(lines[0]) == "operator calls groups group size forward ms backward ms ms % MB GFLOP/s"
    assert any(line[:4] == ["exp", "20", "20", "1.0"] for line in lines)  # scalars lie 16 elements apart
    assert any(line[0] == "planning" for line in lines)
    assert lines[-1][0] == "total"
    assert len({len(line) for line in str(p).splitlines()[:3]}) == 1


def test_trace(tmp_path, model) -> None:
    x = model.add_parameters(16)
    with dy.profile() as p:
        dy.squared_norm(dy.esum([dy.exp(x), dy.tanh(x), x, x, x])).backward()
    found = events(p, tmp_path)
    assert {"planning", "clearing gradients", "exp", "tanh", "esum", "squared_norm"} <= {e["name"] for e in found}
    for event in found:
        assert set(event) == {"name", "cat", "ph", "ts", "dur", "pid", "tid", "args"}
        assert event["ph"] == "X"
        assert event["ts"] >= 0 <= event["dur"]
        assert all(isinstance(event[key], int) for key in ("pid", "tid"))
    assert [e["ts"] for e in found] == sorted(e["ts"] for e in found)
    passes = [(e["name"], e["cat"]) for e in found if e["cat"] != "dynjit"]
    assert passes == [(name, "forward") for name in ("exp", "tanh", "esum", "squared_norm")] + [
        (name, "backward") for name in ("squared_norm", "esum", "tanh", "exp")
    ]
    esum = next(e for e in found if e["name"] == "esum")
    assert (esum["args"]["shape"], esum["args"]["operands"]) == ("(16,)", "(16,), (16,), (16,), ...")
    ends = [e["ts"] + e["dur"] for e in found if e["cat"] != "dynjit"]
    starts = [e["ts"] for e in found if e["cat"] != "dynjit"]
    assert all(end <= start + 1e-3 for end, start in zip(ends, starts[1:]))


def test_errors(tmp_path) -> None:
    with dy.profile(trace=False) as p:
        dy.exp(dy.scalarInput(1.0)).value()
    assert row(p, "exp").calls == 1
    with pytest.raises(RuntimeError, match="save_trace: needs a profile with trace=True, got one without"):
        p.save_trace(tmp_path / "trace.json")
    with pytest.raises(RuntimeError, match="profile: needs to be entered once, got a profile that was; make another"):
        p.__enter__()
    with pytest.raises(OSError):
        profiling.Profile().save_trace(tmp_path)


# ---- the profile of a process ----------------------------------------------------------------------------------------

PROGRAM = """
import dynjit as dy
dy.sum_elems(dy.esum([dy.tanh(dy.inputVector([0.5] * 16)) for _ in range(20)])).value()
"""


def test_flag(python) -> None:
    for arguments in (["--dynet-profiling", "1"], ["--dynet_profiling=2"]):
        done = python(PROGRAM, *arguments)
        assert done.stdout == ""
        table = done.stderr[done.stderr.index("operator ") :].splitlines()
        assert any(line.split()[:4] == ["tanh", "20", "1", "20.0"] for line in table)
    assert "Forward Call\nBatchSize:20 tanh\nBatchSize:1 esum\nBatchSize:1 sum_elems\n" in done.stderr
    assert "operator " not in python(PROGRAM, "--dynet-profiling=0").stderr
    assert "operator " not in python("import dynjit", "--dynet-profiling=1").stderr


def test_options_start_and_drop_it(python) -> None:
    setting = "from dynjit import config; config.set(profiling=1)"
    assert "operator " in python(f"{setting}\n{PROGRAM}").stderr
    assert "operator " not in python(f"{setting}\n{PROGRAM}\nconfig.set()").stderr
