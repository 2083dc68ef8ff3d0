"""Selection by rank: how many weights are pruned, and which. All sorting of scores is here; patterns say what is compared.

Ties fall to the lower index first, so the same scores give the same mask on every machine.

Shapes: O = output rows, I = input columns. Masks are boolean, True = keep.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch


def quota(count: int, sparsity: float) -> int:
    """How many of ``count`` weights are pruned at ``sparsity``. The epsilon, two ulps of a large count, absorbs 0.7 * 10 ==
    6.999..."""
    return math.floor(count * sparsity + max(1e-9, count * 2**-51))


_NARROW = 16  # up to this width comparing all pairs beats sorting a row or selecting its threshold (5x at width 4)
_AT_ONCE = 2**26  # pairs compared in one piece: on a GPU few large kernels beat many small ones


def _keep_highest_by_pairs(score: torch.Tensor, pruned: int) -> torch.Tensor:
    """:func:`keep_highest` of short rows: an entry lives when ``pruned`` others or more rank below it."""
    if torch.compiler.is_compiling():  # one kernel, which holds no pairs
        return _ranks_at_least(score, pruned)
    if score.device.type != "cpu":
        rows = max(1, _AT_ONCE // score.shape[-1] ** 2)
        return torch.cat([_ranks_at_least(part, pruned) for part in score.split(rows)])
    columns = score.detach().T.contiguous()
    width = len(columns)
    below = torch.arange(width - 1, -1, -1, dtype=torch.uint8)[:, None].repeat(1, len(score))  # as if each later one were lower
    higher = torch.empty(len(score), dtype=torch.bool)
    for later in range(1, width):
        for earlier in range(later):
            torch.ge(columns[later], columns[earlier], out=higher)
            below[later] += higher.view(torch.uint8)  # a type of its own would be converted first
            below[earlier] -= higher.view(torch.uint8)
    return (below >= pruned).T.contiguous()


def _ranks_at_least(score: torch.Tensor, place: int) -> torch.Tensor:
    """Whether ``place`` entries of its row or more rank below an entry, every pair of a row compared at once."""
    entries, others = score.unsqueeze(-1), score.unsqueeze(-2)
    earlier = torch.ones(score.shape[-1], score.shape[-1], dtype=torch.bool, device=score.device).tril(-1)
    return torch.where(earlier, entries >= others, entries > others).sum(-1, dtype=torch.uint8) >= place


def keep_highest(score: torch.Tensor, pruned: int) -> torch.Tensor:
    """Keep all but the ``pruned`` lowest entries of each row of a 2-D score; ties fall to the lower index first."""
    if pruned <= 0:
        return torch.ones_like(score, dtype=torch.bool)
    if score.shape[-1] <= _NARROW:
        return _keep_highest_by_pairs(score, pruned)
    # Selecting the threshold is several times faster than sorting (7x on one row of 4 million), with the same result.
    threshold = _lowest(score, pruned)
    keep = score > threshold
    surplus = score.shape[-1] - pruned - keep.sum(-1, keepdim=True)
    if bool((surplus > 0).any()):
        tied = score == threshold
        fallen = tied.sum(-1, keepdim=True) - surplus
        keep |= tied & (tied.cumsum(-1, dtype=torch.int32) > fallen)
    return keep


def _lowest(score: torch.Tensor, place: int) -> torch.Tensor:
    """The ``place``-th lowest entry of each row. kthvalue takes three times as long as NumPy's partition on a CPU, and on
    an H100, for one row of 16 million, 300 times as long as the lowest or highest entries do."""
    if score.device.type == "cpu":
        ordered = score.detach().to(torch.float64 if score.dtype == torch.float64 else torch.float32, copy=True).numpy()
        ordered.partition(place - 1, axis=-1)
        return torch.from_numpy(ordered[..., place - 1 : place].copy()).to(score.dtype)
    others = score.shape[-1] - place
    if place <= others:
        return score.topk(place, largest=False, sorted=False).values.amax(-1, keepdim=True)
    return score.topk(others + 1, sorted=False).values.amin(-1, keepdim=True)


def keep_highest_evenly(score: torch.Tensor, after: int, before: int = 0) -> torch.Tensor:
    """Keep all but the lowest entries of each row of a 2-D score, so that the rows have lost ``after`` entries together,
    ``before`` of them in columns that are settled. Rows differ by one at most: what does not go round, the largest
    remainders of equal rows, is taken from the rows of lower index."""
    rows = len(score)
    edges = sorted({0, before % rows, after % rows, rows})
    taken = [row_share(after, row, rows) - row_share(before, row, rows) for row in edges[:-1]]
    pieces = [keep_highest(score[first:last], count) for (first, last), count in zip(pairwise(edges), taken, strict=True)]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def row_share(total: int, row: int, rows: int) -> int:
    """How many of ``total`` entries one of ``rows`` rows loses."""
    return total // rows + (row < total % rows)


def keep_highest_overall(score: torch.Tensor, pruned: int) -> torch.Tensor:
    """Keep all but the ``pruned`` lowest entries of a whole tensor of any shape."""
    return keep_highest(score.reshape(1, -1), pruned).view(score.shape)


def keep_global(scores: dict[str, torch.Tensor], sparsity: float) -> dict[str, torch.Tensor]:
    """Rank all tensors together (any shapes) and prune the lowest ``floor(sparsity * total)`` entries of the union."""
    flat = torch.cat([score.flatten() for score in scores.values()])
    kept = keep_highest(flat[None], quota(flat.numel(), sparsity))[0]
    pieces = kept.split([score.numel() for score in scores.values()])
    return {name: piece.reshape(score.shape) for (name, score), piece in zip(scores.items(), pieces, strict=True)}


def cumulative_share(score_OI: torch.Tensor) -> torch.Tensor:
    """For each weight: the share of its row's whole score that it and all smaller ones of the row make up, in (0, 1].

    Rows whose score sits in a few weights have many weights of a small share, so ranking shares over the matrix takes
    more from them. A row without any score counts as if its weights were all equal.
    """
    score_OI = torch.where(score_OI.sum(1, keepdim=True) > 0, score_OI, torch.ones_like(score_OI)).double()
    ascending_OI, order_OI = score_OI.sort(dim=1, stable=True)
    share_OI = ascending_OI.cumsum(1) / ascending_OI.sum(1, keepdim=True)
    return torch.empty_like(share_OI).scatter_(1, order_OI, share_OI)
