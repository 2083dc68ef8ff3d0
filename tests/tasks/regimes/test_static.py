"""Static masks: exact counts from the first step, by the allocator, and never another mask."""

import pytest
import torch

from tasks.formats.selection import quota
from tasks.methods import build
from tasks.models.find.linears import find_linears
from tasks.train.engine import TorchEngine, adamw
from tasks.train.hook import Run
from tasks.train.regime import Setting
from tests.tasks.regimes.gym import DOWN, QUERY, UP, Gym, enter


@pytest.mark.parametrize("sparsity", [0.5, 0.75, 0.9])
def test_every_matrix_loses_its_exact_share_at_once_and_nothing_moves_after(sparsity):
    gym = enter("static", sparsity=sparsity)
    before = {name: mask.packed for name, mask in gym.hook.masks.items()}
    for mask in gym.hook.masks.values():
        assert mask.numel - mask.live == quota(mask.numel, sparsity)
    gym.train(5)
    assert all(torch.equal(gym.hook.masks[name].packed, bits) for name, bits in before.items())
    for name, mask in gym.hook.masks.items():
        state = gym.engine._optimizer.state[gym.engine._parameters[name]]
        for values in (gym.weight(name), state["exp_avg"], state["exp_avg_sq"]):
            assert not values[~mask.keep].any()
        assert gym.weight(name)[mask.keep].all()


def test_the_allocator_is_asked_once_for_all_matrices(monkeypatch):
    from tasks.allocators.uniform import Uniform

    asked, own = [], Uniform.allocate
    monkeypatch.setattr(Uniform, "allocate", lambda *given: asked.append(1) or own(*given))
    assert len(enter("static").hook.masks) > 1 and asked == [1]


def test_the_seed_decides_and_matrices_of_one_shape_differ():
    one, same, other = enter("static"), enter("static"), enter("static", seed=1)
    gate = UP.replace("up", "gate")
    assert torch.equal(one.hook.masks[UP].packed, same.hook.masks[UP].packed)
    assert not torch.equal(one.hook.masks[UP].packed, other.hook.masks[UP].packed)
    assert not torch.equal(one.hook.masks[UP].packed, one.hook.masks[gate].packed)


def test_erk_leaves_the_small_matrices_denser():
    masks = enter("static", sparsity=0.8, allocator="erk").hook.masks
    density = {name: mask.live / mask.numel for name, mask in masks.items()}
    assert density[QUERY.replace("q_proj", "k_proj")] > density[QUERY] > density[DOWN]


def test_what_sparsity_saves_buys_tokens_unless_the_tokens_are_fixed():
    assert build("regimes", {"static": {"sparsity": 0.75}}).total_steps(100) == 400
    assert build("regimes", {"static": {"sparsity": 0.75, "budget": "tokens"}}).total_steps(100) == 100


def test_dense_finetuning_starts_from_the_very_same_function_and_wakes_the_dead():
    sparse = enter("static").train(3)
    before, masks = sparse.backward(), dict(sparse.hook.masks)
    module = sparse.engine.module
    module.zero_grad()
    setting = Setting(find_linears(module), masks, 3, 3)
    dense = Gym(build("regimes", "dense"), Run(TorchEngine(module, adamw(module), 1.0), 3), [], setting)
    assert build("regimes", "dense").hooks(setting) == []
    assert torch.equal(dense.step(), before)
    assert all(dense.weight(name)[~mask.keep].all() for name, mask in masks.items())
