"""Which weights of a column sweep go: chosen a few columns ahead, on weights that earlier columns have compensated already.

Chosen at once are the columns of a pattern's group, or, where the pattern names none, of a block whose weights compete with
each other. In the order of curvature one block holds what matters most and another what matters least, so they cannot give up
the same share: a first look over the whole matrix says how many weights each gives up.

Shapes: O = output features, I = input features, G = columns chosen at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tasks.calibrate.method import select
from tasks.formats.pattern import NM, Unstructured
from tasks.formats.selection import keep_highest_overall

if TYPE_CHECKING:
    from tasks.calibrate.observe import Hessian
    from tasks.calibrate.solvers.rounding import Rounding
    from tasks.calibrate.solvers.sweep import Factor
    from tasks.formats.pattern import Pattern


def factor_for(statistics: Hessian, pattern: Pattern, percent_damp: float, act_order: bool) -> Factor:
    """The factor whose columns come in the order a pattern allows: N:M groups and single columns can be sorted, blocks, groups
    of rows and channels stay as they stand."""
    sortable = isinstance(pattern, NM) or pattern == Unstructured()
    return statistics.factor(percent_damp, pattern.width_multiple if act_order and sortable else 0)


class Choosing:
    """The mask of one sweep, in the order of its columns, while it is made. ``saliency_I`` times a squared weight is the error
    of pruning it after the best compensation. ``span`` columns are chosen at once."""

    def __init__(
        self,
        weight_OI: torch.Tensor,
        statistics: Hessian,
        factor: Factor,
        sparsity: float,
        pattern: Pattern,
        keep_OI: torch.Tensor | None,
        block: int,
    ) -> None:
        self.sparsity, self.pattern = sparsity, pattern
        # The weights of a feature that was always zero have no saliency, so they are pruned first.
        self.saliency_I = factor.upper_II.diagonal().square().reciprocal() * factor.arrange(statistics.norm_I[None] > 0)[0]
        self.span = pattern.width_multiple if pattern.width_multiple > 1 else block
        self.ahead = max(1, block // self.span) * self.span  # columns that a sweep takes in one block
        self.chosen_OI = torch.ones(weight_OI.shape, dtype=torch.bool, device=weight_OI.device)
        if keep_OI is not None:
            self.chosen_OI &= factor.arrange(keep_OI)
        self.taken_I: torch.Tensor | None = None
        if factor.order_I is not None and isinstance(pattern, Unstructured):
            score_OI = factor.arrange(weight_OI).square() * self.saliency_I
            self.taken_I = (~select(score_OI, sparsity, pattern, self.chosen_OI)).sum(0)

    def choose(self, work_OG: torch.Tensor, start: int, end: int) -> None:
        """Write the choice among the columns from ``start`` to ``end``, whose weights now are ``work_OG``."""
        score_OG, keep_OG = work_OG.square() * self.saliency_I[start:end], self.chosen_OI[:, start:end]
        if self.taken_I is None:
            self.chosen_OI[:, start:end] = select(score_OG, self.sparsity, self.pattern, keep_OG, start)
        else:
            score_OG = score_OG.masked_fill(~keep_OG, self.pattern.dead_score)
            self.chosen_OI[:, start:end] = keep_highest_overall(score_OG, int(self.taken_I[start:end].sum()))

    def sweep(
        self, weight_OI: torch.Tensor, factor: Factor, rounding: Rounding | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose, prune, round where there is a grid, and compensate every column: the settled weights, in their own order of
        columns, and the errors."""
        from tasks.calibrate.solvers.settling import settle_columns, settle_groups
        from tasks.calibrate.solvers.sweep import sweep_blocks

        pattern, upper_II = self.pattern, factor.upper_II

        def settle(work_OI: torch.Tensor, errors_OI: torch.Tensor, start: int, end: int) -> None:
            given = (work_OI, errors_OI, self.chosen_OI, upper_II)
            if isinstance(pattern, NM):
                settle_groups(*given, self.saliency_I, pattern.m, pattern.m - pattern.n, start, end, rounding)
                return
            for column in range(start, end, self.span):
                last = min(column + self.span, end)
                self.choose(work_OI[:, column:last], column, last)
                settle_columns(*given, column, last, end, rounding)

        settled_OI, errors_OI = sweep_blocks(factor.arrange(weight_OI), upper_II, settle, self.ahead)
        return factor.restore(settled_OI).to(weight_OI.dtype), errors_OI
