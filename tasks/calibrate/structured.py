"""Structured pruning in units that span matrices: a channel of a feed-forward network, a head of an attention.

A unit is some columns of the matrix that reads it and the rows that produce it, all kept or pruned together. The pruned
model computes exactly what a smaller model would.

Shapes: O = output features, I = input features, U = units.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from tasks.calibrate.method import BlockView, Edit, Pruner

if TYPE_CHECKING:
    from tasks.formats.pattern import Pattern


@dataclass(frozen=True)
class Units:
    """``score_U`` ranks them. A unit is ``width`` columns of ``columns``, and an equal share of the rows of each matrix in
    ``rows``; where those rows are made for several units at once they go with the last of them."""

    score_U: torch.Tensor
    columns: str
    rows: tuple[str, ...]
    width: int = 1
    multiple: int = 1

    def kept(self, sparsity: float) -> torch.Tensor:
        """bool [U]. As many as the sparsity leaves, to the nearest ``multiple``, and never none."""
        from tasks.formats.selection import keep_highest, quota

        total = len(self.score_U)
        left = round((total - quota(total, sparsity)) / self.multiple) * self.multiple if sparsity else total
        return keep_highest(self.score_U[None], total - min(total, max(left, self.multiple)))[0]


class Structured(Pruner):
    """Root of the pruners that take whole units; matrices outside the units stay as they are."""

    scope: ClassVar[Literal["row", "layer"]] = "layer"
    patterns: ClassVar[tuple[str, ...]] = ("channel",)
    takes_masks: ClassVar[bool] = False

    def units(self, view: BlockView) -> Iterator[Units]:
        raise NotImplementedError

    def solve(self, view: BlockView) -> dict[str, Edit]:
        if view.keep:
            raise ValueError(
                f"{self.name} takes whole channels, and {next(iter(view.keep))} has a mask already; "
                f"prune with {self.name} first"
            )
        edits = {}
        for units in self.units(view):
            edits |= self._edits(view, units)
        return edits

    def check(self, view: BlockView, edits: Mapping[str, Edit]) -> None:
        touched = {name: matrix for name, matrix in view.matrices.items() if name in edits}
        super().check(replace(view, matrices=touched), edits)

    def _edits(self, view: BlockView, units: Units) -> dict[str, Edit]:
        from tasks.formats.pattern import Channel, Neuron

        kept_U = units.kept(view.allocation[units.columns])
        weight_OI = view.matrices[units.columns]
        keep_OI = kept_U.repeat_interleave(units.width).expand_as(weight_OI)
        edits = {units.columns: self._edit(weight_OI, keep_OI, Channel())}
        for name in units.rows:
            weight_OI = view.matrices[name]
            made = weight_OI.shape[0] // units.width
            alive = kept_U.view(made, -1).any(1).repeat_interleave(units.width)
            if not bool(alive.all()):
                keep_OI = alive[:, None].expand_as(weight_OI)
                edits[name] = replace(self._edit(weight_OI, keep_OI, Neuron()), follows=True)
        return edits

    @staticmethod
    def _edit(weight_OI: torch.Tensor, keep_OI: torch.Tensor, pattern: Pattern) -> Edit:
        sparsity = 1 - int(keep_OI.sum()) / keep_OI.numel()
        return Edit(weight_OI.masked_fill(~keep_OI, 0), keep_OI.contiguous(), promise=(pattern, sparsity))
