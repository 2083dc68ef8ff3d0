"""What stays of a model that is made smaller, and the sizes that it has then.

Shapes: F = channels of a feed-forward network, G = groups of heads that share keys and values, D = hidden features.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Cut:
    """Numbers of what stays, ascending; None or empty where all does. ``channels`` and ``groups`` are of each block, as many
    in one as in another, ``experts`` of the blocks that have some. ``scores`` is what the choice was made by, for people."""

    blocks: tuple[int, ...] | None = None
    channels: tuple[torch.Tensor, ...] = ()
    groups: tuple[torch.Tensor, ...] = ()
    hidden: torch.Tensor | None = None
    experts: dict[int, torch.Tensor] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
