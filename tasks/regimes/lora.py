"""Sparse LoRA: the masked model is frozen, and a low-rank branch inside each linear is trained.

The branch's product is masked, in training as in the end, so what is merged back is what was trained and dead weights stay
dead. Everything else is frozen: no gradient, no moments. As in LoRA the branch is scaled by ``alpha`` / ``rank``
and starts at nothing. (A forward pass multiplies with the merged weight, which makes it dense in memory while a linear runs.)

Seen by `make claims-recover` (perplexity, three seeds, dense 12.21; rank 2, 4 % of the parameters): 15.58 ± 0.10 from a 2:4
model of 17.98, 20.76 ± 0.11 from a 70 % one of 37.80, where all parameters come to 14.47 and 18.45.
"""

from __future__ import annotations

from typing import ClassVar

from tasks.train.adapters.low_rank_regime import LowRankRegime


class Lora(LowRankRegime):
    """The same rank in every matrix."""

    paper: ClassVar[str] = "LoRA (arXiv 2106.09685), inside the mask as in SPP (arXiv 2405.16057)"
