"""A stage: fields that say what to compute, and one ``run`` that turns input directories into an output directory.

A stage knows nothing of Ray, Prefect, MLflow or storage. It reads the directories of its inputs, writes files into
its output directory and returns scalars; ``tasks.job`` does the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from tasks.context import Context
from tasks.data.digests import Digests
from tasks.data.place import AS_WRITTEN
from tasks.models.facts import ModelFacts, Parties, facts_in, ids_in, meanings_in
from tasks.models.source import ModelSource

if TYPE_CHECKING:
    from tasks.models.accounting import Shape
    from tasks.train.cost import Machine

STAGES = ("prepare", "load", "pretrain", "teach", "prune", "recover", "merge", "quantize", "evaluate")
Kind = Literal["tokens", "model", "logits", "metrics"]
REPORT = "report"  # the folder of an artifact for what people read: curves, per-layer tables
Parent = TypeVar("Parent")


class Stage(BaseModel):
    """Root of every stage. ``version`` is raised when the meaning of the parameters changes. ``needs`` maps a role ("data",
    "model", "teacher") to the kind of artifact that fills it; ``yields`` is the kind it makes. The role ``plural`` takes
    a list, whose members fill the roles NAME_0, NAME_1, ... in their order. A ``distributed`` stage runs once per rank, and
    rank 0 publishes. A ``frugal`` one keeps its peak of memory low, at some price in speed; an ``exclusive`` one measures
    time, so it runs when nothing else does."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    version: ClassVar[int] = 1
    needs: ClassVar[dict[str, Kind]] = {}
    plural: ClassVar[str] = ""
    yields: ClassVar[Kind] = "model"
    distributed: ClassVar[bool] = False
    frugal: ClassVar[bool] = False
    exclusive: ClassVar[bool] = False

    @classmethod
    def stage_name(cls) -> str:
        return cls.__module__.rpartition(".")[2]

    seed: int = Field(0, ge=0, lt=2**32)
    """Seeds whatever the stage draws at random; the recipe's ``seed`` unless given."""

    @classmethod
    def resolve(cls, fields: dict[str, Any], vocabulary: int | None, where: str) -> dict[str, Any]:
        """The fields with every word in them that stands for a number replaced by it, so that the number is in the key."""
        return fields

    @property
    def label(self) -> str:
        """The word in the artifact's address that says how: the method's name where there is one."""
        method = getattr(self, "method", None)
        return method.name if method else self.stage_name()

    def roles(self) -> dict[str, Kind]:
        """The roles this very stage needs filled; by default all of ``needs``."""
        return dict(self.needs)

    def needs_teacher(self) -> bool:
        """Whether the model learns from another one."""
        return False

    def parameters(self) -> dict[str, Any]:
        """The fields as they enter the key: paths as they were written."""
        return self.model_dump(mode="json", exclude_none=True, context=AS_WRITTEN)

    def check_written(self) -> None:
        """Raise ValueError where fields that a recipe gives say one thing twice; to a job every field is given."""

    def inspect(self) -> None:
        """Raise ValueError at what plain reading of outside files shows to be wrong; nothing heavy is imported."""

    def sources(self) -> dict[str, Any]:
        """The outside content that the fields only point at, by name; each tells its ``fingerprint``."""
        return {}

    def fingerprints(self, digests: Digests | None = None) -> dict[str, Any]:
        """Digests of the outside content; part of the key."""
        found = {name: source.fingerprint(digests) for name, source in self.sources().items()}
        return {name: digest for name, digest in found.items() if digest}

    def verify(self, fingerprints: dict[str, Any], digests: Digests) -> None:
        """Raise ValueError unless the outside content is what it was when the key was made."""
        for name, source in self.sources().items():
            if source.fingerprint(digests) != fingerprints.get(name):
                raise ValueError(
                    f"{name} {source.describe()} is not what it was when this run was planned: "
                    "it has changed since, or is another on this machine; run the recipe again"
                )

    def reads(self) -> dict[str, int]:
        """Tokens that it needs at least of each split of its data."""
        return {}

    def check(self, facts: Facts) -> None:
        """Raise ValueError where the fields contradict what is known of the model and data before anything runs."""

    def doubts(self, facts: Facts) -> list[str]:
        """Of what ``check`` lets pass that which is hardly meant, a line each."""
        return []

    def leaves(self, pattern: str | None) -> str | None:
        """The pattern of its model's masks where those that came have ``pattern``; None where there are none or it depends."""
        return pattern

    def reshaped(self, facts: ModelFacts) -> ModelFacts | None:
        """What is known of the model that comes out, where that is known of the one that goes in."""
        return facts

    def forecast(self, shape: Shape, machine: Machine | None = None) -> dict[str, float]:
        """What a run on a model of this shape will cost, as far as a formula tells: ``tokens``, ``flops``, and on a machine
        ``memory_bytes`` of a rank, ``tokens_per_second`` and ``hours``."""
        return {}

    def parties(self, context: Context) -> Parties:
        """The models and the data, now that the inputs are there."""
        return Parties()

    def check_parties(self, parties: Parties) -> None:
        """Raise ValueError where the models and the tokenizer, as far as known, fit neither each other nor the fields: asked
        when a plan is made, and again when the stage starts, since a plan may not see them."""

    def run(self, context: Context) -> dict[str, float]:
        raise NotImplementedError


