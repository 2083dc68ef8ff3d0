"""SDGF-Geometric: the same sparsity in groups that shrink."""

import pytest

from tests.tasks.regimes.gym import enter

EXAMPLE = {0: "8:64", 87: "8:64", 88: "4:32", 175: "2:16", 263: "1:8", 349: "1:8"}


def test_the_frames_of_one_of_eight_over_350():
    regime = enter("sdgf_geometric", pattern="1:8", sizes={"hidden_size": 64, "intermediate_size": 64}).regime
    assert {step: str(regime.phase(step, 350).pattern) for step in EXAMPLE} == EXAMPLE


def test_a_width_that_the_first_frame_does_not_divide_is_refused():
    regime = enter("sdgf_geometric", pattern="1:2").regime
    regime.check_width(48)
    with pytest.raises(ValueError, match="first phase 8:16 of pattern 1:2 needs an input width divisible by 16, got 24"):
        regime.check_width(24)


def test_the_model_ends_in_the_smallest_groups():
    gym = enter("sdgf_geometric", pattern="1:2", steps=4).train(4)
    assert all(mask.pattern == "1:2" and mask.broken() is None for mask in gym.hook.masks.values())
