"""The shelf of mergers: each file makes one model out of several that share architecture and mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tasks.methods import Method

if TYPE_CHECKING:
    import torch


class Merger(Method):
    """Root of the mergers. The stage reads and writes tensor by tensor; dead weights are zero in every model."""

    def merge(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """What becomes of one floating-point tensor, given in float64 as each of the models has it, in their order."""
        raise NotImplementedError
