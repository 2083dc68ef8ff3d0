"""Prune: one-shot sparsity by a method of the pruners shelf, block by block through the walker."""

from __future__ import annotations

from pydantic import Field, model_validator

from tasks.calibrate.calibration import CalibratedStage
from tasks.methods import of
from tasks.stage import Context


class Prune(CalibratedStage):
    """``pattern`` is unstructured, N:M, block:SIZE or channel; an N:M pattern says its sparsity by itself."""

    method: of("pruners")
    pattern: str = "unstructured"
    sparsity: float | None = Field(None, ge=0, lt=1)

    @model_validator(mode="after")
    def _pattern_and_sparsity(self) -> Prune:
        if self.sparsity is None and not hasattr(self._pattern(), "sparsity"):
            raise ValueError(f"sparsity is needed with pattern {self.pattern}")
        self._pattern().check(self.target, self._pattern().width_multiple)
        return self

    def _pattern(self):
        from tasks.formats.pattern import parse_pattern

        return parse_pattern(self.pattern, self.method.scope)

    @property
    def target(self) -> float:
        """The sparsity asked for, in so many words or by the pattern."""
        return self._pattern().sparsity if self.sparsity is None else self.sparsity

    def check_width(self, width: int) -> None:
        self._pattern().check(self.target, width)

    def run(self, context: Context) -> dict[str, float]:
        return self.walk(context, context.output, pattern=self._pattern(), sparsity=self.target)
