"""Trainers: one pass over flat storage per update; of lookup tables, over the rows that were used.

Parameters that were made one after another lie end to end, so that a trainer has few spans to go over.  Its moments lie
in buffers of its own at the parameters' offsets.  Each rule is a function of one window of values; the loops exist
once.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import numpy as np

from dynjit.arena import float32s, int64s, space, view_of
from dynjit.errors import GradientError, located
from dynjit.jit import Compiled, add_entry, entry, flush_denormals, helper, set_floating_point_mode
from dynjit.memory import reserve
from dynjit.parameters import LookupParameters, ParameterCollection, Parameters, parameter_changes
from dynjit.scalars import ONE, ZERO

# updated together: offset, elements of a row, rows, offset of the rows' marks (or -1), whether trainers change it
SPAN = np.dtype([(name, "i8") for name in ("start", "item", "rows", "marks", "updated")])
spans_at = view_of(SPAN)


def compiled_rule(step: Callable) -> Compiled:
    """The update of all spans by `step(p, g, a, b, c, numbers)` over windows.

    p: values; g: gradients; a, b, c: moments; numbers: (gradient scale, rule's own ...).
    """
    step = helper(step)

    def update(buffers, spans, count, sparse, numbers):  # type: ignore[no-untyped-def]
        bases = int64s(buffers)
        values, gradients, settings = float32s(bases[0]), float32s(bases[1]), float32s(numbers)
        first, second, third = float32s(bases[2]), float32s(bases[3]), float32s(bases[4])
        mode = flush_denormals()
        for index in range(count):
            span = spans_at(spans)[index]
            for row in range(span.rows if span.updated else 0):
                if span.marks >= 0:
                    used = gradients[span.marks + row] != ZERO
                    gradients[span.marks + row] = ZERO
                    if sparse and not used:
                        continue
                at, item = span.start + row * span.item, span.item
                p, g = values[at : at + item], gradients[at : at + item]
                step(p, g, first[at : at + item], second[at : at + item], third[at : at + item], settings)
                for i in range(item):
                    g[i] = ZERO
        set_floating_point_mode(mode)

    update.__name__ = update.__qualname__ = step.__name__ + "_update"
    return add_entry(update, "void(int64, int64, int64, int64, int64)")


@entry("float64(int64, int64, int64, int64)")
def squared_norm(gradients, spans, count, sparse):  # type: ignore[no-untyped-def]
    """Sum of the squares of all gradients; of tables, over the marked rows only if `sparse`."""
    g = float32s(gradients)
    mode = flush_denormals()
    total = 0.0
    for index in range(count):
        span = spans_at(spans)[index]
        for row in range(span.rows):
            if span.marks < 0 or not sparse or g[span.marks + row] != ZERO:
                window = g[span.start + row * span.item : span.start + (row + 1) * span.item]
                part = ZERO
                for i in range(span.item):
                    part += window[i] * window[i]
                total += part
    set_floating_point_mode(mode)
    return total


@entry("void(int64, int64, int64, float32)")
def shrink(values, spans, count, factor):  # type: ignore[no-untyped-def]
    """Multiplies all values by a factor: weight decay."""
    for index in range(count):
        span = spans_at(spans)[index]
        if span.updated:
            p = float32s(values)[span.start : span.start + span.item * span.rows]
            for i in range(p.size):
                p[i] *= factor


PIECE = 4096  # elements of a dense span that are worked on together, while they are in the first-level cache


def dense_spans(parameters: list[Parameters], updated: bool) -> list[tuple[int, int, int, int, bool]]:
    """Spans of the parameters that are (or are not) updated, cut into rows that fit the first-level cache."""
    joined: list[list[int]] = []
    for parameter in parameters:
        if parameter._updated != updated:
            continue
        if joined and -(-joined[-1][1] // 16) * 16 == parameter.start:
            joined[-1][1] = parameter.start + parameter.count
        else:
            joined.append([parameter.start, parameter.start + parameter.count])
    spans = []
    for start, stop in joined:
        whole = (stop - start) // PIECE
        spans.append((start, PIECE, whole, -1, updated))
        spans.append((start + whole * PIECE, stop - start - whole * PIECE, 1, -1, updated))
    return [span for span in spans if span[1] * span[2] > 0]


class Trainer:
    """Base of all trainers: clipping, the learning rate, frozen parameters, sparse updates.

    m: the collection whose parameters are trained.  Clipping is on, at a global gradient norm of 5.
    """

    rule: Compiled
    moments = 0

    def __init__(self, m: ParameterCollection, learning_rate: float) -> None:
        if not hasattr(self, "rule"):
            raise TypeError(located("Trainer: needs one of its subclasses"))
        if not isinstance(m, ParameterCollection):
            raise TypeError(located(f"{type(self).__name__}: needs a ParameterCollection, got {type(m).__name__}"))
        self.model = m
        self._rate = self._first_rate = float(learning_rate)
        self.threshold = 5.0
        self.sparse = True
        self.clips = self.clips_since_status = self.updates = self.updates_since_status = 0
        self.buffers = [reserve(space.parameter_end, np.float32, share=32) for _ in range(self.moments)]
        unused = space.single.v
        arrays = [space.single.v, space.single.g, *self.buffers, *[unused] * (3 - self.moments)]
        self.addresses = np.array([array.ctypes.data for array in arrays], np.int64)
        self._known = -1
        self._spans = np.zeros(0, SPAN)

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
            for span in self.spans():
                buffer[span["start"] : span["start"] + span["item"] * span["rows"]] = 0
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

    def spans(self) -> np.ndarray:
        """Records of what is updated and of what is frozen; dense parameters that touch share a span."""
        if self._known != parameter_changes[0]:
            self._known = parameter_changes[0]
            stored = sorted(self.model.stored, key=lambda item: item.start)
            dense = [item for item in stored if isinstance(item, Parameters)]
            rows = [span for updated in (True, False) for span in dense_spans(dense, updated)]
            rows += [
                (table.start, table.count // max(1, len(table)), len(table), table.start + table.count, table._updated)
                for table in stored if isinstance(table, LookupParameters)
            ]  # fmt: skip
            self._spans = np.array(rows, SPAN)
        return self._spans

    def norm(self) -> float:
        """Global norm of the gradients, those of frozen parameters included (as in DyNet)."""
        spans = self.spans()
        total = squared_norm.call(space.single.g.ctypes.data, spans.ctypes.data, len(spans), self.sparse)
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

        Raises GradientError if the gradients' norm is NaN or infinite; the parameters are then as before.
        """
        scale = self.gradient_scale()
        self.updates += 1
        self.updates_since_status += 1
        spans = self.spans()
        numbers = np.array((scale, *self.numbers()), np.float32)
        self.rule.call(
            self.addresses.ctypes.data, spans.ctypes.data, len(spans), self.sparse, numbers.ctypes.data
        )  # fmt: skip
        decay = self.model.root.weight_decay
        if decay > 0:
            shrink.call(space.single.v.ctypes.data, spans.ctypes.data, len(spans), 1 - decay)

    def numbers(self) -> tuple[float, ...]:
        """The rule's own numbers of this update."""
        return (self._rate,)

    def update_epoch(self, r: float = 1.0) -> None:
        """Does nothing, as in DyNet; set `learning_rate` instead."""

    def update_subset(self, updated_params: list[int], updated_lookups: list[int]) -> None:
        """Updates only the parameters and tables with these positions in the collection's lists."""
        dense, tables = self.model.parameters_list(), self.model.lookup_parameters_list()
        chosen = {id(dense[i]) for i in updated_params} | {id(tables[i]) for i in updated_lookups}
        kept = [(item, item._updated) for item in self.model.stored]
        try:
            for item, _ in kept:
                item.set_updated(item._updated and id(item) in chosen)
            self.update()
        finally:
            for item, updated in kept:
                item.set_updated(updated)

    # ---- reporting ----

    def status(self) -> None:
        """Writes the learning rate, clips and updates since the last call to stderr."""
        sys.stderr.write(f"[lr={self._rate:g} clips={self.clips_since_status} updates={self.updates_since_status}] ")
        self.clips_since_status = self.updates_since_status = 0

    def __reduce__(self) -> object:
        raise TypeError(located(f"{type(self).__name__}: trainers cannot be pickled or copied; make a new one"))

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
        done = self.updates - 1  # the rate of the second update is that of the first, as in DyNet
        cycle = math.floor(1 + done / (2 * self.step_size))
        x = abs(done / self.step_size - 2 * cycle + 1)
        self._rate = self.low + (self.high - self.low) * max(0.0, 1 - x) * self.gamma**done
