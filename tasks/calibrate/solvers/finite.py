"""Whether numbers are numbers: asked of every statistic, factor and edited weight, before it spoils what follows."""

from __future__ import annotations

import torch


def all_finite(values: torch.Tensor) -> bool:
    """Whether none is NaN or infinite, by the two ends: a third of the time of asking every entry."""
    return not values.numel() or all(bool(end.isfinite()) for end in values.aminmax())
