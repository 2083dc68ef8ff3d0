"""Distillation from the few tokens that the teacher finds likeliest, and one more that stands for all the rest.

``ce`` * cross-entropy + ``kl`` * T^2 * KL(teacher || student) at ``temperature`` T over the teacher's ``k`` likeliest tokens.
With ``tail`` what is left of both distributions is one token more, so that the student may give the rest no more odds than
the teacher does; the divergence is then a lower bound of the whole one, and is it where k leaves a single token out. Without,
both are scaled to sum to one over the k.

``precomputed`` reads what a teach stage wrote down of the teacher, once for all students of one text, which then hold no
teacher and do not run it. It minimises the same but for rounding the teacher's log-probabilities to float16.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tasks.train.teaching import LogitDistillation

if TYPE_CHECKING:
    import torch

    from tasks.train.losses import Likely


class TopK(LogitDistillation):
    paper: ClassVar[str] = "knowledge distillation (arXiv 1503.02531) over the teacher's likeliest tokens"
    told: ClassVar[str] = "top_k_kl"

    k: int = Field(64, ge=1)
    """How many of the teacher's likeliest tokens are told apart; of a smaller vocabulary all."""
    tail: bool = True
    """Whether the rest counts as one token, or is left out."""
    precomputed: bool = False
    """Whether the teacher's odds are read from what a teach stage wrote down, with the same k and temperature, or asked of
    it at every step."""

    def needs_teacher(self) -> bool:
        return not self.precomputed

    def written(self) -> dict[str, float]:
        return {"k": self.k, "temperature": self.temperature} if self.precomputed else {}

    def apart(self, student_NV: torch.Tensor, teacher_NV: torch.Tensor) -> torch.Tensor:
        from tasks.train.losses import divergence, likeliest

        chosen = likeliest(teacher_NV, student_NV, self.k, self.temperature, self.tail)
        return divergence(chosen[1], chosen[0], self.temperature)

    def apart_from_written(self, student_NV: torch.Tensor, teacher: Likely) -> torch.Tensor:
        from tasks.train.losses import as_written, divergence

        chosen = as_written(teacher, student_NV, self.temperature, self.tail)
        return divergence(chosen[1], chosen[0], self.temperature)
