"""Order rows so that those with similar important columns are adjacent: groups of rows then lose little by keeping the same
columns.

Greedy: the row with the largest score left begins a group, and the rows that overlap most with its best columns join it.
If the original order keeps more of the score, it is kept.

Shapes: O = rows, I = columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tasks.formats.pattern import Group, Unstructured


def group_rows(scores_OI: Sequence[torch.Tensor], rows: int, sparsity: float) -> torch.Tensor:
    """An order of the rows, int64 [O], good for all of ``scores_OI`` (matrices whose rows move together) at once."""
    wanted_OI = torch.cat([Unstructured("row").keep(score_OI, sparsity) for score_OI in scores_OI], 1).float()
    normalised_OI = torch.cat([score_OI / score_OI.sum().clamp(min=1e-30) for score_OI in scores_OI], 1).float()
    overlap_OO = (normalised_OI * wanted_OI) @ wanted_OI.T
    overlap_OO = overlap_OO + overlap_OO.T
    loss_O = overlap_OO.diagonal().clone()
    order: list[int] = []
    for _ in range(len(wanted_OI) // rows):
        first = int(loss_O.argmax())
        loss_O[first] = -torch.inf
        like_O = overlap_OO[first].masked_fill(loss_O == -torch.inf, -torch.inf)
        others = like_O.topk(rows - 1).indices
        loss_O[others] = -torch.inf
        order += [first, *others.tolist()]
    found_O, given_O = torch.tensor(order, device=wanted_OI.device), torch.arange(len(wanted_OI), device=wanted_OI.device)
    return max((given_O, found_O), key=lambda order_O: kept_score(scores_OI, order_O, rows, sparsity))


def kept_score(scores_OI: Sequence[torch.Tensor], order_O: torch.Tensor, rows: int, sparsity: float) -> float:
    """The share of each matrix's score that groups of ``rows`` keep in an order, summed over the matrices."""
    total = 0.0
    for score_OI in scores_OI:
        ordered_OI = score_OI[order_O].double()
        total += float((ordered_OI * Group(rows).keep(ordered_OI, sparsity)).sum() / ordered_OI.sum().clamp(min=1e-300))
    return total
