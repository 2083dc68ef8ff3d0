"""The root of objectives: what training minimises, combined with any regime.

A regime decides which weights live and how they are updated, an objective the loss; neither depends on the other. What the
loop is given is a :class:`Loss`. Hooks may wrap one in another (replay adds a term, a sequence of tasks listens), and pass
on the one they are given.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Protocol

from tasks.methods import Method

if TYPE_CHECKING:
    import torch

    from tasks.data.batch import Batch
    from tasks.models.facts import ModelFacts
    from tasks.train.chunks import Scoring
    from tasks.train.engine import Answer, Engine
    from tasks.train.losses import Likely

    Told = torch.Tensor | Likely
    Metrics = dict[str, torch.Tensor]


class Loss(Protocol):
    def __call__(self, engine: Engine, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        """(mean loss per predicted token, detached parts of it by metric name; ``loss`` is the cross-entropy)."""


class Objective(Method):
    """Root of the objectives. Most need :meth:`of_tokens` only, a mean over tokens of what the models answered; one that needs
    other forward passes than the usual one overrides :meth:`measure`."""

    def asks(self) -> tuple[str, ...]:
        """What the answers are to carry beside logits, for :meth:`of_states`: ``hidden_states``, what leaves each block;
        ``attentions``, what each head looks at, which layers give only in eager attention and uncompiled."""
        return ()

    def needs_teacher(self) -> bool:
        return False

    def written(self) -> dict[str, float]:
        """What the logits of a teach stage must have been written with, by its fields, where it reads those; else nothing."""
        return {}

    def check_models(self, student: ModelFacts, teacher: ModelFacts) -> None:
        """Raise ValueError where the one cannot learn from the other."""

    def of_tokens(
        self, student_NV: torch.Tensor, teacher_NV: Told | None, following_N: torch.Tensor
    ) -> tuple[torch.Tensor, Metrics]:
        """The mean loss of N tokens from the float32 logits that predict them, and the means in it; the teacher's are None
        where none is needed, and what was written down of them where that is read. The tokens are those of a batch, or of a
        chunk of one: the mean of all is put together."""
        raise NotImplementedError

    def of_states(self, student: Answer, teacher: Answer | None, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        """What the states that were asked for add to the loss of a batch."""
        raise NotImplementedError

    def measure(
        self, engine: Engine, batch: Batch, teacher: torch.nn.Module | None, scoring: Scoring
    ) -> tuple[torch.Tensor, Metrics]:
        import torch

        from tasks.train.losses import written

        asked: dict[str, torch.Tensor | bool] = {**batch.asked, "use_cache": False}
        asked |= {f"output_{name}": True for name in self.asks()}
        answers = scoring.of(engine, batch)
        student, told = answers.of_student(asked), None
        if self.needs_teacher():
            with torch.no_grad():
                assert teacher is not None, "bound with one"
                told = answers.of_teacher(teacher, asked)
        loss, metrics = answers.scored(written(batch) if self.written() else None)
        if not self.asks():
            return loss, metrics
        apart, more = self.of_states(student, told, batch)
        return loss + apart, metrics | more

    def bind(self, teacher: torch.nn.Module | None = None, logits_bytes: int | None = None, compiled: bool = False) -> Loss:
        """The objective as the loop calls it, with the teacher it learns from; a batch whose float32 logits are more than
        ``logits_bytes`` is scored in chunks of its tokens. ``compiled``: by a kernel that torch makes of the formula."""
        from tasks.train.chunks import Scoring

        return partial(self.measure, teacher=teacher, scoring=Scoring(self.of_tokens, logits_bytes, compiled))
