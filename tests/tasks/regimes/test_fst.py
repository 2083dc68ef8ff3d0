"""FST: masks that are 2:4 along both sides, chosen anew now and then, and a dense end."""

import torch

from tasks.formats.mask import unpack
from tasks.formats.pattern import NM
from tasks.formats.semi_structured import keep_transposable
from tasks.models.find.linears import find_linears
from tasks.train.effective import substitute
from tasks.train.engine import TorchEngine
from tests.tasks import models_zoo as zoo
from tests.tasks.regimes.gym import QUERY, UP, enter


def chosen(gym, name=UP):
    return unpack(gym.hook.chosen[name], gym.hook.linears[name].shape)


def test_masks_hold_along_both_sides_and_are_chosen_every_refresh():
    gym = enter("fst", refresh=3, dense=0, mvue=False)
    first = chosen(gym)
    assert NM(2, 4).holds(first, 0.5) and NM(2, 4).holds(first.T, 0.5)
    gym.train(2)
    assert torch.equal(chosen(gym), first)
    gym.step()
    assert torch.equal(chosen(gym), keep_transposable(gym.weight(UP).abs()))


def test_masked_decay_is_added_outside_the_mask():
    plain, pulled = enter("fst", decay=0, mvue=False), enter("fst", decay=0.5, mvue=False)
    assert torch.equal(plain.backward(), pulled.backward())
    expected = plain.engine.grad(UP) + 0.5 * plain.weight(UP) * ~chosen(plain)
    torch.testing.assert_close(pulled.engine.grad(UP), expected)


def test_the_last_sixth_is_dense_and_so_is_the_model():
    gym, dense = enter("fst", steps=12, mvue=False).train(10), enter("dense")
    for name in dense.engine._parameters:
        dense.engine.module.get_parameter(name).data = gym.weight(name).clone()
    assert torch.equal(gym.backward(), dense.backward())
    gym.engine._optimizer.zero_grad()
    gym.train(2)
    assert gym.hook.masks == {} and gym.weight(UP).all() and gym.hook.density() == 1


def test_without_a_dense_end_the_model_is_transposable():
    gym = enter("fst", dense=0, steps=4).train(4)
    assert QUERY not in gym.hook.masks
    for name, mask in gym.hook.masks.items():
        assert NM(2, 4).holds(mask.keep.T, 0.5) and mask.broken() is None
        assert not gym.weight(name)[~mask.keep].any()


def test_gradient_estimates_run_in_bfloat16_and_reach_float32_weights():
    model = zoo.model("llama").train()
    substitute(model, {UP: find_linears(model)[UP]}, lambda stored: stored, sparse_gradients=True)
    engine, tokens = TorchEngine(model, torch.optim.AdamW(model.parameters()), precision="bf16"), zoo.batches()[0]
    engine.backward(engine.forward(input_ids=tokens, labels=tokens).loss)
    gradient = model.get_parameter(UP).grad
    assert gradient.dtype == torch.float32 and gradient.abs().sum() > 0
