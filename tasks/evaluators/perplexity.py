"""Token perplexity on the held-out split: exp of the mean next-token cross-entropy over non-overlapping windows."""

from __future__ import annotations

import math
import sys
from typing import ClassVar

from pydantic import Field

from tasks.evaluators import Candidate, Evaluator


class Perplexity(Evaluator):
    """Windows of ``length`` tokens, each scored on its length - 1 next tokens; at most ``tokens`` tokens in all."""

    paper: ClassVar[str] = "protocol of SparseGPT and Wanda (arXiv 2301.00774, 2306.11695)"

    length: int = Field(512, ge=2)
    tokens: int = Field(1 << 17, gt=0)
    batch: int = Field(16, gt=0)

    def check_positions(self, positions: int) -> None:
        if self.length > positions:
            raise ValueError(f"perplexity.length {self.length} is more than the model's {positions} positions")

    def measure(self, candidate: Candidate) -> dict[str, float]:
        import torch

        from tasks.data.tokens import Tokens
        from tasks.models.scoring import summed_loss

        heldout, length = Tokens(candidate.data, "heldout"), self.length
        windows = min(heldout.sequences(length), max(1, self.tokens // length))
        if windows == 0:
            raise ValueError(f"corpus is too small: the held-out split has less than one window of {length} tokens")
        total, predicted = 0.0, 0
        with torch.inference_mode():
            for start in range(0, windows, self.batch):
                numbers = range(start, min(start + self.batch, windows))
                batch = heldout.batch(numbers, length)
                total += summed_loss(candidate.model, batch.to(candidate.device))
                predicted += batch.predicted
                candidate.progress(start + len(numbers), windows, "windows")
        loss = total / predicted
        if not loss < math.log(sys.float_info.max):
            raise ValueError(f"the model is broken: a held-out loss of {loss:.4g} nats a token has no finite perplexity")
        return {"heldout_loss": loss, "perplexity": math.exp(loss)}
