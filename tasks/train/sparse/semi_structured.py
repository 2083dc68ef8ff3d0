"""N:M sparsity in training: weights are stored and updated dense, and multiplied sparse.

Which N of M count is decided anew in every step from the current magnitudes, so a weight that fell out may
come back. A :class:`Phase` says what holds at a step; regimes differ in their phases and in what flows back to the
weights outside the mask. At the last step the mask is made fast, and what lies outside it is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import compress
from typing import Any, TypedDict

import torch

from tasks.formats.mask import Masks, pack, unpack
from tasks.formats.pattern import NM
from tasks.models.find.linears import Linear
from tasks.train.compiled import fused
from tasks.train.effective import Gradients, InPlaceOf, Stored, substitute
from tasks.train.hook import Run
from tasks.train.masking import Masking
from tasks.train.sparse import fading
from tasks.train.sparse.choices import Choices, Flips, Numbers
from tasks.train.sparse.fading import Tensors


@dataclass(frozen=True)
class Phase:
    """``pattern`` holds, and weights outside it count for ``share`` of themselves."""

    pattern: NM
    share: float = 0.0


class Flow(TypedDict, total=False):
    """What flows back to the weights outside the mask, as arguments of :class:`SemiStructured`: their gradients as they are
    (``straight``) or scaled like the weights, with ``decay`` times the weight added."""

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
        self.flips, self.choices, self.numbers = Flips(), Choices(), Numbers()
        self.bits: dict[str, torch.Tensor] = {}

    def on_start(self, run: Run) -> None:
        self.hold_masks(run)
        substitute(run.engine.module, self.treated, self.effective)

    def hold_masks(self, run: Run) -> None:
        """The masks the model came with are held throughout."""
        super().on_start(run)
        self.run = run
        self.chosen_and_faded, self.faded, self.flowed = (
            fused(run.engine.module, function) for function in (fading.chosen_and_faded, fading.faded, fading.flowed)
        )

    def after_step(self, run: Run) -> None:
        if run.step == run.steps and (last := self.phase(run.steps)):
            self.assign(
                run, {name: self._keep(name, self.weight(run, name), last.pattern) for name in self.treated}, last.pattern
            )

    def effective(self, stored: Stored) -> Stored:
        if (phase := self.phase(self.run.step)) is None:
            return stored
        weights = [weight.detach() for weight in stored.values()]
        share = self.numbers.of("share", phase.share, self.run.engine.device) if phase.share else None
        if (keeps := self.choices.at(self.run.step, stored)) is not None:
            return self.replaced(stored, keeps, self.faded(weights, keeps, share), phase.share)
        before = [self._before(name) for name in stored]
        sides = [self.treated[name].transposed for name in stored]
        keeps, values = self.chosen_and_faded(weights, before, sides, phase.pattern.n, phase.pattern.m, share)
        if self.run.pieces > 1:
            self.choices.keep(self.run.step, dict(zip(stored, keeps, strict=True)))
        return self.replaced(stored, keeps, values, phase.share)

    def replaced(self, stored: Stored, keeps: Tensors, values: Tensors, share: float = 0.0) -> Stored:
        """``values`` in place of the weights, which get gradients as the regime says where they lie outside ``keeps``."""
        self.flips.see(self.run.step, dict(zip(stored, keeps, strict=True)))
        number, device = self.numbers.of, self.run.engine.device
        decay = number("decay", pull / self.run.pieces, device) if (pull := self.pull()) else None
        scale = None if self.straight else number("scale", share, device)
        if decay is None and scale is None:
            return dict(zip(stored, InPlaceOf.apply(None, (), values, *stored.values()), strict=True))
        saved = [*keeps, *(stored.values() if decay is not None else ())]
        back = partial(self._back, share=scale, decay=decay)
        return dict(zip(stored, InPlaceOf.apply(back, saved, values, *stored.values()), strict=True))

    def _back(self, gradients: Gradients, saved: Tensors, share: torch.Tensor | None, decay: torch.Tensor | None) -> Gradients:
        """Of ``saved``, the masks come first, then the weights where there is a decay."""
        there = [gradient is not None for gradient in gradients]
        keeps, weights = (list(compress(part, there)) for part in (saved[: len(there)], saved[len(there) :]))
        flowed = iter(self.flowed(list(compress(gradients, there)), keeps, weights, share, decay))
        return [next(flowed) if each else None for each in there]

    def pull(self) -> float:
        """Times the weight, what is added at this step to the gradient of weights outside the mask."""
        return self.decay

    def _before(self, name: str) -> torch.Tensor | None:
        """The mask that a linear came with, its bits on the device since they were first asked for."""
        if name not in self.masks:
            return None
        if name not in self.bits:
            self.bits[name] = self.masks[name].packed.to(self.run.engine.device)
        return unpack(self.bits[name], self.masks[name].shape)

    def _keep(self, name: str, weight: torch.Tensor, pattern: NM) -> torch.Tensor:
        """The mask of a matrix by magnitude, inside the one the linear came with."""
        return fading.chosen_from([weight], [self._before(name)], [False], pattern.n, pattern.m)[0]

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
        keeps = [self.keeps[name] for name in stored]
        return self.replaced(stored, keeps, self.faded([weight.detach() for weight in stored.values()], keeps, None))

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


def _numel(linear: Linear) -> int:
    return torch.Size(linear.shape).numel()
