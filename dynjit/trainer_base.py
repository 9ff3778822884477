"""What all trainers share: one pass over flat storage per update; of lookup tables, over the rows that were used."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from dynjit import cudapasses
from dynjit.averages import Averages, MovingAverage
from dynjit.errors import GradientError, ModelFileError, located
from dynjit.jit import Compiled
from dynjit.late import LateRows, compiled_steps, has_room, settle_others
from dynjit.memory import reserve
from dynjit.models import ParameterCollection
from dynjit.parameters import LookupParameters, parameter_changes
from dynjit.passes import SPAN, Pass, shrink, spans_of, squared_norm
from dynjit.shape import as_finite, as_integer, as_integers, as_number
from dynjit.space import space
from dynjit.textformat import Block
from dynjit.trainer_state import checked_numbers, matched, read_state, write_state


class Trainer:
    """Base of all trainers: clipping, the learning rate, frozen parameters, sparse updates.

    m: the collection whose parameters are trained.  Clipping is on, at a global gradient norm of 5.
    """

    rule: Compiled
    late_rule: Compiled | None = None  # the rule's steps for rows that are not changed in time
    moments = 0
    by_columns = False  # whether the rule sees one column at a time

    def __init_subclass__(cls) -> None:
        if cls.moments and not cls.by_columns:
            cls.late_rule = compiled_steps(cls.rule.function.step)  # type: ignore[attr-defined]

    def __init__(self, m: ParameterCollection, learning_rate: float) -> None:
        if not hasattr(self, "rule"):
            raise TypeError(located("Trainer: needs one of its subclasses"))
        if not isinstance(m, ParameterCollection):
            raise TypeError(located(f"{type(self).__name__}: needs a ParameterCollection, got {type(m).__name__}"))
        self.model = m
        self.learning_rate = learning_rate
        self.threshold = 5.0
        self.sparse = True
        self.clips = self.clips_since_status = self.updates = self.updates_since_status = 0
        self.averages: Averages | None = None
        self._allocate()

    def _allocate(self) -> None:
        self._buffers = [reserve(space.parameter_end, np.float32, share=32) for _ in range(self.moments)]
        unused = space.single.v
        arrays = [space.single.v, space.single.g, *self._buffers, *[unused] * (3 - self.moments)]
        self.addresses = [array.ctypes.data for array in arrays]
        self._known = -1
        self._pass = Pass(np.zeros(0, SPAN))
        self._late: LateRows | None = None

    @property
    def buffers(self) -> list[np.ndarray]:
        """The moments, to be read and changed."""
        if self._late:
            self._late.settle(moments=True)
        for buffer in self._buffers if space.executor is not None else ():
            space.executor.to_host(space.executor.moment(buffer))
        return self._buffers

    def _share(self, name: str, value: float) -> float:
        """A share of 0 to below 1, such as a beta."""
        number = as_number(self.whoami(), value)
        if not 0 <= number < 1:
            raise ValueError(located(f"{self.whoami()}: needs a {name} from 0 to below 1, got {value}"))
        return number

    def _eps(self, eps: float) -> float:
        """What is added to a divisor."""
        number = as_finite(self.whoami(), eps)
        if number < 0:
            raise ValueError(located(f"{self.whoami()}: needs an eps of 0 or more, got {eps}"))
        return number

    # ---- the learning rate ----

    @property
    def learning_rate(self) -> float:
        """The present learning rate."""
        return self._rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self._rate = as_finite(f"{self.whoami()}.learning_rate", value)

    def set_learning_rate(self, value: float) -> None:
        """Sets the learning rate; raises TypeError or ValueError unless it is a finite number."""
        self.learning_rate = value

    def restart(self, learning_rate: float | None = None) -> None:
        """Forgets all moments; sets the learning rate if one is given.  The number of updates goes on."""
        if learning_rate is not None:
            self.learning_rate = learning_rate
        for buffer in self.buffers:
            for item in self.model.stored:
                item.window(buffer)[:] = 0

    # ---- clipping ----

    def set_clip_threshold(self, thr: float) -> None:
        """Scales gradients down when their global norm exceeds `thr`; 0 or less: never."""
        number = as_number("set_clip_threshold", thr)
        if math.isnan(number):
            raise ValueError(located("set_clip_threshold: needs a number, got nan"))
        self.threshold = number if number > 0 else 0.0

    def get_clip_threshold(self) -> float:
        """The threshold, 0 when clipping is off."""
        return self.threshold

    def set_sparse_updates(self, su: bool) -> None:
        """Whether only rows of lookup tables that were used since the last update are updated (the default)."""
        self.sparse = bool(su)

    # ---- updating ----

    def storage(self) -> Pass:
        """What is updated, and what is frozen."""
        if self._known != parameter_changes[0]:
            self._known = parameter_changes[0]
            self._pass = Pass(spans_of(self.model.stored, self.by_columns))
        return self._pass

    def norm(self) -> float:
        """Global norm of the gradients, those of frozen parameters included (as in DyNet)."""
        if space.executor is not None:
            return math.sqrt(cudapasses.squared_norm(space.executor, self.storage().spans, self.sparse))
        total = sum(self.storage().run(squared_norm, self.addresses[1:2], sparse=self._visits_marked))
        return math.sqrt(total) if total >= 0 else math.nan

    def gradient_scale(self) -> float:
        """What gradients are multiplied by: below 1 when clipping.  Raises GradientError for NaN and infinity."""
        norm = self.norm()
        if not math.isfinite(norm):
            raise GradientError(located(
                f"update: Magnitude of gradient is bad: {norm}; no parameter was changed "
                f"(the first to look at: {self._bad_parameter()}); clear the gradients with reset_gradient()"
            ))  # fmt: skip
        if self.threshold > 0 and norm > self.threshold:
            self.clips += 1
            self.clips_since_status += 1
            return self.threshold / norm
        return 1.0

    def _bad_parameter(self) -> str:
        bad = (item.name() for item in self.model.stored if not np.isfinite(item.gradients()).all())
        return next(bad, "none alone")

    def reset_gradient(self) -> None:
        """Drops all gradients that wait for an update."""
        for item in self.model.stored:
            item.gradients()[:] = 0
            if isinstance(item, LookupParameters):
                item.marks()[:] = 0

    def update(self) -> None:
        """Changes the parameters by their gradients, and sets those to zero.

        Raises GradientError if the gradients' norm is NaN or infinite, RuntimeError while the parameters hold their
        moving average; the parameters are then as before.
        """
        if self.averages and self.averages.is_swapped:
            raise RuntimeError(located(
                "update: needs the weights, but the parameters hold their moving average; "
                "call swap_params_to_weights() first"
            ))  # fmt: skip
        late = self._late_rows()
        settle_others(late, self.model.stored)
        scale = self.gradient_scale()
        self.updates += 1
        self.updates_since_status += 1
        storage = self.storage()
        numbers = scale, *self.numbers()
        decay = self.model.root.weight_decay
        if space.executor is not None:
            cudapasses.update(
                space.executor,
                self.rule.function.step,  # type: ignore[attr-defined]
                self.by_columns,
                self._buffers,
                storage.spans,
                self.sparse,
                np.array(numbers, np.float32),
                1 - decay,
            )
        else:
            if late:
                late.prepare()
            storage.run(self.rule, self.addresses, numbers, self._visits_marked)
            if late:
                late.add(numbers)
            if decay > 0:
                storage.run(shrink, self.addresses[:1], [1 - decay])
        if self.averages:
            self.averages.after_update(self.updates, self.model.stored, storage)

    def _late_rows(self) -> LateRows | None:
        """What lets rows of lookup tables take dense updates later; None where they must take them in time."""
        if self._late is None and (self.sparse or self.late_rule is None):
            return None
        tables = [item for item in self.model.stored if isinstance(item, LookupParameters)]
        is_plain = space.executor is None and not space.is_shared
        is_plain = is_plain and not self.averages and self.model.root.weight_decay == 0
        may_wait = not self.sparse and self.late_rule is not None and is_plain and all(t._updated for t in tables)
        if self._late and not (may_wait and self._late in space.late and self._late.tables == tables):
            self._late.close()
            self._late = None
        if may_wait and self._late is None and has_room(tables):
            self._late = LateRows(self.late_rule, tables, self.addresses, self.updates == 0)  # type: ignore[arg-type]
            weakref.finalize(self, self._late.close).atexit = False
        return self._late

    @property
    def _visits_marked(self) -> bool:
        """Whether a pass goes over the marked rows of tables only, the others having no gradient or taking it later."""
        return self.sparse or self._late is not None

    def numbers(self) -> tuple[float, ...]:
        """The rule's own numbers of this update."""
        return (self._rate,)

    def update_epoch(self, r: float = 1.0) -> None:
        """Does nothing, as in DyNet; set `learning_rate` instead."""

    def update_subset(self, updated_params: Sequence[int], updated_lookups: Sequence[int]) -> None:
        """Updates only the parameters and tables with these positions in the collection's lists.

        The others count in the norm, and keep their gradients.  Raises IndexError for positions that are not there.
        """
        chosen: set[int] = set()
        for positions, stored, what in (
            (updated_params, self.model.parameters_list(), "parameters"),
            (updated_lookups, self.model.lookup_parameters_list(), "lookup tables"),
        ):
            for position in as_integers("update_subset", positions):
                if not 0 <= position < len(stored):
                    raise IndexError(located(
                        f"update_subset: needs positions from 0 to {len(stored) - 1} of {what}, got {position}"
                    ))  # fmt: skip
                chosen.add(id(stored[position]))
        kept = [(item, item._updated) for item in self.model.stored]
        try:
            for item, _ in kept:
                item.set_updated(item._updated and id(item) in chosen)
            self.update()
        finally:
            for item, updated in kept:
                item.set_updated(updated)

    # ---- moving averages ----

    def exponential_moving_average(self, beta: float = 0.999, update_freq: int = 1) -> None:
        """Keeps from now on a moving average a of all parameters: a = beta * a + (1 - beta) * w, a being 0 at first.

        beta: 0 to below 1;  update_freq: at every such update, the next one included.
        An average that was kept before is forgotten.  Raises ValueError for other numbers, and RuntimeError while the
        parameters hold an average.
        """
        self._average(False, as_number("exponential_moving_average", beta), update_freq)

    def cumulative_moving_average(self, update_freq: int = 1) -> None:
        """Keeps from now on the mean of the values that all parameters have had; see `exponential_moving_average`."""
        self._average(True, 0.0, update_freq)

    def _average(self, is_cumulative: bool, beta: float, update_freq: int) -> None:
        if self.averages and self.averages.is_swapped:
            raise RuntimeError(located(
                "moving average: needs the weights, but the parameters hold their moving average; "
                "call swap_params_to_weights() first"
            ))  # fmt: skip
        self.averages = Averages(is_cumulative, beta, as_integer("moving average", update_freq), self.updates)

    def moving_average(self) -> MovingAverage:
        """Which average is kept."""
        if self.averages is None:
            return MovingAverage.NONE
        return MovingAverage.CUMULATIVE if self.averages.is_cumulative else MovingAverage.EXPONENTIAL

    def swap_params_to_moving_average(self, save_weights: bool = True, bias_correction: bool = False) -> None:
        """Puts their moving average into the parameters; `swap_params_to_weights` undoes it, if `save_weights`.

        bias_correction: divides an exponential average by the sum of its shares, 1 - beta**n after n values, because it
        starts at 0.  Raises RuntimeError if there is no average yet, or the parameters hold it already.
        """
        averages = self.averages
        if averages is None or not averages.count:
            raise RuntimeError(located(
                "swap_params_to_moving_average: needs exponential_moving_average() or cumulative_moving_average(), "
                "and an update after it"
            ))  # fmt: skip
        if averages.is_swapped:
            raise RuntimeError(located("swap_params_to_moving_average: the parameters hold the average already"))
        averages.swap_in(self.model.stored, save_weights, bias_correction)

    def swap_params_to_weights(self) -> None:
        """Puts the weights back that `swap_params_to_moving_average` has saved; does nothing if they are in place.

        Raises RuntimeError if they were not saved.
        """
        averages = self.averages
        if averages is None or not averages.is_swapped:
            return
        if not averages.has_weights:
            raise RuntimeError(located("swap_params_to_weights: the weights were not saved"))
        averages.swap_out(self.model.stored)

    # ---- state: files, pickles and copies ----

    def _settings(self) -> dict[str, bool | int | float]:
        """All numbers that tell this trainer from a new one."""
        return {"learning_rate": self._rate} | {
            name: value for name, value in vars(self).items() if name[0] != "_" and isinstance(value, (int, float))
        }

    def _state(self) -> dict[str, np.ndarray]:
        """All buffers that tell this trainer from a new one."""
        moments = {f"moment{k}": buffer for k, buffer in enumerate(self.buffers)}
        return moments | (self.averages.buffers() if self.averages else {})

    def save(self, fname: str | os.PathLike[str]) -> None:
        """Writes settings, counts, moments and moving average to a file; the old file stays if that fails.

        With the parameters (`ParameterCollection.save`) it is all that is needed to go on as if nothing had happened.
        """
        blocks = (
            Block(item.kind, f"/{name}{item.name()}", item.shape_in_graph.dims, item.window(buffer))
            for name, buffer in self._state().items() for item in self.model.in_file_order()
        )  # fmt: skip
        average = dataclasses.asdict(self.averages) if self.averages else None
        write_state(fname, self.whoami(), {"settings": self._settings(), "average": average}, blocks)

    def populate(self, fname: str | os.PathLike[str]) -> None:
        """Takes all that `save` has written: the k-th parameter of the file is that of the collection.

        Raises ModelFileError, and changes nothing, if the file cannot be read, is of another trainer's class, or of
        parameters of other shapes.
        """
        numbers, blocks = read_state(fname, self.whoami())
        settings = checked_numbers(fname, numbers["settings"], self._settings())
        averages = None
        if numbers["average"] is not None:
            own = dataclasses.asdict(self.averages or Averages(True, 0.0, 1, 0))
            try:
                averages = Averages(**checked_numbers(fname, numbers["average"], own))
            except ValueError as error:
                raise ModelFileError(f"{os.fspath(fname)}: {error}") from None
        names = [f"moment{k}" for k in range(self.moments)] + [*(averages.buffers() if averages else ())]
        found = matched(fname, blocks, names, self.model.in_file_order())
        for name, value in settings.items():
            setattr(self, "_rate" if name == "learning_rate" else name, value)
        self.averages = averages
        buffers = self._state()
        for name, item, block in found:
            item.window(buffers[name])[:] = block.values

    def __getstate__(self) -> dict[str, Any]:
        state = {
            name: value for name, value in vars(self).items()
            if name not in ("_buffers", "addresses", "averages", "_pass", "_known", "_late")
        }  # fmt: skip
        state["average"] = dataclasses.asdict(self.averages) if self.averages else None
        stored = self.model.stored
        state["contents"] = [[item.window(buffer).copy() for item in stored] for buffer in self._state().values()]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        average, contents = state.pop("average"), state.pop("contents")
        vars(self).update(state)
        self.averages = Averages(**average) if average else None
        self._allocate()
        for buffer, windows in zip(self._state().values(), contents):
            for item, window in zip(self.model.stored, windows):
                item.window(buffer)[:] = window

    # ---- reporting ----

    def status(self) -> None:
        """Writes the learning rate, clips and updates since the last call to stderr."""
        sys.stderr.write(f"[lr={self._rate:g} clips={self.clips_since_status} updates={self.updates_since_status}] ")
        self.clips_since_status = self.updates_since_status = 0

    def whoami(self) -> str:
        """The class's name."""
        return type(self).__name__

    def __repr__(self) -> str:
        return f"{self.whoami()} of {self.model.name()} (learning rate {self._rate:g}, {self.updates} updates)"
