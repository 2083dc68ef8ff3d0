"""What 2:4 training needs beside N:M masks: masks that hold along both sides, the soft threshold, the sparse estimate.

Shapes: O = output rows, I = input columns, T = rows and columns of 4 x 4 tiles, G = groups of 4.
"""

from __future__ import annotations

from functools import cache
from itertools import combinations, product

import torch

from tasks.formats.selection import keep_highest

SIDE = 4
KEPT = 2


@cache
def transposable_patterns() -> torch.Tensor:
    """float [90, 4, 4]: every 4 x 4 tile with two ones in each row and column."""
    rows = [[float(column in pair) for column in range(SIDE)] for pair in combinations(range(SIDE), KEPT)]
    tiles = torch.tensor(list(product(rows, repeat=SIDE)))
    return tiles[(tiles.sum(1) == KEPT).all(-1)]


def keep_transposable(score_OI: torch.Tensor) -> torch.Tensor:
    """The 2:4 mask of largest total score that is 2:4 in its transpose as well; both sides must divide by 4."""
    rows, columns = score_OI.shape
    tiles_T = score_OI.reshape(rows // SIDE, SIDE, columns // SIDE, SIDE).transpose(1, 2)
    patterns = transposable_patterns().to(score_OI)
    best = (tiles_T.reshape(-1, SIDE * SIDE) @ patterns.flatten(1).T).argmax(1)
    return patterns[best].bool().view(tiles_T.shape).transpose(1, 2).reshape(rows, columns)


def soft_threshold(weight_OI: torch.Tensor) -> torch.Tensor:
    """Each group of 4 shrunk by its second-smallest magnitude: at most two are left, and the map is continuous (S-STE)."""
    groups_G = weight_OI.reshape(-1, SIDE)
    magnitude_G = groups_G.abs()
    low, high = torch.minimum(magnitude_G[:, 0], magnitude_G[:, 1]), torch.maximum(magnitude_G[:, 0], magnitude_G[:, 1])
    low2, high2 = torch.minimum(magnitude_G[:, 2], magnitude_G[:, 3]), torch.maximum(magnitude_G[:, 2], magnitude_G[:, 3])
    second = torch.minimum(torch.maximum(low, low2), torch.minimum(high, high2))
    return (groups_G.sign() * (magnitude_G - second[:, None]).clamp_min(0)).view_as(weight_OI)


def sparse_estimate(values: torch.Tensor) -> torch.Tensor:
    """An unbiased 2:4 estimate of smallest variance along the last side, which divides by 4 (MVUE, FST section 4).

    Two of each group are drawn one after the other in proportion to their magnitude, without replacement; what is kept
    is divided by the chance it had. Computed in float32, without a difference that one large value would swallow. Draws
    from torch's global generator.
    """
    groups_G = values.reshape(-1, SIDE).float()
    size_G, tiny = groups_G.abs(), torch.finfo(torch.float32).tiny
    first_G, rest_G = size_G / size_G.sum(1, keepdim=True).clamp_min(tiny), _others(size_G)
    ratio_G = torch.where(rest_G > 0, first_G / rest_G.clamp_min(tiny), 0.0)
    chance_G = first_G + size_G * _others(ratio_G)
    keys_G = size_G.log() - torch.empty_like(size_G).exponential_().log()  # the largest keys: drawn one by one
    kept_G = keep_highest(keys_G, SIDE - KEPT) & (size_G > 0)
    return torch.where(kept_G, groups_G / chance_G, 0.0).view_as(values).to(values.dtype)


def _others(groups_G: torch.Tensor) -> torch.Tensor:
    """For each of a group the sum of the three others."""
    first_G, *rest_G = (groups_G.roll(shift, 1) for shift in range(1, SIDE))
    return sum(rest_G, first_G)
