"""Replay: a few sequences of past tasks, with what the model said of them, are learned along with the present ones.

DER++ (arXiv 2004.07211) as SparCL uses it: a squared error to the logits of then and a cross-entropy on the same
sequences. The buffer is filled at the end of each task, in equal shares (the paper keeps a reservoir while it trains,
which ranks could not agree on), and one draw serves both terms.

Shapes: B = sequences, T = tokens, V = vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional

from tasks.train.hook import Hook, Run
from tasks.train.objective import Metrics, Objective, next_token_loss
from tasks.train.sequence import TaskSequence


class Replay(Hook):
    """``buffer`` sequences in all; each step replays ``share`` of its batch from them."""

    def __init__(self, sequence: TaskSequence, buffer: int, share: float, logits: float, labels: float, seed: int) -> None:
        self.sequence, self.buffer, self.share, self.seed = sequence, buffer, share, seed
        self.weights = (logits, labels)
        self.tokens_BT = torch.zeros(0, 0, dtype=torch.int64)
        self.logits_BTV = torch.zeros(0, 0, 0, dtype=torch.float16)

    def objective(self, objective: Objective) -> Objective:
        def with_replay(engine: Any, tokens_BT: torch.Tensor) -> tuple[torch.Tensor, Metrics]:
            loss, metrics = objective(engine, tokens_BT)
            if not len(self.tokens_BT):
                return loss, metrics | {"replay_loss": loss.detach() * 0}
            chosen = self._draw(max(1, round(self.share * len(tokens_BT))))
            then_BTV = self.logits_BTV[chosen].to(engine.device).float()
            past_BT = self.tokens_BT[chosen].to(engine.device)
            now_BTV = engine.forward(input_ids=past_BT, use_cache=False).logits
            replayed = next_token_loss(now_BTV, past_BT)
            logits, labels = self.weights
            loss = loss + logits * functional.mse_loss(now_BTV.float(), then_BTV) + labels * replayed
            return loss, metrics | {"replay_loss": replayed.detach()}

        return with_replay

    def _draw(self, count: int) -> torch.Tensor:
        """Which of the buffer a micro-batch replays: a function of the seed, the step and its place in the global batch, so
        that ranks draw what the micro-batches of one process would."""
        place = self.sequence.place + self.run.engine.rank * (self.sequence.tasks.batch // self.run.engine.ranks)
        generator = np.random.default_rng([self.seed, self.run.step, place])
        return torch.from_numpy(generator.choice(len(self.tokens_BT), count))

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
        fresh_BT = torch.from_numpy(np.stack([tasks.tasks[task].sequence(int(number), tasks.length) for number in numbers]))
        pieces = fresh_BT.to(run.engine.device).split(tasks.batch)
        said_BTV = torch.cat([run.engine.forward(input_ids=piece, use_cache=False).logits.half().cpu() for piece in pieces])
        kept = torch.from_numpy(generator.permutation(len(self.tokens_BT))[: self.buffer - len(fresh_BT)]).sort().values
        first = not len(self.tokens_BT)
        self.tokens_BT = fresh_BT if first else torch.cat([self.tokens_BT[kept], fresh_BT])
        self.logits_BTV = said_BTV if first else torch.cat([self.logits_BTV[kept], said_BTV])

    def state_dict(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        return {}, {"tokens": self.tokens_BT, "logits": self.logits_BTV}

    def load_state_dict(self, values: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        self.tokens_BT, self.logits_BTV = tensors["tokens"], tensors["logits"]
