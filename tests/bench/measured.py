"""What a bench gives back, and how it times: contestants take turns, so that a busy machine slows them all alike.

A ratio is taken inside each round and the median of the rounds counts. The clock is this process's CPU time on one
thread: it stands still while somebody else has the core, and equals wall time on a quiet machine as nothing here sleeps.
(Two threads wait for each other by spinning: on shared cores that measures the neighbours, ten times over.)
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Seconds = dict[str, float]
clock = time.process_time


@dataclass(frozen=True)
class Measured:
    """One line of the table. ``bar`` is the most ``value`` may be, None where a number is only reported."""

    name: str
    value: float
    bar: float | None
    compared: str
    unit: str = "x"

    @property
    def meets(self) -> bool | None:
        return None if self.bar is None else self.value <= self.bar


def take_turns(contestants: Mapping[str, Callable[[], float | None]], rounds: int) -> list[Seconds]:
    """Seconds of every contestant in every round, its own count of them if it gives one. Every second round runs
    backwards, and a first round, in which memory is allocated, is not counted."""
    names, measured = list(contestants), []
    for _ in range(rounds + 1):
        seconds = {}
        for name in names:
            begun = clock()
            own = contestants[name]()
            seconds[name] = clock() - begun if own is None else own
        measured.append(seconds)
        names.reverse()
    return measured[1:]


def median(rounds: list[Seconds], value: Callable[[Seconds], float]) -> float:
    return statistics.median(map(value, rounds))


def spread(rounds: list[Seconds], value: Callable[[Seconds], float]) -> str:
    """The middle half of the rounds, for who wants to know how far to trust the median."""
    low, _, high = statistics.quantiles(map(value, rounds), n=4)
    return f"half of {len(rounds)} rounds in {low:.3f} ... {high:.3f}"
