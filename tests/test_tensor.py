"""Values that can be searched and sampled from, and expressions as NumPy arrays."""

from __future__ import annotations

import numpy as np
import pytest

import dynjit as dy

MATRIX = np.array([[1.0, 5, 3], [4, 2, 6]])
BATCH = np.arange(12.0).reshape(2, 3, 2) / 10


def tensor(array: object, batched: bool = False) -> dy.Tensor:
    return dy.inputTensor(np.array(array, float), batched=batched).tensor_value()


def test_as_numpy_is_a_copy_in_index_order() -> None:
    found = tensor(BATCH, batched=True)
    np.testing.assert_allclose(found.as_numpy(), BATCH, rtol=1e-6)
    assert found.as_numpy().dtype == np.float64
    found.as_numpy()[:] = 7
    np.testing.assert_allclose(np.asarray(found), BATCH, rtol=1e-6)
    assert repr(tensor(MATRIX)) == "Tensor:float (2, 3)"
    assert repr(tensor(MATRIX).argmax()) == "Tensor:int (1, 3)"


def test_it_outlives_its_graph() -> None:
    found = tensor(MATRIX)
    dy.renew_cg()
    tensor(2 * MATRIX)
    np.testing.assert_array_equal(found.as_numpy(), MATRIX)


# what DyNet 2.1 gives for these
def test_argmax() -> None:
    np.testing.assert_array_equal(tensor(MATRIX).argmax().as_numpy(), [[1, 0, 1]])
    np.testing.assert_array_equal(tensor(MATRIX).argmax(dim=1).as_numpy(), [[1], [2]])
    assert tensor(MATRIX).argmax().as_numpy().dtype == np.int64
    assert tensor(BATCH, batched=True).argmax().as_numpy().shape == (1, 3, 2)
    assert tensor(BATCH, batched=True).argmax(1).as_numpy().tolist() == [[[2, 2]], [[2, 2]]]
    assert tensor([1, 7, 3, 7]).argmax().as_numpy().tolist() == [1]


def test_topk() -> None:
    values, positions = tensor(MATRIX).topk(dim=1, num=2)
    np.testing.assert_array_equal(values.as_numpy(), [[5, 3], [6, 4]])
    np.testing.assert_array_equal(positions.as_numpy(), [[1, 2], [2, 0]])
    values, positions = tensor([1, 7, 3, 3]).topk(num=3)
    assert values.as_numpy().tolist() == [7, 3, 3]
    assert positions.as_numpy().tolist() == [1, 2, 3]
    assert [part.as_numpy().shape for part in tensor(BATCH, batched=True).topk(1, 2)] == [(2, 2, 2)] * 2


def test_sampling_follows_the_distribution() -> None:
    probabilities = np.array([0.1, 0.6, 0.3])
    found = dy.inputVector(np.log(probabilities)).tensor_value()
    drawn = [found.categorical_sample_log_prob().as_numpy()[0] for _ in range(2000)]
    # the standard deviation of a frequency is at most 0.011
    np.testing.assert_allclose(np.bincount(drawn, minlength=3) / 2000, probabilities, atol=0.05)
    dy.reset_random_seed(3)
    first = [int(found.categorical_sample_log_prob().as_numpy()[0]) for _ in range(20)]
    dy.reset_random_seed(3)
    assert first == [int(found.categorical_sample_log_prob().as_numpy()[0]) for _ in range(20)]
    assert tensor(MATRIX).categorical_sample_log_prob(dim=1).as_numpy().shape == (2, 1)
    certain = tensor([[0, -np.inf], [-np.inf, 0]]).categorical_sample_log_prob()
    np.testing.assert_array_equal(certain.as_numpy(), [[0, 1]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.argmax(2), r"argmax: needs an axis from 0 to 1, got 2"),
        (lambda t: t.argmax(-1), r"argmax: needs an axis from 0 to 1, got -1"),
        (lambda t: t.argmax(0, 2), r"argmax: needs num=1"),
        (lambda t: t.categorical_sample_log_prob(5), r"categorical_sample_log_prob: needs an axis"),
        (lambda t: t.categorical_sample_log_prob(0, 2), r"categorical_sample_log_prob: needs num=1"),
        (lambda t: t.topk(2), r"topk: needs an axis from 0 to 1, got 2"),
        (lambda t: t.topk(0, 3), r"topk: needs num from 1 to 2, the size of axis 0, got 3"),
        (lambda t: t.topk(0, 0), r"topk: needs num from 1 to 2"),
    ],
)
def test_errors(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call(tensor(MATRIX))
    with pytest.raises(ValueError, match=message):
        call(tensor(np.stack([MATRIX, MATRIX], -1), batched=True))


# ---- expressions and NumPy -------------------------------------------------------------------------------------------


def test_expressions_as_arrays() -> None:
    np.testing.assert_array_equal(np.asarray(dy.inputTensor(MATRIX)), MATRIX)
    assert np.asarray(dy.inputTensor(MATRIX), np.float32).dtype == np.float32


@pytest.mark.parametrize("number", [np.float64(2), np.float32(2), np.int64(2), np.array(2.0)])
def test_numpy_numbers_leave_operators_to_the_expression(number) -> None:
    x = dy.inputVector([1, 4])
    for found, expected in ((number * x, [2, 8]), (number + x, [3, 6]), (number - x, [1, -2]), (number / x, [2, 0.5]),
                            (x * number, [2, 8]), (number**x, [2, 16])):  # fmt: skip
        assert isinstance(found, dy.Expression)
        assert found.value() == pytest.approx(expected)


def test_a_number_to_the_power_of_an_expression() -> None:
    x = dy.inputVector([1, 0, -1])
    y = dy.sum_elems(3**x)
    y.backward(full=True)
    assert y.value() == pytest.approx(13 / 3)
    np.testing.assert_allclose(x.gradient(), np.log(3) * 3.0 ** np.array([1, 0, -1]), rtol=1e-5)
    with pytest.raises(ValueError, match=r"\*\*: needs a base above 0, got -2"):
        (-2) ** x
    with pytest.raises(TypeError, match="needs an expression or a number, got str"):
        "2" ** x


def test_dlpack() -> None:
    found = tensor(BATCH, batched=True)
    assert found.__dlpack_device__() == (1, 0)
    np.testing.assert_array_equal(np.from_dlpack(found), found.as_numpy())
    np.testing.assert_array_equal(np.from_dlpack(found.argmax()), found.argmax().as_numpy())
    with pytest.raises(TypeError, match="Tensor: needs stream=None on the CPU, got 1"):
        found.__dlpack__(stream=1)
