"""SparseGPT (arXiv 2301.00774): prune column by column, and update the columns to come to compensate.

A weight's saliency is the error of pruning it after the best compensation, W^2 / U_jj^2. Masks are chosen a few columns
ahead, on weights that earlier columns have already compensated: for N:M the group about to begin, for the rest a block of
columns whose weights compete with each other. The paper's threshold prunes one weight per block too many (<=); here the
quota is exact over the whole matrix.

Groups of N:M and single columns come by descending curvature (act-order): those of the highest curvature are pruned while
most others can still compensate. Sorted, one block holds what matters most and another what matters least, so they cannot
give up the same share: a first look over the whole matrix says how many weights each gives up. Blocks, groups and channels
stay as they stand. Perplexity of SmolLM2-135M on ten windows of 1024 of WikiText-2's test text (dense 23.4), calibrated on
three samples of 48 x 512 tokens and one of 128 x 1024; llm-compressor 0.14 goes left to right:

    sparsity    act-order                   left to right               llm-compressor
    50 %        35.5  35.1  34.0  33.8      37.6  36.8  35.9  35.5      37.3  36.8  35.9  35.3
    60 %        56.7                        65.2
    70 %       112.9             107.1     122.7             124.5
    2:4         52.7  56.7        49.2      58.2  61.9        54.4      56.6  62.4        53.9

Shapes: O = output features, I = input features, G = columns ahead in the sweep's block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field

from tasks.calibrate.method import Edit, Pruner, select
from tasks.calibrate.observe import Hessian, InputStatistic
from tasks.formats.pattern import NM, Unstructured
from tasks.formats.selection import keep_highest_overall

if TYPE_CHECKING:
    from tasks.calibrate.solvers.sweep import Factor
    from tasks.formats.pattern import Pattern
    from tasks.models.find.linears import Linear


class Sparsegpt(Pruner):
    paper: ClassVar[str] = "SparseGPT (arXiv 2301.00774)"
    scope: ClassVar[Literal["row", "layer"]] = "layer"
    patterns: ClassVar[tuple[str, ...]] = ("unstructured", "N:M", "block", "group", "channel")

    percent_damp: float = Field(0.01, gt=0, le=1)
    """Share of the mean curvature that is added to every feature's."""
    block: int = Field(128, ge=1)
    """Columns decided at once where the pattern does not say how many."""
    act_order: bool = True
    """Take columns, or N:M groups, by descending curvature; otherwise from left to right."""
    double: bool = False
    """Sweep in float64."""

    def observer(self, linear: Linear) -> InputStatistic | None:
        return Hessian(linear.shape[-1], "float64" if self.double else "float32")

    def _factor(self, statistics: Hessian, pattern: Pattern) -> Factor:
        sortable = isinstance(pattern, NM) or pattern == Unstructured()
        return statistics.factor(self.percent_damp, pattern.width_multiple if self.act_order and sortable else 0)

    def solve_linear(
        self,
        weight_OI: torch.Tensor,
        statistics: InputStatistic | None,
        sparsity: float,
        pattern: Pattern,
        keep_OI: torch.Tensor | None = None,
    ) -> Edit:
        from tasks.calibrate.solvers.pruning import prune_columns, prune_groups
        from tasks.calibrate.solvers.sweep import sweep_blocks

        assert isinstance(statistics, Hessian)
        factor = self._factor(statistics, pattern)
        # The weights of a feature that was always zero have no saliency, so they are pruned first.
        saliency_I = factor.upper_II.diagonal().square().reciprocal() * factor.arrange(statistics.norm_I[None] > 0)[0]
        span = pattern.width_multiple if pattern.width_multiple > 1 else self.block
        chosen_OI = torch.ones(weight_OI.shape, dtype=torch.bool, device=weight_OI.device)
        if keep_OI is not None:
            chosen_OI &= factor.arrange(keep_OI)

        taken_I = None
        if factor.order_I is not None and isinstance(pattern, Unstructured):
            taken_I = (~select(factor.arrange(weight_OI).square() * saliency_I, sparsity, pattern, chosen_OI)).sum(0)

        def settle(work_OI: torch.Tensor, errors_OI: torch.Tensor, start: int, end: int) -> None:
            if isinstance(pattern, NM):
                pruned = pattern.m - pattern.n
                prune_groups(work_OI, errors_OI, chosen_OI, factor.upper_II, saliency_I, pattern.m, pruned, start, end)
                return
            for column in range(start, end, span):
                last = min(column + span, end)
                score_OG, keep_OG = work_OI[:, column:last].square() * saliency_I[column:last], chosen_OI[:, column:last]
                if taken_I is None:
                    chosen_OI[:, column:last] = select(score_OG, sparsity, pattern, keep_OG, column)
                else:
                    score_OG = score_OG.masked_fill(~keep_OG, pattern.dead_score)
                    chosen_OI[:, column:last] = keep_highest_overall(score_OG, int(taken_I[column:last].sum()))
                prune_columns(work_OI, errors_OI, chosen_OI, factor.upper_II, column, last, end)

        ahead = max(1, self.block // span) * span
        settled_OI, errors_OI = sweep_blocks(factor.arrange(weight_OI), factor.upper_II, settle, ahead)
        notes = {"damping": factor.damping, "loss": float(errors_OI.square().sum() / 2)}
        return Edit(factor.restore(settled_OI).to(weight_OI.dtype), factor.restore(chosen_OI), notes=notes)
