"""Searches: beside its ``grid``, an entry of a recipe may have a ``search`` of fields; each trial draws a value for each.

    search: {trials: 12, objective: perplexity}
    stages:
      - prune: {method: wanda}
        search: {sparsity: {uniform: [0.4, 0.7]}, method: [wanda, magnitude]}
      - recover: {tokens: 600_000}
        search: {learning_rate: {log: [1.0e-4, 1.0e-2]}}

A trial has a value for every searched field of every stage, so trials that agree up to a stage share that stage. What a
trial draws hangs on the seed, the trial's number and the field alone: more trials, or another field, change no trial that
was there. ``sampler: tpe`` and ``stop`` decide by what trials before came to (``flows/search.py``); all else is pure.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cluster.store.canonical import canonical_json

TRIAL = "trial"  # the axis that trials make
DIGITS = 4  # of a number that is drawn: a recipe of one's own can have the same
Values = dict[str, Any]  # STAGE.FIELD -> value


class Search(BaseModel):
    """How many trials a recipe makes, how they are drawn, and by what they are judged."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    trials: Annotated[int, Field(ge=1, le=10_000)] | Annotated[list[dict[str, Any]], Field(min_length=1)]
    """How many trials there are; or the trials themselves, each {STAGE.FIELD: value}."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of what is drawn."""
    sampler: Literal["random", "tpe"] = "random"
    """How values are drawn: at random, or by Optuna's tree-structured Parzen estimator from what trials before came to."""
    objective: str = "perplexity"
    """The metric by which trials are judged, of the last model of each."""
    stop: Literal["median", "halving"] | None = None
    """Which of Optuna's pruners stops a trial whose models so far are dominated; none lets all of them end."""
    together: int = Field(4, ge=1)
    """Trials under way at once where what comes out decides which follow, or which are stopped."""

    @model_validator(mode="after")
    def _known(self) -> Search:
        from tasks.metrics import METRICS

        able = [name for name, metric in METRICS.items() if metric.better != "neither"]
        if self.objective not in able:
            raise ValueError(f"objective: {self.objective!r} is no metric to be better by; choose one of {', '.join(able)}")
        return self

    @property
    def count(self) -> int:
        return self.trials if isinstance(self.trials, int) else len(self.trials)

    @property
    def known(self) -> int:
        """Trials whose values can be told before any has run."""
        open_ended = self.sampler == "tpe" and isinstance(self.trials, int)
        return min(self.together, self.count) if open_ended else self.count

    @property
    def decides(self) -> bool:
        """Whether what comes out decides what runs."""
        return self.stop is not None or self.known < self.count


class Axis(NamedTuple):
    """What a searched field may be: one of ``choices``, or a number from ``low`` to ``high``, whole where both are."""

    choices: list[Any]
    low: float = 0
    high: float = 0
    log: bool = False

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    def at(self, share: float) -> Any:
        """The value at a share (0 to 1) of the way."""
        if self.choices:
            return self.choices[min(int(share * len(self.choices)), len(self.choices) - 1)]
        low, high = (self.low, self.high + 1) if self.whole else (self.low, self.high)
        return self.settled(low * (high / low) ** share if self.log else low + share * (high - low))

    def settled(self, value: float) -> float:
        """A number within bounds, and no longer than people write it."""
        rounded = math.floor(value) if self.whole else float(f"{value:.{DIGITS}g}")
        return min(max(rounded, self.low), self.high)


class Trial(NamedTuple):
    """``nodes`` are the ids of the stages that follow its values, in order; others may share them."""

    number: int
    values: Values
    nodes: tuple[str, ...]


