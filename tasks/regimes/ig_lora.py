"""LoRA whose rank follows how much of each block the pruning left: CFSP's importance-guided recovery.

CFSP keeps of each block's feed-forward network a share that is proportional to the block's importance, so the importance is
read off what lives there: from masks, or from widths where channels were taken out. The paper's rank formula is not public.
Ours: a block's rank is ``rank`` times its importance over the mean, rounded by largest remainder so that ranks add up to
``rank`` a block, none less than 1 and none more than its matrix can have. Where all blocks lost the same it is LoRA.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tasks.train.adapters.low_rank_regime import LowRankRegime
from tasks.train.regime import Setting

if TYPE_CHECKING:
    from torch import nn


class IgLora(LowRankRegime):
    """``rank`` is the mean over blocks."""

    paper: ClassVar[str] = "IG-LoRA of CFSP (arXiv 2409.13199), its rank formula ours"

    def ranks(self, model: nn.Module, setting: Setting) -> dict[str, int]:
        from tasks.train.adapters.delta import live_weights
        from tasks.train.branch import by_block

        live = live_weights(setting.linears, setting.masks)
        blocks = by_block(model, setting.linears)
        kept = [sum(live[name] for name in names if setting.linears[name].feed_forward) for names in blocks]
        shared = shares(self.rank * len(blocks), kept)
        return {
            name: min(rank, *setting.linears[name].shape[-2:])
            for names, rank in zip(blocks, shared, strict=True)
            for name in names
        }


def shares(total: int, weights: list[int]) -> list[int]:
    """``total`` in whole numbers of at least 1, in proportion to ``weights``: rounded down, then one more for the largest
    remainders; what that makes too many the largest give."""
    exact = [total * weight / sum(weights) for weight in weights]
    found = [max(1, int(share)) for share in exact]
    remainders = sorted(range(len(exact)), key=lambda index: int(exact[index]) - exact[index])
    for index in remainders[: max(0, total - sum(found))]:
        found[index] += 1
    while sum(found) > total:
        found[found.index(max(found))] -= 1
    return found
