"""How an engine comes to be: what makes it, and the weights that come to it piece by piece where no rank can hold them all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import nn

    from tasks.train.engine import Engine

    # (start, count) -> so many float32 elements of a flattened tensor, from there on
    Piece = Callable[[int, int], torch.Tensor]
    # the name of a parameter or buffer, and its pieces; in the order they come, one after the other
    Weights = Iterable[tuple[str, Piece]]


class MakeEngine(Protocol):
    def __call__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        clipping: float,
        accumulation: int,
        weights: Weights | None = None,
    ) -> Engine:
        """The engine that the profile names; ``accumulation`` micro-batches make one step. With ``weights`` the model is
        hollow (tasks/models/build/building.py), and they are what its parameters and buffers begin with."""
