"""SpIEL with momentum approximation (MA): as ``spiel``, with SM3 for AdamW and no gradient of a whole weight ever kept.

A row and a column of a matrix each remember the largest squared step size of the places in them (SM3's accumulators): a place
counts what its row and its column remember, the smaller of both, and its own squared gradient. Every ``interval`` steps the
places that changed least are given up for those whose row and column remember most, by the product of both: all at the first
choice, then ``moved`` of them, falling to none at the end. What a place that comes in has to go by is there already, so
nothing is gathered. Weight decay draws towards the model that came; learning rates are those of Adagrad, larger than AdamW's.

The memory of training is 12 bytes a place (place, value, and what divides its gradient) and 4 a row and column: of ``spiel``
the 12 bytes of moments go but for 4. The authors need 8 a place; here the engine, which may hold a piece of all places on each
rank, is told the divisor of each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tasks.train.adapters.delta_regime import DeltaRegime
from tasks.train.regime import Setting

if TYPE_CHECKING:
    import torch
    from torch import nn

    from tasks.train.hook import Hook


class SpielMa(DeltaRegime):
    paper: ClassVar[str] = "SpIEL-MA (arXiv 2401.16405) on SM3 (arXiv 1901.11150)"

    def optimizer(self, model: nn.Module, betas: tuple[float, float], weight_decay: float) -> torch.optim.Optimizer:
        from tasks.train.adapters.accumulated import Divided

        return Divided([values for values in model.parameters() if values.requires_grad], weight_decay)

    def hooks(self, setting: Setting) -> list[Hook]:
        from functools import partial

        from tasks.train.adapters.accumulated import Accumulation

        share = partial(self.share, steps=setting.steps)
        return [Accumulation(setting.linears, setting.masks, self.interval, share, self.name)]
