"""N:M in training: one choice of masks a step however many forward passes go through it, and the arithmetic by hand."""

import pytest
import torch

from tasks.train.effective import InPlaceOf
from tasks.train.sparse.fading import chosen_and_faded, faded, flowed
from tests.tasks.regimes.gym import UP, enter

FIELDS = {"sr_ste": {"decay": 0.5}, "mdgf_linear": {"location": "all", "backward": "decay", "rate": 0.1}}


@pytest.mark.parametrize("name", FIELDS)
def test_masks_are_chosen_once_a_step_whatever_the_micro_batches(name):
    once, always = (enter(name, **FIELDS[name]) for _ in range(2))
    counts = []
    for gym in (once, always):
        gym.run.pieces, choose, calls = 2, gym.hook.chosen_and_faded, []
        gym.hook.chosen_and_faded = lambda *given, choose=choose, calls=calls: calls.append(1) or choose(*given)
        counts.append(calls)
    always.hook.choices.keep = lambda *given: None
    for gym in (once, always):
        for _ in range(3):
            gym.backward()
            gym.step()
    assert len(counts[0]) * 2 == len(counts[1])
    assert torch.equal(once.weight(UP), always.weight(UP))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_fade_and_gradients_flow_as_the_formulas_say(dtype):
    draw = torch.Generator().manual_seed(0)
    weight, gradient = (torch.randn(8, 16, generator=draw).to(dtype) for _ in range(2))
    share, decay = 0.3, 0.1
    (keep,), (value,) = chosen_and_faded([weight], [None], [False], 2, 4, torch.tensor(share))
    order = weight.abs().view(-1, 4).sort(dim=-1, stable=True).indices
    assert torch.equal(keep.view(-1, 4).gather(1, order), torch.tensor([False, False, True, True]).expand(32, 4))
    assert torch.equal(value, torch.where(keep, weight, weight * share))
    assert torch.equal(faded([weight], [keep], None)[0], torch.where(keep, weight, 0.0))
    (back,) = flowed([gradient], [keep], [weight], torch.tensor(share), torch.tensor(decay))
    expected = torch.where(keep, gradient, gradient * share) + torch.where(keep, 0.0, decay * weight)
    assert torch.equal(back, expected)
    assert torch.equal(flowed([gradient], [keep], [], None, None)[0], gradient)


def test_of_two_matrices_the_one_that_was_not_computed_with_gets_no_gradient():
    used, unused = (torch.ones(4, 4, requires_grad=True) for _ in range(2))
    first, _ = InPlaceOf.apply(None, (), [used.detach() * 2, unused.detach() * 2], used, unused)
    first.sum().backward()
    assert torch.equal(used.grad, torch.ones(4, 4)) and unused.grad is None
