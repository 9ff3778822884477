"""The lint passes good kernels and names what is wrong with others."""

from __future__ import annotations

import re

import pytest

from ptx import compile, lint

compile.require(compile.missing(), lint.missing())

from numba import float32, int64  # noqa: E402

from ptx import kernels  # noqa: E402
from ptx.kernels import f1, f2, i1  # noqa: E402


@pytest.mark.parametrize("architecture", lint.ARCHITECTURES)
def test_what_a_good_kernel_uses(architecture: str) -> None:
    ptx = compile.to_ptx(kernels.tiled_product, (f2, f2, f2))
    used = lint.report(ptx, architecture)
    assert "tiled_product" in used.kernel and used.architecture == architecture
    assert 16 <= used.registers <= 64
    assert (used.stack, used.spills, used.shared) == (0, 0, 2 * 16 * 17 * 4)
    assert lint.findings(ptx, [architecture]) == []


def test_kernels_that_synchronise_the_grid_are_linked() -> None:
    assert lint.findings(compile.to_ptx(kernels.relay, (f1, f1, int64))) == []


def test_float64_is_found_and_named() -> None:
    (finding,) = lint.findings(compile.to_ptx(kernels.promoted, (f1,)))
    assert finding.startswith("3 float64 instructions, the first: cvt.f64.f32 ")


def test_sine_may_use_float64_and_stack() -> None:
    ptx = compile.to_ptx(kernels.sine, (f1,))
    assert lint.findings(ptx, trigonometric=True) == []
    assert len(lint.findings(ptx)) == 1 + len(lint.ARCHITECTURES)


def test_stack_is_found() -> None:
    found = lint.findings(compile.to_ptx(kernels.chosen, (f1, i1)))
    assert found == [f"{architecture}: 32 bytes of stack, more than 0" for architecture in lint.ARCHITECTURES]


def test_registers_are_found() -> None:
    (finding,) = lint.findings(compile.to_ptx(kernels.many_registers, (f2, f2)), ["sm_80"])
    assert finding.endswith("registers, more than 128")


def test_spills_are_found() -> None:
    found = lint.findings(compile.to_ptx(kernels.many_registers, (f2, f2), launch_bounds=1024), ["sm_90"])
    assert any(finding.endswith("bytes of spills, more than 0") for finding in found)


def test_shared_memory_is_found() -> None:
    (finding,) = lint.findings(compile.to_ptx(kernels.much_shared, (float32[::1],)), ["sm_80"])
    assert re.match(r"sm_80: .*much_shared.* uses too much shared data \(0xf000 bytes, 0xc000 max\)", finding)
