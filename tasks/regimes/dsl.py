"""DSL: a constant budget per tensor that moves all the way to the end, half of it at first, next to nothing at last.

The number that moves is rounded up, and weights are grown where the dense gradient is largest, at zero even where one
died in the same update. Made for recommenders, where embedding tables are masked too; here it covers the matrices of
the decoder blocks.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from tasks.train.sparse.dynamic_regime import DynamicRegime


class Dsl(DynamicRegime):
    paper: ClassVar[str] = "DSL (arXiv 2402.02855)"
    grow: ClassVar[Literal["random", "gradient"]] = "gradient"
    keep_regrown: ClassVar[bool] = False
    at_least: ClassVar[bool] = True

    fraction: float = Field(0.5, gt=0, le=1)
    """Share of a matrix's live weights that is dropped and grown in the first update; a cosine leads to ``final_fraction``."""
    final_fraction: float = Field(0.005, ge=0, le=1)
    """Share of the live weights that moves in the last update."""
    end: float = Field(1.0, gt=0, le=1)
    """Share of the run after which the masks stay."""
