"""A soup: the mean of models that were recovered from one pruned model, each in a run of its own, under its mask.

They differ in seed, length or learning rate, lie in one basin of the loss, and their mean costs no more than one of them.

Seen by `make claims-recover` (perplexity at 70 %, three seeds; members 21.99, 18.78 and 18.47 ± 0.04): 19.01 ± 0.04.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from tasks.mergers import Merger

if TYPE_CHECKING:
    import torch


class Uniform(Merger):
    """Every model counts the same."""

    paper: ClassVar[str] = "Sparse Model Soups (arXiv 2306.16788)"

    def merge(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        import torch

        return sum(tensors, torch.zeros_like(tensors[0])) / len(tensors)
