"""SparCL's masks: task-aware masks of the weights, and masks of the gradients that pass only the largest.

Both work tensor by tensor between backward and step, from the gradient of the batch at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tasks.formats.mask import Mask, Masks, pack, unpack
from tasks.formats.pattern import Unstructured
from tasks.formats.seeding import generator_for
from tasks.formats.selection import keep_highest, keep_highest_overall, quota
from tasks.models.find.linears import Linear
from tasks.train.continual.sequence import TaskSequence
from tasks.train.hook import Hook, Run
from tasks.train.masking import Masking


class TaskAwareMasks(Masking):
    """Prunes by importance and grows at random every ``interval`` of a task's steps (task-aware dynamic masking).

    Importance is |w| + ``gradient`` * |dL/dw|. At the start of a later task the masks grow by ``swap`` for room to
    learn; then each update prunes to sparsity + swap and grows back to sparsity; from ``freeze`` on they rest.
    """

    def __init__(
        self,
        linears: Mapping[str, Linear],
        masks: Masks,
        sequence: TaskSequence,
        sparsity: float,
        swap: float,
        interval: float,
        freeze: float,
        gradient: float,
        seed: int,
    ) -> None:
        super().__init__(linears, masks)
        self.sequence, self.sparsity, self.swap, self.seed = sequence, sparsity, swap, seed
        self.interval, self.freeze, self.gradient = interval, freeze, gradient

    def bounds(self, step: int) -> tuple[float, float] | None:
        """(sparsity to prune to, sparsity to grow to) at an update; None at other steps."""
        tasks = self.sequence.tasks
        task = tasks.task_of(step)
        length, local = tasks.begin(task + 1) - tasks.begin(task), step - tasks.begin(task)
        every, last = max(1, round(self.interval * length)), round(self.freeze * length)
        if local == 0:
            return (self.sparsity, self.sparsity - self.swap) if task else None  # the first task starts as drawn
        if local == last:
            return self.sparsity, self.sparsity
        return (self.sparsity + self.swap, self.sparsity) if local < last and local % every == 0 else None

    def after_backward(self, run: Run) -> None:
        if bounds := self.bounds(run.step):
            for name in self.masks:
                self._update(run, name, *bounds)

    def _update(self, run: Run, name: str, lower: float, upper: float) -> None:
        linear, mask = self.linears[name], self.masks[name]
        weight, gradient = self.weight(run, name), linear.matrix(run.engine.grad(name))
        alive = mask.keep.to(weight.device)
        importance = (weight.abs() + self.gradient * gradient.abs()).masked_fill(~alive, -1.0)
        kept = alive & self._each(importance, lower)
        generator = generator_for(self.seed, name, run.step)
        lot = torch.rand(linear.shape, generator=generator).to(weight.device).masked_fill(kept, 2.0)
        keep = self._each(lot, upper)
        self.masks[name] = Mask.of(keep, Unstructured(), upper)
        run.engine.hold(name, linear.stored(keep))

    @staticmethod
    def _each(score: torch.Tensor, sparsity: float) -> torch.Tensor:
        """The highest of each matrix: an expert of a stack keeps the promise by itself."""
        flat = score.reshape(-1, score.shape[-2:].numel())
        return keep_highest(flat, quota(flat.shape[1], sparsity)).view(score.shape)


class GradientMasks(Hook):
    """Only the largest gradients of each matrix count; which they are is decided every ``refresh`` steps."""

    def __init__(self, linears: Mapping[str, Linear], sparsity: float, refresh: int) -> None:
        self.linears, self.sparsity, self.refresh = dict(linears), sparsity, refresh
        self.kept: dict[str, torch.Tensor] = {}

    def on_start(self, run: Run) -> None:
        for name, bits in self.kept.items():
            run.engine.focus(name, self.linears[name].stored(unpack(bits, self.linears[name].shape)))

    def after_backward(self, run: Run) -> None:
        if self.sparsity and run.step % self.refresh == 0:
            for name, linear in self.linears.items():
                gradient = linear.matrix(run.engine.grad(name)).abs()
                keep = keep_highest_overall(gradient, quota(gradient.numel(), self.sparsity))
                self.kept[name] = pack(keep).cpu()
                run.engine.focus(name, linear.stored(keep))

    def state_dict(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        return {}, dict(self.kept)

    def load_state_dict(self, values: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        self.kept = dict(tensors)
