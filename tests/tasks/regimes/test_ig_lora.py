"""IG-LoRA: ranks follow what the pruning left of each block, add up, and are LoRA's where all lost the same."""

import pytest
import torch

from tasks.formats.mask import Mask
from tasks.methods import build, load
from tasks.models.find.linears import find_linears
from tasks.train.regime import Setting
from tests.tasks import models_zoo as zoo

UPS = ("model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight")


def shares(total, weights):
    import sys

    return sys.modules[load("regimes", "ig_lora").__module__].shares(total, weights)


@pytest.mark.parametrize(
    ("total", "weights", "expected"),
    [
        (8, [1, 1, 1, 1], [2, 2, 2, 2]),
        (16, [3, 1, 2, 2], [6, 2, 4, 4]),
        (8, [30, 20, 10], [4, 3, 1]),  # 4, 2.67, 1.33
        (4, [97, 1, 1, 1], [1, 1, 1, 1]),  # 3.88 and thrice 0.04
        (6, [97, 1, 1, 1], [3, 1, 1, 1]),
    ],
)
def test_ranks_by_hand(total, weights, expected):
    assert shares(total, weights) == expected and sum(expected) == total


def ranks(masks):
    model = zoo.model("llama")
    setting = Setting(find_linears(model), masks, 4, 4)
    return build("regimes", {"ig_lora": {"rank": 4}}).ranks(model, setting)


def test_a_block_that_kept_more_of_its_feed_forward_network_has_a_higher_rank():
    half = Mask.of(torch.tensor([True, False]).repeat(48, 16), "unstructured", 0.5)
    uneven, even = ranks({UPS[0]: half}), ranks(dict.fromkeys(UPS, half))
    assert set(even.values()) == {4} == set(ranks({}).values())
    # 2.5 matrices of 3 against 3: 3.64 and 4.36 of 8, so 4 each; with rank 16 they part
    assert set(uneven.values()) == {4}
    model = zoo.model("llama")
    apart = build("regimes", {"ig_lora": {"rank": 16}}).ranks(model, Setting(find_linears(model), {UPS[0]: half}, 4, 4))
    assert (apart[UPS[0]], apart[UPS[1]]) == (15, 17)
    assert apart["model.layers.1.self_attn.k_proj.weight"] == 16, "a matrix has no more than its smaller side"
