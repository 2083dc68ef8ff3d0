"""N:M sparsity in training: weights are stored and updated dense, and multiplied sparse.

Which N of M count is decided anew in every forward pass from the current magnitudes, so a weight that fell out may
come back. A :class:`Phase` says what holds at a step; regimes differ in their phases and in what flows back to the
weights outside the mask. At the last step the mask is made fast, and what lies outside it is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch

from tasks.formats.mask import Masks, pack, unpack
from tasks.formats.pattern import NM
from tasks.formats.selection import keep_highest
from tasks.models.find.linears import Linear
from tasks.train.compiled import fused
from tasks.train.effective import Scaled, Stored, substitute
from tasks.train.hook import Run
from tasks.train.masking import Masking

FLIPS_EVERY = 10  # steps between two measurements of the flip rate


@dataclass(frozen=True)
class Phase:
    """``pattern`` holds, and weights outside it count for ``share`` of themselves."""

    pattern: NM
    share: float = 0.0


class Flow(TypedDict, total=False):
    """What flows back to the weights outside the mask, as arguments of :class:`SemiStructured`."""

    straight: bool
    decay: float


class SemiStructured(Masking):
    """``phase(step)`` is None while training is dense. ``treated`` are the linears that become sparse."""

    def __init__(
        self,
        linears: Mapping[str, Linear],
        masks: Masks,
        treated: Mapping[str, Linear],
        phase: Callable[[int], Phase | None],
        straight: bool = True,
        decay: float = 0.0,
    ) -> None:
        super().__init__(linears, masks)
        self.treated, self.phase, self.straight, self.decay = treated, phase, straight, decay
        self.flips = Flips()

    def on_start(self, run: Run) -> None:
        self.hold_masks(run)
        substitute(run.engine.module, self.treated, self.effective)

    def hold_masks(self, run: Run) -> None:
        """The masks the model came with are held throughout."""
        super().on_start(run)
        self.run = run
        self.chosen_from = fused(run.engine.module, chosen_from)

    def after_step(self, run: Run) -> None:
        if run.step == run.steps and (last := self.phase(run.steps)):
            self.assign(
                run, {name: self._keep(name, self.weight(run, name), last.pattern) for name in self.treated}, last.pattern
            )

    def effective(self, stored: Stored) -> Stored:
        if (phase := self.phase(self.run.step)) is None:
            return stored
        weights = [weight.detach() for weight in stored.values()]
        before = [self._before(name, weight.device) for name, weight in stored.items()]
        sides = [self.treated[name].transposed for name in stored]
        keeps = self.chosen_from(weights, before, sides, phase.pattern.n, phase.pattern.m)
        return self.kept(stored, keeps, phase.share)

    def kept(self, stored: Stored, keeps: Sequence[torch.Tensor], share: float = 0.0) -> Stored:
        """The weights, those outside ``keeps`` faded to ``share`` of themselves."""
        self.flips.see(self.run.step, dict(zip(stored, keeps, strict=True)))
        decay, pairs = self.pull() / self.run.pieces, zip(stored.items(), keeps, strict=True)
        return {name: Scaled.apply(weight, keep, share, self.straight, decay) for (name, weight), keep in pairs}

    def pull(self) -> float:
        """Times the weight, what is added at this step to the gradient of weights outside the mask."""
        return self.decay

    def _before(self, name: str, device: torch.device) -> torch.Tensor | None:
        return self.masks[name].on(device) if name in self.masks else None

    def _keep(self, name: str, weight: torch.Tensor, pattern: NM) -> torch.Tensor:
        """The mask of a matrix by magnitude, inside the one the linear came with."""
        return chosen_from([weight], [self._before(name, weight.device)], [False], pattern.n, pattern.m)[0]

    def density(self) -> float:
        phase = self.phase(self.run.step)
        if phase is None or phase.share:
            return super().density()
        return self._treated_at(phase.pattern.n / phase.pattern.m)

    def _treated_at(self, density: float) -> float:
        """The model's density where the treated matrices have this one."""
        total = sum(_numel(linear) for linear in self.linears.values())
        return 1 - (1 - density) * sum(_numel(linear) for linear in self.treated.values()) / total

    def compute(self) -> float:
        """Forward and input gradients are sparse, the weights' own gradients are not."""
        return (2 * self.density() + 1) / 3

    def metrics(self) -> dict[str, float]:
        return {"sparsity": 1 - self.density(), **self.flips.metrics()}


