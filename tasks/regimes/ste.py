"""Straight-through N:M: multiply with the N largest of M, give every weight the gradient as it is."""

from __future__ import annotations

from typing import ClassVar

from tasks.train.sparse.semi_structured_regime import NMRegime


class Ste(NMRegime):
    paper: ClassVar[str] = "straight-through estimator (arXiv 1308.3432) of N:M masks"
