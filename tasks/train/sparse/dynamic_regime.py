"""The root of the regimes that prune and grow: when weights move, and how many."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from tasks.train.regime import Outcome, Setting, SparseRegime

if TYPE_CHECKING:
    from tasks.train.hook import Hook


class DynamicRegime(SparseRegime):
    """Root of the regimes that prune and grow: every ``interval`` steps before the share ``end`` of the run, a cosine
    from ``fraction`` to ``final_fraction`` says how many of a matrix's live weights move."""

    keeps_masks: ClassVar[bool] = False
    masks: ClassVar[Outcome] = "moved"
    grow: ClassVar[Literal["random", "gradient"]]
    keep_regrown: ClassVar[bool] = True
    at_least: ClassVar[bool] = False

    fraction: float = Field(0.3, gt=0, le=1)
    """Share of a matrix's live weights that is dropped and grown in the first update; a cosine leads to ``final_fraction``."""
    final_fraction: float = Field(0.0, ge=0, le=1)
    """Share of the live weights that moves in the last update."""
    interval: int = Field(100, gt=0)
    """Steps between updates of the masks."""
    end: float = Field(0.75, gt=0, le=1)
    """Share of the run after which the masks stay."""

    def check_masks(self, pattern: str) -> None:
        if not pattern.startswith("unstructured"):
            raise ValueError(
                f"{self.name} moves single weights, which breaks the pattern {pattern} of the model's masks; prune "
                "unstructured, or train with a method that holds masks, as masked does"
            )

    def hooks(self, setting: Setting) -> list[Hook]:
        from tasks.train.schedule import CosineFraction
        from tasks.train.sparse.dynamic import Moves, PruneAndGrow

        end = round(self.end * setting.steps)
        cosine = CosineFraction(self.fraction, self.final_fraction, end)
        moves = Moves(self.interval, end, cosine, self.grow, self.keep_regrown, self.at_least)
        return [PruneAndGrow(setting.linears, self.starting_masks(setting), moves, setting.seed)]
