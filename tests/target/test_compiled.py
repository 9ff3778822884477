"""What the compiler makes of the CUDA kernels: no double precision, no stack, no spills; and the command that makes it."""

from __future__ import annotations

import pytest
from ptx import build, compile

from dynjit import cli, cudakernels, cudapasses, device, op, options, trainers
from dynjit.errors import NoCudaError

compile.require(compile.missing(), build.missing())

from ptx import lint  # noqa: E402

CAPABILITY = (8, 0)
SAMPLE = ("tanh", "product", "pickneglogsoftmax", "cmult")  # all others are compiled, and run, by test_operators.py
RULES = [rule for rule in vars(trainers).values() if isinstance(rule, type) and "rule" in vars(rule)]


@pytest.mark.parametrize("name", SAMPLE)
def test_no_double_precision_no_stack(name: str) -> None:
    operator = next(operator for operator in op.operators if operator.name == name)
    ptx = cudakernels.program_ptx(cudakernels.Unit(operator, CAPABILITY).pairs, CAPABILITY)
    assert ".extern" not in ptx
    assert lint.float64_lines(ptx) == []
    if lint.missing() is None:
        for architecture in lint.ARCHITECTURES:
            used = lint.report(ptx, architecture)
            assert (used.stack, used.spills) == (0, 0)
            assert used.registers <= 255  # so that a block of 256 threads always fits
            assert used.shared < 48 * 1024


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_updates_have_no_double_precision(rule: type[trainers.Trainer]) -> None:
    ptx = cudapasses.update_kernel(rule.rule.function.step, rule.by_columns, CAPABILITY)
    assert ".f64" not in ptx
    assert ".extern" not in ptx


def test_warm_up_needs_no_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    first = next(operator for operator in op.operators if operator.name == "tanh")
    monkeypatch.setattr(op, "operators", op.operators[: first.code + 1])
    monkeypatch.setattr(
        cudakernels, "units", lambda capabilities: {"cuda_tanh": cudakernels.Unit(first, capabilities[0])}
    )
    assert cli.compile_unit(("cuda_tanh", "cuda", (CAPABILITY,)))[0] == "cuda_tanh"
    assert cli.main(["warmup", "--target", "cuda", "--cc", "8.0", "--check"]) == 0
    assert "kernels 1, missing 0" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["warmup", "--target", "cuda", "--cc", "eight"])
    assert "needs compute capabilities such as 8.0,9.0, got 'eight'" in capsys.readouterr().err


@pytest.mark.skipif(device.count() > 0, reason="there is a GPU")
def test_a_missing_gpu_is_named() -> None:
    with pytest.raises(NoCudaError, match="device gpu: GPU: needs an NVIDIA driver, and finds none"):
        options.use_device("gpu")
    with pytest.raises(ValueError, match="device: needs CPU, GPU or GPU:0, got 'tpu'"):
        options.use_device("tpu")
