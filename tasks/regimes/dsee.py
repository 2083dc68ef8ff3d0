"""DSEE: a frozen model changes by a low-rank product and few single weights, and is pruned once by what they made of it.

Where the single weights lie is settled at the start: where a matrix is farthest from the nearest one of that rank (the
authors find it by a greedy decomposition into low rank and residual), where it is largest, or at random. After the share
``prune_at`` of the run the least of all matrices' weights die, ranked by the changed weight or by the change alone; what is
left of the run heals. The authors change queries and values only and prune these apart from the rest; here all matrices are
alike. Their pruning of heads is a stage ``prune`` with ``heads`` behind this one.

The incoming mask holds, and its dead weights count towards the sparsity: what has lost as much already loses no more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from tasks.train.regime import Outcome, Regime, Setting

if TYPE_CHECKING:
    from torch import nn

    from tasks.models.find.linears import Linear
    from tasks.train.engine import Engine
    from tasks.train.hook import Hook


class Dsee(Regime):
    paper: ClassVar[str] = "DSEE (arXiv 2111.00160)"

    freezes: ClassVar[bool] = True
    reads_weights: ClassVar[bool] = True
    branches: ClassVar[bool] = True
    masks: ClassVar[Outcome] = "narrowed"

    rank: int = Field(4, gt=0)
    """Rank of what is added to a weight."""
    alpha: float = Field(32.0, gt=0)
    """What is added counts for alpha / rank of itself."""
    residuals: int = Field(128, gt=0)
    """Single weights of each matrix that change besides."""
    support: Literal["residual", "magnitude", "random"] = "residual"
    """Which they are: those farthest from the nearest matrix of that rank, the largest, or any."""
    sparsity: float = Field(0.2, ge=0, lt=1)
    """Share of the weights that is dead after the pruning; with 0 none is pruned."""
    criterion: Literal["weight", "update"] = "weight"
    """What is ranked: the changed weights, or what changed them."""
    prune_at: float = Field(0.4, ge=0, le=1)
    """Share of the run before the pruning."""

    def check_linear(self, linear: Linear) -> None:
        width, weights = min(linear.shape[-2:]), linear.shape[-2] * linear.shape[-1]
        if self.rank > width:
            raise ValueError(f"dsee.rank {self.rank} is more than a matrix of width {width} can have; choose at most {width}")
        if self.residuals > weights:
            raise ValueError(f"dsee.residuals {self.residuals} are more than the {weights} weights of a matrix; choose fewer")

    def setup(self, model: nn.Module, setting: Setting) -> None:
        from tasks.train.adapters.residual import Residual, support
        from tasks.train.branch import attach

        model.requires_grad_(False)
        branches = {}
        for name, linear in setting.linears.items():
            mask = setting.masks.get(name)
            count = min(self.residuals, mask.live) if mask else self.residuals
            places = support(linear, model.get_parameter(name), mask, count, self.rank, self.support, setting.seed)
            branches[name] = Residual(linear, self.rank, self.alpha / self.rank, setting.seed, mask, places)
        attach(model, self.name, branches, setting.linears)

    def hooks(self, setting: Setting) -> list[Hook]:
        from tasks.train.adapters.residual import PrunedOnce

        when = max(1, round(self.prune_at * setting.steps))
        return [PrunedOnce(setting.linears, setting.masks, self.sparsity, when, self.criterion, self.name)]

    def finish(self, engine: Engine, setting: Setting) -> None:
        from tasks.train.branch import merge

        merge(engine, self.name, setting.linears)
