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

from collections.abc import Collection
from math import prod
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from tasks.train.regime import Regime, Setting

if TYPE_CHECKING:
    import torch
    from torch import nn

    from tasks.models.find.linears import Linear
    from tasks.train.engine import Engine
    from tasks.train.hook import Hook


class Spiel(Regime):
    paper: ClassVar[str] = "SpIEL-AG (arXiv 2401.16405)"

    freezes: ClassVar[bool] = True

    density: float = Field(0.01, gt=0, le=1)
    """Share of the live weights of the decoder blocks' matrices that may change."""
    budget: int | None = Field(None, gt=0, exclude_if=lambda budget: budget is None)
    """How many they are, in place of ``density``: each matrix has its share of them, rounded down."""
    interval: int = Field(20, gt=0)
    """Steps between choices of the places."""
    gathered: int = Field(5, gt=0)
    """Steps before each choice that gradients are gathered in."""
    moved: float = Field(0.2, ge=0, le=1)
    """Share of the places that is exchanged at a choice, at the beginning; it falls to none at the end."""
    schedule: Literal["linear", "cosine"] = "linear"
    """How the share falls: linearly, after a first choice that moves all, or as a cosine."""

    @model_validator(mode="after")
    def _gathers_within(self) -> Spiel:
        if self.gathered > self.interval:
            raise ValueError(
                f"gathered {self.gathered} is more than the {self.interval} steps of an interval; choose at most that"
            )
        return self

    def check_written(self) -> None:
        if {"density", "budget"} <= self.model_fields_set:
            raise ValueError("spiel.density and spiel.budget both say how many weights change; leave one of them out")

    def share(self, step: int, steps: int) -> float:
        """The share of the places that is exchanged after so many of ``steps`` steps."""
        from tasks.train.schedule import CosineFraction

        if self.schedule == "cosine":
            return CosineFraction(self.moved, 0.0, steps).at(step)
        return 1.0 if step == self.gathered else self.moved * (1 - step / steps)

    def check_linears(self, linears: Collection[Linear]) -> None:
        weights = [prod(linear.shape) for linear in linears]
        budget = self.budget or int(self.density * sum(weights))
        if not any(budget * count // sum(weights) for count in weights):
            said = f"budget {budget}" if self.budget else f"density {self.density:g}"
            raise ValueError(f"spiel.{said} of {sum(weights)} weights leaves no matrix a single one; choose more")
        if budget > sum(weights):
            raise ValueError(f"spiel.budget {budget} is more than the {sum(weights)} weights of all matrices; choose fewer")

    def setup(self, model: nn.Module, setting: Setting) -> None:
        from tasks.train.adapters.delta import Delta, draw_places, live_weights, shared_out
        from tasks.train.branch import attach

        model.requires_grad_(False)
        live = live_weights(setting.linears, setting.masks)
        budget = self.budget or int(self.density * sum(live.values()))
        branches = {
            name: Delta(draw_places(setting.linears[name], setting.masks.get(name), count, setting.seed))
            for name, count in shared_out(live, budget).items()
            if count
        }
        attach(model, self.name, branches, setting.linears)

    def optimizer(self, model: nn.Module, betas: tuple[float, float], weight_decay: float) -> torch.optim.Optimizer:
        from tasks.train.adapters.seeded import SeededAdamW

        return SeededAdamW([values for values in model.parameters() if values.requires_grad], betas, weight_decay)

    def hooks(self, setting: Setting) -> list[Hook]:
        from functools import partial

        from tasks.train.adapters.delta import Reselection

        share = partial(self.share, steps=setting.steps)
        return [Reselection(setting.linears, setting.masks, self.interval, self.gathered, share, self.name)]

    def finish(self, engine: Engine, setting: Setting) -> None:
        from tasks.train.branch import merge

        merge(engine, self.name, setting.linears)
