"""Activation sparsity at a matched loss of quality: how many neurons a token can do without, of any activation function.

A threshold on what neurons add leaves out as many as it does: so one error, shared by all blocks, is made as large as it can
be while perplexity rises by no more than p %. It is searched on calibration text and told of held-out text, since
thresholds fit the tokens they were searched on.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from tasks.evaluators import Candidate, Windowed

if TYPE_CHECKING:
    from tasks.data.batch import Batch
    from tasks.models.facts import ModelFacts
    from tasks.models.firing import Firing

STEPS = 10**6  # errors from 0 to 1 that are tried
REPORT = "activation_sparsity.json"


class ActivationSparsity(Windowed):
    """CETT-PPL-p %. Each number under its p (``activation_sparsity.p1``), that of the first p also by its plain name."""

    paper: ClassVar[str] = "Sparsing Law (arXiv 2411.02335)"
    metrics: ClassVar[tuple[str, ...]] = (
        "activation_sparsity",
        "activation_error",
        "activation_perplexity_ratio",
        "activation_zeros",
    )

    percents: tuple[Annotated[float, Field(gt=0)], ...] = Field((1.0,), min_length=1)
    """Rises of perplexity that are allowed, in percent."""
    error: float | None = Field(None, ge=0, le=1)
    """The error of every block instead of one that is searched for: to hold several checkpoints against one."""
    sequences: int = Field(16, gt=0)
    """Calibration sequences that are searched on; what their neurons give out is held in memory."""
    length: int = Field(256, ge=2)
    """Tokens of a sequence, and of a window of held-out text."""
    tokens: int = Field(1 << 14, gt=0)
    """Tokens of held-out text, at most, that are told of."""
    batch: int = Field(8, gt=0)
    """Sequences computed at once."""
    seed: int = 0
    """Seed of the draw of calibration sequences."""

    def parts(self) -> list[str]:
        return ["", *([] if self.error is not None else map(_label, self.percents))]

    def reads(self) -> dict[str, int]:
        return super().reads() | {"calibration": self.sequences * self.length}

    def check_model(self, facts: ModelFacts) -> None:
        from tasks.models.find.structure import feed_forwards

        feed_forwards(facts.linears)

    def measure(self, candidate: Candidate) -> dict[str, float]:
        import torch

        from tasks.data.tokens import calibration_batches, heldout_windows
        from tasks.models.firing import Firing

        drawn = list(calibration_batches(candidate.data, self.sequences, self.length, self.batch, self.seed))
        told = list(heldout_windows(candidate.data, self.length, self.tokens, self.batch, candidate.progress))
        with torch.inference_mode():
            firing = Firing(candidate.model, candidate.directory, candidate.device)
            with firing.recorded():
                dense = self._loss(candidate, drawn)
            with firing.silenced([0.0] * len(firing.downs)) as counts:
                whole = self._loss(candidate, told)
            found, report = {"activation_zeros": _silent(counts)}, {}
            for name, error in self._errors(candidate, firing, drawn, dense).items():
                thresholds = firing.thresholds(error)
                with firing.silenced(thresholds) as counts:
                    ratio = math.exp(self._loss(candidate, told) - whole)
                numbers = {
                    "activation_sparsity": _silent(counts),
                    "activation_error": error,
                    "activation_perplexity_ratio": ratio,
                }
                found |= {f"{metric}.{name}": value for metric, value in numbers.items()} if name else {}
                found = numbers | found  # the first has the plain names
                report[name or "given"] = {"thresholds": thresholds, "sparsity": [_silent([block]) for block in counts]}
        candidate.keep(REPORT, json.dumps(report))
        return found

    def _errors(self, candidate: Candidate, firing: Firing, drawn: list[Batch], dense: float) -> dict[str, float]:
        """The error of each p by its name: the largest at which perplexity rises by no more, on the text drawn."""
        from tasks.models.firing import last_within

        if self.error is not None:
            return {"": self.error}

        def rise(step: int) -> float:
            with firing.silenced(firing.thresholds(step / STEPS)):
                return math.expm1(self._loss(candidate, drawn) - dense)

        # Without an error nothing is lost but what adds nothing; more than all errors is never reached.
        known = {0: 0.0, STEPS + 1: 1.0 + max(self.percents) / 100}
        found = {}
        for number, percent in enumerate(sorted(set(self.percents))):
            candidate.progress(number, len(set(self.percents)), "searches")
            found[percent] = last_within(rise, percent / 100, known) / STEPS
        return {_label(percent): found[percent] for percent in self.percents}

    def _loss(self, candidate: Candidate, batches: list[Batch]) -> float:
        from tasks.models.scoring import summed_loss

        total = sum(summed_loss(candidate.model, batch.to(candidate.device)) for batch in batches)
        if not math.isfinite(total):
            raise ValueError(f"the model is broken: its loss is {total}")
        return total / sum(batch.predicted for batch in batches)


def _label(percent: float) -> str:
    return f"p{percent:g}".replace(".", "_")


def _silent(counts: list[list[int]]) -> float:
    """The share of neurons that were not left."""
    return 1 - sum(left for _, left in counts) / sum(there for there, _ in counts)
