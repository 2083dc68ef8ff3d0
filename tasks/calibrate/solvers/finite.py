"""Checks of every statistic, factor and edited weight for NaN and infinity, before they spread."""

from __future__ import annotations

import torch


def all_finite(values: torch.Tensor) -> bool:
    """Whether no entry is NaN or infinite, told by minimum and maximum: a third of the time of testing every entry."""
    return not values.numel() or all(bool(end.isfinite()) for end in values.aminmax())
