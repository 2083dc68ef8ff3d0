"""SDGF-Stepwise: fewer and fewer of the same M live, in equal phases of the run.

log2(M / N) + 1 phases: one weight of M falls, then half live, a quarter, and so on to N:M.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from tasks.train.sparse.semi_structured_regime import NMRegime

if TYPE_CHECKING:
    from tasks.train.sparse.semi_structured import Phase


class SdgfStepwise(NMRegime):
    paper: ClassVar[str] = "Progressive Gradient Flow, SDGF-Stepwise (arXiv 2402.04744)"

    location: Literal["ffn", "all"] = "ffn"
    """Which matrices are sparse: those of the feed-forward networks, or all."""

    def counts(self) -> list[int]:
        """How many of M live in each phase."""
        pattern = self.nm()
        halves, live = [], pattern.m // 2
        while live > pattern.n:
            halves.append(live)
            live //= 2
        return [*dict.fromkeys([pattern.m - 1, *halves, pattern.n])]

    def between(self, step: int, steps: int) -> Phase:
        from tasks.formats.pattern import NM
        from tasks.train.sparse.semi_structured import Phase

        counts = self.counts()
        return Phase(NM(counts[min(len(counts) - 1, step * len(counts) // max(1, steps))], self.nm().m))
