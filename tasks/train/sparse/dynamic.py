"""Dynamic sparse training: an update prunes a share of the live weights and grows as many elsewhere.

The number of live weights of a matrix stays constant. Those of the smallest magnitude are pruned; those that are grown are
drawn at random (SET) or have the largest dense gradient (RigL, DSL). Dense gradients exist for one tensor at
a time and only at updates: between backward and step, so that a grown weight takes its first step at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal

import torch

from tasks.formats.mask import Mask, Masks, pack
from tasks.formats.pattern import Unstructured
from tasks.formats.seeding import generator_for
from tasks.formats.selection import keep_highest_overall
from tasks.models.find.linears import Linear
from tasks.train.hook import Run
from tasks.train.masking import Masking
from tasks.train.schedule import CosineFraction


@dataclass(frozen=True)
class Moves:
    """When and how weights move: every ``interval`` steps before ``end``, the share that ``fraction`` says.

    ``keep_regrown``: a weight that dies and is grown again in one update keeps its value, else it starts at zero.
    ``at_least``: round the number that moves up instead of down.
    """

    interval: int
    end: int
    fraction: CosineFraction
    grow: Literal["random", "gradient"]
    keep_regrown: bool = True
    at_least: bool = False

    def due(self, step: int) -> bool:
        return 0 < step < self.end and step % self.interval == 0

    def count(self, step: int, live: int) -> int:
        moved = self.fraction.at(step) * live
        return min(live, ceil(moved) if self.at_least else int(moved))


class PruneAndGrow(Masking):
    """Moves masks by :class:`Moves`. ``ever_active`` remembers, a bit a weight, what has been alive at any time."""

    def __init__(self, linears: Mapping[str, Linear], masks: Masks, moves: Moves, seed: int) -> None:
        super().__init__(linears, masks)
        self.moves, self.seed = moves, seed
        self.ever_active = {name: mask.packed.clone() for name, mask in self.masks.items()}
        self.dense_gradients = False  # in the step being taken

    def after_backward(self, run: Run) -> None:
        self.dense_gradients = self.moves.grow == "gradient" and self.moves.due(run.step)
        if self.dense_gradients:
            self._move(run)

    def after_step(self, run: Run) -> None:
        if self.moves.grow == "random" and self.moves.due(run.step):
            self._move(run)

    def _move(self, run: Run) -> None:
        for name, mask in self.masks.items():
            room = mask.live < mask.numel  # a full mask has nowhere to go
            if room and self.moves.count(run.step, mask.live):
                self._move_within(run, name, mask)

    def _move_within(self, run: Run, name: str, mask: Mask) -> None:
        """Some weights of one linear die, as many are grown; of a stack of experts in each by itself, as its mask promises."""
        weight = self.weight(run, name)
        score, alive = self._score(run, name).to(weight.device), mask.on(weight.device)
        kept, grown = alive.clone(), torch.zeros_like(alive)
        each = (-1, alive.shape[-2:].numel())
        flat = [*(values.reshape(each) for values in (weight.abs(), score, alive)), kept.view(each), grown.view(each)]
        for weight_N, score_N, alive_N, kept_N, grown_N in zip(*flat, strict=True):
            live, numel = int(alive_N.sum()), alive_N.numel()
            if live < numel and (count := self.moves.count(run.step, live)):
                kept_N.copy_(keep_highest_overall(weight_N.masked_fill(~alive_N, -1.0), numel - live + count))
                grown_N.copy_(keep_highest_overall(score_N.masked_fill(kept_N, -1.0), numel - count))
        packed = pack(kept | grown).cpu()
        self.masks[name] = Mask(packed, mask.shape, str(Unstructured()), mask.sparsity, mask.exempt)
        run.engine.hold(name, self.linears[name].stored(kept | grown))
        if not self.moves.keep_regrown:
            run.engine.restart(name, self.linears[name].stored(grown))
        self.ever_active[name] |= packed

    def _score(self, run: Run, name: str) -> torch.Tensor:
        """The score by which dead weights are grown; never negative."""
        if self.moves.grow == "gradient":
            return self.linears[name].matrix(run.engine.grad(name)).abs()
        generator = generator_for(self.seed, name, run.step)
        return torch.rand(self.linears[name].shape, generator=generator)

    def compute(self) -> float:
        """A step with dense gradients pays for those of the weights in full: (2 * sparse + dense) / 3."""
        density = self.density()
        return (2 * density + 1) / 3 if self.dense_gradients else density

    def over_parameterisation(self) -> float:
        """Share of the masked weights that have been alive at any time (in-time over-parameterisation)."""
        seen = sum(int(Mask(bits, self.masks[name].shape, "unstructured", 0).live) for name, bits in self.ever_active.items())
        return seen / max(1, sum(mask.numel for mask in self.masks.values()))

    def metrics(self) -> dict[str, float]:
        return {**super().metrics(), **self.results()}

    def results(self) -> dict[str, float]:
        return {"in_time_overparameterisation": self.over_parameterisation()}

    def state_dict(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        values, tensors = super().state_dict()
        return values, {**tensors, **{f"ever_active/{name}": bits for name, bits in self.ever_active.items()}}

    def load_state_dict(self, values: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        super().load_state_dict(values, tensors)
        self.ever_active = {name: tensors[f"ever_active/{name}"] for name in self.masks}
