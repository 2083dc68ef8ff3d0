"""KL divergence and top-1 agreement with a reference model: averages such as accuracy and perplexity hide what changes both
ways.

On held-out text, token by token: the Kullback-Leibler divergence of the reference's next token from the model's, and whether
the likeliest next token is still the same one (``reference_flips`` is 1 less that agreement). Which answers of a task changed,
the evaluator ``flips`` tells.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from tasks.evaluators import Candidate, Comparison, Windowed


class Divergence(Windowed, Comparison):
    """Windows of ``length`` tokens, at most ``tokens`` tokens in all, against the ``dense`` or the ``parent`` model."""

    paper: ClassVar[str] = "Accuracy Is Not All You Need (arXiv 2407.09141)"
    version: ClassVar[int] = 2  # as perplexity's third
    metrics: ClassVar[tuple[str, ...]] = ("reference_kl", "reference_flips")

    length: int = Field(512, ge=2)
    """Tokens of a window."""
    tokens: int = Field(1 << 15, gt=0)
    """Tokens in all, at most."""
    batch: int = Field(8, gt=0)
    """Windows at a time."""

    def measure(self, candidate: Candidate) -> dict[str, float]:
        import torch
        from torch.nn.functional import log_softmax

        from tasks.data.tokens import heldout_windows
        from tasks.models.scoring import logits_of

        assert candidate.reference is not None, "it needs one"
        kl = flips = scored = 0.0
        with torch.inference_mode():
            for batch in heldout_windows(candidate.data, self.length, self.tokens, self.batch, candidate.progress):
                pair = [logits_of(each.model, batch.to(candidate.device)) for each in (candidate.reference, candidate)]
                for (_, _, reference_BTV), (_, _, ours_BTV) in zip(*pair, strict=True):
                    for told_TV, said_TV in zip(reference_BTV, ours_BTV, strict=True):
                        truth_TV, guess_TV = log_softmax(told_TV.float(), -1), log_softmax(said_TV.float(), -1)
                        kl += float((truth_TV.exp() * (truth_TV - guess_TV)).sum(dtype=torch.float64))
                        flips += int((truth_TV.argmax(-1) != guess_TV.argmax(-1)).sum())
                        scored += len(truth_TV)
        return {"reference_kl": kl / scored, "reference_flips": flips / scored}
