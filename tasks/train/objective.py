"""The root of objectives: what training minimises, combined with any regime.

A regime decides which weights live and how they are updated, an objective the loss; neither depends on the other. What the
loop is given is a :class:`Loss`. Hooks may wrap one in another (replay adds a term, a sequence of tasks listens), and pass
on the one they are given.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar, Protocol

from tasks.methods import Method

if TYPE_CHECKING:
    import torch

    from tasks.data.batch import Batch
    from tasks.models.facts import ModelFacts
    from tasks.train.engine import Answer, Engine

    Metrics = dict[str, torch.Tensor]


class Loss(Protocol):
    def __call__(self, engine: Engine, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        """(mean loss per predicted token, detached parts of it by metric name; ``loss`` is the cross-entropy)."""


class Objective(Method):
    """Root of the objectives. Most need :meth:`loss` only, a function of what the models answered; one that needs other
    forward passes than the usual one overrides :meth:`measure`."""

    hidden_states: ClassVar[bool] = False  # the answers carry what leaves each block, not the logits alone

    def needs_teacher(self) -> bool:
        return False

    def check_models(self, student: ModelFacts, teacher: ModelFacts) -> None:
        """Raise ValueError where the one cannot learn from the other."""

    def loss(self, student: Answer, teacher: Answer | None, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        """The loss of one batch from the models' outputs on its tokens; the teacher's is None where none is needed."""
        raise NotImplementedError

    def measure(self, engine: Engine, batch: Batch, teacher: torch.nn.Module | None) -> tuple[torch.Tensor, Metrics]:
        import torch

        asked: dict[str, torch.Tensor | bool] = {"input_ids": batch.tokens, "use_cache": False}
        if self.hidden_states:
            asked["output_hidden_states"] = True
        student, told = engine.forward(**asked), None
        if self.needs_teacher():
            with torch.no_grad():
                assert teacher is not None, "bound with one"
                told = teacher(**asked)
        return self.loss(student, told, batch)

    def bind(self, teacher: torch.nn.Module | None = None) -> Loss:
        """The objective as the loop calls it, with the teacher it learns from."""
        return partial(self.measure, teacher=teacher)
