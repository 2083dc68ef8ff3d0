"""IST: of what another method trains, a sampled quarter of the layers learns in each step, important layers more often.

Any method that trains branches may be the other one. All branches are there and have moments; a step computes gradients for
the layers whose turn it is. What a layer matters is learned by probes on training text: in ``rollouts`` of them, every
``interval`` steps, ``suppressed`` of the layers count for ``factor`` of what was added to them, and the layers of a probe that
fared better than the others take their turn less.

Seen by `make claims-recover` (perplexity, three seeds, dense 12.21; one block of five at a time): 16.87 ± 0.04 at 2:4 and
28.30 ± 0.35 at 70 %, where LoRA comes to 15.58 and 20.76. Over five times the tokens, as many steps a block as LoRA had, it is
there: 15.52 and 20.53 (one seed).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, field_validator

from tasks.methods import load, names, of
from tasks.train.regime import Outcome, Regime, Setting

if TYPE_CHECKING:
    import torch
    from torch import nn

    from tasks.models.find.linears import Linear
    from tasks.train.engine import Engine
    from tasks.train.hook import Hook
    from tasks.train.objective import Objective


class Ist(Regime):
    paper: ClassVar[str] = "IST (arXiv 2410.11772)"

    freezes: ClassVar[bool] = True

    over: Annotated[Regime, of("regimes")] = Field("lora", validate_default=True)
    """What is trained: a method that trains branches."""
    active: float = Field(0.25, gt=0, le=1)
    """Share of the layers that learn in a step, rounded down, and at least one."""
    suppressed: float = Field(0.5, gt=0, lt=1)
    """Share of the layers that a probe has count for less, rounded down, and at least one."""
    factor: float = Field(0.25, ge=0, lt=1)
    """What they count for."""
    interval: int = Field(10, gt=0)
    """Steps between probes."""
    rollouts: int = Field(3, gt=1)
    """Probes at a time, each of other layers."""
    rate: float = Field(10.0, gt=0)
    """How much a probe's advantage moves the scores of its layers."""
    sequences: int = Field(16, gt=0)
    """Training sequences of a probe, at most those of a batch."""

    @field_validator("over")
    @classmethod
    def _of_branches(cls, over: Regime) -> Regime:
        if not over.branches:
            able = [name for name in names("regimes") if getattr(load("regimes", name), "branches", False)]
            raise ValueError(f"{over.name} trains no branches in every layer; choose one of {', '.join(able)}")
        return over

    @property
    def masks(self) -> Outcome:  # type: ignore[override]
        return self.over.masks

    @property
    def reads_weights(self) -> bool:  # type: ignore[override]
        return self.over.reads_weights

    def total_steps(self, dense_steps: int) -> int:
        return self.over.total_steps(dense_steps)

    def expected_density(self, dense_steps: int) -> float:
        return self.over.expected_density(dense_steps)

    def promise(self) -> str:
        return self.over.promise()

    def check_written(self) -> None:
        self.over.check_written()

    def treats(self, linear: Linear) -> bool:
        return self.over.treats(linear)

    def check_width(self, width: int) -> None:
        self.over.check_width(width)

    def check_masks(self, pattern: str) -> None:
        self.over.check_masks(pattern)

    def check_linear(self, linear: Linear) -> None:
        self.over.check_linear(linear)

    def check_linears(self, linears: Collection[Linear], density: float = 1.0) -> None:
        from tasks.train.branch import depth

        if depth(linears) < 2:
            raise ValueError(f"ist has blocks take turns, and the model has one; take method {self.over.name}")
        self.over.check_linears(linears, density)

    def objective(self) -> Objective:
        return self.over.objective()

    def setup(self, model: nn.Module, setting: Setting) -> None:
        self.over.setup(model, setting)

    def optimizer(self, model: nn.Module, betas: tuple[float, float], weight_decay: float) -> torch.optim.Optimizer:
        return self.over.optimizer(model, betas, weight_decay)

    def finish(self, engine: Engine, setting: Setting) -> None:
        self.over.finish(engine, setting)

    def hooks(self, setting: Setting) -> list[Hook]:
        from tasks.train.adapters.layers import TakingTurns, Turns

        shares = self.active, self.suppressed, self.factor
        turns = Turns(*shares, self.interval, self.rollouts, self.rate, self.sequences)
        return [*self.over.hooks(setting), TakingTurns(setting.linears, self.over.name, turns, setting.seed)]
