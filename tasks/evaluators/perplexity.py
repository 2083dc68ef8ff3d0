"""Token perplexity: exp of the mean next-token cross-entropy over windows of held-out text, and of other texts by name.

Beside it what a comparison needs. Bits per byte compares across tokenizers, perplexity does not. The interval holds 95 % of
the perplexities of texts made of windows drawn anew from these (bootstrap): differences inside it are no differences.
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, model_validator

from tasks.data.digests import Source
from tasks.data.texts import Text
from tasks.evaluators import Candidate, Part, Windowed

if TYPE_CHECKING:
    from tasks.data.tokens import Readable

DRAWS = 1000  # of the bootstrap


class Perplexity(Windowed):
    """Of the held-out split, and of every one of ``texts`` under its name: ``perplexity.wikitext2``."""

    paper: ClassVar[str] = "protocol of SparseGPT and Wanda (arXiv 2301.00774, 2306.11695)"
    version: ClassVar[int] = 3  # logits in pieces of models whose blocks share keys and values are those of the whole
    metrics: ClassVar[tuple[str, ...]] = ("heldout_loss", "perplexity", "perplexity_low", "perplexity_high", "bits_per_byte")

    length: int = Field(512, ge=2)
    """Tokens per window; the first of each is read and not predicted."""
    stride: int | None = Field(None, ge=1)
    """Tokens between the starts of windows; ``length`` unless given. Smaller, a token has more text before it."""
    tokens: int | None = Field(1 << 17, gt=0)
    """Predicted tokens of a text at most; null is all of it."""
    batch: int = Field(16, gt=0)
    """Windows computed at once."""
    texts: dict[Part, Text] = {}
    """Other texts by name, each a corpus, or ``{corpus: CORPUS, join: "\\n\\n"}`` for one text of its joined documents."""

    @model_validator(mode="after")
    def _windows_meet(self) -> Perplexity:
        if self.stride is not None and self.stride > self.length:
            raise ValueError(f"stride {self.stride} is more than length {self.length}: the text between windows is never read")
        return self

    def parts(self) -> list[str]:
        return ["", *self.texts]

    def sources(self) -> dict[str, Source]:
        return {f"text {name}": text for name, text in self.texts.items()}

    def measure(self, candidate: Candidate) -> dict[str, float]:
        from tasks.data.rows import reading
        from tasks.data.texts import bytes_per_token
        from tasks.data.tokens import Tokens

        heldout = reading(candidate.data, "heldout", together=False)
        plain = bytes_per_token(candidate.data) if isinstance(heldout, Tokens) else 0.0  # of tasks a part alone is scored
        found = self._judge(candidate, heldout, "the held-out split", plain)
        for name, text in self.texts.items():
            ids = text.encode(candidate.tokenizer)
            figures = self._judge(candidate, ids, f"text {name}", ids.bytes / ids.plain)
            found |= {f"{metric}.{name}": value for metric, value in figures.items()}
        return found

    def _judge(self, candidate: Candidate, text: Readable, name: str, bytes_per_token: float) -> dict[str, float]:
        """Loss, perplexity with its interval, bits per byte."""
        import torch

        from tasks.data.tokens import windows
        from tasks.models.scoring import summed_losses

        losses: list[float] = []
        counts: list[int] = []
        stride = self.stride or self.length
        with torch.inference_mode():
            for batch in windows(text, name, self.length, stride, self.tokens, self.batch, candidate.progress):
                losses += summed_losses(candidate.model, batch.to(candidate.device)).tolist()
                counts += batch.predicted_each.tolist()
        loss = sum(losses) / sum(counts)
        if not loss < math.log(sys.float_info.max):
            raise ValueError(f"the model is broken: a held-out loss of {loss:.4g} nats a token has no finite perplexity")
        low, high = _interval(losses, counts)
        bits = {"bits_per_byte": loss / bytes_per_token / math.log(2)} if bytes_per_token else {}
        return {"heldout_loss": loss, "perplexity": math.exp(loss), "perplexity_low": low, "perplexity_high": high, **bits}


def _interval(losses: list[float], counts: list[int]) -> tuple[float, float]:
    """The ends of the perplexity's 95 % interval, by bootstrap over windows."""
    import numpy as np

    drawn = np.random.default_rng(0).integers(0, len(losses), (DRAWS, len(losses)))
    means = np.asarray(losses)[drawn].sum(1) / np.asarray(counts)[drawn].sum(1)
    with np.errstate(over="ignore"):  # as far out as numbers go
        low, high = np.minimum(np.exp(np.quantile(means, (0.025, 0.975))), sys.float_info.max)
    return float(low), float(high)
