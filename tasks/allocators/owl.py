"""OWL (arXiv 2310.05175): blocks with many outlying weights keep more.

An outlier is a weight whose Wanda score is more than ``outlier`` times the mean score of its block. The blocks' shares
of outliers are stretched over 2 * ``spread`` around the model's sparsity, which every matrix of a block then gets.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from tasks.models.allocation import Allocator, Scan, spread_out


class Owl(Allocator):
    """Blocks of equal shares of outliers get equal sparsity."""

    paper: ClassVar[str] = "OWL (arXiv 2310.05175)"

    outlier: float = Field(5.0, gt=0)
    """An outlier's score is more than this many times the mean score of its block."""
    spread: float = Field(0.08, ge=0, lt=0.5)
    """Largest difference of a block's sparsity from the model's."""

    def allocate(self, scan: Scan, sparsity: float) -> dict[str, float]:
        from tasks.calibrate.observe import InputNorms

        shares = {}
        for view in scan.blocks(lambda linear: InputNorms(linear.shape[-1])):
            scores = [view.matrices[name].float().abs() * view.statistics[name].norm_I for name in view.matrices]
            mean = sum(float(score_OI.sum()) for score_OI in scores) / sum(score_OI.numel() for score_OI in scores)
            outliers = sum(int((score_OI > self.outlier * mean).sum()) for score_OI in scores)
            shares[view.index] = outliers / sum(score_OI.numel() for score_OI in scores)
        low, high = min(shares.values()), max(shares.values())
        width = (high - low) or 1.0
        return spread_out(scan, sparsity, {block: -2 * self.spread * (share - low) / width for block, share in shares.items()})
