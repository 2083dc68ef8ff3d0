"""SET: the smallest live weights are pruned, and as many are grown at random.

As in RigL's comparison the smallest go by magnitude, whatever their sign. The update comes after the step, so no dense
gradient is ever needed.

Measured (flows/recipes/claims): 12.48 ± 0.11 against 12.80 ± 0.03 of static masks at 90 %, ERK, 4 x 128 Llama, 6 M tokens.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from tasks.train.sparse.dynamic_regime import DynamicRegime


class Set(DynamicRegime):
    paper: ClassVar[str] = "SET (arXiv 1707.04780)"
    grow: ClassVar[Literal["random", "gradient"]] = "random"
