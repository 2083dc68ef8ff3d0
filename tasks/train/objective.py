"""What training minimises: a function of the engine's forward pass and one batch of token sequences.

Shapes: B = sequences, T = predicted positions, V = vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from tasks.train.engine import Engine

Metrics = dict[str, torch.Tensor]


class Objective(Protocol):
    def __call__(self, engine: Engine, tokens_BT: torch.Tensor) -> tuple[torch.Tensor, Metrics]:
        """(mean loss per predicted token, detached parts of it by metric name)."""


def next_token_loss(logits_BTV: torch.Tensor, tokens_BT: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats of each next token given its prefix."""
    return functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), tokens_BT[:, 1:].flatten())


class CrossEntropy:
    def __call__(self, engine: Engine, tokens_BT: torch.Tensor) -> tuple[torch.Tensor, Metrics]:
        loss = next_token_loss(engine.forward(input_ids=tokens_BT, use_cache=False).logits, tokens_BT)
        return loss, {"loss": loss.detach()}


@dataclass
class Distillation:
    """``ce`` * cross-entropy + ``kl`` * T^2 * KL(teacher || student) at temperature T, both per predicted token."""

    teacher: torch.nn.Module
    ce: float
    kl: float
    temperature: float

    def __call__(self, engine: Engine, tokens_BT: torch.Tensor) -> tuple[torch.Tensor, Metrics]:
        student_BTV = engine.forward(input_ids=tokens_BT, use_cache=False).logits
        with torch.no_grad():
            teacher_BTV = self.teacher(input_ids=tokens_BT, use_cache=False).logits
        cross_entropy = next_token_loss(student_BTV, tokens_BT)
        divergence = self.temperature**2 * functional.kl_div(
            functional.log_softmax(student_BTV[:, :-1].flatten(0, 1).float() / self.temperature, -1),
            functional.log_softmax(teacher_BTV[:, :-1].flatten(0, 1).float() / self.temperature, -1),
            reduction="batchmean",
            log_target=True,
        )
        loss = self.ce * cross_entropy + self.kl * divergence
        return loss, {"loss": cross_entropy.detach(), "kl": divergence.detach()}
