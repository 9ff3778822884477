"""Each operator's kernels for CUDA, linked to machine code of real GPUs: what they use of them."""

from __future__ import annotations

import pytest
from ptx import compile, lint

from dynjit import cudakernels, op

compile.require(compile.missing())

from target.emulated import own_kernel  # noqa: E402

OWNERS = [
    pytest.param(code, id=op.operators[code].name if code < len(op.operators) else "copies")
    for code in sorted({pair // op.SLOTS for pair in cudakernels.representatives().values()})
]


@pytest.mark.parametrize("code", OWNERS)
def test_machine_code(code: int) -> None:
    """No double precision, no function that is not there, at most 128 registers; no stack and no spills."""
    ptx = own_kernel(code)
    assert ".extern" not in ptx
    assert lint.findings(ptx, () if lint.missing() else lint.ARCHITECTURES) == []
