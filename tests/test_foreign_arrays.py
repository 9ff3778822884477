"""Arrays in a GPU's memory, of other packages, where dynjit takes numbers: the error names them and where they lie."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import dynjit as dy
from dynjit import dlpack


class Cupy:
    """An array as CuPy has them."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": (2,), "typestr": "<f4", "data": (1 << 40, False), "version": 3}

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        raise TypeError("implicit conversion to a NumPy array is not allowed")


class Torch(Cupy):
    """An array as PyTorch has them on its second GPU."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, 1


class Bare:
    """What has the interface and nothing else."""

    __cuda_array_interface__ = {"shape": (2,), "typestr": "<f4", "data": (1 << 40, False), "version": 3}


class Vulkan:
    """What only DLPack knows."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return 7, 0


collection = dy.ParameterCollection()
p, table = collection.add_parameters((2,), init=3.0), collection.add_lookup_parameters((3, 2), init=3.0)
TAKERS: dict[str, Callable[[Any], Any]] = {
    "inputTensor": dy.inputTensor,
    "inputVector": dy.inputVector,
    "sparse_inputTensor": lambda array: dy.sparse_inputTensor([[0, 1]], array, (2,)),
    "set": lambda array: dy.inputVector([1, 2]).set(array),
    "set_value": p.set_value,
    "init_row": lambda array: table.init_row(1, array),
    "init_from_array": table.init_from_array,
    "parameters_from_numpy": collection.parameters_from_numpy,
    "NumpyInitializer": dy.NumpyInitializer,
}


@pytest.mark.parametrize(
    ("array", "place"),
    [
        (Cupy(), "Cupy on a GPU"),
        (Torch(), "Torch on GPU:1"),
        (Bare(), "Bare on a GPU"),
        (Vulkan(), "Vulkan on a device of DLPack's kind 7"),
        (dlpack.capsule_of(1 << 40, 1, (2,), (1,), None), "PyCapsule on GPU:1"),
    ],
    ids=["cupy", "torch", "bare", "vulkan", "capsule"],
)
@pytest.mark.parametrize("name", TAKERS)
def test_arrays_of_other_devices_are_named(name: str, array: Any, place: str) -> None:
    with pytest.raises(
        TypeError, match=f"{name}: needs numbers in the host's memory, got {place}: copy it there first"
    ):
        TAKERS[name](array)
    assert p.as_array().tolist() == [3, 3]
    assert table.as_array().tolist() == [[3, 3]] * 3
    assert dy.cmult(p, dy.ones(2)).value() == [3, 3]


def test_lists_with_them_too() -> None:
    with pytest.raises(TypeError, match="inputTensor: needs numbers in the host's memory, got Cupy on a GPU"):
        dy.inputTensor([Cupy(), Cupy()])


def test_values_of_the_cpu_are_handed_to_the_cpu() -> None:
    tensor = dy.inputVector([1, 2]).tensor_value()
    assert not hasattr(tensor, "__cuda_array_interface__")
    assert np.from_dlpack(tensor).tolist() == [1, 2]
    with pytest.raises(BufferError, match="Tensor: needs the CPU, where its memory is, got GPU:0"):
        tensor.__dlpack__(dl_device=(dlpack.CUDA, 0))
