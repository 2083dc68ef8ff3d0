"""The root of the regimes that let single weights of a frozen model change, and decide again and again which."""

from __future__ import annotations

from collections.abc import Collection
from math import prod
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from tasks.train.regime import Regime, Setting

if TYPE_CHECKING:
    from torch import nn

    from tasks.models.find.linears import Linear
    from tasks.train.engine import Engine


class DeltaRegime(Regime):
    """A fixed number of places, each inside the mask, whose values are merged in the end."""

    freezes: ClassVar[bool] = True

    density: float = Field(0.01, gt=0, le=1)
    """Share of the live weights of the decoder blocks' matrices that may change."""
    budget: int | None = Field(None, gt=0, exclude_if=lambda budget: budget is None)
    """How many they are, in place of ``density``: each matrix has its share of them, rounded down."""
    interval: int = Field(20, gt=0)
    """Steps between choices of the places."""
    moved: float = Field(0.2, ge=0, le=1)
    """Share of the places that is exchanged at a choice, at the beginning; it falls to none at the end."""
    schedule: Literal["linear", "cosine"] = "linear"
    """How the share falls: linearly, after a first choice that moves all, or as a cosine."""

    def check_written(self) -> None:
        if {"density", "budget"} <= self.model_fields_set:
            both = f"{self.name}.density and {self.name}.budget"
            raise ValueError(f"{both} both say how many weights change; leave one of them out")

    @property
    def first(self) -> int:
        """The step after which places are chosen first."""
        return self.interval

    def share(self, step: int, steps: int) -> float:
        """The share of the places that is exchanged after so many of ``steps`` steps."""
        from tasks.train.schedule import CosineFraction

        if self.schedule == "cosine":
            return CosineFraction(self.moved, 0.0, steps).at(step)
        return 1.0 if step == self.first else self.moved * (1 - step / steps)

    def check_linears(self, linears: Collection[Linear], density: float = 1.0) -> None:
        weights = [prod(linear.shape) for linear in linears]
        budget = self.budget or int(self.density * sum(weights))
        if not any(budget * count // sum(weights) for count in weights):
            said = f"budget {budget}" if self.budget else f"density {self.density:g}"
            raise ValueError(f"{self.name}.{said} of {sum(weights)} weights leaves no matrix a single one; choose more")
        live = sum(weights)
        if density < 1:  # a pattern rounds in favour of what lives, by less than one weight a row
            live = min(live, int(density * live) + sum(prod(linear.shape[:-1]) for linear in linears))
        if budget > live and self.budget:
            which = "of all matrices" if live == sum(weights) else f"of {sum(weights)} that live at most"
            raise ValueError(f"{self.name}.budget {budget} is more than the {live} weights {which}; choose fewer")

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

    def finish(self, engine: Engine, setting: Setting) -> None:
        from tasks.train.branch import merge

        merge(engine, self.name, setting.linears)
