"""An emulated GPU for dynjit."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from ptx.device import EmulatedDevice

from dynjit import cudakernels, gpu, op

CAPABILITY = (8, 0)
EACH_ITS_OWN = "each operator's own kernel"
PROGRAM, TABLE, ITEMS, LEVEL = 18, 28, 29, 30  # places of a launch's arguments


@functools.cache
def own_kernel(code: int) -> str:
    """The kernel of an operator alone, by its code."""
    return cudakernels.program_ptx(cudakernels.own_pairs(code), CAPABILITY)


class Executor(gpu.Executor):
    """As users' executors; but, unless `pairs` asks for one kernel, each operator is run by its own kernel.

    So every kernel is compiled once, whatever the tests put together.
    """

    def load(self) -> str:
        return EACH_ITS_OWN if self.pairs == {cudakernels.GATHER, cudakernels.SCATTER} else super().load()


class Device(EmulatedDevice):
    """An emulated GPU.  together: how many blocks wait for each other; 0: each level is a launch."""

    name, number, capability, together = "emulated", 0, CAPABILITY, 0

    def resident_blocks(self, ptx: str) -> int:
        return self.together

    def launch(self, ptx: Any, blocks: Any, threads: Any, arguments: Sequence[Any], together: bool = False) -> None:
        if together:
            emulated = self.emulated(ptx)
            memory = [(start, start + nbytes) for start, (_, nbytes) in self.pieces.items() if nbytes]
            # the barrier is made of atomics, which order nothing for the check of races
            emulated.launch(blocks, threads, *arguments, memory=memory, cooperative=True, check_races=False)
            self.persistent += 1
        elif ptx == EACH_ITS_OWN:
            self.launch_apart(blocks, threads, arguments)
        else:
            super().launch(ptx, blocks, threads, arguments)

    def launch_apart(self, blocks: int, threads: int, arguments: Sequence[int]) -> None:
        """Runs the work items of a level by the kernels of their operators, one after another; counts as one launch."""
        address, table, items = arguments[PROGRAM], arguments[TABLE] + arguments[LEVEL], arguments[ITEMS]
        program = self.window(address, 8 * arguments[PROGRAM - 2]).view(np.int64)
        first, behind = (int(number) for number in program[table : table + 2])
        work = program[items + 3 * first : items + 3 * behind].reshape(-1, 3)
        owners = program[work[:, 0]] // op.SLOTS
        work[:] = work[np.argsort(owners, kind="stable")]
        launches = len(self.launches)
        for owner, count in zip(*np.unique(owners, return_counts=True), strict=True):
            program[table : table + 2] = first, first + count
            super().launch(own_kernel(int(owner)), min(blocks, int(count)), threads, arguments)
            first += int(count)
        program[table : table + 2] = behind - len(work), behind
        del self.launches[launches + 1 :]

    persistent = 0  # launches whose blocks wait for each other
