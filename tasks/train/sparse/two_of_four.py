"""2:4 training that hardware could speed up: FST's transposable masks and S-STE's soft threshold.

Both store and update dense weights and multiply with two of every four. FST's mask is 2:4 along both sides, so that the
backward pass is sparse as well, and is chosen anew only now and then; S-STE needs no mask at all, since shrinking by
the second-smallest magnitude is continuous. Estimating the output gradients 2:4 sparsely makes the third product sparse
(FST, ICML 2024; S-STE, NeurIPS 2024, arXiv 2409.09099).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tasks.formats.mask import Masks
from tasks.formats.pattern import NM
from tasks.formats.semi_structured import keep_transposable, soft_threshold
from tasks.models.find.linears import Linear
from tasks.train.compiled import fused
from tasks.train.effective import InPlaceOf, Stored, substitute
from tasks.train.hook import Run
from tasks.train.sparse.semi_structured import Phase, Refreshed, SemiStructured

PATTERN = NM(2, 4)


class SoftThreshold(SemiStructured):
    """Multiplies with beta * S(W); beta restores the size that the threshold takes away, and is fixed at the start."""

    def __init__(self, linears: Mapping[str, Linear], masks: Masks, treated: Mapping[str, Linear], mvue: bool) -> None:
        super().__init__(linears, masks, treated, lambda step: Phase(PATTERN))
        self.mvue, self.scales = mvue, {}

    def on_start(self, run: Run) -> None:
        self.hold_masks(run)
        for name in [name for name in self.treated if name not in self.scales]:  # reading is a collective: one order
            weight_OI = self.weight(run, name)
            soft_OI = soft_threshold(weight_OI)
            self.scales[name] = float((weight_OI * soft_OI).sum() / soft_OI.square().sum().clamp_min(1e-30))
        self.factors = {name: torch.tensor(scale, device=run.engine.device) for name, scale in self.scales.items()}
        self.softened = fused(run.engine.module, softened)
        substitute(run.engine.module, self.treated, self.effective, self.mvue)

    def effective(self, stored: Stored) -> Stored:
        weights, sides = [weight.detach() for weight in stored.values()], [self.treated[name].transposed for name in stored]
        soft = self.softened(weights, [self.factors[name] for name in stored], sides)
        if self.flips.due(self.run.step):
            self.flips.see(self.run.step, {name: values != 0 for name, values in zip(stored, soft, strict=True)})
        return dict(zip(stored, InPlaceOf.apply(None, (), soft, *stored.values()), strict=True))

    def after_step(self, run: Run) -> None:
        for name in self.treated if run.step == run.steps else ():
            soft_OI = self.scales[name] * soft_threshold(self.weight(run, name))
            run.engine.write(name, self.treated[name].stored(soft_OI))
            self.assign(run, {name: soft_OI != 0}, PATTERN)
            self.scales[name] = 1.0  # it is in the weights from now on; of two in four the threshold takes nothing
            self.factors[name].fill_(1.0)

    def compute(self) -> float:
        """Two products are sparse, and the third too where gradients are estimated 2:4."""
        return self.density() if self.mvue else super().compute()

    def state_dict(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        values, tensors = super().state_dict()
        return {**values, "scales": self.scales}, tensors

    def load_state_dict(self, values: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        super().load_state_dict(values, tensors)
        self.scales = dict(values["scales"])


def softened(stored: Sequence[torch.Tensor], factors: Sequence[torch.Tensor], transposed: Sequence[bool]) -> list[torch.Tensor]:
    """beta * S(W) of each, as stored."""
    weights = []
    for weight, factor, turned in zip(stored, factors, transposed, strict=True):
        soft = factor * soft_threshold(weight.mT if turned else weight)
        weights.append(soft.mT if turned else soft)
    return weights


class Transposable(Refreshed):
    """Masks that are 2:4 both ways, chosen every ``refresh`` steps until ``dense_from``, where training goes dense."""

    def __init__(
        self,
        linears: Mapping[str, Linear],
        masks: Masks,
        treated: Mapping[str, Linear],
        refresh: int,
        dense_from: int,
        decay: float,
        mvue: bool,
    ) -> None:
        super().__init__(linears, masks, treated, lambda step: Phase(PATTERN) if step < dense_from else None, refresh, decay)
        self.mvue = mvue

    def choice(self, name: str, weight: torch.Tensor, pattern: NM) -> torch.Tensor:
        keep = keep_transposable(weight.abs().reshape(-1, weight.shape[-1])).view(weight.shape)
        return keep & self.masks[name].on(keep.device) if name in self.masks else keep

    def compute(self) -> float:
        """As :meth:`SoftThreshold.compute`; dense at the end."""
        return self.density() if self.mvue else super().compute()
