"""Products that a library makes: the same results, as few launches as its products allow, and cuBLAS's own arguments."""

from __future__ import annotations

import ctypes
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from ptx import build, compile

import dynjit as dy
from dynjit import cli, cublas, device, gpu
from dynjit.ops import linear
from dynjit.program import LEAST_PRODUCT, NN, NT, TN

compile.require(compile.missing(), build.missing())

from target.emulated import Device, Executor  # noqa: E402
from target.networks import Tagger, Trees, close, computing_on, trained  # noqa: E402
from target.test_graphs import used_pairs  # noqa: E402
from target.test_unions import LanguageModel  # noqa: E402

MODELS = pytest.mark.parametrize("make", [Tagger, lambda: Trees(20), LanguageModel], ids=["tagger", "trees", "lm"])


class Library:
    """NumPy, on the memory of an emulated device."""

    def __init__(self, device: Device) -> None:
        self.device, self.kinds = device, [0, 0, 0]

    def multiply(self, kind: int, a: int, b: int, c: int, m: int, n: int, k: int, beta: int) -> None:
        def matrix(address: int, rows: int, columns: int) -> np.ndarray:
            return self.device.window(address, 4 * rows * columns).view(np.float32).reshape(columns, rows).T

        left = matrix(a, k, m).T if kind == TN else matrix(a, m, k)
        right = matrix(b, n, k).T if kind == NT else matrix(b, k, n)
        out = matrix(c, m, n)
        out[:] = left @ right + (out if beta else 0)
        self.kinds[kind] += 1


def executor(least: int, together: int = 0) -> Any:
    device = Device()
    device.together = together
    return Executor(device, Library(device), least)


@MODELS
def test_models_learn_as_on_the_cpu(make: Any) -> None:
    made = executor(1)
    for found, wanted in zip(trained(make, "adam", 2, made), trained(make, "adam", 2, None), strict=True):
        close(found, wanted, 2e-5)
    assert min(made.library.kinds) > 0


PLAIN = ("product", "matrices", "one column", "affine", "affine of one", "bias for columns", "bias of items",
         "biases for columns", "added", "added to all", "column for all")  # fmt: skip  # the last: backward
NOT_PLAIN = ("own matrices", "items of one", "bias alone")


def sums() -> tuple[dict[str, dy.Expression], list[dy.Expression]]:
    """(sums of products by what is special of them, their operands)."""
    draw = np.random.default_rng(4)

    def array(*shape: int) -> dy.Expression:
        return dy.inputTensor(draw.normal(size=shape))

    def items(*shape: int) -> dy.Expression:
        return dy.inputTensor(draw.normal(size=(*shape, 5)), batched=True)

    w, u, b, x, z, p = array(3, 4), array(3, 2), array(3), items(4), items(2), items(3)
    one, few, own = array(4), items(4, 2), items(3, 4)
    found = {
        "product": w * x, "matrices": w * few, "one column": w * one,
        "affine": dy.affine_transform([b, w, x, u, z]), "affine of one": dy.affine_transform([b, w, one]),
        "bias for columns": dy.affine_transform([b, w, few]), "bias of items": dy.affine_transform([p, w, x]),
        "biases for columns": dy.affine_transform([p, w, few]), "added": linear.add_product(p, w, x),
        "added to all": linear.add_product(b, w, x),
        "own matrices": own * x, "column for all": dy.affine_transform([b, w, x, own, one]),
        "items of one": linear.add_product(p, w, one), "bias alone": dy.affine_transform([p]),
    }  # fmt: skip
    return found, [w, u, b, x, z, p, one, few, own]


@pytest.mark.parametrize("form", [*PLAIN, *NOT_PLAIN])
def test_sums_of_products(form: str) -> None:
    def computed() -> list[np.ndarray]:
        dy.renew_cg()
        found, operands = sums()
        y = found[form]
        target = dy.sum_batches(dy.squared_norm(y))
        value = np.array(y.npvalue())
        target.backward(full=True)
        return [value, *(np.array(operand.gradient()) for operand in operands)]

    wanted, made = computed(), executor(1)
    with computing_on(made):
        for a, b in zip(computed(), wanted, strict=True):
            close(a, b)
    assert (sum(made.library.kinds) == 0) == (form in NOT_PLAIN)


# ---- launches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("together", [0, 2], ids=["levels", "persistent"])
def test_large_products_end_stretches_of_levels(together: int) -> None:
    made, done = executor(100, together), []
    launch, multiply = made.device.launch, made.library.multiply

    def launched(ptx: Any, blocks: int, threads: int, arguments: Any, together: bool = False) -> None:
        assert blocks > 0
        done.append("level" * (arguments[-1] - arguments[-2]))
        launch(ptx, blocks, threads, arguments, together)

    def multiplied(kind: int, *arguments: int) -> None:
        done.append({NN: "A B", TN: "A' B", NT: "A B'"}[kind])
        multiply(kind, *arguments)

    made.device.launch, made.library.multiply = launched, multiplied

    def network() -> tuple[dy.Expression, list[dy.Parameters]]:
        dy.renew_cg()
        dy.reset_random_seed(5)
        model = dy.ParameterCollection()
        w, u = model.add_parameters((10, 10)), model.add_parameters((1, 10))
        h = dy.tanh(w * dy.tanh(w * dy.inputVector(np.linspace(-1, 1, 10)))) + 1.0
        return dy.sum_elems(u * dy.exp(h)), [w, u]

    loss, weights = network()
    value = loss.value()
    loss.backward()
    gradients = [weight.grad_as_array().copy() for weight in weights]
    if together:
        made.pairs |= used_pairs()
    with computing_on(made):
        loss, weights = network()
        assert loss.value() == pytest.approx(value, rel=1e-5)
        end = ["level" * 5] if together else ["level"] * 5  # tanh, +, exp, u, sum
        assert done == ["A B", "level", "A B", *end]
        done.clear()
        loss.backward()
        for weight, wanted in zip(weights, gradients, strict=True):
            close(weight.grad_as_array(), wanted)
    # a stretch ends with its product's level, at which nothing else may be
    first, rest = (["level" * 6], ["level" * 2]) if together else (["level"] * 5, ["level"] * 2)
    assert done == [*first, "A' B", *rest, "A B'", "A B'"]


