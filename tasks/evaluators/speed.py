"""Measured decode and prefill speed of the model as it loads in transformers. Weight sparsity by itself buys none."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tasks.evaluators import Candidate, Evaluator, cache_of

if TYPE_CHECKING:
    import torch


class Speed(Evaluator):
    """Prefill of a prompt, then greedy decoding with a KV cache; medians."""

    paper: ClassVar[str] = "wall-clock measurement"
    metrics: ClassVar[tuple[str, ...]] = ("prefill_tokens_per_second", "decode_tokens_per_second")
    exclusive: ClassVar[bool] = True

    prompt: int = Field(256, gt=0)
    """Tokens of the prompt."""
    new: int = Field(32, gt=0)
    """Tokens decoded after it."""
    repeats: int = Field(5, gt=0)
    """Measurements, of which the median counts; one before them warms up."""

    def reads(self) -> dict[str, int]:
        return {"heldout": self.prompt}

    def check_positions(self, positions: int) -> None:
        if self.prompt + self.new > positions:
            raise ValueError(
                f"speed.prompt {self.prompt} and speed.new {self.new} together are more than the model's {positions} positions"
            )

    def measure(self, candidate: Candidate) -> dict[str, float]:
        import torch

        from tasks.data.tokens import Tokens

        heldout, prompt = Tokens(candidate.data, "heldout"), self.prompt
        if heldout.sequences(prompt) == 0:
            raise ValueError(f"corpus is too small: the held-out split has less than one prompt of {prompt} tokens")
        tokens_BT = torch.from_numpy(heldout.sequence(0, prompt))[None].to(candidate.device)
        prefill, decode = [], []
        with torch.inference_mode():
            for _ in range(self.repeats + 1):
                filled, decoded = self._time(candidate, tokens_BT)
                prefill.append(filled)
                decode.append(decoded)
        return {
            "prefill_tokens_per_second": prompt / statistics.median(prefill[1:]),
            "decode_tokens_per_second": self.new / statistics.median(decode[1:]),
        }

    def _time(self, candidate: Candidate, tokens_BT: torch.Tensor) -> tuple[float, float]:
        """Seconds of one prefill and of ``new`` decoding steps."""
        import torch

        def now() -> float:
            if candidate.device != "cpu":
                torch.cuda.synchronize()
            return time.perf_counter()

        start = now()
        output = candidate.model(input_ids=tokens_BT, use_cache=True)
        filled = now()
        for _ in range(self.new):
            chosen = output.logits[:, -1:].argmax(-1)
            cache = cache_of(candidate.model, output)
            output = candidate.model(input_ids=chosen, past_key_values=cache, use_cache=True)
        return filled - start, now() - filled
