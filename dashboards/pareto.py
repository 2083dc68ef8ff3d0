"""Which models nothing beats: the front of quality against cost, what lies nearest to each, and the answers people come for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dashboards.book import QUALITY, Book, Stage
from dashboards.numbers import OVER_DENSE, SPEEDS, better, change, is_sound, shown, title


class Point(NamedTuple):
    """A model in the plane: ``x`` what it costs, ``y`` what it is worth."""

    model: Stage
    x: float
    y: float


def points(models: Sequence[tuple[Stage, Mapping[str, float]]], x: str, y: str) -> list[Point]:
    """Of models with their numbers those that have both, finite."""
    return [Point(model, told[x], told[y]) for model, told in models if is_sound(x, told) and is_sound(y, told)]


def front(found: Sequence[Point], x: str, y: str) -> list[Point]:
    """Those that no other beats in one and equals in the other, the cheapest first. A metric of which neither direction is
    better counts as a cost."""
    across, up = -(better(x) or -1), -(better(y) or -1)  # 1 where less is better
    kept: list[Point] = []
    for point in sorted(found, key=lambda point: (across * point.x, up * point.y, point.model.started)):
        if not kept or up * point.y < up * kept[-1].y:
            kept.append(point)
    return kept


def nearest(found: Sequence[Point], logarithmic: tuple[bool, bool]) -> list[Point | None]:
    """Of each point the nearest other one, as the plane is drawn."""
    if len(found) < 2:
        return [None] * len(found)
    plane = np.array([[point.x, point.y] for point in found], float)
    for axis, log in enumerate(logarithmic):
        plane[:, axis] = np.log(plane[:, axis]) if log else plane[:, axis]
        plane[:, axis] /= np.ptp(plane[:, axis]) or 1.0
    chosen: list[Point | None] = []
    for begin in range(0, len(plane), 500):  # a square of all would be large
        some = plane[begin : begin + 500]
        squares = ((some[:, None, :] - plane[None, :, :]) ** 2).sum(2)
        squares[np.arange(len(some)), begin + np.arange(len(some))] = np.inf
        chosen += [found[index] for index in squares.argmin(1)]
    return chosen


def spread_out(values: Sequence[float]) -> bool:
    """Whether an axis is better drawn on a log scale."""
    return bool(values) and min(values) > 0 and max(values) > 8 * min(values)


class Answer(NamedTuple):
    """``question``, the model that answers it, and why."""

    question: str
    model: Stage | None
    because: str


def answers(book: Book, models: Sequence[tuple[Stage, Mapping[str, float]]], within: float) -> list[Answer]:
    """The three that a choice begins with: the best, the smallest that is good enough, the fastest of those."""
    told = [(model, numbers) for model, numbers in models if is_sound(QUALITY, numbers)]
    near = [(model, numbers) for model, numbers in told if OVER_DENSE in numbers and numbers[OVER_DENSE] <= within / 100]
    limit = f"within {within:g} % of dense {title(QUALITY)}"
    why = _too_far(told)
    found = [_answer("Best quality", told, QUALITY, why)]
    found.append(_answer(f"Smallest {limit}", near, "bytes", why))
    speed = next((name for name in SPEEDS if any(name in numbers for _, numbers in near)), SPEEDS[0])
    found.append(_answer(f"Fastest {limit}", near, speed, why))
    return found


def _too_far(told: Sequence[tuple[Stage, Mapping[str, float]]]) -> str:
    """Why of these models none is near enough to the dense one."""
    if not told:
        return f"{title(QUALITY)} was not measured"
    over = [numbers[OVER_DENSE] for _, numbers in told if OVER_DENSE in numbers]
    return f"the nearest is {change(QUALITY, 1 + min(over), 1.0)} against dense" if over else "no dense model to compare with"


def _answer(question: str, models: Sequence[tuple[Stage, Mapping[str, float]]], name: str, why: str) -> Answer:
    fitting = [(model, numbers) for model, numbers in models if is_sound(name, numbers)]
    if not fitting:
        return Answer(question, None, f"{title(name)} was not measured" if models else why)
    model, numbers = min(fitting, key=lambda one: (-better(name) * one[1][name], one[0].started))
    told = [shown(one, numbers.get(one)) for one in ("bytes",) if one in numbers]
    quality = f"{title(QUALITY)} {shown(QUALITY, numbers[QUALITY])}"
    over = f" ({change(QUALITY, 1 + numbers[OVER_DENSE], 1.0)} against dense)" if OVER_DENSE in numbers else ""
    if name in SPEEDS:
        told.append(shown(name, numbers[name]))
    return Answer(question, model, ", ".join([*told, quality + over]))
