"""What the compiler makes of the CUDA kernels: no double precision, no stack, no spills; and the command that makes it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from ptx import build, compile

from dynjit import cli, cudakernels, cudapasses, device, op, options, trainers
from dynjit.errors import NoCudaError

compile.require(compile.missing(), build.missing())

from ptx import lint  # noqa: E402

CAPABILITY = (8, 0)
RULES = [rule for rule in vars(trainers).values() if isinstance(rule, type) and "rule" in vars(rule)]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_updates(rule: type[trainers.Trainer]) -> None:
    ptx = cudapasses.update_kernel(rule.rule.function.step, rule.by_columns, CAPABILITY)
    assert ".extern" not in ptx
    assert lint.findings(ptx, () if lint.missing() else lint.ARCHITECTURES) == []


@pytest.mark.parametrize("kernel", [cudapasses.norm_kernel, cudapasses.finish_kernel])
def test_passes(kernel: Callable[[tuple[int, int]], str]) -> None:
    ptx = kernel(CAPABILITY)
    assert ".extern" not in ptx
    assert lint.findings(ptx, () if lint.missing() else lint.ARCHITECTURES) == []


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
