"""Distillation is what its formula says, to the last term."""

import pytest
import torch

from tasks.data.batch import IGNORED
from tasks.methods import build
from tests.tasks.objectives.answers import COMPLETION, PLAIN, Fixed, cross_entropy, logits


def measure(student, teacher, batch=PLAIN, **fields):
    return build("objectives", {"distillation": fields}).bind(Fixed(teacher))(Fixed(student), batch)


def test_a_student_equal_to_its_teacher_has_nothing_to_learn_from_it():
    student = logits(0)
    loss, metrics = measure(student, student.detach(), ce=0, kl=1)
    loss.backward()
    assert metrics["kl"].item() == pytest.approx(0, abs=1e-7) and student.grad.abs().max() < 1e-7


@pytest.mark.parametrize("batch", [PLAIN, COMPLETION], ids=["plain", "completion"])
def test_the_divergence_is_from_teacher_to_student_per_predicted_token(batch):
    student, teacher, temperature = logits(0), logits(1).detach(), 2.0
    _, metrics = measure(student, teacher, batch, ce=0.5, kl=0.5, temperature=temperature)
    p, q = (torch.softmax(values[:, :2] / temperature, -1) for values in (teacher, student.detach()))
    each = (p * (p / q).log()).sum(-1)[batch.following != IGNORED]
    assert metrics["kl"].item() == pytest.approx(temperature**2 * each.mean().item(), rel=1e-5)


def test_the_two_parts_add_up_by_their_weights():
    student, teacher = logits(0), logits(1).detach()
    loss, metrics = measure(student, teacher, ce=0.3, kl=0.7)
    assert loss.item() == pytest.approx(0.3 * cross_entropy(student) + 0.7 * metrics["kl"].item())
    assert metrics["loss"].item() == pytest.approx(cross_entropy(student))


def test_the_gradient_does_not_shrink_with_the_temperature():
    """For small logits T^2 * KL at temperature T tends to the same squared difference, whatever T."""
    gradients = []
    for temperature in (4.0, 16.0):
        student = (0.01 * logits(0).detach()).requires_grad_()
        measure(student, 0.01 * logits(1).detach(), ce=0, kl=1, temperature=temperature)[0].backward()
        gradients.append(student.grad)
    torch.testing.assert_close(*gradients, rtol=1e-2, atol=1e-6)


def test_a_distillation_that_listens_to_no_teacher_is_refused():
    with pytest.raises(ValueError, match="distillation: kl is 0: nothing would be learned from the teacher"):
        build("objectives", {"distillation": {"kl": 0}})
