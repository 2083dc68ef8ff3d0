"""What MLflow knows of pipelines and models, as plain tables: a snapshot that never changes under who reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from dashboards.numbers import LINE_FLOPS, LINE_SECONDS, OVER_DENSE

NO_MODELS = ("prepare", "teach", "evaluate")  # kinds of stages that make none
SHRINKING = ("prune", "quantize")  # what goes into the first of these is the dense model of its line
QUALITY = "perplexity"
RUNNING, FAILED, KILLED, FINISHED = "RUNNING", "FAILED", "KILLED", "FINISHED"

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage's run: what was made, from what, and every number of it. ``maker`` is the pipeline that made it."""

    run: str
    id: str
    maker: str
    status: str
    started: int
    ended: int
    address: str
    parents: Mapping[str, str]
    params: Mapping[str, str]
    numbers: Mapping[str, float]
    gates: str = ""
    note: str = ""

    @property
    def kind(self) -> str:
        return self.address.partition("/")[0]

    @property
    def method(self) -> str:
        return self.address.partition("/")[2].rpartition("-")[0]

    @property
    def makes_a_model(self) -> bool:
        return self.kind not in NO_MODELS

    @property
    def came_from(self) -> str | None:
        """The address of the model that it was made from, or of the first of several."""
        models = [address for address in self.parents.values() if address.partition("/")[0] not in NO_MODELS]
        return self.parents.get("model") or next(iter(models), None)


@dataclass(frozen=True, slots=True)
class Pipeline:
    """One run of a recipe. ``reused`` are stages that an earlier run made, by their ids: the runs that tell of them."""

    run: str
    recipe: str
    name: str
    status: str
    started: int
    ended: int
    tags: Mapping[str, str]
    reused: Mapping[str, str]
    seconds: float | None = None

    @property
    def cached(self) -> bool:
        return self.tags.get("winnow.cached") == "true"

    @property
    def state(self) -> str:
        """``cached`` where all was there, else how it ended or that it runs."""
        return "cached" if self.cached and self.status == FINISHED else self.status.lower()


@dataclass(frozen=True)
class Book:
    """Pipelines, the newest first, stages by the id of their run, and by the address of a model its aliases in the registry."""

    pipelines: Mapping[str, Pipeline] = field(default_factory=dict)
    stages: Mapping[str, Stage] = field(default_factory=dict)
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    kept: dict[tuple[Any, ...], Any] = field(default_factory=dict)  # what was made of it before

    def once(self, *key: Any, made: Callable[[], Found]) -> Found:
        """What ``made`` gives; asked for again, what it gave."""
        if key not in self.kept:
            self.kept[key] = made()
        return self.kept[key]

    @cached_property
    def by_address(self) -> Mapping[str, Stage]:
        """Of several runs that tell of one artifact, the newest that ended well counts."""
        found: dict[str, Stage] = {}
        for stage in sorted(self.stages.values(), key=lambda stage: (stage.status == FINISHED, stage.started)):
            found[stage.address] = stage
        return found

    @cached_property
    def _made(self) -> Mapping[str, list[Stage]]:
        found: dict[str, list[Stage]] = {}
        for stage in self.stages.values():
            found.setdefault(stage.maker, []).append(stage)
        return found

    def stages_of(self, pipeline: str) -> list[Stage]:
        """What a pipeline made and what it took over, in the order of the stages."""
        taken = [self.stages[run] for run in self.pipelines[pipeline].reused.values() if run in self.stages]
        every = {stage.run: stage for stage in [*taken, *self._made.get(pipeline, ())]}
        return sorted(every.values(), key=lambda stage: (self.depth(stage), stage.started))

    def models_of(self, pipeline: str) -> Mapping[str, Stage]:
        """By the ids of their runs, in the order of the stages."""
        found = lambda: {stage.run: stage for stage in self.stages_of(pipeline) if stage.makes_a_model}  # noqa: E731
        return self.once("models", pipeline, made=found)

    def depth(self, stage: Stage) -> int:
        return len(self.line(stage))

    def line(self, stage: Stage) -> list[Stage]:
        """The models that one was made from, the first first, and itself; what fed it beside them is left out."""
        return self.once("line", stage.run, made=lambda: self._line(stage))

    def _line(self, stage: Stage) -> list[Stage]:
        found, seen, one = [stage], {stage.address}, stage
        while (address := one.came_from) and address in self.by_address and address not in seen:
            seen.add(address)
            found.append(one := self.by_address[address])
        return found[::-1]

    def dense(self, stage: Stage) -> Stage | None:
        """What went into the first pruning or quantization of its line."""
        line = self.line(stage)
        return next((before for before, after in zip(line, line[1:], strict=False) if after.kind in SHRINKING), None)

    def data(self, stage: Stage) -> str | None:
        """The address of the data whose held-out text a model is measured on; None of one that was only loaded."""
        return next((one.parents["data"] for one in reversed(self.line(stage)) if "data" in one.parents), None)

    def used(self, pipeline: str) -> Set[str]:
        """The addresses of what a pipeline's models were made from."""
        found = lambda: {one for stage in self.models_of(pipeline).values() for one in stage.parents.values()}  # noqa: E731
        return self.once("used", pipeline, made=found)

    def numbers(self, stage: Stage) -> Mapping[str, float]:
        """Its own, and those of its whole line."""
        return self.once("numbers", stage.run, made=lambda: self._numbers(stage))

    def _numbers(self, stage: Stage) -> Mapping[str, float]:
        line, found = self.line(stage), dict(stage.numbers)
        for name, total in (("training_flops", LINE_FLOPS), ("seconds", LINE_SECONDS)):
            if values := [one.numbers[name] for one in line if name in one.numbers]:
                found[total] = sum(values)
        dense = self.dense(stage)
        if dense and QUALITY in found and dense.numbers.get(QUALITY):
            found[OVER_DENSE] = found[QUALITY] / dense.numbers[QUALITY] - 1
        return found

    def state(self, stage: Stage, pipeline: str | None = None) -> str:
        """How a stage stands in a pipeline: ``cached`` where an earlier one had made it."""
        return "cached" if pipeline not in (None, stage.maker) and stage.status == FINISHED else stage.status.lower()

    def __iter__(self) -> Iterator[Pipeline]:
        return iter(self.pipelines.values())
