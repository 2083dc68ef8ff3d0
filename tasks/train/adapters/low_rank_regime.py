"""The root of the regimes that train a low-rank branch in each matrix of a frozen model."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tasks.train.regime import Regime, Setting

if TYPE_CHECKING:
    from torch import nn

    from tasks.models.find.linears import Linear
    from tasks.train.engine import Engine


class LowRankRegime(Regime):
    """A branch's product is masked, scaled, and merged in the end."""

    freezes: ClassVar[bool] = True
    branches: ClassVar[bool] = True

    rank: int = Field(8, gt=0)
    """Columns of each branch's first matrix."""
    alpha: float = Field(16.0, gt=0)
    """A branch counts for alpha / rank of itself."""

    def check_width(self, width: int) -> None:
        if self.rank > width:
            raise ValueError(
                f"{self.name}.rank {self.rank} is more than a matrix of width {width} can have; choose at most {width}"
            )

    def check_linear(self, linear: Linear) -> None:
        self.check_width(min(linear.shape[-2:]))

    def ranks(self, model: nn.Module, setting: Setting) -> dict[str, int]:
        """That of each linear's branch."""
        return dict.fromkeys(setting.linears, self.rank)

    def setup(self, model: nn.Module, setting: Setting) -> None:
        from tasks.train.branch import LowRank, attach

        model.requires_grad_(False)
        ranks, scale = self.ranks(model, setting), self.alpha / self.rank
        branches = {
            name: LowRank(linear, ranks[name], scale, setting.seed, setting.masks.get(name))
            for name, linear in setting.linears.items()
        }
        attach(model, self.name, branches, setting.linears)

    def finish(self, engine: Engine, setting: Setting) -> None:
        from tasks.train.branch import merge

        merge(engine, self.name, setting.linears)
