"""SquareHead is what its formula says, to the last term."""

from types import SimpleNamespace

import pytest
import torch

from tasks.methods import build
from tests.tasks.objectives.answers import PLAIN, Fixed, cross_entropy, logits


def measure(student, teacher, **fields):
    """Of hidden states after the embedding and each block."""
    objective = build("objectives", {"square_head": fields})
    return objective.bind(Fixed(logits(1), *teacher))(Fixed(logits(0), *student), PLAIN)


def states(*values: float) -> list[torch.Tensor]:
    return [torch.full((2, 3, 5), value) for value in values]


def test_each_block_costs_its_squared_difference_over_the_teachers_square_and_the_embedding_nothing():
    loss, metrics = measure(states(7, 1, 5), states(9, 2, 3), ce=0.5, features=2)
    expected = 1 / (4 + 2**-7) + 4 / (9 + 2**-7)
    assert metrics["features"].item() == pytest.approx(expected)
    assert loss.item() == pytest.approx(0.5 * cross_entropy(logits(0)) + 2 * expected)


def test_a_student_that_says_nothing_costs_about_one_a_block_whatever_the_scale():
    for scale in (1, 100):
        _, metrics = measure(states(0, 0, 0), states(0, scale, 10 * scale))
        assert metrics["features"].item() == pytest.approx(2, rel=1e-2)


def test_a_student_equal_to_its_teacher_loses_the_cross_entropy_alone():
    loss, metrics = measure(states(1, 2), states(1, 2))
    assert metrics["features"].item() == 0 and loss.item() == pytest.approx(cross_entropy(logits(0)))


def test_a_teacher_of_another_depth_or_width_is_refused():
    facts = [SimpleNamespace(depth=depth, width=width) for depth, width in ((2, 32), (4, 32))]
    objective = build("objectives", "square_head")
    objective.check_models(facts[0], facts[0])
    with pytest.raises(ValueError, match="the teacher has 4 blocks of width 32, the model 2 of 32"):
        objective.check_models(*facts)
