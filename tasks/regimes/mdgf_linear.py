"""MDGF-Linear: weights outside the N:M mask fade by a constant amount a step.

They count for max(0, 1 - ``rate`` * t), t counted from the end of the dense phase. Without a rate they reach zero where
the hard phase begins; the authors' is 2e-4, for runs of tens of thousands of steps.
"""

from __future__ import annotations

from typing import ClassVar

from tasks.train.sparse.semi_structured_regime import DecayingRegime


class MdgfLinear(DecayingRegime):
    paper: ClassVar[str] = "Progressive Gradient Flow, MDGF-Linear (arXiv 2402.04744)"

    def share(self, step: int, steps: int) -> float:
        return max(0.0, 1 - (self.rate or 1 / max(1, steps)) * step)
