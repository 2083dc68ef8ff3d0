"""Evaluate: measure one model with one evaluator, on held-out text, some against a reference model.

``ours`` and ``theirs`` are evaluations by one evaluator, of a model and of its reference, that a third compares.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from tasks.context import Context
from tasks.evaluators import Contrast, Evaluator
from tasks.methods import of
from tasks.models.facts import Parties, facts_in, ids_in, meanings_in
from tasks.models.source import Stored
from tasks.stage import REPORT, Kind, Stage

if TYPE_CHECKING:
    from pathlib import Path


class Evaluate(Stage):
    """Measures one model with one evaluator, some against a reference model."""

    version: ClassVar[int] = 3
    needs: ClassVar[dict[str, Kind]] = {
        "data": "tokens",
        "model": "model",
        "reference": "model",
        "ours": "metrics",
        "theirs": "metrics",
    }
    yields: ClassVar[Kind] = "metrics"

    method: Annotated[Evaluator, of("evaluators")]
    """What is measured."""
    reference: Stored | None = None  # set by the recipe where what it came from is a user's checkpoint
    """The checkpoint to compare with; an earlier stage's model unless given."""

    @property
    def exclusive(self) -> bool:
        return self.method.exclusive

    def roles(self) -> dict[str, Kind]:
        if isinstance(self.method, Contrast):
            return {role: self.needs[role] for role in ("ours", "theirs")}
        roles = {role: self.needs[role] for role in ("data", "model", "reference")}
        if not self.method.needs_reference or self.reference:
            del roles["reference"]
        return roles

    def reads(self) -> dict[str, int]:
        return self.method.reads()

    def sources(self) -> dict[str, Any]:
        return ({"reference": self.reference} if self.reference else {}) | self.method.sources()

    def inspect(self) -> None:
        if self.reference:
            self.reference.inspect(quantized=True)

    def parties(self, context: Context) -> Parties:
        if isinstance(self.method, Contrast):
            return Parties()
        reference = self._reference(context)
        data, model = context.inputs["data"], context.inputs["model"]
        meanings = meanings_in(data=data / "tokenizer", model=model, reference=reference)
        return Parties(ids_in(data), facts_in(model), reference=facts_in(reference) if reference else None, meanings=meanings)

    def check_parties(self, parties: Parties) -> None:
        parties.check()
        for facts in (parties.model, parties.reference):
            if facts and facts.positions:
                self.method.check_positions(facts.positions)
        if parties.model:
            self.method.check_model(parties.model)

    def _reference(self, context: Context) -> Path | None:
        return self.reference.checkpoint.fetch(context.scratch) if self.reference else context.inputs.get("reference")

    def run(self, context: Context) -> dict[str, float]:
        from tasks.evaluators import Candidate

        if isinstance(self.method, Contrast):
            return self.method.contrast(*(context.inputs[role] / REPORT for role in ("ours", "theirs")))
        data, device = context.inputs["data"], context.execution.device
        reference = self._reference(context)
        against = Candidate(reference, data, device) if reference else None
        return self.method.measure(
            Candidate(context.inputs["model"], data, device, context.progress, against, context.output / REPORT)
        )
