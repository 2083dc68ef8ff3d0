"""SR-STE: straight-through N:M with a pull to zero on what lies outside the mask, so that masks settle.

``decay`` times the weight is added to the gradient of each weight outside the mask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tasks.train.sparse.semi_structured_regime import NMRegime

if TYPE_CHECKING:
    from tasks.train.sparse.semi_structured import Flow


class SrSte(NMRegime):
    paper: ClassVar[str] = "SR-STE (arXiv 2102.04010)"

    decay: float = Field(2e-4, ge=0)
    """Times the weight, added to the gradient of weights outside the mask."""

    def flow(self) -> Flow:
        return {"decay": self.decay}