class ModelStage(Stage):
    """A stage that takes a model: an earlier stage's, or, where none made one, the ``model`` the recipe starts from."""

    needs: ClassVar[dict[str, Kind]] = {"data": "tokens", "model": "model"}

    model: ModelSource | None = None
    """Where the model comes from when no earlier stage made one; the recipe's ``model`` unless given."""

    @property
    def keeps_masks(self) -> bool:
        """Whether what was dead in the incoming model must be dead in the outgoing one."""
        return True

    def sources(self) -> dict[str, Any]:
        found = {name: getattr(self, name, None) for name in ("model", "teacher")}
        return {name: source for name, source in found.items() if source}

    def inspect(self) -> None:
        for name, source in self.sources().items():
            source.inspect(quantized=name == "teacher")

    def check_width(self, width: int) -> None:
        """Raise ValueError where the method cannot treat a matrix of this input width."""

    def check(self, facts: Facts) -> None:
        length = getattr(self, "length", 0)
        if facts.positions and length > facts.positions:
            raise ValueError(f"length {length} is more than the model's {facts.positions} positions")
        for name, width in facts.widths.items():
            try:
                self.check_width(width)
            except ValueError as error:
                raise ValueError(f"{error} ({name})") from None

    def parties(self, context: Context) -> Parties:
        ids, teacher = ids_in(context.inputs["data"]), self.teacher_directory(context)
        begun = None if self.model and self.model.architecture else self.incoming(context)  # to a new one ids mean nothing
        meanings = meanings_in(data=context.inputs["data"] / "tokenizer", model=begun, teacher=teacher)
        return Parties(ids, self.facts(context, ids), teacher and facts_in(teacher), meanings=meanings)

    def facts(self, context: Context, ids: int) -> ModelFacts:
        """Of the model this stage starts from, whose data may hold that many token ids."""
        return facts_in(self.incoming(context))

    def teacher_directory(self, context: Context) -> Path | None:
        """That of the model this stage learns from, where it does."""
        return None

    def check_parties(self, parties: Parties) -> None:
        parties.check(getattr(self, "length", 0))

    def incoming(self, context: Context) -> Path:
        """The directory of the model this stage starts from."""
        return context.inputs["model"] if "model" in context.inputs else self.model.checkpoint.fetch(context.scratch)


@dataclass(frozen=True)
class Facts:
    """What is known before anything runs: the tokenizer's size, the model's positions, its matrices' widths by name, how
    many tasks the corpus is, the stages that the model has been through, the last first, and its attention heads."""

    vocabulary: int | None
    positions: int | None
    widths: dict[str, int]
    tasks: int = 1
    upstream: tuple[Stage, ...] = ()
    heads: int | None = None


def members(parents: Mapping[str, Parent], role: str) -> list[Parent]:
    """What fills a role that takes a list, in its order."""
    names = (f"{role}_{number}" for number in range(len(parents)))
    return [parents[name] for name in names if name in parents]


def stage_class(name: str) -> type[Stage]:
    """The class of a stage: ``tasks/<name>.py`` holds ``<Name>``."""
    if name not in STAGES:
        raise ValueError(f"no stage {name!r}; choose one of {', '.join(STAGES)}")
    return getattr(import_module(f"tasks.{name}"), name.capitalize())
