"""SDGF-Stepwise: equal phases of fewer and fewer live weights in groups of the same size."""

import pytest

from tests.tasks.regimes.gym import enter

EXAMPLE = {0: "15:16", 69: "15:16", 70: "8:16", 140: "4:16", 210: "2:16", 280: "1:16", 349: "1:16"}


def test_the_frames_of_one_of_sixteen_over_350():
    regime = enter("sdgf_stepwise", pattern="1:16").regime
    assert {step: str(regime.phase(step, 350).pattern) for step in EXAMPLE} == EXAMPLE


@pytest.mark.parametrize(("pattern", "counts"), [("2:4", [3, 2]), ("1:2", [1]), ("1:8", [7, 4, 2, 1]), ("4:8", [7, 4])])
def test_how_many_live_in_each_frame(pattern, counts):
    assert enter("sdgf_stepwise", pattern=pattern).regime.counts() == counts


def test_every_frame_is_kept_by_what_is_multiplied_and_the_last_by_the_model():
    gym = enter("sdgf_stepwise", pattern="1:4", steps=6).train(6)
    assert all(mask.pattern == "1:4" and mask.broken() is None for mask in gym.hook.masks.values())
