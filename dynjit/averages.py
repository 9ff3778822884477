"""Moving averages of parameters: often a better model than the parameters after the last update."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dynjit.errors import located
from dynjit.memory import reserve
from dynjit.parameters import Stored
from dynjit.passes import Pass, follow
from dynjit.space import space


class MovingAverage(enum.Enum):
    """Which mean of its parameters a trainer keeps; see `Trainer.moving_average`."""

    NONE = "none"
    CUMULATIVE = "cumulative"
    EXPONENTIAL = "exponential"


@dataclass
class Averages:
    """An average of a trainer's parameters, and the weights that it stands in for, at the parameters' offsets.

    beta: of an exponential average;  start: the trainer's updates before the first that counts;  count: values of each
    parameter that were averaged;  known: parameters that have an average;  is_swapped: whether the parameters hold it.
    """

    is_cumulative: bool
    beta: float
    update_freq: int
    start: int
    count: int = 0
    known: int = 0
    is_swapped: bool = False
    has_weights: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 1:
            raise ValueError(located(f"exponential_moving_average: needs a beta from 0 to below 1, got {self.beta}"))
        if self.update_freq < 1:
            raise ValueError(located(f"moving average: needs an update_freq of 1 or more, got {self.update_freq}"))
        self.average = reserve(space.parameter_end, np.float32, share=32)
        self.weights = reserve(space.parameter_end, np.float32, share=32)

    def buffers(self) -> dict[str, np.ndarray]:
        """What has to be kept with its numbers, by name."""
        return {"average": self.average} | ({"weights": self.weights} if self.has_weights else {})

    def total(self) -> float:
        """Sum of the shares that all values so far have in the average."""
        return 1.0 if self.is_cumulative else 1 - self.beta**self.count

    def after_update(self, updates: int, stored: Sequence[Stored], storage: Pass) -> None:
        """Takes the parameters' values in, if it is their turn."""
        if (updates - 1 - self.start) % self.update_freq:
            return
        for item in stored[self.known :]:  # made since: as if they had always had this value
            item.window(self.average)[:] = item.values() * np.float32(self.total())
        self.known = len(stored)
        self.count += 1
        share = 1 / self.count if self.is_cumulative else 1 - self.beta
        addresses = space.values(0, space.parameter_top).ctypes.data, self.average.ctypes.data
        storage.run(follow, addresses, [share])

    def swap_in(self, stored: Sequence[Stored], save_weights: bool, bias_correction: bool) -> None:
        """Puts the average into the parameters that have one."""
        factor = np.float32(1 / self.total() if bias_correction else 1)
        for item in stored[: self.known]:
            if save_weights:
                item.window(self.weights)[:] = item.values()
            item.values()[:] = item.window(self.average) * factor
        self.is_swapped, self.has_weights = True, save_weights

    def swap_out(self, stored: Sequence[Stored]) -> None:
        """Puts the weights back."""
        for item in stored[: self.known]:
            item.values()[:] = item.window(self.weights)
        self.is_swapped = self.has_weights = False
