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
class ComputeWindow:
    """Where a gradual run's window lies, in steps, when it is given in shares of a fixed compute budget.

    With d = 1 - s and the mean density of the window m = s / -ln d, a budget of C dense steps gives
    start = first * C, window = (last - first) * C / m and a tail of (1 - last) * C / d steps
    (The Journey Matters, arXiv 2501.12486; its rule is first = 0.25, last = 0.75).
    """

    sparsity: float
    first: float = 0.25
    last: float = 0.75

    def steps(self, dense_steps: int, interval: int = 1) -> tuple[int, int, int]:
        """(start, end, total) steps that cost what ``dense_steps`` dense steps cost; end - start divides by interval."""
        if self.sparsity == 0:
            return 0, 0, dense_steps
        density = 1 - self.sparsity
        mean = self.sparsity / -math.log(density)
        start = round(self.first * dense_steps)
        window = round((self.last - self.first) * dense_steps / mean / interval) * interval
        tail = round((1 - self.last) * dense_steps / density)
        return start, start + window, max(1, start + window + tail)
