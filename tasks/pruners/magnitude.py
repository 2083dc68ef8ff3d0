"""Magnitude: the smallest weights of each matrix go. Needs no data; the baseline every other pruner has to beat."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from tasks.calibrate.method import Pruner


class Magnitude(Pruner):
    """No hyper-parameters. Each matrix is ranked by itself, not row by row and not the whole model together."""

    paper: ClassVar[str] = "magnitude pruning; essential sparsity (arXiv 2306.03805)"

    def score(self, weight_OI: torch.Tensor, statistics: Any) -> torch.Tensor:
        return weight_OI.abs()
