"""Masked finetuning: train what lives, keep what is dead, optionally learning from the model before it was pruned.

Seen by `make claims-recover` (perplexity, three seeds, dense 12.21): from a 2:4 model of 17.98 to 15.28 ± 0.05 by
cross-entropy, 14.70 ± 0.04 by SquareHead and 14.47 ± 0.06 by distillation; from a 70 % one of 37.80 to 19.80 ± 0.04,
18.86 ± 0.08 and 18.45 ± 0.01.
"""

from __future__ import annotations

from typing import ClassVar

from tasks.train.distilling import DistillingRegime


class Masked(DistillingRegime):
    """Under the mask the model came with."""

    paper: ClassVar[str] = "knowledge distillation (arXiv 1503.02531) under a fixed mask"
