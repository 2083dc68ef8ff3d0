"""Token perplexity on the held-out split: exp of the mean next-token cross-entropy over non-overlapping windows."""

from __future__ import annotations

import math
import sys
from typing import ClassVar, Self

from pydantic import Field, model_validator

from tasks.evaluators import Candidate, Evaluator, require_window


class Perplexity(Evaluator):
    paper: ClassVar[str] = "protocol of SparseGPT and Wanda (arXiv 2301.00774, 2306.11695)"

    length: int = Field(512, ge=2)
    """Tokens per window; each is scored on its length - 1 next tokens."""
    tokens: int = Field(1 << 17, gt=0)
    """Tokens of held-out text at most."""
    batch: int = Field(16, gt=0)
    """Windows computed at once."""

    @model_validator(mode="after")
    def _one_window(self) -> Self:
        require_window(self.tokens, self.length)
        return self

    def check_positions(self, positions: int) -> None:
        if self.length > positions:
            raise ValueError(f"perplexity.length {self.length} is more than the model's {positions} positions")

    def measure(self, candidate: Candidate) -> dict[str, float]:
        import torch

        from tasks.data.tokens import heldout_windows
        from tasks.models.scoring import summed_loss

        total, predicted = 0.0, 0
        with torch.inference_mode():
            for batch in heldout_windows(candidate.data, self.length, self.tokens, self.batch, candidate.progress):
                total += summed_loss(candidate.model, batch.to(candidate.device))
                predicted += batch.predicted
        loss = total / predicted
        if not loss < math.log(sys.float_info.max):
            raise ValueError(f"the model is broken: a held-out loss of {loss:.4g} nats a token has no finite perplexity")
        return {"heldout_loss": loss, "perplexity": math.exp(loss)}
