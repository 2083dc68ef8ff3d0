"""The shelf of mergers: each file makes one model out of several that share architecture and mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

from tasks.methods import Method

if TYPE_CHECKING:
    import torch


class Merger(Method):
    """Root of the mergers. The stage reads and writes tensor by tensor; dead weights are zero in every model."""

    measures: ClassVar[bool] = False  # chooses by a loss on text, so the stage needs data, and it says of how much

    def choose(self, count: int, loss: Callable[[Sequence[int]], float]) -> list[int]:
        """Which of so many models are merged; ``loss`` is that of some of them merged, in nats a token."""
        return list(range(count))

    def merge(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """What becomes of one floating-point tensor, given in float64 as each of the models has it, in their order."""
        raise NotImplementedError
