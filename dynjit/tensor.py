"""Values of expressions as arrays that can be searched and sampled from."""

from __future__ import annotations

from typing import Any

import numpy as np

from dynjit import dlpack
from dynjit.arena import random_state
from dynjit.errors import StaleExpressionError, located
from dynjit.shape import as_integer
from dynjit.space import space


class Tensor:
    """The value of an expression (`tensor_value()`), or positions found in one; mini-batch last.

    A copy: it stays as it is when the graph is renewed.
    """

    __slots__ = ("array", "is_batched")

    def __init__(self, array: Any, is_batched: bool = False) -> None:
        self.array, self.is_batched = np.asarray(array), is_batched

    def as_numpy(self) -> np.ndarray:
        """A copy as an array: float64, of positions int64; the mini-batch is the last axis if there is one."""
        return self.array.copy()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.array.astype(dtype or self.array.dtype)

    def __dlpack__(self, *, stream: Any = None, **options: Any) -> Any:
        """A DLPack capsule, as `np.from_dlpack` and `torch.from_dlpack` ask for it.

        Raises TypeError for a stream: there are none on the CPU; BufferError for another device.
        """
        if stream is not None:
            raise TypeError(located(f"Tensor: needs stream=None on the CPU, got {stream!r}"))
        self._refuse(options.get("dl_device"))
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        """(kind of the device, number) in DLPack's numbers: the CPU."""
        return dlpack.CPU, 0

    def _refuse(self, device: tuple[int, int] | None) -> None:
        """Raises BufferError for another device than its own."""
        own = self.__dlpack_device__()
        if device is not None and tuple(device) != own:
            places = (dlpack.device_name(*place) for place in (own, device))
            raise BufferError(located("Tensor: needs {}, where its memory is, got {}".format(*places)))

    def _axis(self, operator: str, dim: int) -> int:
        axes = self.array.ndim - self.is_batched
        if not 0 <= as_integer(operator, dim) < axes:
            raise ValueError(located(f"{operator}: needs an axis from 0 to {axes - 1}, got {dim}"))
        return int(dim)

    def _one(self, operator: str, num: int) -> None:
        if num != 1:
            raise ValueError(located(f"{operator}: needs num=1 (more are not supported; see topk), got {num}"))

    def argmax(self, dim: int = 0, num: int = 1) -> Tensor:
        """Position of the largest element along an axis, which stays with size 1; of equal ones the first.

        Raises ValueError for an axis that is not there, and unless num is 1.
        """
        axis = self._axis("argmax", dim)
        self._one("argmax", num)
        return Tensor(np.argmax(self.array, axis=axis, keepdims=True).astype(np.int64), self.is_batched)

    def categorical_sample_log_prob(self, dim: int = 0, num: int = 1) -> Tensor:
        """A position along an axis, drawn with probability exp(x) up to a common factor; the axis stays with size 1.

        Source: Gumbel 1954; argmax of x plus Gumbel noise.
        Raises ValueError for an axis that is not there, and unless num is 1.
        """
        self._axis("categorical_sample_log_prob", dim)
        self._one("categorical_sample_log_prob", num)
        generator = np.random.default_rng(random_state.tolist())
        random_state[1] += 1
        return Tensor(self.array + generator.gumbel(size=self.array.shape), self.is_batched).argmax(dim)

    def topk(self, dim: int = 0, num: int = 1) -> list[Tensor]:
        """[values, positions] of the `num` largest elements along an axis, largest first; of equal ones the first.

        Raises ValueError for an axis that is not there, and for more elements than it has.
        """
        axis = self._axis("topk", dim)
        size = self.array.shape[axis]
        if not 1 <= as_integer("topk", num) <= size:
            raise ValueError(located(f"topk: needs num from 1 to {size}, the size of axis {dim}, got {num}"))
        order = np.argsort(-self.array, axis=axis, kind="stable").take(range(num), axis=axis).astype(np.int64)
        return [Tensor(found, self.is_batched) for found in (np.take_along_axis(self.array, order, axis), order)]

    def __repr__(self) -> str:
        kind = "int" if self.array.dtype.kind == "i" else "float"
        return f"Tensor:{kind} {self.array.shape}"


class DeviceTensor(Tensor):
    """The value of an expression on a GPU: read there by CuPy and PyTorch, with no copy, while it is there.

    `cupy.asarray(t)`, `torch.as_tensor(t, device="cuda")` and `torch.from_dlpack(t)` take the memory as it is, which
    belongs to the graph.
    """

    __slots__ = ("address", "graph", "number", "version")

    def __init__(self, graph: Any, number: int) -> None:
        self.graph, self.number, self.version = graph, number, graph.version()
        self.address = space.executor.address(graph, int(graph.nodes[number]["value"]))
        self.is_batched = graph.shape(number).batch > 1

    def _check(self) -> None:
        executor, start = space.executor, int(self.graph.nodes[self.number]["value"])
        if (
            executor is None or self.version != self.graph.version()
            or executor.address(self.graph, start) != self.address
        ):  # fmt: skip
            raise StaleExpressionError(located("Tensor: needs a graph that is still on the GPU and was not renewed"))

    @property
    def array(self) -> Any:  # type: ignore[override]
        """The value as a float64 array."""
        self._check()
        shape = self.graph.shape(self.number)
        return self.graph.value(self.number).astype(np.float64).reshape(self._dims(shape), order="F")

    @staticmethod
    def _dims(shape: Any) -> tuple[int, ...]:
        return (shape.dims if shape.batch == 1 else (*shape.dims, shape.batch)) or (1,)

    @property
    def _place(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Its dimensions, and elements from one to the next along each."""
        dims = self._dims(self.graph.shape(self.number))
        return dims, tuple(np.cumprod([1, *dims[:-1]]).tolist())

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Where the value lies, for CuPy and PyTorch (version 3); StaleExpressionError if it is gone."""
        self._check()
        dims, steps = self._place
        strides = tuple(4 * step for step in steps)
        # stream 1 is the driver's default stream, on which all is computed
        return {
            "shape": dims, "strides": strides, "typestr": "<f4", "data": (self.address, False), "version": 3,
            "stream": 1,
        }  # fmt: skip

    def __dlpack__(self, *, stream: Any = None, **options: Any) -> Any:
        """A DLPack capsule of the memory as it is, which belongs to the graph.

        stream: -1: do not wait for what is being computed.  dl_device, copy: as in the array API.
        Raises StaleExpressionError if the value is gone, BufferError for a copy or another device.
        """
        self._check()
        self._refuse(options.get("dl_device"))
        if options.get("copy"):
            raise BufferError(located("Tensor: needs to be taken as it is, got a request for a copy"))
        if stream != -1:
            space.executor.device.wait()
        return dlpack.capsule_of(self.address, space.executor.device.number, *self._place, self)

    def __dlpack_device__(self) -> tuple[int, int]:
        """(kind of the device, number) in DLPack's numbers: CUDA, and the number of the GPU."""
        self._check()
        return dlpack.CUDA, space.executor.device.number
