"""Recover: finetune a pruned model under its mask, by default distilling from the model that went into the pruning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from tasks.context import Context
from tasks.methods import of
from tasks.models.source import ModelSource, Stored
from tasks.stage import Kind
from tasks.train.regime import Regime
from tasks.train.training import TrainStage
from tasks.train.until import Until

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from tasks.formats.mask import Masks
    from tasks.train.birth import Weights
    from tasks.train.hook import Hook


class Recover(TrainStage):
    """Finetunes a pruned model under its mask, by default distilling from the model that went into the pruning."""

    version: ClassVar[int] = 2
    needs: ClassVar[dict[str, Kind]] = {"data": "tokens", "model": "model", "teacher": "model"}

    model: ModelSource | None = None
    """The model to recover where no earlier stage made one; the recipe's ``model`` unless given."""
    teacher: Stored | None = None  # set by the recipe where the pruning began at a user's checkpoint
    """The model to learn from where it is no earlier stage; by default the one that went into the pruning."""
    method: Annotated[Regime, of("regimes")] = Field("masked", validate_default=True)
    """How it is finetuned: a regime."""
    learning_rate: float = Field(3e-4, gt=0)
    """Peak learning rate of AdamW."""

    until: Until | None = None
    """Ends the run once the held-out text is foretold so well, ``{perplexity: 30}``, or once that is out of reach."""

    def reads(self) -> dict[str, int]:
        return super().reads() | ({"heldout": self.length} if self.until else {})

    def watchers(self, context: Context) -> list[Hook]:
        if self.until is None:
            return []
        from tasks.train.advisor import Advisor

        return [Advisor(self.until, context.inputs["data"], self.length, self.batch * self.length, context.note)]

    def roles(self) -> dict[str, Kind]:
        roles = dict(self.needs)
        if not self.needs_teacher() or self.teacher:
            del roles["teacher"]
        return roles

    def initial(self, context: Context, origin: Path) -> tuple[PreTrainedModel, Masks, Weights | None]:
        from tasks.formats.mask import load_masks
        from tasks.models.files.layout import MASKS
        from tasks.train.ready import load

        model, weights = load(origin, context, whole=self.method.reads_weights)
        return model, load_masks(origin / MASKS), weights

    def teacher_directory(self, context: Context) -> Path | None:
        if not self.needs_teacher():
            return None
        return self.teacher.checkpoint.fetch(context.scratch) if self.teacher else context.inputs.get("teacher")
