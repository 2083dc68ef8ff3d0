"""Several objectives at once, each by its weight: whatever they say of tokens and of states is summed.

``mixture: {of: {distillation: {ce: 0}, hidden_states: {features: 0.5}}, weights: {distillation: 2}}``. All learn from one
teacher, which is asked once a batch, as the student is. An objective whose loss is a sum itself may be given a ``ce`` of 0, so
that the cross-entropy is weighed in one place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, PositiveFloat, field_serializer, model_validator

from tasks.methods import dump, list_of
from tasks.train.objective import Objective

if TYPE_CHECKING:
    import torch

    from tasks.data.batch import Batch
    from tasks.models.facts import ModelFacts
    from tasks.train.engine import Answer
    from tasks.train.objective import Metrics, Told


class Mixture(Objective):
    paper: ClassVar[str] = "a weighted sum of objectives, as of SquareHead with others (arXiv 2310.06927)"

    of: Annotated[tuple[Objective, ...], list_of("objectives")] = Field(min_length=2)
    """The objectives, each once: a list of names, or ``{NAME: {field: value}}``."""
    weights: dict[str, PositiveFloat] = Field({})
    """What each weighs, by name; 1 unless given."""

    @field_serializer("of")
    def _dumped(self, of: tuple[Objective, ...]) -> dict[str, Any]:
        return {name: fields for part in of for name, fields in dump(part).items()}

    @model_validator(mode="after")
    def _sound(self) -> Mixture:
        listed = [part.name for part in self.of]
        if self.name in listed:
            raise ValueError("a mixture inside a mixture; list the objectives of both in one")
        if any(part.written() for part in self.of) and (asking := [part.name for part in self.of if part.needs_teacher()]):
            raise ValueError(f"precomputed logits beside {asking[0]}, which asks the teacher itself; leave precomputed out")
        if odd := sorted(self.weights.keys() - set(listed)):
            raise ValueError(f"weights: {odd[0]} is none of the mixture; choose some of {', '.join(listed)}")
        return self

    def asks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(asked for part in self.of for asked in part.asks()))

    def needs_teacher(self) -> bool:
        return any(part.needs_teacher() for part in self.of)

    def written(self) -> dict[str, float]:
        return {field: value for part in self.of for field, value in part.written().items()}

    def check_models(self, student: ModelFacts, teacher: ModelFacts) -> None:
        for part in self.of:
            if part.needs_teacher():
                part.check_models(student, teacher)

    def of_tokens(
        self, student_NV: torch.Tensor, teacher_NV: Told | None, following_N: torch.Tensor
    ) -> tuple[torch.Tensor, Metrics]:
        return self._sum([(part, part.of_tokens(student_NV, teacher_NV, following_N)) for part in self.of])

    def of_states(self, student: Answer, teacher: Answer | None, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        return self._sum([(part, part.of_states(student, teacher, batch)) for part in self.of if part.asks()])

    def _sum(self, said: list[tuple[Objective, tuple[torch.Tensor, Metrics]]]) -> tuple[torch.Tensor, Metrics]:
        losses = [self.weights.get(part.name, 1.0) * loss for part, (loss, _) in said]
        return sum(losses[1:], losses[0]), {name: value for _, (_, terms) in said for name, value in terms.items()}