def test_without_a_library_nothing_is_left_to_it() -> None:
    made = Executor(Device(), None, 1)
    with computing_on(made):
        w = dy.ParameterCollection().add_parameters((10, 10), init=1.0)
        assert (w * dy.inputVector([1.0] * 10)).value() == [10] * 10
        assert len(made.device.launches) == 1
    small = gpu.Executor(Device(), Library(made.device))
    assert small.lowering.record["least_product"] == LEAST_PRODUCT


# ---- cuBLAS ----------------------------------------------------------------------------------------------------------


class Stream:
    """CuPy's null stream."""

    is_current = False

    def __enter__(self) -> None:
        self.is_current = True

    def __exit__(self, *_: object) -> None:
        self.is_current = False


class FakeCublas(ModuleType):
    """As much of cupy_backends.cuda.libs.cublas (CuPy 14.2) as dynjit uses, on memory of the host."""

    CUBLAS_OP_N, CUBLAS_OP_T = 0, 1
    stream = Stream()

    def create(self) -> int:
        return 77

    def sgemm(
        self, handle: int, transa: int, transb: int, m: int, n: int, k: int, alpha: int, A: int, lda: int, B: int,
        ldb: int, beta: int, C: int, ldc: int,
    ) -> None:  # fmt: skip
        assert handle == 77
        assert self.stream.is_current

        def matrix(address: int, rows: int, columns: int, leading: int) -> np.ndarray:
            assert leading >= rows
            numbers = (ctypes.c_float * (leading * columns)).from_address(address)
            return np.ctypeslib.as_array(numbers).reshape(columns, leading).T[:rows]

        left = matrix(A, k, m, lda).T if transa == self.CUBLAS_OP_T else matrix(A, m, k, lda)
        right = matrix(B, n, k, ldb).T if transb == self.CUBLAS_OP_T else matrix(B, k, n, ldb)
        scale, keeps = (ctypes.c_float.from_address(address).value for address in (alpha, beta))
        out = matrix(C, m, n, ldc)
        out[:] = scale * (left @ right) + (keeps * out if keeps else 0)


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> FakeCublas:
    """A CuPy that is made up."""
    made = {name: ModuleType(name) for name in ("cupy", "cupy.cuda", "cupy_backends", "cupy_backends.cuda")}
    libs, found = ModuleType("cupy_backends.cuda.libs"), FakeCublas("cupy_backends.cuda.libs.cublas")
    made["cupy"].cuda, libs.cublas = made["cupy.cuda"], found  # type: ignore[attr-defined]
    made["cupy.cuda"].Stream = type("Stream", (), {"null": found.stream})  # type: ignore[attr-defined]
    for module in (*made.values(), libs, found):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return found


def test_cublas_gets_what_it_wants(cupy: FakeCublas, capsys: pytest.CaptureFixture) -> None:
    library = cublas.library()
    assert library is not None
    draw, (m, n, k) = np.random.default_rng(3), (3, 4, 5)
    for kind, beta in ((NN, 0), (NN, 1), (TN, 1), (NT, 1)):
        a = np.asfortranarray(draw.normal(size=(k, m) if kind == TN else (m, k)).astype(np.float32))
        b = np.asfortranarray(draw.normal(size=(n, k) if kind == NT else (k, n)).astype(np.float32))
        c = np.full((m, n), 2 if beta else np.nan, np.float32, order="F")
        library.multiply(kind, *(array.ctypes.data for array in (a, b, c)), m, n, k, beta)
        close(c, (a.T if kind == TN else a) @ (b.T if kind == NT else b) + 2 * beta)
    assert not cupy.stream.is_current
    cli.main(["info"])
    assert "GPU products  cuBLAS, through CuPy" in capsys.readouterr().out


def test_models_learn_by_cublas(cupy: FakeCublas) -> None:
    made = Executor(Device(), cublas.library(), 1)  # the emulated device's memory is the host's
    for found, wanted in zip(trained(Tagger, "sgd", 1, made), trained(Tagger, "sgd", 1, None), strict=True):
        close(found, wanted, 2e-5)


@pytest.mark.skipif(device.count() == 0 or cublas.modules() is None, reason="there is no GPU, or no CuPy")
@MODELS
def test_models_learn_by_cublas_on_a_gpu(make: Any) -> None:
    chosen = device.Device()
    made = gpu.Executor(chosen, cublas.library(), 1)
    for found, wanted in zip(trained(make, "adam", 2, made), trained(make, "adam", 2, None), strict=True):
        close(found, wanted, 2e-5)


def test_without_cupy_products_are_dynjits_own(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert cublas.library() is None
    cli.main(["info"])
    assert "GPU products  own kernels" in capsys.readouterr().out
