"""Distillation over the likeliest tokens is what its formula says, and lies below that over all."""

import math

import pytest
import torch

from tasks.data.batch import Batch
from tasks.methods import build
from tests.tasks.objectives.answers import PLAIN, Fixed, cross_entropy, logits


def measure(student, teacher, batch=PLAIN, name="top_k", **fields):
    return build("objectives", {name: fields}).bind(Fixed(teacher))(Fixed(student), batch)


def wide(seed: int) -> torch.Tensor:
    return 3 * torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(seed))


def test_two_tokens_and_the_rest_by_hand():
    """Teacher 1/2, 1/4, 1/8, 1/8; student 1/4 each: 1/2 ln 2 + 1/4 ln 1 + 1/4 ln 1/2 with the rest as one token."""
    teacher = torch.tensor([0.5, 0.25, 0.125, 0.125]).log().expand(2, 3, 4)
    student = torch.zeros(2, 3, 4)
    told = measure(student, teacher, k=2, temperature=1)[1]["top_k_kl"].item()
    assert told == pytest.approx(0.25 * math.log(2), rel=1e-5)
    alone = measure(student, teacher, k=2, temperature=1, tail=False)[1]["top_k_kl"].item()  # 2/3, 1/3 against 1/2, 1/2
    assert alone == pytest.approx(2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3), rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_it_never_exceeds_the_divergence_over_all_and_rises_to_it_with_k(temperature):
    student, teacher = wide(0), wide(1)
    whole = measure(student, teacher, name="distillation", temperature=temperature)[1]["kl"].item()
    told = [measure(student, teacher, k=k, temperature=temperature)[1]["top_k_kl"].item() for k in (1, 4, 16, 40, 49, 50, 99)]
    assert told == sorted(told) and told[0] > 0
    assert told[-3:] == pytest.approx([whole] * 3, rel=1e-5)


def test_the_weights_add_up_and_a_student_equal_to_its_teacher_learns_nothing():
    student, teacher = logits(0), logits(1).detach()
    loss, metrics = measure(student, teacher, ce=0.3, kl=0.7, k=1)
    assert loss.item() == pytest.approx(0.3 * cross_entropy(student) + 0.7 * metrics["top_k_kl"].item())
    equal = logits(0)
    measure(equal, equal.detach(), ce=0, k=2)[0].backward()
    assert equal.grad.abs().max() < 1e-6


def test_with_the_tail_the_rest_is_pushed_as_one_and_without_not_at_all():
    teacher = wide(1)
    best = teacher.topk(4, -1).indices
    gradients = {}
    for tail in (True, False):
        student = wide(0).requires_grad_()
        measure(student, teacher, Batch(torch.zeros(2, 3, dtype=torch.int64)), ce=0, k=4, tail=tail)[0].backward()
        gradients[tail] = student.grad[:, :2].scatter(-1, best[:, :2], 0)
    assert gradients[True].any() and not gradients[False].any()
