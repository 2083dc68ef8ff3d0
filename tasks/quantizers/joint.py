"""Joint: prune and quantize in one sweep (SparseGPT with a quantizer, arXiv 2301.00774, section 5).

Pruning first and rounding later compensates twice, and what pruning moved into the live weights is rounded without it knowing.
Here each column is masked and rounded together, and one error covers both, made good by the columns to come. Masks are
SparseGPT's, chosen on weights that earlier columns have compensated for their pruning and their rounding. With nothing to prune
it is GPTQ, and with an endless grid SparseGPT.

Grids are fitted to what SparseGPT alone leaves, which takes one compiled sweep more, where the paper's code fits them to the
dense weights: compensation makes live weights larger, and grids of the dense ones clip that. On correlated inputs (256 wide, 64
rows, groups of 16), the loss at 2:4, at 50 % and at 70 %, relative to pruning and then GPTQ: 0.95, 0.96 and 0.99 at 3 bits,
0.99, 0.99 and 1.00 at 4; with grids of the dense weights 0.99, 1.07 and 1.12, and 1.08, 1.17 and 1.16.

Shapes: O = output features, I = input features; grids are [O, groups].
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field

from tasks.calibrate.method import BlockView, Edit, check_promises
from tasks.calibrate.quantizer import Quantizer
from tasks.calibrate.swept import Swept
from tasks.formats.pattern import Unstructured

if TYPE_CHECKING:
    from tasks.calibrate.observe import InputStatistic
    from tasks.formats.grid import Grid
    from tasks.formats.pattern import Pattern
    from tasks.models.find.linears import Linear

EVERY = Unstructured()


class Joint(Swept, Quantizer):
    paper: ClassVar[str] = "SparseGPT with joint quantization (arXiv 2301.00774)"
    plain: ClassVar[bool] = False
    prunes: ClassVar[bool] = True
    scope: ClassVar[Literal["row", "layer"]] = "layer"
    patterns: ClassVar[tuple[str, ...]] = ("unstructured", "N:M", "block", "group", "channel")

    block: int = Field(128, ge=1)
    """Columns decided at once where the pattern does not say how many."""

    def statistic(self, linear: Linear) -> InputStatistic | None:
        return self.curvature(linear)

    def admit(self, linears: Mapping[str, Linear], allocation: Mapping[str, float], pattern: Pattern) -> None:
        super().admit(linears, allocation, pattern)
        if pattern.kind not in self.patterns:
            raise ValueError(f"{self.name} cannot keep pattern {pattern}; choose one of {', '.join(self.patterns)}")
        for name, linear in linears.items():
            try:
                pattern.check(allocation.get(name, 0.0), linear.shape[-1], linear.shape[-2])
            except ValueError as error:
                raise ValueError(f"{error} ({name})") from None

    def solve(self, view: BlockView) -> dict[str, Edit]:
        from tasks.calibrate.inputs import input_scales, of_the_method

        grids = self.grids_of(view)

        def solve_one(name: str) -> Edit:
            statistic, sparsity = of_the_method(view.statistics.get(name)), view.allocation[name]
            return self.solve_linear(
                view.matrices[name], statistic, grids.get(name), view.keep.get(name), sparsity, view.pattern
            )

        return view.each(solve_one) | input_scales(view, self.scheme_of)

    def check(self, view: BlockView, edits: Mapping[str, Edit]) -> None:
        super().check(view, edits)
        check_promises(self.name, view, edits)

    def solve_linear(
        self,
        weight_OI: torch.Tensor,
        statistics: InputStatistic | None,
        grid: Grid | None,
        keep_OI: torch.Tensor | None = None,
        sparsity: float = 0.0,
        pattern: Pattern = EVERY,
    ) -> Edit:
        """Prune and quantize one matrix; without a ``grid`` it is only pruned."""
        from tasks.calibrate.choosing import Choosing, factor_for
        from tasks.calibrate.observe import Hessian
        from tasks.calibrate.solvers.rounding import Rounding

        assert isinstance(statistics, Hessian)
        factor = factor_for(statistics, pattern, self.percent_damp, self.act_order)
        choosing = Choosing(weight_OI, statistics, factor, sparsity, pattern, keep_OI, self.block)
        pruned_OI = deepcopy(choosing).sweep(weight_OI, factor)[0] if sparsity else weight_OI
        scale_OG, zero_OG = self.fit(grid, pruned_OI, statistics) if grid else (weight_OI, weight_OI)
        rounding = Rounding.of(grid, scale_OG, zero_OG, weight_OI.shape, factor) if grid else None
        settled_OI, errors_OI = choosing.sweep(weight_OI, factor, rounding)
        notes = {"damping": factor.damping, "loss": float(errors_OI.square().sum() / 2)}
        made_OI = factor.restore(choosing.chosen_OI) if sparsity else None
        extras = {"scale": scale_OG, "zero_point": zero_OG} if grid else {}
        return Edit(settled_OI, made_OI, extras, notes)
