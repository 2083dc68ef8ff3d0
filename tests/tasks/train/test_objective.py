"""The losses are what their formulas say, to the last term."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from tasks.train.objective import CrossEntropy, Distillation, next_token_loss

TOKENS = torch.tensor([[0, 2, 1], [1, 1, 0]])


class Fixed:
    """Stands for an engine and for a teacher: gives logits that do not depend on the tokens."""

    def __init__(self, logits_BTV: torch.Tensor) -> None:
        self.logits = logits_BTV

    def forward(self, **given) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits)

    __call__ = forward


def logits(seed: int) -> torch.Tensor:
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def by_hand(logits_BTV: torch.Tensor) -> float:
    scored = [
        -torch.log_softmax(logits_BTV[row, place], -1)[TOKENS[row, place + 1]].item() for row in (0, 1) for place in (0, 1)
    ]
    return sum(scored) / len(scored)


def test_each_token_is_scored_on_the_one_after_it():
    assert next_token_loss(logits(0), TOKENS).item() == pytest.approx(by_hand(logits(0)))


def test_a_uniform_model_loses_the_log_of_its_vocabulary():
    loss, metrics = CrossEntropy()(Fixed(torch.zeros(2, 3, 4)), TOKENS)
    assert loss.item() == pytest.approx(math.log(4)) and metrics["loss"].item() == loss.item()


def test_a_student_equal_to_its_teacher_has_nothing_to_learn_from_it():
    student = logits(0)
    loss, metrics = Distillation(Fixed(student.detach()), 0.0, 1.0, 2.0)(Fixed(student), TOKENS)
    loss.backward()
    assert metrics["kl"].item() == pytest.approx(0, abs=1e-7) and student.grad.abs().max() < 1e-7


def test_the_divergence_is_from_teacher_to_student_per_predicted_token():
    student, teacher, temperature = logits(0), logits(1).detach(), 2.0
    _, metrics = Distillation(Fixed(teacher), 0.5, 0.5, temperature)(Fixed(student), TOKENS)
    p, q = (torch.softmax(values[:, :2] / temperature, -1) for values in (teacher, student.detach()))
    expected = temperature**2 * (p * (p / q).log()).sum(-1).mean()
    assert metrics["kl"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_two_parts_add_up_by_their_weights():
    student, teacher = logits(0), logits(1).detach()
    loss, metrics = Distillation(Fixed(teacher), 0.3, 0.7, 2.0)(Fixed(student), TOKENS)
    assert loss.item() == pytest.approx(0.3 * by_hand(student) + 0.7 * metrics["kl"].item())
    assert metrics["loss"].item() == pytest.approx(by_hand(student))


def test_the_gradient_does_not_shrink_with_the_temperature():
    """For small logits T^2 * KL at temperature T tends to the same squared difference, whatever T."""
    gradients = []
    for temperature in (4.0, 16.0):
        student = (0.01 * logits(0).detach()).requires_grad_()
        Distillation(Fixed(0.01 * logits(1).detach()), 0.0, 1.0, temperature)(Fixed(student), TOKENS)[0].backward()
        gradients.append(student.grad)
    torch.testing.assert_close(*gradients, rtol=1e-2, atol=1e-6)
