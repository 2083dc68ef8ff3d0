"""SDGF-Geometric: the same sparsity throughout, in groups that shrink from 8N:8M over 4N:4M and 2N:2M to N:M."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from tasks.train.sparse.semi_structured_regime import NMRegime

if TYPE_CHECKING:
    from tasks.train.sparse.semi_structured import Phase


class SdgfGeometric(NMRegime):
    paper: ClassVar[str] = "Progressive Gradient Flow, SDGF-Geometric (arXiv 2402.04744)"

    location: Literal["ffn", "all"] = "ffn"
    """Which matrices are sparse: those of the feed-forward networks, or all."""

    def check_width(self, width: int) -> None:
        super().check_width(width)
        if width % (8 * self.nm().m):
            raise ValueError(
                f"the first phase {8 * self.nm().n}:{8 * self.nm().m} of pattern {self.nm()} needs an input "
                f"width divisible by {8 * self.nm().m}, got {width}"
            )

    def between(self, step: int, steps: int) -> Phase:
        from tasks.formats.pattern import NM
        from tasks.train.sparse.semi_structured import Phase

        factor = 2 ** (3 - min(3, 4 * step // max(1, steps)))
        return Phase(NM(factor * self.nm().n, factor * self.nm().m))
