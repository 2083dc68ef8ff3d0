"""Schedules: pure functions of the step, for the learning rate and for sparsity."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class LearningRate:
    """Linear warm-up to ``peak`` over ``warmup`` of the steps, then cosine to ``final`` times the peak."""

    peak: float
    steps: int
    warmup: float = 0.02
    final: float = 0.1

    def at(self, step: int) -> float:
        warm = max(1, round(self.warmup * self.steps))
        if step < warm:
            return self.peak * (step + 1) / warm
        progress = (step - warm) / max(1, self.steps - warm)
        return self.peak * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress)))


@dataclass(frozen=True)
class ExponentialDensity:
    """Density falls by a constant ratio per event from ``start`` to ``end``, an event every ``interval`` steps.

    Event i of n keeps (1 - sparsity)^((i+1)/n) of the weights; an event at step t comes before the update of step t
    (The Journey Matters, arXiv 2501.12486).
    """

    sparsity: float
    start: int
    end: int
    interval: int

    @property
    def events(self) -> int:
        return (self.end - self.start) // self.interval + 1

    def due(self, step: int) -> bool:
        return self.start <= step <= self.end and (step - self.start) % self.interval == 0

    def at(self, step: int) -> float:
        if step < self.start:
            return 0.0
        done = min((step - self.start) // self.interval + 1, self.events)
        return 1 - (1 - self.sparsity) ** (done / self.events)


@dataclass(frozen=True)
class Cubic(ExponentialDensity):
    """Sparsity rises as s * (1 - (1 - x)^3) over the window: fast while much is redundant (Zhu & Gupta, 1710.01878)."""

    def at(self, step: int) -> float:
        if step < self.start:
            return 0.0
        progress = min(1.0, (step - self.start + self.interval) / (self.end - self.start + self.interval))
        return self.sparsity * (1 - (1 - progress) ** 3)


@dataclass(frozen=True)
class OneShot(ExponentialDensity):
    """Everything goes at ``start``."""

    def due(self, step: int) -> bool:
        return step == self.start

    def at(self, step: int) -> float:
        return self.sparsity if step >= self.start else 0.0


SCHEDULES = {"exponential": ExponentialDensity, "cubic": Cubic, "one_shot": OneShot}


@dataclass(frozen=True)
class CosineFraction:
    """The share of live weights that moves at a mask update: half a cosine from ``first`` to ``last`` over ``steps``."""

    first: float
    last: float
    steps: int

    def at(self, step: int) -> float:
        progress = min(1.0, step / max(1, self.steps))
        return self.last + (self.first - self.last) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class ComputeWindow:
    """Where a gradual run's window lies, in steps, when it is given in shares of a fixed compute budget.

    With d = 1 - s and the mean density m of the window, a budget of C dense steps gives start = first * C,
    window = (last - first) * C / m and a tail of (1 - last) * C / d steps. m is s / -ln d for the exponential schedule
    (The Journey Matters, arXiv 2501.12486; its rule is first = 0.25, last = 0.75), 1 - 3s/4 for the cubic one.
    """

    sparsity: float
    first: float = 0.25
    last: float = 0.75
    schedule: str = "exponential"

    @property
    def mean(self) -> float:
        """Mean density inside the window."""
        if self.schedule == "exponential" and self.sparsity > 0:
            return self.sparsity / -math.log(1 - self.sparsity)
        return 1 - (0.75 if self.schedule == "cubic" else 1.0) * self.sparsity

    @property
    def stretch(self) -> float:
        """Steps of the run per dense step of the same cost."""
        return self.first + (self.last - self.first) / self.mean + (1 - self.last) / (1 - self.sparsity)

    def steps(self, dense_steps: float, interval: int = 1) -> tuple[int, int, int]:
        """(start, end, total) steps that cost what ``dense_steps`` dense steps cost; end - start divides by interval."""
        if self.sparsity == 0:
            return 0, 0, max(1, round(dense_steps))
        start = round(self.first * dense_steps)
        window = round((self.last - self.first) * dense_steps / self.mean / interval) * interval
        tail = round((1 - self.last) * dense_steps / (1 - self.sparsity))
        return start, start + window, max(1, start + window + tail)
