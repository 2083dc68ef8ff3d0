"""SquareHead: match the hidden states after each block to the teacher's, besides predicting the next token.

Per block the squared difference of the hidden states over the teacher's mean square (plus bfloat16's epsilon, as in the
authors' code), averaged over tokens, padding left out, and channels. The mean square is that of a sequence, where the authors
take a micro-batch's, so that how a batch is shared out changes nothing. The blocks are summed, so ``features`` weighs more the
deeper the model is. The last block counts after the final norm, as transformers gives it. A student whose hidden states are
zero costs about 1 a block, whatever the scale of the model. The teacher has the student's depth and width.

Seen by `make claims-recover` (perplexity at 70 %, three seeds, dense 12.21): 18.86 ± 0.08 with cross-entropy, which alone comes
to 19.80 ± 0.04; distillation of the logits to 18.45 ± 0.01.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tasks.train.teaching import FeatureDistillation

if TYPE_CHECKING:
    import torch

    from tasks.data.batch import Batch
    from tasks.models.facts import ModelFacts
    from tasks.train.engine import Answer
    from tasks.train.objective import Metrics


class SquareHead(FeatureDistillation):
    paper: ClassVar[str] = "SquareHead, Sparse Fine-tuning for Inference Acceleration (arXiv 2310.06927)"
    version: ClassVar[int] = 2

    features: float = Field(1.0, gt=0)
    """Weight of the summed difference of the hidden states."""

    def asks(self) -> tuple[str, ...]:
        return ("hidden_states",)

    def check_models(self, student: ModelFacts, teacher: ModelFacts) -> None:
        ours, theirs = ((facts.depth, facts.width) for facts in (student, teacher))
        if ours != theirs:
            raise ValueError(
                f"square_head compares block by block, and the teacher has {theirs[0]} blocks of width "
                f"{theirs[1]}, the model {ours[0]} of {ours[1]}; take objective distillation"
            )

    def of_states(self, student: Answer, teacher: Answer | None, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        assert teacher is not None, "it needs one"
        import torch

        from tasks.train.states import relative_square

        apart = torch.zeros((), device=student.hidden_states[0].device)
        for ours, theirs in zip(student.hidden_states[1:], teacher.hidden_states[1:], strict=True):
            apart = apart + relative_square(ours, theirs, batch)
        return self.features * apart, {"features": apart.detach()}
