"""SpIEL: so many single weights of a frozen model change, and which they are moves while it trains (accumulated gradients, AG).

The places begin at random among the weights that live. Every ``interval`` steps a share of them is given up, those that changed
least, for the places of the largest gradients gathered over ``gathered`` steps, which start with what was gathered as their
moments. All of them move at the first choice, then ``moved`` of them, falling to none at the end. A place that is given up has
its weight back to the bit, and dead weights have no place. Weight decay draws towards the model that came.

The memory of training is that of the places: 4 bytes each for place and value, 12 for the moments.

Seen by `make claims-recover` (perplexity, three seeds, dense 12.21), against LoRA with as many parameters: 15.36 ± 0.04 and
15.58 ± 0.10 from a 2:4 model of 17.98, 20.02 ± 0.06 and 20.76 ± 0.11 from a 70 % one of 37.80.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, model_validator

from tasks.train.adapters.delta_regime import DeltaRegime
from tasks.train.regime import Setting

if TYPE_CHECKING:
    import torch
    from torch import nn

    from tasks.train.hook import Hook


class Spiel(DeltaRegime):
    paper: ClassVar[str] = "SpIEL-AG (arXiv 2401.16405)"

    gathered: int = Field(5, gt=0)
    """Steps before each choice that gradients are gathered in."""

    @model_validator(mode="after")
    def _gathers_within(self) -> Spiel:
        if self.gathered > self.interval:
            raise ValueError(
                f"gathered {self.gathered} is more than the {self.interval} steps of an interval; choose at most that"
            )
        return self

    @property
    def first(self) -> int:
        return self.gathered

    def optimizer(self, model: nn.Module, betas: tuple[float, float], weight_decay: float) -> torch.optim.Optimizer:
        from tasks.train.adapters.seeded import SeededAdamW

        return SeededAdamW([values for values in model.parameters() if values.requires_grad], betas, weight_decay)

    def hooks(self, setting: Setting) -> list[Hook]:
        from functools import partial

        from tasks.train.adapters.delta import Reselection

        share = partial(self.share, steps=setting.steps)
        return [Reselection(setting.linears, setting.masks, self.interval, self.gathered, share, self.name)]
