"""Masks in training: hooks decide which weights live, the engine keeps the dead ones dead.

A hook keeps its masks bit-packed, in the [out, in] view of each matrix; the engine holds its own shard of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch

from tasks.formats.mask import Mask, Masks
from tasks.formats.pattern import Pattern, Scope, Unstructured
from tasks.formats.seeding import generator_for
from tasks.formats.selection import keep_global
from tasks.models.find.linears import Linear
from tasks.train.hook import Hook, Run
from tasks.train.schedule import ExponentialDensity


class Masking(Hook):
    """Holds a set of masks. Subclasses move them with :meth:`assign`; by itself the set is fixed."""

    def __init__(self, linears: Mapping[str, Linear], masks: Masks) -> None:
        self.linears, self.masks = dict(linears), dict(masks)

    def on_start(self, run: Run) -> None:
        for name, mask in self.masks.items():
            run.engine.hold(name, self.linears[name].stored(mask.keep))

    def assign(self, run: Run, keeps: Mapping[str, torch.Tensor], pattern: Pattern) -> None:
        """From now on these masks ([out, in] view) are held."""
        for name, keep in keeps.items():
            matrices = keep.reshape(-1, keep.shape[-2] * keep.shape[-1])  # each expert keeps the promise by itself
            densest = int(matrices.sum(1).max())
            self.masks[name] = Mask.of(keep, pattern, 1 - densest / matrices.shape[1])
            run.engine.hold(name, self.linears[name].stored(keep))

    def weight(self, run: Run, name: str) -> torch.Tensor:
        """The full weight in the [out, in] view. A collective."""
        return self.linears[name].matrix(run.engine.read(name))

    def density(self) -> float:
        masked = sum(mask.live for mask in self.masks.values())
        free = sum(torch.Size(self.linears[name].shape).numel() for name in self.linears.keys() - self.masks.keys())
        total = sum(torch.Size(linear.shape).numel() for linear in self.linears.values())
        return (masked + free) / max(1, total)

    def metrics(self) -> dict[str, float]:
        return {"sparsity": 1 - self.density()}

    def state_dict(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        promises = {
            name: [list(mask.shape), mask.pattern, mask.sparsity, list(mask.exempt)] for name, mask in self.masks.items()
        }
        return {"promises": promises}, {name: mask.packed for name, mask in self.masks.items()}

    def load_state_dict(self, values: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        self.masks = {
            name: Mask(tensors[name], tuple(shape), pattern, sparsity, tuple(exempt))
            for name, (shape, pattern, sparsity, exempt) in values["promises"].items()
        }


def draw_mask(linear: Linear, sparsity: float, seed: int, inside: Mask | None = None) -> Mask:
    """A random mask with an exact count per matrix; each linear draws by its name, so their order changes nothing."""
    pattern = Unstructured("layer")
    generator = generator_for(seed, linear.name)
    score = torch.rand(linear.shape, generator=generator)
    if inside is not None:
        score.masked_fill_(~inside.keep, pattern.dead_score)
    matrices = [pattern.keep(matrix, sparsity) for matrix in score.view(-1, *linear.shape[-2:])]
    keep = torch.stack(matrices).view(linear.shape)
    return Mask.of(keep if inside is None else keep & inside.keep, pattern, sparsity)


class GradualMagnitude(Masking):
    """Prunes the smallest live weights at each event of a schedule; masks are nested over time, from ``masks`` on."""

    def __init__(
        self, linears: Mapping[str, Linear], masks: Masks, schedule: ExponentialDensity, scope: Scope | Literal["global"]
    ) -> None:
        super().__init__(linears, masks)
        self.schedule, self.scope = schedule, scope

    def on_start(self, run: Run) -> None:
        super().on_start(run)
        if run.step == 0:  # a snapshot is taken after the event of its step
            self._prune_if_due(run)

    def after_step(self, run: Run) -> None:
        self._prune_if_due(run)

    def _prune_if_due(self, run: Run) -> None:
        if not self.schedule.due(run.step):
            return
        sparsity = self.schedule.at(run.step)
        # dead weights rank below every live one; where more are dead already than are due, all of them stay dead
        scores = {name: self._score(run, name) for name in self.linears}
        if self.scope == "global":
            keeps = keep_global(scores, sparsity)
        else:
            pattern = Unstructured(self.scope)
            keeps = {name: pattern.keep(score.flatten(0, -2), sparsity).view_as(score) for name, score in scores.items()}
        for name, mask in self.masks.items():
            keeps[name] &= mask.on(keeps[name].device)
        self.assign(run, keeps, Unstructured())

    def _score(self, run: Run, name: str) -> torch.Tensor:
        score = self.weight(run, name).abs()
        return torch.where(self.masks[name].on(score.device), score, -1.0) if name in self.masks else score
