"""Reverse KL is what its formula says, to the last term."""

import pytest
import torch

from tasks.data.batch import IGNORED
from tasks.methods import build
from tests.tasks.objectives.answers import COMPLETION, PLAIN, Fixed, cross_entropy, logits


def measure(student, teacher, batch=PLAIN, **fields):
    return build("objectives", {"reverse_kl": fields}).bind(Fixed(teacher))(Fixed(student), batch)


@pytest.mark.parametrize("batch", [PLAIN, COMPLETION], ids=["plain", "completion"])
def test_the_divergence_is_from_student_to_teacher_per_predicted_token(batch):
    student, teacher, temperature = logits(0), logits(1).detach(), 2.0
    loss, metrics = measure(student, teacher, batch, ce=0.5, kl=0.25, temperature=temperature)
    p, q = (torch.softmax(values[:, :2] / temperature, -1) for values in (teacher, student.detach()))
    each = (q * (q / p).log()).sum(-1)[batch.following != IGNORED]
    assert metrics["reverse_kl"].item() == pytest.approx(temperature**2 * each.mean().item(), rel=1e-5)
    assert loss.item() == pytest.approx(0.5 * cross_entropy(student, batch) + 0.25 * metrics["reverse_kl"].item())


def test_a_student_on_one_of_two_peaks_loses_less_than_forward_and_one_on_both_more():
    """What tells the directions apart: odds where the teacher has none cost here, odds missing where it has some there."""
    teacher = torch.tensor([0.5, 0.5, 1e-6, 1e-6]).log().expand(2, 3, 4)
    one_peak = torch.tensor([0.98, 0.01, 0.005, 0.005]).log().expand(2, 3, 4)
    spread = torch.tensor([0.25, 0.25, 0.25, 0.25]).log().expand(2, 3, 4)

    def both(student):
        forward = build("objectives", {"distillation": {"temperature": 1}}).bind(Fixed(teacher))(Fixed(student), PLAIN)[1]
        return forward["kl"].item(), measure(student, teacher, temperature=1)[1]["reverse_kl"].item()

    (forward_one, reverse_one), (forward_spread, reverse_spread) = both(one_peak), both(spread)
    assert forward_spread < forward_one and reverse_one < reverse_spread


def test_the_student_learns_and_the_teacher_does_not():
    student, teacher = logits(0), logits(1)
    measure(student, teacher.detach())[0].backward()
    assert student.grad.any() and teacher.grad is None


def test_a_weight_of_nothing_is_refused():
    with pytest.raises(ValueError, match="reverse_kl: kl is 0: nothing would be learned from the teacher"):
        build("objectives", {"reverse_kl": {"kl": 0}})
