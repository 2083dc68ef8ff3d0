"""The root of training methods: a regime decides the length of a run, the shape of the model, and the hooks that take part."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from tasks.methods import Method, build, of
from tasks.models.allocation import Allocator, Scan

if TYPE_CHECKING:
    import torch
    from torch import nn

    from tasks.formats.mask import Mask, Masks
    from tasks.models.build.surgery import Surgery
    from tasks.models.find.linears import Linear
    from tasks.train.engine import Engine
    from tasks.train.hook import Hook
    from tasks.train.objective import Objective


@dataclass(frozen=True)
class Setting:
    """What a regime is given: the model's prunable matrices, the masks it came with, the length of the run.

    ``dense_steps`` is the compute budget in dense steps, ``steps`` what the regime made of it. ``seed`` is for what a
    regime draws at random, ``data`` the directory of its tokens.
    """

    linears: Mapping[str, Linear]
    masks: Masks
    dense_steps: int
    steps: int
    seed: int = 0
    data: Path | None = None


# What comes of the masks a model came with. ``held``: they stay. ``dropped``: there are none. ``moved``: others, whatever came.
# ``narrowed``: they stay or lose more weights, and where none came there are some. ``drawn``: so too, by the seed alone.
# ``open``: it depends.
Outcome = Literal["held", "dropped", "moved", "narrowed", "drawn", "open"]


class Regime(Method):
    """Root of the regimes. The default trains every weight on cross-entropy and holds the masks it was given."""

    keeps_masks: ClassVar[bool] = True  # what was dead before training is dead after it
    needs_sequence: ClassVar[bool] = False  # learns a sequence of corpora
    masks: ClassVar[Outcome] = "held"
    freezes: ClassVar[bool] = False  # leaves the model's own weights as they are until the end
    reads_weights: ClassVar[bool] = False  # :meth:`setup` looks at them, so each rank is to have the whole model then
    branches: ClassVar[bool] = False  # all it trains are branches (tasks/train/branch.py) by its name, one in every matrix
    objective_fields: ClassVar[tuple[str, ...]] = ()  # its fields that :meth:`objective` reads, and nothing else

    def total_steps(self, dense_steps: int) -> int:
        """Steps that cost what ``dense_steps`` dense steps cost."""
        return dense_steps

    def expected_density(self, dense_steps: int) -> float:
        """The share of the prunable weights that a step computes with, averaged over the run, for a plan of its cost."""
        return dense_steps / self.total_steps(dense_steps)

    def check_written(self) -> None:
        """Raise ValueError where fields that a recipe gives say one thing twice; to a job every field is given."""

    def treats(self, linear: Linear) -> bool:
        """Whether the regime does anything with a matrix."""
        return True

    def check_width(self, width: int) -> None:
        """Raise ValueError where the regime cannot treat a matrix of this input width."""

    def promise(self) -> str:
        """The pattern of masks that it makes itself."""
        return "unstructured"

    def check_masks(self, pattern: str) -> None:
        """Raise ValueError where the regime cannot keep masks of this pattern."""

    def check_linear(self, linear: Linear) -> None:
        """Raise ValueError where the regime cannot treat a matrix."""
        self.check_width(linear.shape[-1])

    def check_linears(self, linears: Collection[Linear], density: float = 1.0) -> None:
        """Raise ValueError where the regime cannot treat all matrices of a model together, of whose weights such a share lives
        (1 where that is not known)."""

    def surgery(self) -> Surgery | None:
        """A change of the model's modules that comes before all else and stays: the model that comes out has it."""
        return None

    def setup(self, model: nn.Module, setting: Setting) -> None:
        """Shape the model before an engine takes it: freeze parameters, put branches inside linears. No parameter may get
        another name, and those it has are what is written in the end. A resumed run calls it too."""

    def optimizer(self, model: nn.Module, betas: tuple[float, float], weight_decay: float) -> torch.optim.Optimizer:
        """What updates the trainable parameters; one that is no AdamW says its ``moments`` (tasks/train/engine.py)."""
        from tasks.train.engine import adamw

        return adamw(model, betas, weight_decay=weight_decay)

    def finish(self, engine: Engine, setting: Setting) -> None:
        """After the last step, while the engine still has the weights: merge what :meth:`setup` added into the parameters
        the model came with. Every rank calls it; masks must hold afterwards."""

    def objective(self) -> Objective:
        """What is minimised where the stage does not say."""
        from tasks.train.objective import Objective

        return build("objectives", "cross_entropy", Objective)

    def hooks(self, setting: Setting) -> list[Hook]:
        from tasks.train.masking import Masking

        return [Masking(setting.linears, setting.masks)]


class SparseRegime(Regime):
    """Root of the regimes that fix each matrix's sparsity before the first step, by an allocator.

    ``budget`` says what ``tokens`` of the stage means: compute in dense tokens, so that a sparser run sees more of
    them (the dense parts of the model left out of the sum), or the very tokens to train on.
    """

    sparsity: float = Field(0.5, ge=0, lt=1)
    """Share of the prunable weights that is masked. In pretrain, ``iso`` is the one at which a transformed model costs what
    its architecture costs dense."""
    allocator: Annotated[Allocator, of("allocators")] = Field("uniform", validate_default=True)
    """Shares the sparsity out over the matrices."""
    budget: Literal["compute", "tokens"] = "compute"
    """What the stage's ``tokens`` are: ``compute`` in dense tokens, so that a sparser run sees more, or the very ``tokens`` to
    train on."""

    model_config = ConfigDict(validate_default=True)

    def total_steps(self, dense_steps: int) -> int:
        return dense_steps if self.budget == "tokens" else round(dense_steps / (1 - self.sparsity))

    def expected_density(self, dense_steps: int) -> float:
        return 1 - self.sparsity

    def allocation(self, setting: Setting) -> dict[str, float]:
        """The sparsity of each linear."""
        shapes = {name: linear.shape for name, linear in setting.linears.items()}
        return self.allocator.allocate(Scan(shapes), self.sparsity)

    def random_masks(self, setting: Setting) -> dict[str, Mask]:
        """A mask for every linear, drawn at random with exact counts; inside the mask the linear came with, if any."""
        from tasks.train.masking import draw_mask

        allocation = self.allocation(setting)
        return {
            name: draw_mask(linear, allocation[name], setting.seed, setting.masks.get(name))
            for name, linear in setting.linears.items()
        }

    def starting_masks(self, setting: Setting) -> dict[str, Mask]:
        """The masks that linears came with, random ones for the others."""
        return {**self.random_masks(setting), **setting.masks}
