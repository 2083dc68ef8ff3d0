"""What somebody chose to look at: the address bar holds all of it, so that a link shows another the same page.

``?recipe=quickstart&find=sparsity=0.6&y=perplexity&x=bytes&pick=RUN,RUN``. A name that is not known is passed over, as a link
may be older than the page; a value that means nothing stands for the default.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any
from urllib.parse import parse_qs, quote

from dashboards.book import QUALITY, Book, Pipeline, Stage
from dashboards.numbers import metric
from dashboards.words import fields as words_of

MANY = 300  # models, from which on only those are drawn that no other is made from, unless all are asked for
MOST_PICKED = 6
ONE_OF = {"show": ("final", "all"), "rows": ("models", "runs")}
STATES = ("running", "finished", "cached", "failed", "killed")


@dataclass(frozen=True)
class Choice:
    """Lists are separated by commas. ``show`` is final or all; empty: whatever is readable."""

    recipe: tuple[str, ...] = ()
    run: tuple[str, ...] = ()  # pipelines, by MLflow's ids
    state: tuple[str, ...] = ()
    tag: tuple[str, ...] = ()  # name, or name=value
    find: str = ""  # words that a model's id or recipe has, all of them
    since: str = ""  # days, 2026-11-01
    until: str = ""
    show: str = ""
    x: str = "bytes"
    y: str = QUALITY
    within: float = 5.0  # percent of dense quality that is good enough
    pick: tuple[str, ...] = ()  # models that are compared, by MLflow's ids
    base: str = ""  # and the one that the others are measured by
    pipeline: str = ""  # whose waterfall is looked at
    model: str = ""  # that is looked at
    columns: tuple[str, ...] = ()  # of the table
    rows: str = "models"  # of the table: models or runs

    @classmethod
    def of(cls, query: str) -> Choice:
        given = parse_qs((query or "").removeprefix("?"))
        found: dict[str, Any] = {}
        for one in fields(cls):
            text = given.get(one.name, [""])[-1].strip()
            if not text:
                continue
            if isinstance(one.default, tuple):
                found[one.name] = tuple(dict.fromkeys(part for part in text.split(",") if part))
            elif isinstance(one.default, float):
                found[one.name] = _percent(text, one.default)
            else:
                found[one.name] = text
        found["pick"] = found.get("pick", ())[:MOST_PICKED]
        found = {name: value for name, value in found.items() if value in ONE_OF.get(name, (value,))}
        return cls(**found)

    @property
    def misread(self) -> list[str]:
        """Of what was typed that which chooses nothing, with the form it should have."""
        days = {"from": self.since, "to": self.until}
        return [f"{name}: {day} is no day, as 2026-11-01 is" for name, day in days.items() if day and _day(day, 0) is None]

    @property
    def query(self) -> str:
        """What stands in the address bar; defaults are left out."""
        told = []
        for one in fields(self):
            value = getattr(self, one.name)
            if value != one.default:
                text = ",".join(value) if isinstance(value, tuple) else f"{value:g}" if isinstance(value, float) else value
                told.append(f"{one.name}={quote(text, safe=',=:./')}")
        return f"?{'&'.join(told)}" if told else ""

    def but(self, **changed: Any) -> str:
        """The query of the same choice with something else in it."""
        return replace(self, **changed).query

    def pipelines(self, book: Book) -> list[Pipeline]:
        """Those that are chosen, the newest first."""
        begin, end = _day(self.since, 0), _day(self.until, 1)
        return [
            one
            for one in book
            if (not self.recipe or one.recipe in self.recipe)
            and (not self.run or one.run in self.run)
            and (not self.state or one.state in self.state)
            and (begin is None or one.started >= begin)
            and (end is None or one.started < end)
            and all(_tagged(one.tags, tag) for tag in self.tag)
        ]

    def models(self, book: Book) -> list[tuple[Stage, Mapping[str, float]]]:
        """The models of what is chosen, each once, with their numbers."""
        every: dict[str, Stage] = {}
        chosen = self.pipelines(book)
        for one in chosen:
            every |= book.models_of(one.run)
        if self.show == "final" or (not self.show and len(every) > MANY):
            used: set[str] = set().union(*(book.used(one.run) for one in chosen))
            every = {run: model for run, model in every.items() if model.address not in used}
        words = self.find.lower().split()
        kept = [model for model in every.values() if not words or _reads(book, model, words)]
        return [(model, book.numbers(model)) for model in kept]

    def picked(self, book: Book) -> Iterator[Stage]:
        return (book.stages[run] for run in self.pick if run in book.stages)


def _percent(text: str, default: float) -> float:
    try:
        value = float(text.replace(",", "."))
    except ValueError:
        return default
    return value if 0 <= value < math.inf else default


def _day(text: str, more: int) -> int | None:
    """Milliseconds at which a day begins here; None where it is no day."""
    try:
        day = time.strptime(text, "%Y-%m-%d")
        return round(1000 * time.mktime((day.tm_year, day.tm_mon, day.tm_mday + more, 0, 0, 0, 0, 0, -1)))
    except (ValueError, OverflowError):
        return None


def _tagged(tags: Mapping[str, str], wanted: str) -> bool:
    name, equals, value = wanted.partition("=")
    return name in tags and (not equals or tags[name] == value)


def _reads(book: Book, model: Stage, words: list[str]) -> bool:
    """Whether every word stands in what a recipe would say of the model, or of a model it came from."""
    text = book.once("text", model.run, made=lambda: _text(book, model))
    return all(word in text for word in words)


def _text(book: Book, model: Stage) -> str:
    told = [f"{one.kind}.{name}={value}" for one in book.line(model) for name, value in words_of(one).items()]
    return " ".join([model.id, model.address, model.run, *told]).lower()


def axes(names: set[str]) -> list[str]:
    """Metrics that a model may be chosen by, out of those that are there."""
    return sorted(name for name in names if metric(name).better != "neither")
