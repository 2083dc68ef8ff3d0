"""Sparse LoRA: the masked model is frozen, and a low-rank branch inside each linear is trained.

The branch's product is masked, in training as in the end, so what is merged back is what was trained and dead weights stay
dead. Everything else is frozen: no gradient, no moments. As in LoRA the branch is scaled by ``alpha`` / ``rank``
and starts at nothing. (A forward pass multiplies with the merged weight, which makes it dense in memory while a linear runs.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tasks.train.regime import Regime, Setting

if TYPE_CHECKING:
    from torch import nn

    from tasks.models.find.linears import Linear
    from tasks.train.engine import Engine


class Lora(Regime):
    paper: ClassVar[str] = "LoRA (arXiv 2106.09685), inside the mask as in SPP (arXiv 2405.16057)"

    freezes: ClassVar[bool] = True
    branches: ClassVar[bool] = True

    rank: int = Field(8, gt=0)
    """Columns of each branch's first matrix."""
    alpha: float = Field(16.0, gt=0)
    """A branch counts for alpha / rank of itself."""

    def check_width(self, width: int) -> None:
        if self.rank > width:
            raise ValueError(f"lora.rank {self.rank} is more than a matrix of width {width} can have; choose at most {width}")

    def check_linear(self, linear: Linear) -> None:
        self.check_width(min(linear.shape[-2:]))

    def setup(self, model: nn.Module, setting: Setting) -> None:
        from tasks.train.branch import LowRank, attach

        model.requires_grad_(False)
        scale = self.alpha / self.rank
        branches = {
            name: LowRank(linear, self.rank, scale, setting.seed, setting.masks.get(name))
            for name, linear in setting.linears.items()
        }
        attach(model, self.name, branches, setting.linears)

    def finish(self, engine: Engine, setting: Setting) -> None:
        from tasks.train.branch import merge

        merge(engine, self.name, setting.linears)
