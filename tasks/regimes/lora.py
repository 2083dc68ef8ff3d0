"""Sparse LoRA: the masked model is frozen, and a low-rank branch inside each linear is trained.

The branch's product is masked, in training as in the end, so what is merged back is what was trained and dead weights stay
dead. Everything else is frozen: no gradient, no moments. As in LoRA the branch is scaled by ``alpha`` / ``rank``
and starts at nothing. (A forward pass multiplies with the merged weight, which makes it dense in memory while a linear runs.)
"""

from __future__ import annotations

from typing import ClassVar

from tasks.train.adapters.low_rank_regime import LowRankRegime


class Lora(LowRankRegime):
    """The same rank in every matrix."""

    paper: ClassVar[str] = "LoRA (arXiv 2106.09685), inside the mask as in SPP (arXiv 2405.16057)"
