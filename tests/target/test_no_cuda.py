"""Operators without a form for CUDA: the error names them and says why, before anything is computed or changed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from ptx import build, compile

import dynjit as dy
from dynjit import cudakernels, graph, op, timing
from dynjit.errors import NoCudaError
from dynjit.jit import kernel
from dynjit.shape import Shape

compile.require(compile.missing(), build.missing())

from target.emulated import Device, Executor, own_kernel  # noqa: E402

HALVE = "half_of: has no form for CUDA: its table of halves is too large for a GPU"
SLOPE = "half_of: has no form for CUDA: nobody has written its gradient"


def same(x: Shape) -> Shape:
    return x


@kernel
def half_of_forward(v, x0, y, n):  # type: ignore[no-untyped-def]
    x, out = v[x0 : x0 + n], v[y : y + n]
    for i in range(n):
        out[i] = x[i] / 2


@kernel
def half_of_d0(g, x0, y, n):  # type: ignore[no-untyped-def]
    dx, dy = g[x0 : x0 + n], g[y : y + n]
    for i in range(n):
        dx[i] += dy[i] / 2


@pytest.fixture(params=[0, 1], ids=["forward", "backward"])
def half_of(request: pytest.FixtureRequest) -> Iterator[op.Operator]:
    """An operator whose forward (0) or backward kernel (1) has no form for CUDA."""
    forms = {
        "forward_cuda": op.NO_CUDA("its table of halves is too large for a GPU"),
        "backward_cuda": (op.NO_CUDA("nobody has written its gradient"),),
    }
    chosen = dict([list(forms.items())[request.param]])
    yield op.define("half_of", shape=same, forward=half_of_forward, backward=(half_of_d0,), **chosen)
    graph.use_executor(None)
    graph.current.renew()
    own_kernel.cache_clear()
    timing.enter_costs()  # later profiles find this operator's signatures, and not it
    op.operators.pop()
    for key in [key for key in op.by_key if key[0] == len(op.operators)]:
        del op.by_key[key]


def test_an_operator_without_a_cuda_form_is_named_and_changes_nothing(half_of: op.Operator) -> None:
    model = dy.ParameterCollection()
    w = model.add_parameters((3,), init=4.0)
    dy.sum_elems(dy.square(w)).backward()
    gradient = w.grad_as_array().tolist()
    dy.renew_cg()
    executor = Executor(Device())
    graph.use_executor(executor)
    x = dy.cmult(dy.inputVector([1, 2, 3]), w)
    y = half_of(x)
    total = dy.sum_elems(y)
    if half_of.forward_cuda is not None:
        for _ in range(2):
            with pytest.raises(NoCudaError, match=HALVE):
                total.value()
    else:
        assert total.value() == 12
        for _ in range(2):
            with pytest.raises(NoCudaError, match=SLOPE):
                total.backward()
    assert w.as_array().tolist() == [4, 4, 4]
    assert w.grad_as_array().tolist() == gradient
    assert x.value() == [4, 8, 12]  # what needs it not is still computed there
    dy.sum_elems(x).backward()
    assert (w.grad_as_array() - gradient).tolist() == [1, 2, 3]
    graph.use_executor(None)
    assert total.value() == 12
    total.backward()
    assert (w.grad_as_array() - gradient).tolist() == [1.5, 3, 4.5]
    assert y.value() == [2, 4, 6]


def test_warm_up_leaves_it_out(half_of: op.Operator) -> None:
    slots = [pair % op.SLOTS for pair in cudakernels.own_pairs(half_of.code)]
    assert slots == ([1] if half_of.forward_cuda is not None else [0])
    with pytest.raises(NoCudaError, match="half_of: has no form for CUDA: "):
        cudakernels.form(half_of.code * op.SLOTS + 1 - slots[0])
