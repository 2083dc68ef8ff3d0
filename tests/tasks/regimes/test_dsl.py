"""DSL: half of the budget moves at first, half a percent at last, rounded up; the grown start at zero."""

import pytest

from tests.tasks.regimes.gym import UP, enter


def test_the_share_that_moves_at_the_quarters_of_the_run():
    fraction = enter("dsl", steps=100).hook.moves.fraction
    assert [fraction.at(step) for step in (0, 25, 50, 75, 100)] == pytest.approx([0.5, 0.4275, 0.2525, 0.0775, 0.005], abs=5e-5)


def test_the_number_that_moves_is_rounded_up_and_updates_go_on_to_the_end():
    moves = enter("dsl", interval=3, steps=12).hook.moves
    assert moves.count(12, 150) == 1 and moves.count(0, 3) == 2
    assert [step for step in range(12) if moves.due(step)] == [3, 6, 9]


def test_what_dies_and_is_born_again_in_one_update_starts_at_zero():
    gym = enter("dsl", interval=1, steps=12)
    gym.step()
    before = gym.hook.masks[UP]
    gym.backward()
    gym.hook.after_backward(gym.run)
    after, weight = gym.hook.masks[UP], gym.weight(UP)
    moved = gym.hook.moves.count(1, before.live)
    assert after.live == before.live
    assert int((weight[after.keep] == 0).sum()) == moved
