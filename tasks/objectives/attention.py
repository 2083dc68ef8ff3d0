"""Match where the heads look to where the teacher's do: KL(teacher || student) of each head's attention over the tokens.

The mean over heads, tokens that look and blocks, compared as the objective ``hidden_states`` pairs them. MiniLM takes the last
block alone (``blocks: last``) and the relations of its values besides, which are not in here. Only eager attention tells where
a head looks, so models run eagerly and uncompiled under it, and hold a number for each pair of tokens and head.
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


class Attention(FeatureDistillation):
    paper: ClassVar[str] = "MiniLM (arXiv 2002.10957)"
    version: ClassVar[int] = 2

    attention: float = Field(1.0, gt=0)
    """Weight of the mean divergence of the attention."""
    blocks: Literal["all", "last"] = "all"
    """Which blocks are compared."""

    def asks(self) -> tuple[str, ...]:
        return ("attentions",)

    def check_models(self, student: ModelFacts, teacher: ModelFacts) -> None:
        from tasks.train.states import check_depths

        check_depths("attention", student, teacher)
        if student.heads != teacher.heads:
            raise ValueError(
                f"attention compares head by head, and the teacher has {teacher.heads} in a block, the model "
                f"{student.heads}; take objective hidden_states or distillation"
            )

    def of_states(self, student: Answer, teacher: Answer | None, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        assert teacher is not None, "it needs one"
        from tasks.train.states import mean, pairs, turned

        if not student.attentions:
            raise ValueError("unsupported: the model does not tell where its heads look; take objective hidden_states")
        matched = pairs(student.attentions, teacher.attentions, self.blocks)
        apart = mean([turned(ours, theirs, batch) for ours, theirs in matched])
        return self.attention * apart, {"attention": apart.detach()}
