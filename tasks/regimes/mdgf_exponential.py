"""MDGF-Exponential: weights outside the N:M mask fade by a constant ratio a step.

They count for exp(-``rate`` * t), t counted from the end of the dense phase. Without a rate they reach 1 % where the
hard phase begins; the authors' is 1e-4, for runs of tens of thousands of steps.

Measured (flows/recipes/claims): at 1:16 31.2 ± 1.2 against 32.4 ± 0.3 of SR-STE on a 2 x 64 Llama, 1 M tokens; at 1:8 the
two are within noise.
"""

from __future__ import annotations

import math
from typing import ClassVar

from tasks.train.sparse.semi_structured_regime import DecayingRegime


class MdgfExponential(DecayingRegime):
    paper: ClassVar[str] = "Progressive Gradient Flow, MDGF-Exponential (arXiv 2402.04744)"

    def share(self, step: int, steps: int) -> float:
        return math.exp(-(self.rate or math.log(100) / max(1, steps)) * step)
