"""Prune: one-shot sparsity by a method of the pruners shelf, block by block through the walker."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, ValidationInfo, WithJsonSchema, field_validator, model_validator

from tasks.calibrate.calibration import PARTS, CalibratedStage
from tasks.calibrate.essential import GRID, Trials, folder_of
from tasks.calibrate.method import Pruner
from tasks.calibrate.resized import resize
from tasks.calibrate.resizer import Resizer
from tasks.context import Context
from tasks.methods import build, dump, of, seeded
from tasks.models.allocation import Allocator
from tasks.models.facts import ModelFacts
from tasks.stage import REPORT, Facts

if TYPE_CHECKING:
    from tasks.calibrate.report import WalkReport
    from tasks.formats.pattern import Pattern
    from tasks.models.facts import Parties

ESSENTIAL = "essential"
SPARSITY = {"anyOf": [{"type": "number", "minimum": 0, "exclusiveMaximum": 1}, {"const": ESSENTIAL}, {"type": "null"}]}


def _sane(sparsity: float | str | None) -> float | str | None:
    if sparsity is None or sparsity == ESSENTIAL:
        return sparsity
    if isinstance(sparsity, str):
        raise ValueError(f"input should be a number or {ESSENTIAL}, got {sparsity!r}")
    if sparsity >= 1:
        raise ValueError(f"input should be less than 1, got {sparsity:g}")
    if sparsity < 0:
        raise ValueError(f"input should be greater than or equal to 0, got {sparsity:g}")
    return sparsity


class Prune(CalibratedStage):
    """Prune a model in one shot, under a pattern that its masks then promise."""

    version: ClassVar[int] = 5

    method: Annotated[Pruner, of("pruners")]
    """What ranks the weights: a pruner."""
    pattern: str = Field("unstructured", examples=["unstructured", "2:4", "block:16", "group:4", "channel", "neuron"])
    """Which weights compete and what the mask promises: unstructured, N:M (``2:4``), block:SIZE, group:ROWS, channel or
    neuron."""
    sparsity: Annotated[float | str | None, AfterValidator(_sane), WithJsonSchema(SPARSITY)] = None
    """Share of the prunable weights to prune; an N:M pattern fixes it. ``essential`` searches for the highest that costs next
    to nothing."""
    allocator: Annotated[Allocator | None, of("allocators", optional=True)] = None
    """Shares the sparsity out over the matrices; without one the method's own does."""
    unseen: Literal["magnitude", "dense"] = "magnitude"
    """What is done with a matrix that no calibration token reached (an expert): pruned by magnitude, or left dense without a
    mask."""

    @field_validator("method")
    @classmethod
    def _seeded(cls, method: Pruner, info: ValidationInfo) -> Pruner:
        return seeded(method, info.data.get("seed", 0))

    @model_validator(mode="after")
    def _agree(self) -> Prune:
        if isinstance(self.method, Resizer):
            if not isinstance(self.sparsity, float) or not self.sparsity:
                raise ValueError(f"sparsity is needed with {self.method.name}: a share above 0 and below 1 of what it takes")
            return self
        pattern = self._pattern()
        fixed = hasattr(pattern, "sparsity")
        if self.sparsity is None and not fixed:
            raise ValueError(f"sparsity is needed with pattern {self.pattern}")
        self.method.suit(pattern)
        if fixed and self.sparsity == ESSENTIAL:
            raise ValueError(f"sparsity {ESSENTIAL} is looked for, and pattern {pattern} fixes it; choose unstructured")
        if self.sparsity == ESSENTIAL and self._allocator().name == "table":
            raise ValueError(f"sparsity {ESSENTIAL} is looked for, and allocator table fixes it; choose another allocator")
        if fixed and self._allocator().name != "uniform":
            raise ValueError(
                f"pattern {pattern} fixes the sparsity of every matrix, and allocator {self._allocator().name} "
                "would vary it; choose unstructured"
            )
        if self.sparsity != ESSENTIAL:
            pattern.check(self.target_sparsity, pattern.width_multiple)
        return self

    def check_written(self) -> None:
        odd = [field for field in ("pattern", "allocator", "unseen") if field in self.model_fields_set]
        if odd and isinstance(self.method, Resizer):
            raise ValueError(f"{self.method.name} takes whole parts of a model and makes no masks; leave {odd[0]} out")

    def _pattern(self) -> Pattern:
        from tasks.formats.pattern import parse_pattern

        return parse_pattern(self.pattern, self.method.scope)

    def _allocator(self) -> Allocator:
        return self.allocator or build("allocators", self.method.allocator, Allocator)

    @property
    def target_sparsity(self) -> float:
        """The sparsity asked for, in so many words or by the pattern; 0 while it is looked for."""
        if self.sparsity == ESSENTIAL:
            return 0.0
        return self._pattern().sparsity if self.sparsity is None else self.sparsity

    @property
    def uneven(self) -> bool:
        """Whether blocks of several widths are left, which no config of transformers tells."""
        return self.shrinks and not self.resizes

    @property
    def resizes(self) -> bool:
        """Whether a smaller model of the same architecture is left, told by its config."""
        return isinstance(self.method, Resizer)

    @property
    def shrinks(self) -> bool:
        """Whether what is pruned is gone from the matrices, and not masked."""
        return getattr(self.method, "shrink", False)

    def leaves(self, pattern: str | None) -> str | None:
        return None if self.shrinks else str(self._pattern())

    def reshaped(self, facts: ModelFacts) -> ModelFacts | None:
        if not isinstance(self.method, Resizer):
            known = self.density
            return facts if known is None else replace(facts, density=min(facts.density, known))
        if not self.method.foretold:
            return None
        return ModelFacts(self.method.check_model(facts.skeleton, self.target_sparsity), facts.settled)

    @property
    def density(self) -> float | None:
        """The share of the weights that it leaves in every matrix; None where what it sees decides."""
        from tasks.formats.pattern import NM, Unstructured

        even = isinstance(self._pattern(), (NM, Unstructured)) and self._allocator().name == "uniform"
        told = even and self.unseen != "dense" and self.sparsity != ESSENTIAL
        return 1 - self.target_sparsity if told else None

    @property
    def passes(self) -> int:
        """At most: a search walks, and measures a loss, at each sparsity of its grid, and walks once more."""
        return super().passes * (1 + len(GRID)) + 1 + len(GRID) if self.sparsity == ESSENTIAL else super().passes

    def check(self, facts: Facts) -> None:
        super().check(facts)
        masked = any(isinstance(stage, Prune) and not stage.shrinks for stage in facts.upstream)
        if masked and not self.method.takes_masks:
            raise ValueError(
                f"{self.method.name} takes no model with masks, and an earlier prune leaves some; "
                f"prune with {self.method.name} first"
            )
        self._check_sparsity(facts)

    def _check_sparsity(self, facts: Facts) -> None:
        """Raise ValueError where the sparsity takes nothing at all, as far as is known before an allocation."""
        from tasks.formats.selection import quota

        choices = self.method.choices(self._pattern(), facts.widths, facts.heads)
        sparsity = self.target_sparsity
        if sparsity and choices and self._allocator().name in ("uniform", "cfsp"):
            most = max(choices, key=choices.get)
            if not quota(choices[most], sparsity):
                raise ValueError(
                    f"sparsity {sparsity:g} takes none of {choices[most]} {most}; choose at least {1 / choices[most]:.4g}"
                )

    def check_parties(self, parties: Parties) -> None:
        super().check_parties(parties)
        if parties.model and isinstance(self.method, Resizer):
            self.method.check_model(parties.model.skeleton, self.target_sparsity)
        elif parties.model:
            self.method.admit(
                parties.model.linears, dict.fromkeys(parties.model.linears, self.target_sparsity), self._pattern()
            )

    def check_width(self, width: int) -> None:
        if isinstance(self.method, Resizer):
            return
        self._pattern().check(self.target_sparsity, width, width)  # what one matrix reads another has made

    @property
    def unreached(self) -> str:
        return "left dense" if self.unseen == "dense" else "pruned by magnitude (unseen: dense leaves them whole)"

    def judge(self, report: WalkReport) -> None:
        if report.total("asked") and not report.total("given") and self.sparsity != ESSENTIAL:
            raise ValueError(
                f"sparsity {self.target_sparsity:g} takes nothing: it is less than one unit of pattern {self.pattern} "
                "in every matrix; choose a higher one"
            )

    def run(self, context: Context) -> dict[str, float]:
        report = context.output / REPORT
        report.mkdir(parents=True, exist_ok=True)
        if isinstance(self.method, Resizer):
            return resize(self.method, self.target_sparsity, self.incoming(context), self.drawn(context), context)
        if self.sparsity != ESSENTIAL:
            return self._prune(context, self.target_sparsity, context.output)
        device, prune = context.execution.device, partial(self._prune, context)
        trials = Trials(self.incoming(context), self.drawn(context), context.scratch, device, prune)
        sparsity, curve = trials.search(self.method, json.dumps([self.pattern, dump(self._allocator())]))
        (report / "essential.json").write_text(json.dumps(curve))
        return {**self._prune(context, sparsity, context.output), "essential_sparsity": sparsity}

    def _prune(self, context: Context, sparsity: float, output: Any) -> dict[str, float]:
        """The model pruned to one sparsity, its finished blocks kept under that sparsity."""
        place, title = folder_of(sparsity), f"at {sparsity:g}" if self.sparsity == ESSENTIAL else ""
        choices = {"pattern": self._pattern(), "sparsity": self._allocate(context, sparsity, place), "unseen": self.unseen}
        if not self.shrinks:
            return self.walk(context, output, place, title, **choices)
        from tasks.models.files.resizing import shrink

        masked = context.scratch / place / "masked"
        metrics = self.walk(context, masked, place, title, **choices)
        shrink(masked, output)
        return metrics

    def _allocate(self, context: Context, sparsity: float, place: str) -> dict[str, float]:
        """The sparsity of each linear, allocated once; in the report for people to read, edit and give back."""
        import yaml

        from tasks.calibrate.scan import scan
        from tasks.models.stream.blocks import BlockStream
        from tasks.models.stream.kept import keep, kept

        made, mine = context.scratch / place / PARTS / "allocation.json", dump(self._allocator())
        known = kept(made) or {}
        if known.get("method") != mine:
            stream = BlockStream(self.incoming(context), None, context.execution.device, context.scratch)
            allocation = self._allocator().allocate(scan(stream, self.batches(context), self.memory(context)), sparsity)
            made.parent.mkdir(parents=True, exist_ok=True)
            known = {"method": mine, "allocation": allocation}
            keep(known, made)
        (context.output / REPORT / "allocation.yaml").write_text(yaml.safe_dump(known["allocation"], sort_keys=False))
        return known["allocation"]
