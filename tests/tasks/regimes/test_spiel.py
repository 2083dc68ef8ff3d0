"""SpIEL: so many places and no more, each once, inside the mask; which they are moves as the paper says; the rest stays."""

import pytest
import torch

from tasks.methods import build
from tasks.train.adapters.delta import exchanged, shared_out
from tasks.train.adapters.seeded import SeededAdamW
from tests.tasks.regimes.gym import DOWN, enter, exchange

FIELDS = {"density": 0.05, "interval": 4, "gathered": 2}


def spiel(masks=None, **fields):
    return enter("spiel", steps=12, masks=masks, **{**FIELDS, **fields})


def test_an_exchange_by_hand():
    # Places 7, 3, 5, 9 have changed by 4, 1, 2, 3: two go, 3 and 5. Of the candidates 9 stays anyway; of 5, 1, 8 the two
    # with the largest gradients come, 5 and 8. So 5 stays what it is, and 8 takes the place of 3.
    places, changed = torch.tensor([7, 3, 5, 9]), torch.tensor([4.0, -1.0, 2.0, -3.0])
    candidates, strength = torch.tensor([1, 5, 8, 9]), torch.tensor([0.1, 0.7, 0.5, 0.9])
    leaving, entering = exchanged(places, changed.abs().argsort(), candidates, strength, count=2)
    assert places[leaving].tolist() == [3] and candidates[entering].tolist() == [8]
    leaving, entering = exchanged(places, changed.abs().argsort(), candidates, strength, count=0)
    assert len(leaving) == len(entering) == 0


def test_a_budget_is_shared_out_by_the_weights_that_live():
    assert shared_out({"a": 30, "b": 60, "c": 10}, 10) == {"a": 3, "b": 6, "c": 1}
    assert shared_out({"a": 30, "b": 60, "c": 9}, 10) == {"a": 3, "b": 6, "c": 0}
    with pytest.raises(ValueError, match="spiel.budget 100 is more than the 99 weights that live"):
        shared_out({"a": 99}, 100)
    with pytest.raises(ValueError, match="spiel: 1 places shared out over 2 matrices leave none"):
        shared_out({"a": 5, "b": 5}, 1)


def test_places_are_as_many_as_before_each_once_inside_the_mask_and_nothing_else_changes():
    seen = exchange(spiel)
    assert len(seen) >= 3, "after 2, 6 and 10 steps"


def test_all_move_at_the_first_choice_and_none_at_the_end():
    regime = build("regimes", "spiel")
    assert regime.share(5, 100) == 1.0 and regime.share(25, 100) == 0.2 * 0.75 and regime.share(100, 100) == 0
    cosine = build("regimes", {"spiel": {"schedule": "cosine"}})
    assert cosine.share(5, 100) < 0.2 and cosine.share(50, 100) == pytest.approx(0.1) and cosine.share(100, 100) == 0


def test_the_first_choice_takes_the_largest_gradients_with_their_means_as_moments():
    gym = spiel()
    branch = gym.hook.branches[DOWN]
    gym.backward()
    gradient = branch.heard.clone()
    branch.heard = None
    gym.engine._optimizer.zero_grad()
    gym.step(rate=0.0)
    gym.step(rate=0.0)  # two steps of one gradient, and the choice
    places = branch.places.long()
    assert set(places.tolist()) == set(gradient.abs().topk(len(places)).indices.tolist())
    moments = dict(gym.engine.shards())[f"{DOWN.removesuffix('.weight')}.spiel.values"].moments
    assert set(moments["age"].tolist()) == {2.0}
    torch.testing.assert_close(moments["mean"], gradient[places], rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(moments["square"], gradient[places].square(), rtol=1e-4, atol=1e-10)
    assert not branch.values.any()


def test_its_adamw_is_adamw_where_all_entries_are_of_one_age():
    ours, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, 5)) for _ in range(2))
    optimizer = SeededAdamW([ours], (0.9, 0.95), 0.1, epsilon=1e-8)
    optimizer.state[ours] = {name: torch.zeros(5) for name in ("mean", "square", "age")} | {"step": torch.zeros(())}
    reference = torch.optim.AdamW([theirs], 1e-2, (0.9, 0.95), 1e-8, 0.1)
    for step in range(5):
        for values, one in ((ours, optimizer), (theirs, reference)):
            values.grad = torch.sin(torch.arange(5.0) + step)
            one.param_groups[0]["lr"] = 1e-2
            one.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_training_keeps_sixteen_bytes_a_place_and_four_for_where_it_is():
    gym = spiel()
    kept = sum(
        values.numel() * values.element_size()
        for _, shard in gym.engine.shards()
        for values in (shard.master, *shard.moments.values())
    )
    places = [branch.places for branch in gym.hook.branches.values()]
    count = sum(map(len, places))
    assert count == 51 + 25 + 25 + 51 + 3 * 76  # 384 of 7680, shared out over widths of 32, 16, 16, 32 and 48
    assert kept == 16 * count and sum(values.numel() * values.element_size() for values in places) == 4 * count


def test_what_cannot_be_gathered_is_refused():
    with pytest.raises(ValueError, match="gathered 9 is more than the 8 steps of an interval"):
        build("regimes", {"spiel": {"interval": 8, "gathered": 9}})
    assert "budget" not in build("regimes", "spiel").model_dump()
