"""IST: so many layers learn in a step and no others, probes leave no trace, and scores move by what they told."""

import math

import pytest
import torch

from tasks.methods import build
from tasks.models.find.linears import find_linears
from tests.tasks import models_zoo as zoo
from tests.tasks.regimes import gym as gyms
from tests.tasks.regimes.gym import enter


@pytest.fixture(autouse=True)
def deep(monkeypatch):
    """Eight layers: two of them learn, four are suppressed."""
    made = zoo.model
    monkeypatch.setattr(gyms.zoo, "model", lambda architecture, layers, **sizes: made(architecture, layers=8, **sizes))


def ist(**fields):
    gym = enter("ist", steps=12, **{"interval": 2, **fields})
    return gym, gym.hooks[-1]


def layers_that(gym, have):
    return {int(name.split(".")[2]) for name, values in gym.engine.module.named_parameters() if "lora" in name and have(values)}


def test_two_of_eight_layers_have_gradients_and_no_other_moves_or_ages():
    gym, hook = ist()
    seen = []
    for _ in range(6):
        active, before = set(hook.active), {name: shard.master.clone() for name, shard in gym.engine.shards()}
        gym.backward()
        assert layers_that(gym, lambda values: values.grad is not None) == active and len(active) == 2
        gym.engine._optimizer.zero_grad()
        gym.step()
        moved = {int(name.split(".")[2]) for name, s in gym.engine.shards() if not torch.equal(s.master, before[name])}
        assert moved <= active
        seen.append(frozenset(active))
    assert len(set(seen)) > 1


def test_a_probe_changes_nothing_but_scores():
    gym, hook = ist()
    gym.train(3)
    before, training = gym.logits(), gym.engine.module.training
    hook._probe(gym.run)
    assert {branch.share for branches in hook.layers for branch in branches} == {1.0}
    assert torch.equal(gym.logits(), before) and gym.engine.module.training == training


def test_a_probe_sees_the_branches_of_its_layers_count_for_less():
    gym, hook = ist(factor=0.0)
    batch = hook.data.at(0)
    fresh = hook._loss_without(gym.run, [], batch)
    gym.train(4)
    whole, none = hook._loss_without(gym.run, [], batch), hook._loss_without(gym.run, list(range(8)), batch)
    assert none == pytest.approx(fresh, rel=1e-6) and whole < none


def test_scores_by_hand():
    # Two probes with rewards 0.5 and 0.3: advantages 0.1 and -0.1, times 10 and sig(0) sig(-0) = 1/4.
    _, hook = ist()
    hook.learn([[0, 1], [1, 2]], [0.5, 0.3])
    assert hook.scores[:3].tolist() == pytest.approx([0.25, 0.0, -0.25], abs=1e-12) and not hook.scores[3:].any()
    slope = 1 / (1 + math.exp(-0.25)) / (1 + math.exp(0.25))
    hook.learn([[0], [3]], [0.5, 0.3])
    assert hook.scores[0].item() == pytest.approx(0.25 + slope)
    before = hook.scores.clone()
    hook.learn([[0, 1], [1, 2], [4, 5]], [0.4, 0.4, 0.4])
    assert torch.allclose(hook.scores, before, atol=1e-12), "equal losses tell nothing"


def test_scores_are_nothing_until_the_first_probe_and_an_important_layer_learns_more_often():
    gym, hook = ist(interval=10)
    gym.train(9)
    assert not hook.scores.any()
    hook.scores[:] = 4.0
    hook.scores[5] = -4.0
    turns = sum(5 in hook.drawn(torch.sigmoid(-hook.scores), 0.25, step) for step in range(100))
    assert turns > 90


def test_it_is_over_methods_that_train_branches():
    assert build("regimes", {"ist": {"over": "pst"}}).masks == "narrowed" and build("regimes", "ist").masks == "held"
    with pytest.raises(ValueError, match="masked trains no branches in every layer; choose one of dsee, ig_lora, lora, pst"):
        build("regimes", {"ist": {"over": "masked"}})


def test_where_every_probe_would_be_the_same_nothing_is_learned_and_it_is_refused():
    with pytest.raises(ValueError, match="ist.suppressed: input should be less than 1, got 1"):
        build("regimes", {"ist": {"suppressed": 1}})
    linears = find_linears(zoo.model("llama", layers=8))
    with pytest.raises(ValueError, match="ist has blocks take turns, and the model has one; take method lora"):
        build("regimes", "ist").check_linears([linear for name, linear in linears.items() if ".layers.3." in name])
    build("regimes", "ist").check_linears(linears.values())
