"""The arithmetic of N:M training on all matrices of a module or block at once: which weights live, what the others count for,
and what flows back to them.

Each function is one kernel where blocks run compiled, so a step reads and writes each weight once more than a dense one, and
launches a handful of kernels per block instead of a handful per matrix. Factors come as tensors of one number: as numbers they
would be part of what is compiled, and those that move from step to step would have it compiled again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tasks.formats.selection import keep_highest

Tensors = Sequence[torch.Tensor]


def chosen_from(
    stored: Tensors, before: Sequence[torch.Tensor | None], transposed: Sequence[bool], n: int, m: int
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


def faded(stored: Tensors, keeps: Tensors, share: torch.Tensor | None) -> list[torch.Tensor]:
    """The weights, those outside ``keeps`` at a ``share`` of themselves; zero without one."""
    return [
        torch.where(keep, weight, 0.0 if share is None else _times(weight, share))
        for weight, keep in zip(stored, keeps, strict=True)
    ]


def chosen_and_faded(
    stored: Tensors,
    before: Sequence[torch.Tensor | None],
    transposed: Sequence[bool],
    n: int,
    m: int,
    share: torch.Tensor | None,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Masks, and the weights under them."""
    keeps = chosen_from(stored, before, transposed, n, m)
    return keeps, faded(stored, keeps, share)


def flowed(
    gradients: Tensors, keeps: Tensors, stored: Tensors, share: torch.Tensor | None, decay: torch.Tensor | None
) -> list[torch.Tensor]:
    """Gradients of the weights outside ``keeps``: scaled by ``share``, and with ``decay`` times the weight added; either where
    it is given. ``stored`` are the weights where there is a decay."""
    scaled = [
        gradient if share is None else torch.where(keep, gradient, _times(gradient, share))
        for gradient, keep in zip(gradients, keeps, strict=True)
    ]
    if decay is None:
        return scaled
    return [
        gradient + torch.where(keep, 0.0, _times(weight, decay))
        for gradient, keep, weight in zip(scaled, keeps, stored, strict=True)
    ]


def _times(values: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """As by a number: the factor is not rounded to the values' type."""
    return (values.float() * factor).to(values.dtype)
