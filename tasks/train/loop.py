"""The one training loop. Methods take part through hooks and objectives; the engine knows how to update.

Everything the loop does is a pure function of (seed, step): batches come from the sampler by step number, and what a model
draws at random (dropout, gradient estimates) from the seed, the step and the rank, so a run resumed from a checkpoint continues
bit for bit, whatever else its process has drawn.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tasks.data.batch import Batch
from tasks.data.tokens import Sampler
from tasks.formats.seeding import seed_of
from tasks.train.attempts import register_attempt
from tasks.train.compiled import Compilation
from tasks.train.engine import Engine
from tasks.train.hook import Hook, Run
from tasks.train.objective import Loss
from tasks.train.schedule import LearningRate
from tasks.train.snapshot import latest, restore, save


@dataclass
class Telemetry:
    """Where the loop's numbers go: ``log`` gets curves, ``progress`` gets (steps done, steps, note), ``note`` lines that people
    must see. Rank 0 only."""

    log: Callable[[dict[str, float], int], None] = lambda metrics, step: None
    progress: Callable[[int, int, str], None] = lambda done, total, note: None
    beat: Callable[[int], None] = lambda done: None  # on every rank, after every step
    note: Callable[[str], None] = lambda text: None
    every: int = 10
    compilation: Compilation | None = None  # watched where layers are compiled: in the first step, and not again


@dataclass
class Totals:
    """What the accounting needs of a run: its steps, density and compute summed over them, and the last logged values."""

    steps: int = 0
    density_steps: float = 0.0
    compute_steps: float = 0.0
    last: dict[str, float] = field(default_factory=dict)


@dataclass
class Checkpoints:
    """When and where the loop saves itself: about every ``seconds``, turned into steps once the speed is known.

    ``attempt`` grows with every start of the stage; an older attempt that lingers can no longer save.
    """

    directory: Path
    seconds: float = 60.0
    attempt: int = 0
    probe: int = 4
    _interval: int = 0
    _started: tuple[int, float] = (0, 0.0)

    def restore(self, engine: Engine) -> tuple[int, dict[str, Any], dict[str, torch.Tensor]] | None:
        """What the newest valid snapshot carried, loaded into the engine; None where there is none."""
        self.attempt = self._agree(engine, self.attempt)
        if engine.rank == 0:
            register_attempt(self.directory, self.attempt)
        found = latest(self.directory)
        restored = restore(found, engine) if found else None
        self.begin(restored[0] if restored else 0)
        return restored

    def begin(self, step: int) -> None:
        """Measure the speed from here on."""
        self._started = (step, time.monotonic())

    def save_if_due(self, engine: Engine, step: int, state: Callable[[], tuple[dict, dict]]) -> None:
        begun, since = self._started
        if step - begun == self.probe:
            seconds_per_step = (time.monotonic() - since) / self.probe
            self._interval = self._agree(engine, max(1, round(self.seconds / max(seconds_per_step, 1e-6))))
        if self._interval and (step - begun - self.probe) % self._interval == 0 and step - begun > self.probe:
            save(engine, self.directory, step, *state(), self.attempt)

    def _agree(self, engine: Engine, number: int) -> int:
        """Rank 0's clock counts."""
        if engine.ranks == 1:
            return number
        shared = torch.tensor([number], device=engine.device)
        torch.distributed.broadcast(shared, 0)
        return int(shared.item())


def fit(
    engine: Engine,
    sampler: Sampler,
    objective: Loss,
    hooks: Sequence[Hook],
    steps: int,
    learning_rate: LearningRate,
    *,
    seed: int = 0,
    micro_batch: int | None = None,
    checkpoints: Checkpoints | None = None,
    telemetry: Telemetry | None = None,
) -> Totals:
    """Train to ``steps`` finished steps, from the newest checkpoint if there is one. ``seed`` is for what models draw."""
    telemetry, totals = telemetry or Telemetry(), Totals()
    run = _begin(engine, hooks, steps, totals, checkpoints)
    clock = _Clock(run.step)
    if run.step:
        telemetry.note(f"goes on from step {run.step} of {steps}, where an earlier attempt was interrupted")
    if telemetry.compilation and run.step < steps:
        telemetry.progress(0, 0, "compiling the layers, which the first step waits for")
    while run.step < steps and not run.ended:
        torch.manual_seed(seed_of(seed, run.step, engine.rank))
        metrics = _accumulate(run, sampler, objective, micro_batch)
        for hook in hooks:
            hook.after_backward(run)
        gradient_norm = engine.step(learning_rate.at(run.step))
        if not math.isfinite(gradient_norm):
            raise FloatingPointError(f"the gradient norm is {gradient_norm} at step {run.step}; nothing was updated")
        totals.density_steps += _share([hook.density() for hook in hooks])
        totals.compute_steps += _share([hook.compute() for hook in hooks])
        run.step += 1
        for hook in hooks:
            hook.after_step(run)
        telemetry.beat(run.step)
        if run.step % telemetry.every == 0 or run.step == steps or run.ended:
            totals.last = _measure(engine, metrics, hooks, gradient_norm, learning_rate.at(run.step - 1))
            tokens = run.step * sampler.batch * sampler.length
            rate = clock.rate(run.step) * sampler.batch * sampler.length
            telemetry.log({**totals.last, "tokens": tokens, "tokens_per_second": rate}, run.step)
            telemetry.progress(run.step, steps, ", ".join(_remarks(totals, hooks)))
        if telemetry.compilation and (seconds := telemetry.compilation.step(run.step)):
            telemetry.progress(run.step, steps, f"the layers are compiled, {seconds:.0f} s with the first step")
            clock = _Clock(run.step)  # what follows is the pace of training
            if checkpoints:
                checkpoints.begin(run.step)
        if checkpoints and run.step < steps and not run.ended:
            checkpoints.save_if_due(engine, run.step, lambda: _state(hooks, totals))
    if telemetry.compilation:
        telemetry.compilation.end()
    totals.steps = run.step
    return totals


