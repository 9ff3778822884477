"""Trainers: one pass over flat storage per update; of lookup tables, over the rows that were used.

Parameters that were made one after another lie end to end, so that a trainer has few spans to go over.  Its moments lie
in buffers of its own at the parameters' offsets.  Each rule is a function of one window of values; the loops exist once.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import numpy as np

from dynjit.arena import float32s, int64s, space
from dynjit.errors import GradientError, located
from dynjit.jit import Compiled, add_entry, entry, flush_denormals, helper, set_floating_point_mode
from dynjit.memory import reserve
from dynjit.parameters import LookupParameters, ParameterCollection, Parameters, Stored
from dynjit.scalars import ONE, ZERO


def compiled_rule(step: Callable) -> Compiled:
    """The update of a span, or of a table's marked rows, by `step(p, g, a, b, c, numbers)` over windows.

    p: values; g: gradients; a, b, c: moments; numbers: (gradient scale, shrinking of values, rule's own ...).
    """
    step = helper(step)

    def update(buffers, start, item, rows, marks, numbers):  # type: ignore[no-untyped-def]
        # buffers: addresses of values, gradients and three moments;  marks: offset of the rows' marks, or -1
        bases = int64s(buffers)
        values, gradients, settings = float32s(bases[0]), float32s(bases[1]), float32s(numbers)
        first, second, third = float32s(bases[2]), float32s(bases[3]), float32s(bases[4])
        mode = flush_denormals()
        for row in range(rows):
            if marks >= 0:
                if gradients[marks + row] == ZERO:
                    continue
                gradients[marks + row] = ZERO
            at = start + row * item
            p, g = values[at : at + item], gradients[at : at + item]
            step(p, g, first[at : at + item], second[at : at + item], third[at : at + item], settings)
            for i in range(item):
                g[i] = ZERO
        set_floating_point_mode(mode)

    update.__name__ = update.__qualname__ = step.__name__ + "_update"
    return add_entry(update, "void(int64, int64, int64, int64, int64, int64)")


@entry("float64(int64, int64, int64, int64, int64)")
def squared_sum(gradients, start, item, rows, marks):  # type: ignore[no-untyped-def]
    """Sum of the squares of a span's gradients, or of those of a table's marked rows."""
    g = float32s(gradients)
    total = 0.0
    for row in range(rows):
        if marks < 0 or g[marks + row] != ZERO:
            window = g[start + row * item : start + (row + 1) * item]
            part = ZERO
            for i in range(item):
                part += window[i] * window[i]
            total += part
    return total


@entry("void(int64, int64, int64, float32)")
def shrink(values, start, count, factor):  # type: ignore[no-untyped-def]
    """Multiplies values by a factor: weight decay."""
    p = float32s(values)[start : start + count]
    for i in range(count):
        p[i] *= factor


PIECE = 4096  # elements of a dense span that are worked on together, while they are in the first-level cache


class Trainer:
    """Base of all trainers: clipping, the learning rate, frozen parameters, sparse updates.

    m: the collection whose parameters are trained.  Clipping is on, at a global gradient norm of 5.
    """

    rule: Compiled
    moments = 0

    def __init__(self, m: ParameterCollection, learning_rate: float) -> None:
        if not isinstance(m, ParameterCollection):
            raise TypeError(located(f"{type(self).__name__}: needs a ParameterCollection, got {type(m).__name__}"))
        self.model = m
        self._rate = self._first_rate = float(learning_rate)
        self.threshold = 5.0
        self.sparse = True
        self.clips = self.clips_since_status = self.updates = self.updates_since_status = 0
        self.buffers = [reserve(space.parameter_end, np.float32) for _ in range(self.moments)]
        unused = space.single.v
        arrays = [space.single.v, space.single.g, *self.buffers, *[unused] * (3 - self.moments)]
        self.addresses = np.array([array.ctypes.data for array in arrays], np.int64)
        self._known: tuple[int, int] = (-1, -1)
        self._spans: list[tuple[int, int, int, int]] = []

    # ---- the learning rate ----

    @property
    def learning_rate(self) -> float:
        """The present learning rate."""
        return self._rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self._rate = float(value)

    def set_learning_rate(self, value: float) -> None:
        """Sets the learning rate."""
        self._rate = float(value)

    def restart(self, learning_rate: float | None = None) -> None:
        """Forgets all moments; sets the learning rate if one is given.  The number of updates goes on."""
        for buffer in self.buffers:
            for start, item, rows, _ in self.spans():
                buffer[start : start + item * rows] = 0
        if learning_rate is not None:
            self._rate = float(learning_rate)

    # ---- clipping ----

    def set_clip_threshold(self, thr: float) -> None:
        """Scales gradients down when their global norm exceeds `thr`; 0 or less: never."""
        self.threshold = float(thr) if thr > 0 else 0.0

    def get_clip_threshold(self) -> float:
        """The threshold, 0 when clipping is off."""
        return self.threshold

    def set_sparse_updates(self, su: bool) -> None:
        """Whether only rows of lookup tables that were used since the last update are updated (the default)."""
        self.sparse = bool(su)

    # ---- updating ----

    def spans(self) -> list[tuple[int, int, int, int]]:
        """(start, elements of a row, rows, marks) of what is updated; dense parameters that touch are one span."""
        stored = [item for item in self.model.stored if item._updated]
        known = (len(self.model.stored), sum(item._updated << (i % 61) for i, item in enumerate(self.model.stored)))
        if known != self._known:
            self._known = known
            self._spans = [*self._dense_spans(stored), *(
                (table.start, table.count // max(1, len(table)), len(table), table.start + table.count)
                for table in stored if isinstance(table, LookupParameters)
            )]  # fmt: skip
        return self._spans

    def _dense_spans(self, stored: list[Stored]) -> list[tuple[int, int, int, int]]:
        spans: list[list[int]] = []
        for parameter in sorted((item for item in stored if isinstance(item, Parameters)), key=lambda item: item.start):
            if spans and -(-spans[-1][1] // 16) * 16 == parameter.start:
                spans[-1][1] = parameter.start + parameter.count
            else:
                spans.append([parameter.start, parameter.start + parameter.count])
        pieces = []
        for start, stop in spans:
            whole = (stop - start) // PIECE
            pieces.append((start, PIECE, whole, -1))
            pieces.append((start + whole * PIECE, stop - start - whole * PIECE, 1, -1))
        return [piece for piece in pieces if piece[1] * piece[2] > 0]

    def norm(self) -> float:
        """Global norm of the gradients, those of frozen parameters included (as in DyNet)."""
        gradients = space.single.g.ctypes.data
        total = sum(
            squared_sum.call(gradients, start, item, rows, marks if self.sparse else -1)
            for start, item, rows, marks in self.spans()
        )
        frozen = [item for item in self.model.stored if not item._updated]
        total += sum(squared_sum.call(gradients, item.start, item.count, 1, -1) for item in frozen)
        return math.sqrt(total)

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
        return next((item.name() for item in self.model.stored if not np.isfinite(item.gradients()).all()), "none alone")

    def reset_gradient(self) -> None:
        """Drops all gradients that wait for an update."""
        for item in self.model.stored:
            item.gradients()[:] = 0
            if isinstance(item, LookupParameters):
                item.marks()[:] = 0

    def update(self) -> None:
        """Changes the parameters by their gradients, and sets those to zero.

        Raises GradientError if the gradients' norm is NaN or infinite; the parameters are then as before.
        """
        scale = self.gradient_scale() if self.threshold > 0 else 1.0
        self.updates += 1
        self.updates_since_status += 1
        numbers = np.array((scale, *self.numbers()), np.float32)
        addresses, settings = self.addresses.ctypes.data, numbers.ctypes.data
        for start, item, rows, marks in self.spans():
            self.rule.call(addresses, start, item, rows, marks if self.sparse else -1, settings)
            if marks >= 0 and not self.sparse:
                space.single.g[marks : marks + rows] = 0
        decay = self.model.root.weight_decay
        if decay > 0:
            for start, item, rows, _ in self.spans():
                shrink.call(space.single.v.ctypes.data, start, item * rows, 1 - decay)

    def numbers(self) -> tuple[float, ...]:
        """The rule's own numbers of this update."""
        return (self._rate,)

    def update_epoch(self, r: float = 1.0) -> None:
        """Does nothing, as in DyNet; set `learning_rate` instead."""

    def update_subset(self, updated_params: list[int], updated_lookup_params: list[int]) -> None:
        """Updates only the parameters and tables with these positions in the collection's lists."""
        dense, tables = self.model.parameters_list(), self.model.lookup_parameters_list()
        chosen = {id(dense[i]) for i in updated_params} | {id(tables[i]) for i in updated_lookup_params}
        kept = [(item, item._updated) for item in self.model.stored]
        try:
            for item, _ in kept:
                item._updated = item._updated and id(item) in chosen
            self.update()
        finally:
            for item, updated in kept:
                item._updated = updated

    # ---- reporting ----

    def status(self) -> None:
        """Writes the learning rate, clips and updates since the last call to stderr."""
        sys.stderr.write(f"[lr={self._rate:g} clips={self.clips_since_status} updates={self.updates_since_status}] ")
        self.clips_since_status = self.updates_since_status = 0

    def whoami(self) -> str:
        """The class's name."""
        return type(self).__name__


# ---- the rules -------------------------------------------------------------------------------------------------------


def sgd(p, g, a, b, c, numbers):  # type: ignore[no-untyped-def]
    rate = numbers[0] * numbers[1]
    for i in range(p.size):
        p[i] -= rate * g[i]


def momentum_sgd(p, g, a, b, c, numbers):  # type: ignore[no-untyped-def]
    scale, rate, momentum = numbers[0], numbers[1], numbers[2]
    for i in range(p.size):
        a[i] = momentum * a[i] - rate * scale * g[i]
        p[i] += a[i]


def adagrad(p, g, a, b, c, numbers):  # type: ignore[no-untyped-def]
    scale, rate, epsilon = numbers[0], numbers[1], numbers[2]
    for i in range(p.size):
        d = scale * g[i]
        a[i] += d * d
        p[i] -= rate * d / np.sqrt(a[i] + epsilon)


def adadelta(p, g, a, b, c, numbers):  # type: ignore[no-untyped-def]
    scale, rho, epsilon = numbers[0], numbers[1], numbers[2]
    for i in range(p.size):
        d = scale * g[i]
        a[i] = rho * a[i] + (ONE - rho) * d * d
        change = -d * np.sqrt(b[i] + epsilon) / np.sqrt(a[i] + epsilon)
        b[i] = rho * b[i] + (ONE - rho) * change * change
        p[i] += change


def rmsprop(p, g, a, b, c, numbers):  # type: ignore[no-untyped-def]
    scale, rate, rho, epsilon = numbers[0], numbers[1], numbers[2], numbers[3]
    for i in range(p.size):
        d = scale * g[i]
        a[i] = rho * a[i] + (ONE - rho) * d * d
        p[i] -= rate * d / np.sqrt(a[i] + epsilon)


def adam(p, g, a, b, c, numbers):  # type: ignore[no-untyped-def]
    scale, rate, beta_1, beta_2, epsilon = numbers[0], numbers[1], numbers[2], numbers[3], numbers[4]
    for i in range(p.size):
        d = scale * g[i]
        a[i] = beta_1 * a[i] + (ONE - beta_1) * d
        b[i] = beta_2 * b[i] + (ONE - beta_2) * d * d
        p[i] -= rate * a[i] / (np.sqrt(b[i]) + epsilon)


def amsgrad(p, g, a, b, c, numbers):  # type: ignore[no-untyped-def]
    scale, rate, beta_1, beta_2, epsilon = numbers[0], numbers[1], numbers[2], numbers[3], numbers[4]
    for i in range(p.size):
        d = scale * g[i]
        a[i] = beta_1 * a[i] + (ONE - beta_1) * d
        b[i] = beta_2 * b[i] + (ONE - beta_2) * d * d
        c[i] = max(c[i], b[i])
        p[i] -= rate * a[i] / (np.sqrt(c[i]) + epsilon)


class SimpleSGDTrainer(Trainer):
    """Stochastic gradient descent: w -= rate * dw."""

    rule = compiled_rule(sgd)

    def __init__(self, m: ParameterCollection, learning_rate: float = 0.1) -> None:
        super().__init__(m, learning_rate)


class MomentumSGDTrainer(Trainer):
    """Gradient descent with momentum: v = mom * v - rate * dw, w += v.  Source: Polyak 1964."""

    rule, moments = compiled_rule(momentum_sgd), 1

    def __init__(self, m: ParameterCollection, learning_rate: float = 0.01, mom: float = 0.9) -> None:
        super().__init__(m, learning_rate)
        self.mom = float(mom)

    def numbers(self) -> tuple[float, ...]:
        return self._rate, self.mom


class AdagradTrainer(Trainer):
    """Adagrad: s += dw^2, w -= rate * dw / sqrt(s + eps).  Source: Duchi, Hazan and Singer 2011."""

    rule, moments = compiled_rule(adagrad), 1

    def __init__(self, m: ParameterCollection, learning_rate: float = 0.1, eps: float = 1e-20) -> None:
        super().__init__(m, learning_rate)
        self.eps = float(eps)

    def numbers(self) -> tuple[float, ...]:
        return self._rate, self.eps


class AdadeltaTrainer(Trainer):
    """Adadelta: steps from the running means of dw^2 and of the steps' squares; it has no learning rate.

    Source: Zeiler 2012, algorithm 1.
    """

    rule, moments = compiled_rule(adadelta), 2

    def __init__(self, m: ParameterCollection, eps: float = 1e-6, rho: float = 0.95) -> None:
        super().__init__(m, 1.0)
        self.eps, self.rho = float(eps), float(rho)

    def numbers(self) -> tuple[float, ...]:
        return self.rho, self.eps


class RMSPropTrainer(Trainer):
    """RMSProp: s = rho * s + (1 - rho) * dw^2, w -= rate * dw / sqrt(s + eps).  Source: Tieleman and Hinton 2012."""

    rule, moments = compiled_rule(rmsprop), 1

    def __init__(
        self, m: ParameterCollection, learning_rate: float = 0.001, eps: float = 1e-8, rho: float = 0.9
    ) -> None:
        super().__init__(m, learning_rate)
        self.eps, self.rho = float(eps), float(rho)

    def numbers(self) -> tuple[float, ...]:
        return self._rate, self.rho, self.eps


class AdamTrainer(Trainer):
    """Adam with bias correction, epsilon outside of the root.  Source: Kingma and Ba 2015, end of section 2."""

    rule, moments = compiled_rule(adam), 2

    def __init__(
        self, m: ParameterCollection, alpha: float = 0.001, beta_1: float = 0.9, beta_2: float = 0.999,
        eps: float = 1e-8,
    ) -> None:  # fmt: skip
        super().__init__(m, alpha)
        self.beta_1, self.beta_2, self.eps = float(beta_1), float(beta_2), float(eps)

    def numbers(self) -> tuple[float, ...]:
        corrected = self._rate * math.sqrt(1 - self.beta_2**self.updates) / (1 - self.beta_1**self.updates)
        return corrected, self.beta_1, self.beta_2, self.eps


class AmsgradTrainer(AdamTrainer):
    """Adam whose second moment never falls.  Source: Reddi, Kale and Kumar 2018, algorithm 2."""

    rule, moments = compiled_rule(amsgrad), 3




class CyclicalSGDTrainer(SimpleSGDTrainer):
    """Gradient descent whose rate runs between two bounds, up and down within 2 * step_size updates.

    The upper bound's distance from the lower shrinks by `gamma` with each update.  Source: Smith 2017.
    """

    def __init__(
        self, m: ParameterCollection, learning_rate_min: float = 0.01, learning_rate_max: float = 0.1,
        step_size: float = 2000, gamma: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__(m, learning_rate_min)
        self.low, self.high, self.step_size, self.gamma = learning_rate_min, learning_rate_max, step_size, gamma

    def update(self) -> None:
        super().update()
        cycle = math.floor(1 + self.updates / (2 * self.step_size))
        x = abs(self.updates / self.step_size - 2 * cycle + 1)
        self._rate = self.low + (self.high - self.low) * max(0.0, 1 - x) * self.gamma**self.updates
