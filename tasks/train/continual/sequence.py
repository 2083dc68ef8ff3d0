"""Training on a sequence of corpora: one task after the other, what was learned easily removed, forgetting measured.

The order of the data is a pure function of the seed, the step and what has been removed, and the latter is part of a
checkpoint, so a run resumed in the middle of a task goes on bit for bit.

Shapes: B = sequences, T = tokens, V = vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist

from tasks.data.batch import Batch
from tasks.data.rows import reading
from tasks.data.tokens import TASKS, Sampler, Split
from tasks.models.scoring import summed_loss
from tasks.train.hook import Hook, Run

if TYPE_CHECKING:
    from tasks.train.objective import Loss, Metrics


def task_names(data: Path) -> list[str]:
    """The tasks of a prepared sequence of corpora, in order. Raises ValueError where the data are no sequence."""
    names = json.loads((data / TASKS).read_text()) if (data / TASKS).exists() else []
    if not names:
        raise ValueError("the corpus is one task; a sequence of corpora is needed: corpus: {sequence: {NAME: CORPUS, ...}}")
    return names


@dataclass
class TaskSampler:
    """Batches of the task that a step belongs to; every task has equally many steps.

    ``alive[task]`` are the sequence numbers that are left, in ``segment[task]`` since which step they are the same.
    """

    tasks: Sequence[Split]
    length: int
    batch: int
    seed: int
    steps: int
    alive: list[np.ndarray] = field(default_factory=list)
    since: list[int] = field(default_factory=list)
    drawn: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # numbers of this rank's last batch

    def __post_init__(self) -> None:
        for tokens in self.tasks:
            if tokens.sequences(self.length) < 1:
                raise ValueError(f"corpus is too small: {tokens.split} has less than one sequence of {self.length} tokens")
        self.alive = [np.arange(tokens.sequences(self.length)) for tokens in self.tasks]
        self.since = [self.begin(task) for task in range(len(self.tasks))]

    def begin(self, task: int) -> int:
        """The first step of a task."""
        return task * self.steps // len(self.tasks)

    def task_of(self, step: int) -> int:
        return next(task for task in reversed(range(len(self.tasks))) if step >= self.begin(task))

    def at(self, step: int, rank: int = 0, ranks: int = 1) -> Batch:
        """This rank's slice of the global batch: ``batch`` / ranks sequences."""
        task, local = self.task_of(step), self.batch // ranks
        alive, first = self.alive[task], (step - self.since[task]) * self.batch + rank * local
        places = np.arange(first, first + local)
        orders = {epoch: self._order(task, int(epoch)) for epoch in np.unique(places // len(alive))}
        self.drawn = np.array([alive[orders[place // len(alive)][place % len(alive)]] for place in places])
        return self.tasks[task].batch(self.drawn, self.length)

    def _order(self, task: int, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, task, self.since[task], epoch]).permutation(len(self.alive[task]))


class TaskSequence(Hook):
    """Puts the sequence of tasks in place of the whole corpus, and measures held-out loss at the end of each task.

    ``removals`` are the shares of a task's steps at which the easiest ``removed`` / len(removals) of its sequences go:
    those whose tokens were predicted wrong least often since the last removal (SparCL's dynamic data removal).
    """

    def __init__(self, data: Path, steps: int, removed: float, removals: Sequence[float], probes: int) -> None:
        self.names, self.data, self.steps = task_names(data), data, steps
        self.removed, self.removals, self.probes = removed, removals, probes
        self.losses: list[list[float]] = []  # [task that ended][task measured]

    def sampler(self, sampler: Sampler) -> TaskSampler:
        tasks = [reading(self.data, f"train-{name}", together=False) for name in self.names]
        self.tasks = TaskSampler(tasks, sampler.length, sampler.batch, sampler.seed, self.steps)
        self.wrong = [np.zeros(len(alive)) for alive in self.tasks.alive]
        self.seen = [np.zeros(len(alive)) for alive in self.tasks.alive]
        self.sizes = [len(alive) for alive in self.tasks.alive]
        return self.tasks

    def objective(self, objective: Loss) -> Loss:
        return _Scored(self, objective)

    def score(self, start: int, wrong_B: torch.Tensor, step: int) -> None:
        """Note how many of a sequence's tokens were predicted wrong; ``start`` is its place in the rank's batch."""
        numbers, task = self.tasks.drawn[start : start + len(wrong_B)], self.tasks.task_of(step)
        np.add.at(self.wrong[task], numbers, wrong_B.cpu().numpy())
        np.add.at(self.seen[task], numbers, 1)

    def on_start(self, run: Run) -> None:
        self.run, self.place = run, 0

    def after_step(self, run: Run) -> None:
        self.place = 0
        task = self.tasks.task_of(run.step - 1)
        begin, end = self.tasks.begin(task), self.tasks.begin(task + 1)
        due = [begin + round(share * (end - begin)) for share in self.removals]
        if run.step in due and run.step < end:
            self._remove(run, task)
        if run.step == end:
            self.losses.append([self._heldout_loss(run, name) for name in self.names[: task + 1]])

    def _remove(self, run: Run, task: int) -> None:
        counts = torch.from_numpy(np.stack([self.wrong[task], self.seen[task]])).to(run.engine.device)
        if run.engine.ranks > 1:
            dist.all_reduce(counts)
        wrong, seen = counts.cpu().numpy()
        rate = np.where(seen > 0, wrong / np.maximum(seen, 1), 1.0)[self.tasks.alive[task]]  # never seen: hardest
        going = min(int(self.removed * self.sizes[task] / len(self.removals)), len(rate) - 1)
        stay = np.sort(rate.argsort(kind="stable")[going:])
        self.tasks.alive[task], self.tasks.since[task] = self.tasks.alive[task][stay], run.step
        self.wrong[task][:] = self.seen[task][:] = 0

    @torch.no_grad()
    def _heldout_loss(self, run: Run, name: str) -> float:
        tokens, length = reading(self.data, f"heldout-{name}", together=False), self.tasks.length
        count = min(self.probes, tokens.sequences(length))
        if not count:
            raise ValueError(f"corpus is too small: the held-out split of {name} has less than one sequence of {length} tokens")
        total, predicted = 0.0, 0
        for start in range(0, count, self.tasks.batch):
            batch = tokens.batch(range(start, min(count, start + self.tasks.batch)), length).to(run.engine.device)
            total += summed_loss(run.engine.module, batch, run.engine.forward)
            predicted += batch.predicted
        return total / predicted

    def results(self) -> dict[str, float]:
        """Held-out loss of every task at the end, and how much of it came after the task was learned."""
        last = self.losses[-1]
        learned = [losses[task] for task, losses in enumerate(self.losses)]
        forgotten = [last[task] - learned[task] for task in range(len(last) - 1)]
        return {
            "forgetting": sum(forgotten) / max(1, len(forgotten)),
            **{f"task_loss.{name}": last[task] for task, name in enumerate(self.names)},
            **{f"task_forgetting.{name}": lost for name, lost in zip(self.names, forgotten, strict=False)},
        }

    def metrics(self) -> dict[str, float]:
        return {"sequences_left": float(len(self.tasks.alive[self.tasks.task_of(max(0, self.run.step - 1))]))}

    def state_dict(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        tensors = {}
        for task, name in enumerate(self.names):
            of_task = {"alive": self.tasks.alive[task], "wrong": self.wrong[task], "seen": self.seen[task]}
            tensors |= {f"{kind}/{name}": torch.from_numpy(values.copy()) for kind, values in of_task.items()}
        return {"since": self.tasks.since, "losses": self.losses}, tensors

    def load_state_dict(self, values: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        self.tasks.since, self.losses = list(values["since"]), values["losses"]
        for task, name in enumerate(self.names):
            self.tasks.alive[task] = tensors[f"alive/{name}"].numpy()
            self.wrong[task], self.seen[task] = tensors[f"wrong/{name}"].numpy(), tensors[f"seen/{name}"].numpy()


@dataclass
class _Scored:
    """An objective as it is; the sequence hook is told how wrong each sequence was."""

    hook: TaskSequence
    objective: Loss

    def __call__(self, engine: Any, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        heard = _Overheard(engine)
        loss, metrics = self.objective(heard, batch)
        assert heard.logits_BTV is not None, "an objective runs the model"
        wrong_BT = heard.logits_BTV[:, :-1].argmax(-1) != batch.following
        self.hook.score(self.hook.place, batch.mean(wrong_BT), self.hook.run.step)
        self.hook.place += len(batch)
        return loss, metrics


class _Overheard:
    """An engine whose first answer is kept: what the model said of the batch, without another forward pass."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.logits_BTV: torch.Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self._engine.forward(*args, **kwargs)
        if self.logits_BTV is None:
            self.logits_BTV = output.logits.detach()
        return output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)