def _remarks(totals: Totals, hooks: Sequence[Hook]) -> list[str]:
    return [f"loss {totals.last['loss']:.3f}", *filter(None, (hook.remark() for hook in hooks))]


def _begin(engine: Engine, hooks: Sequence[Hook], steps: int, totals: Totals, checkpoints: Checkpoints | None) -> Run:
    """The run at its first step, or where the newest checkpoint left it."""
    run = Run(engine, steps)
    if checkpoints and (restored := checkpoints.restore(engine)):
        run.step, state, tensors = restored
        totals.density_steps, totals.compute_steps = state["density_steps"], state["compute_steps"]
        for index, hook in enumerate(hooks):
            hook.load_state_dict(state["hooks"][index], _of_hook(tensors, index))
    for hook in hooks:
        hook.on_start(run)
    return run


class _Clock:
    """Steps per second since the last reading."""

    def __init__(self, step: int) -> None:
        self.step, self.time = step, time.monotonic()

    def rate(self, step: int) -> float:
        now = time.monotonic()
        rate = (step - self.step) / max(now - self.time, 1e-9)
        self.step, self.time = step, now
        return rate


def _accumulate(run: Run, sampler: Sampler, objective: Loss, micro_batch: int | None) -> dict:
    """Forward and backward of one global batch on this rank; mean metrics over its micro-batches."""
    engine = run.engine
    batch = sampler.at(run.step, engine.rank, engine.ranks).to(engine.device)
    pieces = batch.split(micro_batch or len(batch))
    run.pieces = len(pieces)
    sums: dict[str, torch.Tensor] = {}
    for piece, divisor in zip(pieces, _divisors(engine, batch, pieces), strict=True):
        loss, metrics = objective(engine, piece)
        engine.backward(loss / divisor)
        for name, value in metrics.items():
            sums[name] = sums.get(name, 0) + value / divisor
    return sums


def _divisors(engine: Engine, batch: Batch, pieces: Sequence[Batch]) -> list[float]:
    """What the mean over each micro-batch is divided by, so that every token that counts weighs the same in the mean over
    the global batch. A collective where the batch has labels."""
    if batch.labels is None:
        return [len(pieces)] * len(pieces)
    counted = torch.tensor([batch.predicted], device=engine.device)
    if engine.ranks > 1:
        torch.distributed.all_reduce(counted)
    of_a_rank = max(1, int(counted)) / engine.ranks
    return [of_a_rank / piece.predicted if piece.predicted else math.inf for piece in pieces]


def _share(shares: Sequence[float | None]) -> float:
    """What the last hook that decides it says; dense where none does."""
    decided = [share for share in shares if share is not None]
    return decided[-1] if decided else 1.0


def _measure(engine: Engine, metrics: dict, hooks: Sequence[Hook], norm: float, rate: float) -> dict[str, float]:
    """Metrics averaged over ranks; a collective."""
    values = torch.stack([value.float() for value in metrics.values()])
    if engine.ranks > 1:
        torch.distributed.all_reduce(values)
        values /= engine.ranks
    measured = dict(zip(metrics, values.tolist(), strict=True))
    if not all(map(math.isfinite, measured.values())):
        raise FloatingPointError(f"the loss is not finite: {measured}")
    for hook in hooks:
        measured |= hook.metrics()
    return {**measured, "gradient_norm": norm, "learning_rate": rate}


def _state(hooks: Sequence[Hook], totals: Totals) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    states = [hook.state_dict() for hook in hooks]
    values: dict[str, Any] = {"hooks": [values for values, _ in states]}
    values |= {"density_steps": totals.density_steps, "compute_steps": totals.compute_steps}
    return values, {f"{index}:{name}": tensor for index, (_, own) in enumerate(states) for name, tensor in own.items()}


def _of_hook(tensors: dict[str, torch.Tensor], index: int) -> dict[str, torch.Tensor]:
    prefix = f"{index}:"
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
