"""Matched hidden states cost what the formula says, block by block of students that may be shallower."""

from types import SimpleNamespace

import pytest
import torch

from tasks.data.batch import Batch
from tasks.methods import build
from tests.tasks.objectives.answers import PLAIN, TOKENS, Fixed, cross_entropy, logits
from tests.tasks.objectives.test_square_head import states


def measure(student, teacher, batch=PLAIN, **fields):
    """Of hidden states after the embedding and each block."""
    objective = build("objectives", {"hidden_states": fields})
    return objective.bind(Fixed(logits(1), *teacher))(Fixed(logits(0), *student), batch)


def test_the_squared_difference_over_the_teachers_square_is_a_mean_over_blocks():
    loss, metrics = measure(states(7, 1, 5), states(9, 2, 3), ce=0.5, features=2)
    expected = (1 / (4 + 2**-7) + 4 / (9 + 2**-7)) / 2
    assert metrics["hidden_states"].item() == pytest.approx(expected)
    assert loss.item() == pytest.approx(0.5 * cross_entropy(logits(0)) + 2 * expected)


def test_a_shallower_student_meets_every_so_many_blocks_and_the_last_the_last():
    teacher = states(0, 1, 2, 3, 4)
    assert measure(states(0, 2, 4), teacher)[1]["hidden_states"].item() == 0  # 1 of 2 meets 2 of 4, 2 meets 4
    assert measure(states(0, 2, 3, 4), teacher)[1]["hidden_states"].item() == 0  # of 3: 2, 3, 4
    told = measure(states(0, 9, 5), teacher, blocks="last")[1]["hidden_states"].item()
    assert told == pytest.approx(1 / (16 + 2**-7))


def test_the_cosine_knows_no_length_and_of_opposites_is_two():
    told = [measure(states(0, value), states(0, 3), distance="cosine")[1]["hidden_states"].item() for value in (0.5, 3.0, -3.0)]
    assert told == pytest.approx([0, 0, 2], abs=1e-6)


def test_padding_costs_nothing():
    student, teacher = torch.zeros(2, 3, 5), torch.ones(2, 3, 5)
    student[:, :2] = 1
    padded = Batch(TOKENS, documents=torch.tensor([[1, 1, 0], [1, 2, 0]]))
    assert measure([student, student], [teacher, teacher], padded)[1]["hidden_states"].item() == 0
    assert measure([student, student], [teacher, teacher])[1]["hidden_states"].item() > 0.3


def test_a_deeper_or_another_wide_student_is_refused():
    facts = {size: SimpleNamespace(depth=size[0], width=size[1]) for size in ((2, 32), (4, 32), (2, 16))}
    objective = build("objectives", "hidden_states")
    objective.check_models(facts[2, 32], facts[4, 32])
    with pytest.raises(ValueError, match="compares blocks with the teacher's, and it has 2, the model 4; take objective dist"):
        objective.check_models(facts[4, 32], facts[2, 32])
    with pytest.raises(ValueError, match="features one by one, and the teacher has 16, the model 32; take objective dist"):
        objective.check_models(facts[2, 32], facts[2, 16])
