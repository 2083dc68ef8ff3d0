"""The recovery advisor: measures the held-out loss while a model trains, says what it will come to, and ends the run in time.

It ends when the perplexity that was asked for is reached, and when it is out of reach: when the whole band of what the loss
will come to (:mod:`tasks.train.forecast`) has lain above it ``PATIENCE`` times in a row, past the middle of the run. All it
decides by is measured at fixed steps, on every rank alike, and is part of a checkpoint, so that a resumed run ends where an
undisturbed one does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tasks.data.batch import Batch
from tasks.data.rows import reading
from tasks.models.scoring import summed_loss
from tasks.train.forecast import Forecast, forecast
from tasks.train.hook import Hook, Run
from tasks.train.until import Until

PATIENCE = 3
AT_ONCE = 8  # sequences


class Advisor(Hook):
    """``step_tokens`` are seen a step; ``note`` gets a line for people when the run ends."""

    def __init__(self, until: Until, data: Path, length: int, step_tokens: int, note: Callable[[str], None]) -> None:
        self.until, self.length, self.step_tokens, self.note = until, length, step_tokens, note
        self.text = reading(data, "heldout", together=False)
        if not self.text.sequences(length):
            raise ValueError(f"corpus is too small: until.perplexity needs held-out text of {length} tokens, and there is less")
        self.steps: list[int] = []
        self.losses: list[float] = []
        self.above, self.outcome = 0, ""
        self.coming: Forecast | None = None

    def on_start(self, run: Run) -> None:
        self.every = max(1, run.steps // self.until.measurements)
        if self.outcome:
            run.ended = True
        elif not self.losses:
            self._measure(run)
        self._look_ahead(run)

    def after_step(self, run: Run) -> None:
        if run.step % self.every == 0 or run.step == run.steps:
            self._measure(run)
            self._look_ahead(run)
            self._judge(run)

    def remark(self) -> str:
        ahead, wanted = self.coming, f"wanted {self.until.perplexity:g}"
        now = f"held-out perplexity {math.exp(self.losses[-1]):.2f}"
        if ahead is None or self.outcome:
            return f"{now}, {wanted}"
        return f"{now}, at the end {_as_perplexities(ahead)}, {wanted}"

    def metrics(self) -> dict[str, float]:
        now = {"heldout_perplexity": math.exp(self.losses[-1])}
        if self.coming is None:
            return now
        names = ("predicted_perplexity", "predicted_low", "predicted_high")
        told = (self.coming.loss, self.coming.low, self.coming.high)
        return now | {name: math.exp(loss) for name, loss in zip(names, told, strict=True)}

    def results(self) -> dict[str, float]:
        return {"target_reached": float(self.outcome == "reached"), "stopped_early": float(self.outcome not in ("", "ended"))}

    def _judge(self, run: Run) -> None:
        wanted, seen = math.log(self.until.perplexity), f"{run.step * self.step_tokens:,} tokens"
        self.above = self.above + 1 if self.coming and self.coming.low > wanted else 0
        if self.losses[-1] <= wanted:
            left = (run.steps - run.step) * self.step_tokens
            self._end(run, "reached", f"reached after {seen}, {left:,} before the end")
        elif run.step == run.steps:
            self._end(run, "ended", f"not reached in {seen}; it came to {math.exp(self.losses[-1]):.2f}")
        elif self.above >= PATIENCE and 2 * run.step >= run.steps and self.coming:
            self._end(
                run,
                "out of reach",
                f"out of reach: at the end it would be {_as_perplexities(self.coming)}; stopped after {seen}",
            )

    def _end(self, run: Run, outcome: str, told: str) -> None:
        self.outcome, run.ended = outcome, True
        self.note(f"until: perplexity {self.until.perplexity:g} {told}")

    def _look_ahead(self, run: Run) -> None:
        tokens = [step * self.step_tokens for step in self.steps]
        self.coming = forecast(tokens, self.losses, run.steps * self.step_tokens)

    @torch.no_grad()
    def _measure(self, run: Run) -> None:
        count = min(self.text.sequences(self.length), max(1, self.until.tokens // self.length))
        module, total, predicted = run.engine.module, 0.0, 0
        was = module.training
        module.eval()
        for start in range(0, count, AT_ONCE):
            batch: Batch = self.text.batch(range(start, min(count, start + AT_ONCE)), self.length).to(run.engine.device)
            total += summed_loss(module, batch, run.engine.forward)
            predicted += batch.predicted
        module.train(was)
        measured = torch.tensor([total / predicted], dtype=torch.float64, device=run.engine.device)
        if run.engine.ranks > 1:
            torch.distributed.broadcast(measured, 0)
        self.steps.append(run.step)
        self.losses.append(measured.item())

    def state_dict(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        return {"steps": self.steps, "losses": self.losses, "above": self.above, "outcome": self.outcome}, {}

    def load_state_dict(self, values: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        self.steps, self.losses = list(values["steps"]), list(values["losses"])
        self.above, self.outcome = values["above"], values["outcome"]


def _as_perplexities(ahead: Forecast) -> str:
    return f"{math.exp(ahead.loss):.2f} ({math.exp(ahead.low):.2f} to {math.exp(ahead.high):.2f})"
