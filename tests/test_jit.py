"""How compiled code is keyed, linked and called."""

from __future__ import annotations

import numpy as np
import pytest

from dynjit import jit, kernels, op


def test_all_imports_count_as_sources() -> None:
    """Also those that stand in parentheses over several lines."""
    assert {"dynjit.arena", "dynjit.calls", "dynjit.op"} <= set(jit.closure_of("dynjit.cpu"))
    assert {"dynjit.blas", "dynjit.scalars"} <= {
        name for family in ("linear", "recurrent") for name in jit.closure_of(f"dynjit.ops.{family}")
    }  # fmt: skip


def test_an_unknown_kernel_parameter_is_refused() -> None:
    def tilt_forward(v, x0, slope):  # type: ignore[no-untyped-def]
        v[x0] = slope

    with pytest.raises(TypeError, match="tilt_forward: unknown kernel parameter 'slope'"):
        kernels.adapter(op.operators[0], tilt_forward, kernels.NARROW)


def test_denormals_are_flushed_only_while_compiled_code_runs() -> None:
    import dynjit as dy

    dy.renew_cg()
    x = dy.inputVector([1e-30, 1.0])
    assert dy.cmult(x, x * 1e-10).npvalue()[0] == 0
    assert np.float32(1e-30) * np.float32(1e-10) > 0
