"""What the tests of the CUDA target share: an emulated GPU for dynjit, and the same work on the CPU and on it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from ptx.device import EmulatedDevice

from dynjit import gpu, graph
from dynjit.arena import space

CAPABILITY = (8, 0)


class Device(EmulatedDevice):
    """An emulated GPU.  together: how many blocks wait for each other; 0: each level is a launch."""

    name, capability, together = "emulated", CAPABILITY, 0

    def resident_blocks(self, ptx: str) -> int:
        return self.together

    def launch(self, ptx: Any, blocks: Any, threads: Any, arguments: Sequence[Any], together: bool = False) -> None:
        if together:
            emulated = self.emulated(ptx)
            memory = [(start, start + nbytes) for start, (_, nbytes) in self.pieces.items() if nbytes]
            # the barrier is made of atomics, which order nothing for the check of races
            emulated.launch(blocks, threads, *arguments, memory=memory, cooperative=True, check_races=False)
            self.persistent += 1
        else:
            super().launch(ptx, blocks, threads, arguments)

    persistent = 0  # launches whose blocks wait for each other


@contextlib.contextmanager
def computing_on(executor: gpu.Executor | None) -> Iterator[None]:
    """The current graph and the parameters are computed by an executor; None: by the CPU."""
    space.executor = executor
    try:
        yield
    finally:
        if executor is not None:
            executor.save()
        space.executor = None
        graph.current.renew()


def close(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    scale = max(1.0, float(np.abs(expected[np.isfinite(expected)]).max(initial=0)))
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * scale)
