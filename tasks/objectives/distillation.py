"""Knowledge distillation: learn from a teacher's distribution over the next token as well as from the token itself.

``ce`` * cross-entropy + ``kl`` * T^2 * KL(teacher || student) at ``temperature`` T, both per predicted token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tasks.train.teaching import LogitDistillation

if TYPE_CHECKING:
    import torch


class Distillation(LogitDistillation):
    paper: ClassVar[str] = "knowledge distillation (arXiv 1503.02531)"

    def apart(self, student_NV: torch.Tensor, teacher_NV: torch.Tensor) -> torch.Tensor:
        from tasks.train.losses import divergence

        return divergence(student_NV, teacher_NV, self.temperature)
