"""A low-rank branch with a sparse residual beside it, and a pruning of the model that the two decide (DSEE).

Shapes: O = output features, I = input features, R = rank, K = residuals; a stack of experts has R of each per expert.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch

from tasks.formats.mask import Mask, Masks
from tasks.formats.pattern import Unstructured
from tasks.formats.seeding import generator_for
from tasks.formats.selection import keep_global
from tasks.models.find.linears import Linear
from tasks.train.adapters.delta import highest, scattered
from tasks.train.branch import LowRank, place
from tasks.train.hook import Run
from tasks.train.masking import Masking

SPREAD = 0.02  # of the first matrix


class Residual(LowRank):
    """Adds ``scale`` * (up @ down + ``values`` at ``places``) to the weight, inside its mask."""

    parts = ("up", "down", "values")
    empty = ("up", "values")

    def __init__(self, linear: Linear, rank: int, scale: float, seed: int, mask: Mask | None, places_K: torch.Tensor) -> None:
        super().__init__(linear, rank, scale, seed, mask)
        draw = generator_for(seed, linear.name, "spread")
        self.down.data.copy_(SPREAD * torch.randn(self.down.shape, generator=draw))
        self.values = torch.nn.Parameter(torch.zeros(len(places_K)))
        self.register_buffer("places", places_K.int(), persistent=False)

    def onto(self, stored: torch.Tensor, *parts: torch.Tensor) -> torch.Tensor:
        up_OR, down_RI, values_K = parts
        added_K = self.share * self.scale * values_K * self._alive()
        return scattered(super().onto(stored, up_OR, down_RI), added_K, self.places)

    def _alive(self) -> torch.Tensor | float:
        return 1.0 if self.keep is None else self.keep.flatten()[self.places.long()]

    def narrow(self, keep: torch.Tensor) -> None:
        """From now on inside this mask, in the layout of the weight."""
        self.keep = keep.to(self.places.device)


def support(linear: Linear, stored: torch.Tensor, mask: Mask | None, count: int, rank: int, by: str, seed: int) -> torch.Tensor:
    """The places of so many residuals: where the weight is farthest from the nearest one of ``rank``, where it is largest, or
    at random; dead weights have none."""
    if by == "random":
        score = torch.rand(stored.shape, generator=generator_for(seed, linear.name, "support"))
    elif by == "magnitude":
        score = stored.detach().abs().float()
    else:
        low = nearest(linear.matrix(stored.detach()).float(), rank, generator_for(seed, linear.name, "support"))
        score = (stored.detach() - linear.stored(low)).abs().float()
    if mask is not None:
        score = score.masked_fill(~linear.stored(mask.keep), -1.0)
    return highest(score.flatten(), count)


def nearest(matrix_OI: torch.Tensor, rank: int, draw: torch.Generator) -> torch.Tensor:
    """The nearest matrix of that rank, by subspace iteration: a full decomposition of a large matrix takes minutes."""
    *experts, outputs, inputs = matrix_OI.shape
    width = min(rank + 8, outputs, inputs)
    found = torch.linalg.qr(matrix_OI @ torch.randn(*experts, inputs, width, generator=draw))[0]
    for _ in range(4):
        found = torch.linalg.qr(matrix_OI @ (matrix_OI.mT @ found))[0]
    left, sizes, right = torch.linalg.svd(found.mT @ matrix_OI, full_matrices=False)
    return found @ (left[..., :rank] * sizes[..., None, :rank]) @ right[..., :rank, :]


class PrunedOnce(Masking):
    """After step ``when`` the weights that count least over all matrices die: by the size of the changed weight, or of its
    change."""

    def __init__(
        self,
        linears: Mapping[str, Linear],
        masks: Masks,
        sparsity: float,
        when: int,
        by: Literal["weight", "update"],
        name: str,
    ) -> None:
        super().__init__(linears, masks)
        self.sparsity, self.when, self.by, self.name = sparsity, when, by, name

    def on_start(self, run: Run) -> None:
        super().on_start(run)
        self.branches = {
            name: run.engine.module.get_submodule(place(linear, self.name)) for name, linear in self.linears.items()
        }
        for name, mask in self.masks.items():
            self.branches[name].narrow(self.linears[name].stored(mask.keep))

    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        if run.step != self.when or not self.sparsity:
            return
        keeps = keep_global({name: self._score(run, name) for name in self.linears}, self.sparsity)
        for name, keep in keeps.items():
            if name in self.masks:
                before = self.masks[name].on(keep.device)
                if torch.equal(keep := keep & before, before):
                    continue
            self.assign(run, {name: keep}, Unstructured())
            self.branches[name].narrow(self.linears[name].stored(keep))

    def _score(self, run: Run, name: str) -> torch.Tensor:
        linear, inside, branch = self.linears[name], place(self.linears[name], self.name), self.branches[name]
        parts = [run.engine.read(f"{inside}.{part}") for part in branch.parts]
        weight = run.engine.read(name)
        changed = branch.onto(weight if self.by == "weight" else torch.zeros_like(weight), *parts)
        score = linear.matrix(changed).abs()
        return score.masked_fill(~self.masks[name].on(score.device), -1.0) if name in self.masks else score
