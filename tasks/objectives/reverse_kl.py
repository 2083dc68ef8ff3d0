"""Distillation the other way round: the divergence of the student from the teacher, taken over the student's own odds.

``ce`` * cross-entropy + ``kl`` * T^2 * KL(student || teacher) at ``temperature`` T, both per predicted token. Forward KL asks
the student to give odds to all that the teacher finds likely; this one to give none to what the teacher finds unlikely, which
suits a student too small to do both. The tokens are those of the text, not of the student's own writing as in MiniLLM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tasks.train.teaching import LogitDistillation

if TYPE_CHECKING:
    import torch


class ReverseKl(LogitDistillation):
    paper: ClassVar[str] = "MiniLLM (arXiv 2306.08543)"
    told: ClassVar[str] = "reverse_kl"

    def apart(self, student_NV: torch.Tensor, teacher_NV: torch.Tensor) -> torch.Tensor:
        from tasks.train.losses import divergence

        return divergence(teacher_NV, student_NV, self.temperature)
