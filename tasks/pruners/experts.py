"""Experts: leave out the experts of a mixture that add least, as many in every block that has some.

What an expert adds is the mean, over the tokens routed to it, of the gate's weight times the length of what it gives (REAP).
The router loses the rows of those that go, so each token takes the next best of those that stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tasks.calibrate.resizer import Resizer, remaining

if TYPE_CHECKING:
    from tasks.calibrate.whole import Whole
    from tasks.models.cut import Cut


class Experts(Resizer):
    """No hyper-parameters. The sparsity is the share of the experts of each block."""

    paper: ClassVar[str] = "REAP the Experts (arXiv 2510.13999)"

    def outline(self, whole: Whole, sparsity: float) -> Cut:
        import torch

        from tasks.calibrate.routed import experts_of
        from tasks.models.cut import Cut

        return Cut(experts=dict.fromkeys(experts_of(whole), torch.arange(self._left(whole, sparsity))))

    def cut(self, whole: Whole, sparsity: float) -> Cut:
        from tasks.calibrate.routed import experts_of, weighted_norms
        from tasks.models.cut import Cut

        left, scores = self._left(whole, sparsity), weighted_norms(whole, experts_of(whole))
        kept = {index: score_E.argsort(descending=True, stable=True)[:left].sort().values for index, score_E in scores.items()}
        return Cut(experts=kept, scores={"router_weighted_norm": {index: found.tolist() for index, found in scores.items()}})

    def _left(self, whole: Whole, sparsity: float) -> int:
        from tasks.calibrate.routed import counts_of

        counts = counts_of(whole)
        if len(counts) > 1:
            raise ValueError(f"unsupported: blocks have {min(counts)} to {max(counts)} experts, and all are cut alike")
        left = remaining(min(counts), sparsity, 1, "experts")
        taken = whole.model.config.get_text_config(decoder=True).num_experts_per_tok
        if left < taken:
            least = 1 - taken / min(counts)
            raise ValueError(
                f"sparsity {sparsity:g} leaves {left} experts, and each token takes {taken}; choose at most {least:.3g}"
            )
        return left
