"""Where values and gradients of everything lie, parameters and graphs: in two buffers `v` and `g`.

A tensor and its gradient have the same offset.  Parameters fill the buffers from the front, each living graph owns a
span further behind.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dynjit.memory import machine_memory, release, reserve


class Buffers:
    """The two buffers of a number type."""

    def __init__(self, dtype: Any, count: int) -> None:
        self.v = reserve(count, dtype, huge=True, share=8)
        self.g = reserve(self.v.size, dtype, huge=True, share=8)
        self.size = min(self.v.size, self.g.size)


class Space:
    """Who owns which part of the buffers: parameters in front, then graphs, each in a span of its own."""

    def __init__(self) -> None:
        self.single = Buffers(np.float32, 1 << 38)
        self._double: Buffers | None = None
        self.parameter_end = self.single.size // 4
        self.span = self.single.size // 32
        # values and gradients of a graph, or of all parameters; beyond that the system would end the process
        self.most = machine_memory() // (2 * self.single.v.itemsize)
        self.free_spans = list(range(self.parameter_end, self.single.size - self.span + 1, self.span))[::-1]
        self.parameter_top = 64
        self.free_parameters: list[tuple[int, int]] = []
        self.executor: Any = None  # of a GPU, whose copy of the parameters may be newer
        self.late: list[Any] = []  # what trainers have postponed, see late.py
        self.is_shared = False  # whether forked processes have the same parameters

    @property
    def double(self) -> Buffers:
        """Buffers for float64, of the same offsets; for gradient checks."""
        if self._double is None:
            self._double = Buffers(np.float64, self.single.size)
        return self._double

    def take_span(self) -> tuple[int, int]:
        if not self.free_spans:
            raise MemoryError("too many graphs alive at once: the limit is 24")
        start = self.free_spans.pop()
        return start, start + self.span

    def give_span(self, start: int) -> None:
        release(self.single.v, start, start + self.span)
        release(self.single.g, start, start + self.span)
        self.free_spans.append(start)

    def values(self, start: int, count: int) -> np.ndarray:
        """A window of the values of parameters, to be read and changed."""
        self.settle()
        if self.executor is not None:
            self.executor.to_host(self.executor.values)
        return self.single.v[start : start + count]

    def settle(self) -> None:
        """Makes the updates of parameters that have been postponed."""
        for late in self.late:
            late.settle()

    def gradients(self, start: int, count: int) -> np.ndarray:
        """A window of the gradients of parameters, to be read and changed."""
        if self.executor is not None:
            self.executor.to_host(self.executor.gradients)
        return self.single.g[start : start + count]

    def take_parameters(self, count: int) -> int:
        """Offset of `count` zeroed elements."""
        if self.executor is not None:
            self.executor.all_to_host()
        count = -(-count // 16) * 16
        fitting = [(size, start) for start, size in self.free_parameters if size >= count]
        if fitting:  # the smallest that fits, so that a model made again and again gets the same place
            size, start = min(fitting)
            self.free_parameters.remove((start, size))
            for buffer in (self.single.v, self.single.g):
                buffer[start : start + count] = 0  # a GPU may have brought back what was there
            if size > count:
                self.free_parameters.append((start + count, size - count))
            return start
        start = self.parameter_top
        if start + count > min(self.parameter_end, self.most):
            raise MemoryError(f"no room for {count} more parameters")
        self.parameter_top += count
        return start

    def give_parameters(self, start: int, count: int) -> None:
        for window, buffer in ((self.values, self.single.v), (self.gradients, self.single.g)):
            window(start, count)[:] = 0
            release(buffer, start, start + count)
        self.free_parameters.append((start, -(-count // 16) * 16))


space = Space()
