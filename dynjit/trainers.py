"""Trainers: each rule is a function of one window of values; the loops over all of them are in `passes.py`."""

from __future__ import annotations

import math

import numpy as np

from dynjit.errors import located
from dynjit.models import ParameterCollection
from dynjit.passes import compiled_rule
from dynjit.scalars import INF, ONE, ZERO, exp
from dynjit.shape import as_finite
from dynjit.trainer_base import Trainer

__all__ = ["AdadeltaTrainer", "AdagradTrainer", "AdamTrainer", "AmsgradTrainer", "CyclicalSGDTrainer", "EGTrainer",
           "MomentumSGDTrainer", "RMSPropTrainer", "SimpleSGDTrainer", "Trainer"]  # fmt: skip

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
        p[i] -= rate * d / math.sqrt(a[i] + epsilon)


def adadelta(p, g, a, b, c, numbers):  # type: ignore[no-untyped-def]
    scale, rho, epsilon = numbers[0], numbers[1], numbers[2]
    for i in range(p.size):
        d = scale * g[i]
        a[i] = rho * a[i] + (ONE - rho) * d * d
        change = -d * math.sqrt(b[i] + epsilon) / math.sqrt(a[i] + epsilon)
        b[i] = rho * b[i] + (ONE - rho) * change * change
        p[i] += change


def rmsprop(p, g, a, b, c, numbers):  # type: ignore[no-untyped-def]
    scale, rate, rho, epsilon = numbers[0], numbers[1], numbers[2], numbers[3]
    for i in range(p.size):
        d = scale * g[i]
        a[i] = rho * a[i] + (ONE - rho) * d * d
        p[i] -= rate * d / math.sqrt(a[i] + epsilon)


def adam(p, g, a, b, c, numbers):  # type: ignore[no-untyped-def]
    scale, rate, beta_1, beta_2, epsilon = numbers[0], numbers[1], numbers[2], numbers[3], numbers[4]
    for i in range(p.size):
        d = scale * g[i]
        a[i] = beta_1 * a[i] + (ONE - beta_1) * d
        b[i] = beta_2 * b[i] + (ONE - beta_2) * d * d
        p[i] -= rate * a[i] / (math.sqrt(b[i]) + epsilon)


def amsgrad(p, g, a, b, c, numbers):  # type: ignore[no-untyped-def]
    scale, rate, beta_1, beta_2, epsilon = numbers[0], numbers[1], numbers[2], numbers[3], numbers[4]
    for i in range(p.size):
        d = scale * g[i]
        a[i] = beta_1 * a[i] + (ONE - beta_1) * d
        b[i] = beta_2 * b[i] + (ONE - beta_2) * d * d
        c[i] = max(c[i], b[i])
        p[i] -= rate * a[i] / (math.sqrt(c[i]) + epsilon)


def exponentiated_gradient(p, g, a, b, c, numbers):  # type: ignore[no-untyped-def]
    scale, rate, momentum = numbers[0], numbers[1], numbers[2]
    top, total = -INF, ZERO
    for i in range(p.size):
        a[i] = momentum * a[i] - rate * scale * g[i]
        if p[i] > ZERO:
            top = max(top, a[i])  # subtracted, because exp overflows above 88
    for i in range(p.size):
        p[i] *= exp(min(a[i] - top, ZERO))
        total += p[i]
    for i in range(p.size):
        p[i] /= total


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
        self.mom = as_finite(self.whoami(), mom)

    def numbers(self) -> tuple[float, ...]:
        return self._rate, self.mom


class AdagradTrainer(Trainer):
    """Adagrad: s += dw^2, w -= rate * dw / sqrt(s + eps).  Source: Duchi, Hazan and Singer 2011."""

    rule, moments = compiled_rule(adagrad), 1

    def __init__(self, m: ParameterCollection, learning_rate: float = 0.1, eps: float = 1e-20) -> None:
        super().__init__(m, learning_rate)
        self.eps = self._eps(eps)

    def numbers(self) -> tuple[float, ...]:
        return self._rate, self.eps


class AdadeltaTrainer(Trainer):
    """Adadelta: steps from the running means of dw^2 and of the steps' squares; it has no learning rate.

    Source: Zeiler 2012, algorithm 1.
    """

    rule, moments = compiled_rule(adadelta), 2

    def __init__(self, m: ParameterCollection, eps: float = 1e-6, rho: float = 0.95) -> None:
        super().__init__(m, 1.0)
        self.eps, self.rho = self._eps(eps), self._share("rho", rho)

    def numbers(self) -> tuple[float, ...]:
        return self.rho, self.eps


class RMSPropTrainer(Trainer):
    """RMSProp: s = rho * s + (1 - rho) * dw^2, w -= rate * dw / sqrt(s + eps).  Source: Tieleman and Hinton 2012."""

    rule, moments = compiled_rule(rmsprop), 1

    def __init__(
        self, m: ParameterCollection, learning_rate: float = 0.001, eps: float = 1e-8, rho: float = 0.9
    ) -> None:
        super().__init__(m, learning_rate)
        self.eps, self.rho = self._eps(eps), self._share("rho", rho)

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
        self.beta_1, self.beta_2, self.eps = (
            self._share("beta_1", beta_1),
            self._share("beta_2", beta_2),
            self._eps(eps),
        )

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
        self.low, self.high = self._rate, as_finite(self.whoami(), learning_rate_max)
        self.step_size, self.gamma = as_finite(self.whoami(), step_size), as_finite(self.whoami(), gamma)
        if self.step_size <= 0:
            raise ValueError(located(f"CyclicalSGDTrainer: needs a step_size above 0, got {step_size}"))

    def update(self) -> None:
        super().update()
        done = self.updates - 1  # the rate of the second update is that of the first, as in DyNet
        cycle = math.floor(1 + done / (2 * self.step_size))
        x = abs(done / self.step_size - 2 * cycle + 1)
        self._rate = self.low + (self.high - self.low) * max(0.0, 1 - x) * self.gamma**done


class EGTrainer(Trainer):
    """Exponentiated gradient with momentum: v = mom * v - rate * dw, w = w exp(v) / sum of w exp(v).

    For probabilities: each column of a parameter (a vector, or the elements along the first axis), and of each used row
    of a lookup table, keeps a sum of 1, and its numbers stay positive.  Start with such numbers, for example
    `init=1 / n`; those of another sum are scaled at the first update.
    Source: Kivinen and Warmuth 1997, section 4 (EG); the momentum is DyNet's.  DyNet's C++ divides all columns of a
    matrix by the sum of the first, and takes a number `ne` that has no effect.
    """

    rule, moments, by_columns = compiled_rule(exponentiated_gradient), 1, True

    def __init__(self, m: ParameterCollection, learning_rate: float = 0.1, mom: float = 0.9) -> None:
        super().__init__(m, learning_rate)
        self.mom = as_finite(self.whoami(), mom)

    def numbers(self) -> tuple[float, ...]:
        return self._rate, self.mom

    def update(self) -> None:
        """As of all trainers; raises ValueError, too, for a column with a negative number, or with a sum of 0."""
        for item in self.model.stored:
            columns = item.values().reshape(-1, item.shape_in_graph.dims[0])
            sums = columns.sum(axis=1)
            are_positive = (columns >= 0).all() and (sums > 0).all() and np.isfinite(sums).all()
            if item.is_updated() and not are_positive:
                raise ValueError(located(
                    f"EGTrainer.update: needs columns of numbers of 0 or more, not all 0, got others in {item.name()}; "
                    "no parameter was changed"
                ))  # fmt: skip
        super().update()
