"""Experts: leave out the experts of a mixture that add least, as many in every block that has some.

What an expert adds is the mean, over the tokens routed to it, of the gate's weight times the length of what it gives (REAP).
The router loses the rows of those that go, so each token takes the next best of those that stay. Where it chooses among groups
of experts first, as DeepSeek's does, as many of each group stay, so that a group is of those it was of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tasks.calibrate.resizer import Resizer, remaining

if TYPE_CHECKING:
    import torch

    from tasks.calibrate.whole import Whole
    from tasks.models.cut import Cut

BEST_OF_GROUP = 2  # a group counts by so many of its experts


class Experts(Resizer):
    """No hyper-parameters. The sparsity is the share of the experts of each block."""

    paper: ClassVar[str] = "REAP the Experts (arXiv 2510.13999)"
    version: ClassVar[int] = 2

    def outline(self, whole: Whole, sparsity: float) -> Cut:
        import torch

        from tasks.calibrate.routed import experts_of
        from tasks.models.cut import Cut

        return Cut(experts=dict.fromkeys(experts_of(whole), torch.arange(self._left(whole, sparsity))))

    def cut(self, whole: Whole, sparsity: float) -> Cut:
        from tasks.calibrate.routed import experts_of, weighted_norms
        from tasks.models.cut import Cut

        left, scores = self._left(whole, sparsity), weighted_norms(whole, experts_of(whole))
        kept = {index: best(score_E, left, _grouped(whole)[0]) for index, score_E in scores.items()}
        return Cut(experts=kept, scores={"router_weighted_norm": {index: found.tolist() for index, found in scores.items()}})

    def _left(self, whole: Whole, sparsity: float) -> int:
        from tasks.calibrate.routed import counts_of

        counts = counts_of(whole)
        if len(counts) > 1:
            raise ValueError(f"unsupported: blocks have {min(counts)} to {max(counts)} experts, and all are cut alike")
        (groups, chosen), all_of_them = _grouped(whole), min(counts)
        taken = whole.model.config.get_text_config(decoder=True).num_experts_per_tok
        least, needs = taken, "each token takes"
        if groups > 1:
            least = groups * max(BEST_OF_GROUP, -(-taken // chosen))
            needs = f"a router that chooses {chosen} of {groups} groups needs"
        if least >= all_of_them:
            raise ValueError(f"unsupported: of {all_of_them} experts {needs} {least}; choose depth or width")
        left = remaining(all_of_them, sparsity, groups, "experts")
        if left < least:
            most = 1 - least / all_of_them
            raise ValueError(f"sparsity {sparsity:g} leaves {left} experts, and {needs} {least}; choose at most {most:.3g}")
        return left


def _grouped(whole: Whole) -> tuple[int, int]:
    """In how many groups of consecutive experts the router has them, and of how many a token's experts are."""
    config = whole.model.config.get_text_config(decoder=True)
    if getattr(config, "topk_method", None) == "greedy":
        return 1, 1
    return getattr(config, "n_group", None) or 1, getattr(config, "topk_group", None) or 1


def best(score_E: torch.Tensor, left: int, groups: int) -> torch.Tensor:
    """Numbers of the experts that stay, ascending: the best of each group, as many of one as of another."""
    score_GE = score_E.view(groups, -1)
    kept_GE = score_GE.argsort(dim=1, descending=True, stable=True)[:, : left // groups].sort(1).values
    return (kept_GE + score_GE.shape[1] * kept_GE.new_tensor(range(groups))[:, None]).flatten()
