"""Replay: a buffer of sequences of past tasks, with the logits the model had for them, is trained along with the present task.

DER++ (arXiv 2004.07211) as SparCL uses it: a squared error to those logits and a cross-entropy on the same
sequences. The buffer is filled at the end of each task, in equal shares (the paper keeps a reservoir while it trains,
which ranks could not agree on), and one draw serves both terms.

Shapes: B = sequences, T = tokens, V = vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from tasks.data.batch import Batch, joined
from tasks.train.continual.sequence import TaskSequence
from tasks.train.hook import Hook, Run
from tasks.train.losses import next_token_loss

if TYPE_CHECKING:
    from tasks.train.objective import Loss, Metrics


class Replay(Hook):
    """``buffer`` sequences in all; each step replays ``share`` of its batch from them."""

    def __init__(self, sequence: TaskSequence, buffer: int, share: float, logits: float, labels: float, seed: int) -> None:
        self.sequence, self.buffer, self.share, self.seed = sequence, buffer, share, seed
        self.weights = (logits, labels)
        self.past = Batch(torch.zeros(0, 0, dtype=torch.int64))
        self.logits_BTV = torch.zeros(0, 0, 0, dtype=torch.float16)

    def objective(self, objective: Loss) -> Loss:
        def with_replay(engine: Any, batch: Batch) -> tuple[torch.Tensor, Metrics]:
            loss, metrics = objective(engine, batch)
            if not len(self.past):
                return loss, metrics | {"replay_loss": loss.detach() * 0}
            chosen = self._draw(max(1, round(self.share * len(batch))))
            then_BTV = self.logits_BTV[chosen].to(engine.device).float()
            past = self.past[chosen].to(engine.device)
            now_BTV = engine.forward(input_ids=past.tokens, use_cache=False).logits
            replayed = next_token_loss(now_BTV, past)
            logits, labels = self.weights
            loss = loss + logits * functional.mse_loss(now_BTV.float(), then_BTV) + labels * replayed
            return loss, metrics | {"replay_loss": replayed.detach()}

        return with_replay

    def _draw(self, count: int) -> torch.Tensor:
        """Which of the buffer a micro-batch replays: a function of the seed, the step and its place in the global batch, so
        that ranks draw what the micro-batches of one process would."""
        place = self.sequence.place + self.run.engine.rank * (self.sequence.tasks.batch // self.run.engine.ranks)
        generator = np.random.default_rng([self.seed, self.run.step, place])
        return torch.from_numpy(generator.choice(len(self.past), count))

    def on_start(self, run: Run) -> None:
        self.run = run

    def after_step(self, run: Run) -> None:
        tasks = self.sequence.tasks
        task = tasks.task_of(run.step - 1)
        if run.step == tasks.begin(task + 1) and run.step < run.steps and self.buffer:
            self._fill(run, task)

    @torch.no_grad()
    def _fill(self, run: Run, task: int) -> None:
        """Make room, and add sequences of the task that ended with what the model says of them now."""
        tasks, generator = self.sequence.tasks, np.random.default_rng([self.seed, task])
        room = max(1, self.buffer // (task + 1))
        numbers = generator.permutation(tasks.tasks[task].sequences(tasks.length))[:room]
        fresh = tasks.tasks[task].batch(numbers, tasks.length)
        inputs = [piece.tokens for piece in fresh.to(run.engine.device).split(tasks.batch)]
        said_BTV = torch.cat([run.engine.forward(input_ids=each, use_cache=False).logits.half().cpu() for each in inputs])
        kept = torch.from_numpy(generator.permutation(len(self.past))[: self.buffer - len(fresh)]).sort().values
        first = not len(self.past)
        self.past = fresh if first else joined([self.past[kept], fresh])
        self.logits_BTV = said_BTV if first else torch.cat([self.logits_BTV[kept], said_BTV])

    def state_dict(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        labels = {} if self.past.labels is None else {"labels": self.past.labels}
        return {}, {"tokens": self.past.tokens, "logits": self.logits_BTV, **labels}

    def load_state_dict(self, values: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        self.past, self.logits_BTV = Batch(tensors["tokens"], tensors.get("labels")), tensors["logits"]
