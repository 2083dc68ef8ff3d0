"""DSnoT (arXiv 2310.08915): exchange pruned and kept weights until a row's expected output is the dense one's again.

D = W * mean(x) is what a weight adds to its row's output on average; a row's error E is the sum of D over what was
pruned. Each cycle brings back the pruned weight that reduces |E| most for its uncertainty (D / variance), and gives up
the kept weight of the lowest Wanda score whose loss reduces |E| too. Weights keep their dense values. In an N:M group the
weight given up is the least of the group, whatever its sign, so such an exchange is made only where |E| falls.

The paper counts D and its threshold over the tokens of a sequence and makes up to 50 cycles whatever the width; here
both are per token and the cycles a share of the width, without which narrow matrices are overturned.

Shapes: O = output features, I = input features, C = cycles, M = the weights of an N:M group.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field

from tasks.calibrate.method import Edit
from tasks.calibrate.refiner import Refiner

if TYPE_CHECKING:
    from tasks.calibrate.observe import InputStatistic
    from tasks.formats.pattern import Pattern
    from tasks.models.find.linears import Linear


class Dsnot(Refiner):
    paper: ClassVar[str] = "DSnoT (arXiv 2310.08915)"
    apart: ClassVar[bool] = True
    patterns: ClassVar[tuple[str, ...]] = ("unstructured", "N:M")

    cycles: float = Field(0.0125, gt=0, le=1)
    """Exchanges per row at most, as a share of its width."""
    threshold: float = Field(5e-5, ge=0)
    """A row is done once its expected error is within this, per token."""
    variance_power: float = Field(1.0, ge=0)
    """How much the variance of an input discounts what its weight could bring back; 0 not at all."""
    same_sign: bool = True
    """Stop a row before its error would change sign."""

    def observer(self, linear: Linear) -> InputStatistic | None:
        from tasks.calibrate.both import Both
        from tasks.calibrate.observe import Moments

        return Both(Moments(linear.shape[-1]), self.initial.observer(linear))

    def solve_linear(
        self,
        weight_OI: torch.Tensor,
        statistics: InputStatistic | None,
        sparsity: float,
        pattern: Pattern,
        keep_OI: torch.Tensor | None = None,
    ) -> Edit:
        from tasks.calibrate.both import Both
        from tasks.calibrate.observe import Moments
        from tasks.calibrate.solvers.exchange import Exchange

        assert isinstance(statistics, Both) and isinstance(statistics.own, Moments)
        first_OI = self.initial.solve_linear(weight_OI, statistics.other, sparsity, pattern, keep_OI).keep_OI
        assert first_OI is not None, "a pruner gives a mask"
        moments = statistics.own
        contribution_OI = weight_OI.float() * moments.mean_I
        exchange = Exchange(
            kept_OI=first_OI.clone(),
            free_OI=~first_OI if keep_OI is None else keep_OI & ~first_OI,
            contribution_OI=contribution_OI,
            gain_OI=contribution_OI / moments.variance_I.clamp(min=1e-12).pow(self.variance_power),
            score_OI=weight_OI.float().abs() * moments.norm_I,
            group=pattern.width_multiple,
            same_sign=self.same_sign,
        )
        before = float(exchange.error_O.abs().mean())
        swaps = exchange.run(max(1, round(self.cycles * weight_OI.shape[1])), self.threshold)
        notes = {"expected_error_before": before, "expected_error": float(exchange.error_O.abs().mean()), "swaps": float(swaps)}
        return Edit(weight_OI.masked_fill(~exchange.kept_OI, 0), exchange.kept_OI, notes=notes)
