"""Match what leaves the blocks to what leaves the teacher's, for students that may have fewer of them.

Student block i of S is held against block ceil(i * T / S) of the teacher's T, so that the last meets the last, and a student
of the teacher's depth meets it block by block; ``last`` compares the last alone. The distance of two hidden states is their
squared difference over the teacher's mean square (``square``, relative as SquareHead's but a mean over blocks, so that it
does not grow with depth) or 1 less their cosine (``cosine``). The last block counts after the final norm, as transformers
gives it. Padding counts nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from tasks.train.teaching import FeatureDistillation

if TYPE_CHECKING:
    import torch

    from tasks.data.batch import Batch
    from tasks.models.facts import ModelFacts
    from tasks.train.engine import Answer
    from tasks.train.objective import Metrics


class HiddenStates(FeatureDistillation):
    paper: ClassVar[str] = "Compact Language Models via Pruning and Knowledge Distillation (arXiv 2407.14679)"
    version: ClassVar[int] = 2

    features: float = Field(1.0, gt=0)
    """Weight of the mean distance of the hidden states."""
    distance: Literal["square", "cosine"] = "square"
    """How far two hidden states are apart: their relative squared difference, or 1 less their cosine."""
    blocks: Literal["all", "last"] = "all"
    """Which blocks are compared."""

    def asks(self) -> tuple[str, ...]:
        return ("hidden_states",)

    def check_models(self, student: ModelFacts, teacher: ModelFacts) -> None:
        from tasks.train.states import check_depths

        check_depths("hidden_states", student, teacher)
        if student.width != teacher.width:
            raise ValueError(
                f"hidden_states compares features one by one, and the teacher has {teacher.width}, the model "
                f"{student.width}; take objective distillation"
            )

    def of_states(self, student: Answer, teacher: Answer | None, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        assert teacher is not None, "it needs one"
        from tasks.train.states import cosine_distance, mean, pairs, relative_square

        distance = relative_square if self.distance == "square" else cosine_distance
        matched = pairs(student.hidden_states[1:], teacher.hidden_states[1:], self.blocks)
        apart = mean([distance(ours, theirs, batch) for ours, theirs in matched])
        return self.features * apart, {"hidden_states": apart.detach()}
