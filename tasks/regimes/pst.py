"""PST: a frozen model is finetuned and pruned at once, by low-rank changes of its weights and of their importance.

A weight counts by its magnitude and by what is learned of it: a low-rank product, a number per row and one per column, all
of them nothing at first, so that the first mask is that by magnitude. Sparsity rises as a cubic from the share ``warmup`` of
the run to where ``final`` of it is left, and stays then, while masks may move on, or rest for the share ``still`` (none in the
paper). What comes out is the changed weight under the last mask; the small matrices are gone.

Trained are (``rank`` + ``importance_rank`` + 1) parameters per row and column of each matrix: what is saved is the optimizer's
memory, and no time. Dead weights of the incoming model stay dead and count towards the sparsity: of a model that has lost as
much already the masks stay, and low-rank changes remain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, model_validator

from tasks.train.regime import Outcome, Regime, Setting

if TYPE_CHECKING:
    from torch import nn

    from tasks.models.find.linears import Linear
    from tasks.train.engine import Engine
    from tasks.train.hook import Hook


class Pst(Regime):
    paper: ClassVar[str] = "PST (arXiv 2205.11005)"

    freezes: ClassVar[bool] = True
    branches: ClassVar[bool] = True
    masks: ClassVar[Outcome] = "narrowed"

    sparsity: float = Field(0.9, ge=0, lt=1)
    """Share of each matrix's weights that is dead in the end."""
    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of the run before the first weight is pruned."""
    final: float = Field(0.3, ge=0, lt=1)
    """Share of the run, at its end, in which the sparsity is the last."""
    still: float = Field(0.0, ge=0, lt=1)
    """Share of the run, at its end, in which masks stay as they are."""
    refresh: int = Field(1, gt=0)
    """Steps between choices of the masks, each of which ranks all weights."""
    rank: int = Field(8, gt=0)
    """Rank of what is added to a weight."""
    importance_rank: int = Field(8, gt=0)
    """Rank of what is added to its importance."""
    scale: float = Field(1.0, gt=0)
    """Times the product that is added to the weight."""
    product: float = Field(1.0, ge=0)
    """Times the product that is added to the importance."""
    structure: float = Field(1.0, ge=0)
    """Times the numbers of rows and columns in the importance."""

    @model_validator(mode="after")
    def _ordered(self) -> Pst:
        if self.warmup + self.final >= 1:
            raise ValueError(f"warmup and final must leave room between them, got {self.warmup:g} and {self.final:g}")
        if self.still > self.final:
            raise ValueError(
                f"still {self.still:g} begins before the sparsity is the last; choose at most final {self.final:g}"
            )
        return self

    def at(self, step: int, steps: int) -> float:
        """The sparsity after so many of ``steps`` steps."""
        progress = (step / steps - self.warmup) / (1 - self.warmup - self.final)
        return self.sparsity * (1 - (1 - min(1.0, max(0.0, progress))) ** 3)

    def expected_density(self, dense_steps: int) -> float:
        return 1 - sum(self.at(step, dense_steps) for step in range(dense_steps)) / dense_steps

    def check_width(self, width: int) -> None:
        for field, rank in (("rank", self.rank), ("importance_rank", self.importance_rank)):
            if rank > width:
                raise ValueError(f"pst.{field} {rank} is more than a matrix of width {width} can have; choose at most {width}")

    def check_linear(self, linear: Linear) -> None:
        self.check_width(min(linear.shape[-2:]))

    def setup(self, model: nn.Module, setting: Setting) -> None:
        from tasks.train.adapters.importance import Important
        from tasks.train.branch import attach

        model.requires_grad_(False)
        ranks, scales = (self.rank, self.importance_rank), (self.scale, self.product, self.structure)
        branches = {
            name: Important(linear, ranks, scales, setting.seed, setting.masks.get(name))
            for name, linear in setting.linears.items()
        }
        attach(model, self.name, branches, setting.linears)

    def hooks(self, setting: Setting) -> list[Hook]:
        from functools import partial

        from tasks.train.adapters.importance import ByImportance

        rest = setting.steps - round(self.still * setting.steps)
        at = partial(self.at, steps=setting.steps)
        return [ByImportance(setting.linears, setting.masks, at, self.refresh, rest, self.name)]

    def finish(self, engine: Engine, setting: Setting) -> None:
        from tasks.train.branch import merge

        merge(engine, self.name, setting.linears)