class Refreshed(SemiStructured):
    """Masks are chosen every ``refresh`` steps, and hold in between; where ``phase`` ends before the run does, it goes dense.
    The decay rises to its full size over the first ``ramp`` steps."""

    mvue = False  # gradients of the outputs are those that there are

    def __init__(
        self,
        linears: Mapping[str, Linear],
        masks: Masks,
        treated: Mapping[str, Linear],
        phase: Callable[[int], Phase | None],
        refresh: int,
        decay: float = 0.0,
        ramp: int = 0,
    ) -> None:
        super().__init__(linears, masks, treated, phase, decay=decay)
        self.refresh, self.ramp = refresh, ramp
        self.chosen: dict[str, torch.Tensor] = {}
        self.keeps: dict[str, torch.Tensor] = {}

    def on_start(self, run: Run) -> None:
        self.hold_masks(run)
        if not self.chosen and (first := self.phase(run.step)):
            self._choose(run, first.pattern)
        substitute(run.engine.module, self.treated, self.effective, self.mvue)

    def effective(self, stored: Stored) -> Stored:
        if self.phase(self.run.step) is None:
            return stored
        for name in stored.keys() - self.keeps.keys():  # a byte per weight, until the next choice
            linear = self.treated[name]
            self.keeps[name] = linear.stored(unpack(self.chosen[name].to(self.run.engine.device), linear.shape))
        return self.kept(stored, [self.keeps[name] for name in stored])

    def after_step(self, run: Run) -> None:
        if (now := self.phase(run.step)) is None:
            return
        if run.step % self.refresh == 0 or not self.chosen:
            self._choose(run, now.pattern)
        if run.step == run.steps:
            self.assign(run, {name: unpack(self.chosen[name], self.treated[name].shape) for name in self.treated}, now.pattern)

    def choice(self, name: str, weight: torch.Tensor, pattern: NM) -> torch.Tensor:
        """The mask of a matrix [out, in], inside the one it came with."""
        return self._keep(name, weight, pattern)

    def _choose(self, run: Run, pattern: NM) -> None:
        for name in self.treated:
            self.chosen[name] = pack(self.choice(name, self.weight(run, name), pattern)).cpu()
            self.keeps.pop(name, None)

    def pull(self) -> float:
        return self.decay * min(1.0, (self.run.step + 1) / self.ramp) if self.ramp else self.decay

    def state_dict(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        values, tensors = super().state_dict()
        return values, {**tensors, **{f"chosen/{name}": bits for name, bits in self.chosen.items()}}

    def load_state_dict(self, values: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        super().load_state_dict(values, tensors)
        self.chosen = {name: tensors[place] for name in self.treated if (place := f"chosen/{name}") in tensors}
        self.keeps = {}


def chosen_from(
    stored: Sequence[torch.Tensor], before: Sequence[torch.Tensor | None], transposed: Sequence[bool], n: int, m: int
) -> list[torch.Tensor]:
    """Masks as stored: ``n`` of every ``m`` along each row of a matrix, the largest of those that lived ``before``."""
    keeps = []
    for weight, alive, turned in zip(stored, before, transposed, strict=True):
        matrix = weight.mT if turned else weight
        score = matrix.abs() if alive is None else matrix.abs().masked_fill(~alive, -1.0)
        keep = keep_highest(score.reshape(-1, m), m - n).view(matrix.shape)
        keep = keep if alive is None else keep & alive
        keeps.append(keep.mT if turned else keep)
    return keeps


class Flips:
    """The share of weights whose mask differs from the step before, measured now and then."""

    def __init__(self) -> None:
        self.before: dict[str, torch.Tensor] = {}
        self.counts: dict[str, tuple[int, int]] = {}

    def due(self, step: int) -> bool:
        return (step + 1) % FLIPS_EVERY == 0 or step % FLIPS_EVERY == 0

    def see(self, step: int, keeps: Mapping[str, torch.Tensor]) -> None:
        if (step + 1) % FLIPS_EVERY == 0:
            self.before |= keeps
        elif step % FLIPS_EVERY == 0:
            for name in keeps.keys() & self.before.keys():
                self.counts[name] = (int((self.before.pop(name) ^ keeps[name]).sum()), keeps[name].numel())

    def metrics(self) -> dict[str, float]:
        flipped, total = (sum(column) for column in zip(*self.counts.values(), strict=True)) if self.counts else (0, 0)
        return {"flip_rate": flipped / total} if total else {}


def _numel(linear: Linear) -> int:
    return torch.Size(linear.shape).numel()
