"""Books made by hand: a line of stages with the numbers that a test needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dashboards.book import Book, Pipeline, Stage
from dashboards.choice import Choice
from dashboards.reading import Reading
from dashboards.sight import Places, Sight

LINE = ("prepare", "pretrain", "prune", "recover", "quantize")


def stage(kind: str, run: str, parent: str = "", maker: str = "p", status: str = "FINISHED", **told: Any) -> Stage:
    """``told`` has its numbers, and under ``params`` and ``gates`` what is no number."""
    params, gates = told.pop("params", {}), told.pop("gates", "")
    parents = {"data" if parent.startswith("prepare/") else "model": parent} if parent else {}
    times = {"started": 1_790_000_000_000, "ended": 1_790_000_050_000}
    address = f"{kind}/plain-{run}"
    return Stage(run, kind, maker, status, **times, address=address, parents=parents, params=params, numbers=told, gates=gates)


def pipeline(run: str = "p", recipe: str = "tiny", status: str = "FINISHED", **told: Any) -> Pipeline:
    tags = {"winnow.recipe": recipe, "winnow.cached": "false", **told.pop("tags", {})}
    return Pipeline(run, recipe, recipe, status, told.pop("started", 1_790_000_000_000), 0, tags, told.pop("reused", {}), 1.0)


def line(
    tail: str = "", maker: str = "p", numbers: Mapping[str, Mapping[str, float]] | None = None, **params: Any
) -> list[Stage]:
    """prepare to quantize, each made from the one before. ``tail`` tells one line's runs from another's."""
    found: list[Stage] = []
    for kind in LINE:
        before = found[-1].address if found else ""
        told = {**(numbers or {}).get(kind, {}), "params": params.get(kind, {})}
        found.append(stage(kind, f"{kind}{tail}", before, maker, **told))
    return found


def book(*every: Pipeline | Stage) -> Book:
    pipelines = {one.run: one for one in every if isinstance(one, Pipeline)}
    return Book(pipelines, {one.run: one for one in every if isinstance(one, Stage)})


class Nowhere(Reading):
    """A reading of a book that is there already; it asks nobody."""

    def __init__(self, known: Book, files: Mapping[tuple[str, str], str] | None = None) -> None:
        super().__init__("sqlite://", client=object())
        self.book, self.complete, self.files = known, True, files or {}

    def text(self, run: str, file: str) -> str:  # type: ignore[override]
        return self.files.get((run, file), "")

    def curves(self, stage: Stage) -> Mapping[str, list[tuple[int, float]]]:
        return {"loss": [(1, 4.0), (2, 3.0)], "tokens": [(1, 10.0), (2, 20.0)]} if "training_tokens" in stage.numbers else {}


def sight(known: Book, query: str = "", places: Places = Places(), files: Mapping[tuple[str, str], str] | None = None) -> Sight:
    return Sight(known, Choice.of(query), Nowhere(known, files), places)
