"""The root of the regimes that learn from the model as it was before it lost its weights."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, model_validator

from tasks.methods import build
from tasks.train.objective import Objective
from tasks.train.regime import Regime


class DistillingRegime(Regime):
    """Where the stage names no objective: distillation by ``ce``, ``kl`` and ``temperature``, or with ``kl`` 0
    cross-entropy."""

    objective_fields: ClassVar[tuple[str, ...]] = ("ce", "kl", "temperature")

    ce: float = Field(0.33, ge=0)
    """Weight of the cross-entropy."""
    kl: float = Field(0.67, ge=0)
    """Weight of the KL divergence to the teacher; 0 needs no teacher."""
    temperature: float = Field(2.0, gt=0)
    """Temperature of both distributions in the KL divergence."""

    @model_validator(mode="after")
    def _some_loss(self) -> DistillingRegime:
        if self.ce == self.kl == 0:
            raise ValueError("ce and kl are both 0: nothing would be learned")
        return self

    def objective(self) -> Objective:
        if self.kl == 0:
            return super().objective()
        said = {"ce": self.ce, "kl": self.kl, "temperature": self.temperature}
        return build("objectives", {"distillation": said}, Objective)