class Trials:
    """The trials of a recipe while it is expanded, entry by entry."""

    def __init__(self, search: Search | None) -> None:
        self.search = search
        self.space: dict[str, Axis] = {}
        self._fields: dict[str, list[str]] = {}  # base id of a searched entry -> its fields
        self._before: dict[str, set[str]] = {}  # base id -> searched entries it comes from, or is
        self._made: dict[tuple, str] = {}
        self._nodes: dict[int, list[str]] = {}

    def read(self, stated: Any, base: str, origins: Sequence[str], where: str) -> None:
        """The ``search`` of an entry, if it has one; ``origins`` are the base ids of what it comes from."""
        self._before[base] = set().union(*(self._before.get(id, ()) for id in origins))
        if stated is None:
            return
        if self.search is None:
            raise ValueError(f"{where}: the recipe does not say how many trials; add search: {{trials: N}} beside stages")
        if not isinstance(stated, dict) or not stated:
            raise ValueError(f"{where}: {{field: values}} is needed, got {stated!r}")
        self.space |= {f"{base}.{field}": _axis(values, f"{where}.{field}") for field, values in stated.items()}
        self._fields[base] = [str(field) for field in stated]
        self._before[base] |= {base}

    def split(self, base: str, branch: Mapping[str, str]) -> Iterator[tuple[dict[str, str], Values]]:
        """(branch, value by field) of each trial that an entry is made for on a branch; the branch alone without trials."""
        if base not in self._fields:
            yield dict(branch), {}
            return
        every = [branch[TRIAL]] if TRIAL in branch else [f"{TRIAL}{number}" for number in range(self.search.known)]
        for label in every:
            values = self._values(_number(label), {base})
            yield {**branch, TRIAL: label}, {field: values[f"{base}.{field}"] for field in self._fields[base]}

    def same(self, base: str, branch: Mapping[str, str], id: str) -> str:
        """The id of the stage that this one is: of the first trial that drew the same values up to here."""
        if TRIAL not in branch:
            return id
        number = _number(branch[TRIAL])
        others = tuple(item for item in branch.items() if item[0] != TRIAL)
        drawn = canonical_json(self._values(number, self._before[base]))
        found = self._made.setdefault((base, others, drawn), id)
        self._nodes.setdefault(number, []).append(found)
        return found

    def finished(self) -> tuple[Trial, ...]:
        """All trials, after the last entry."""
        if self.search is None:
            return ()
        if not self.space:
            raise ValueError("recipe.search: no stage says what is searched; add search: {FIELD: [values]} to one")
        if isinstance(self.search.trials, list):
            for number, trial in enumerate(self.search.trials):
                if odd := trial.keys() - self.space.keys():
                    choices = ", ".join(self.space)
                    raise ValueError(
                        f"recipe.search.trials[{number}]: no searched field {min(odd)!r}; choose some of {choices}"
                    )
        every = set(self._fields)
        return tuple(
            Trial(number, self._values(number, every), tuple(dict.fromkeys(nodes)))
            for number, nodes in sorted(self._nodes.items())
        )

    def _values(self, number: int, bases: set[str]) -> Values:
        fields = [f"{base}.{field}" for base in self._fields if base in bases for field in self._fields[base]]
        if isinstance(self.search.trials, int):
            return {path: draw(self.space[path], self.search.seed, number, path) for path in fields}
        stated = self.search.trials[number]
        for path in fields:
            if path not in stated:
                raise ValueError(f"recipe.search.trials[{number}]: no value for {path}; each trial has one for each field")
        return {path: stated[path] for path in fields}


def draw(axis: Axis, seed: int, number: int, path: str) -> Any:
    return axis.at(random.Random(f"{seed}/{number}/{path}").random())


def _number(label: str) -> int:
    return int(label.removeprefix(TRIAL))


def _axis(stated: Any, where: str) -> Axis:
    if isinstance(stated, list) and stated:
        return Axis(stated)
    if isinstance(stated, dict) and len(stated) == 1:
        ((kind, bounds),) = stated.items()
        numbers = isinstance(bounds, list) and len(bounds) == 2 and all(type(one) in (int, float) for one in bounds)
        if kind in ("uniform", "log") and numbers and bounds[0] < bounds[1]:
            if kind == "log" and bounds[0] <= 0:
                raise ValueError(f"{where}: a logarithmic range begins above 0, got {bounds[0]}")
            return Axis([], *bounds, log=kind == "log")
    raise ValueError(f"{where}: [values], {{uniform: [low, high]}} or {{log: [low, high]}} is needed, got {stated!r}")
