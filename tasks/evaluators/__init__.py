"""The shelf of evaluators: each file measures one thing about a model and returns scalars by metric name.

Each evaluation is an artifact of its own, so a changed field of one evaluator measures nothing else again. Names, units and
directions of the metrics stand in ``tasks.metrics.METRICS``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from tasks.data.digests import Source
from tasks.methods import Method

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerFast
    from transformers.utils import ModelOutput

    from tasks.models.facts import ModelFacts


ITEMS = "items.json"  # in a report: what every question scored, by task


def _part(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9_]+", name):
        raise ValueError(f"{name!r} is no name of a task or text; use lower-case letters, digits and _")
    return name


Part = Annotated[str, AfterValidator(_part)]  # what metrics are told of: a name after the dot


@dataclass
class Candidate:
    """The model under evaluation, loaded when it is asked for. ``data`` is a prepare artifact; ``reference`` is the model to
    compare with, for an evaluator that needs one; ``report`` the folder for what people and other evaluators read beside the
    numbers."""

    directory: Path
    data: Path
    device: str = "cpu"
    progress: Callable[[int, int, str], None] = lambda done, total, unit: None
    reference: Candidate | None = None
    report: Path | None = None

    @cached_property
    def model(self) -> PreTrainedModel:
        from tasks.models.files.checkpoint import load_model

        return load_model(self.directory, device=self.device).eval()

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        from tasks.data.tokenizer import load_tokenizer

        return load_tokenizer(self.data / "tokenizer")

    def keep(self, name: str, text: str) -> None:
        """A file of the report."""
        if self.report:
            self.report.mkdir(parents=True, exist_ok=True)
            (self.report / name).write_text(text)

    @property
    def longest(self) -> int:
        """The longest sequence the model's positions allow; a length that serves where they set no bound."""
        from tasks.models.facts import positions

        return positions(self.model.config) or 2048


class Evaluator(Method):
    """Root of the evaluators. An ``exclusive`` one runs when nothing else does: it measures time, or needs other reports."""

    metrics: ClassVar[tuple[str, ...]] = ()  # what it measures, by the names in METRICS
    exclusive: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = False

    def sources(self) -> dict[str, Source]:
        """The outside content that the fields only point at, by name; it enters the key of an evaluation."""
        return {}

    def parts(self) -> Sequence[str] | None:
        """What its metrics are told of (tasks, texts): the part of a name after the dot, empty for the plain name. None where
        only the measurement tells."""
        return ("",)

    def reads(self) -> dict[str, int]:
        """Tokens that it needs at least of each split of its data."""
        return {}

    def check_positions(self, positions: int) -> None:
        """Raise ValueError where this measures on sequences longer than a model's positions allow."""

    def check_model(self, facts: ModelFacts) -> None:
        """Raise ValueError where this cannot be measured of such a model."""

    def measure(self, candidate: Candidate) -> dict[str, float]:
        raise NotImplementedError


def with_errors(*metrics: str) -> tuple[str, ...]:
    """The same metrics, each with its standard error."""
    return tuple(name for metric in metrics for name in (metric, f"{metric}_stderr"))


def cache_of(model: PreTrainedModel, output: ModelOutput) -> Cache:
    """What a model keeps from token to token; ValueError where it keeps nothing that decoding goes on from."""
    cache = getattr(output, "past_key_values", None)
    if cache is None:
        raise ValueError(f"unsupported: a {type(model).__name__} keeps no keys and values from token to token")
    return cache


class Windowed(Evaluator):
    """Root of the evaluators that read held-out text in windows of ``length`` tokens, at most ``tokens`` in all."""

    length: int
    tokens: int | None

    @model_validator(mode="after")
    def _one_window(self) -> Self:
        if self.tokens is not None and self.tokens < self.length:
            raise ValueError(
                f"tokens {self.tokens} is less than one window of length {self.length}; choose at least {self.length}"
            )
        return self

    def reads(self) -> dict[str, int]:
        return {"heldout": self.length}

    def check_positions(self, positions: int) -> None:
        if self.length > positions:
            raise ValueError(f"{self.name}.length {self.length} is more than the model's {positions} positions")


class Comparison(Evaluator):
    """Root of the evaluators that hold a model against a ``reference``: what went into the first pruning or quantization it
    has been through (``dense``), or into the stage that made it (``parent``). A model that has none is not measured.

    The key of an evaluation has the reference itself, so the word for it is no part of the key.
    """

    needs_reference: ClassVar[bool] = True

    reference: Literal["dense", "parent"] = Field("dense", exclude=True)
    """The model to compare with."""


class Contrast(Comparison):
    """Root of the evaluators that hold what another evaluator reported of a model (``compares``) against what it reported of
    the reference, and run neither. The recipe lists that other one too, and the reference is one of its models."""

    compares: ClassVar[str] = ""
    exclusive: ClassVar[bool] = True  # in the end, when all reports are there

    def contrast(self, ours: Path, theirs: Path) -> dict[str, float]:
        """``ours`` and ``theirs`` are the folders of the two reports."""
        raise NotImplementedError
