"""Heads fall whole: the model computes what it would with those heads' contribution set to zero."""

import pytest
import torch

from tasks.calibrate.walk import walk
from tasks.methods import build
from tasks.models.stream.blocks import ResidentBlocks
from tests.tasks import models_zoo as zoo

BLOCK = "model.layers.0.self_attn."


def prune(architecture="llama", sparsity=0.5, weaken=lambda model: None):
    model = zoo.model(architecture)
    if architecture == "mixtral":
        model.set_experts_implementation("eager")
    with torch.no_grad():
        weaken(model)
    resident = ResidentBlocks(model)
    walk(resident, zoo.batches(), build("pruners", "heads"), sparsity=sparsity, pattern="channel")
    return resident


def weaken_two(model):
    """Heads 2 and 3 of four share their keys and values; they add next to nothing."""
    model.model.layers[0].self_attn.o_proj.weight[:, 16:] *= 1e-3


def test_the_heads_that_add_least_go_with_their_queries_and_the_keys_nobody_reads():
    masks = prune(weaken=weaken_two).masks
    dead = {name.removeprefix(BLOCK).split("_")[0]: ~mask.keep for name, mask in masks.items() if name.startswith(BLOCK)}
    assert dead["o"][:, 16:].all() and not dead["o"][:, :16].any()
    assert dead["q"][16:].all() and not dead["q"][:16].any()
    assert dead["k"][8:].all() and not dead["k"][:8].any() and torch.equal(dead["k"], dead["v"])


def test_keys_that_another_head_reads_stay():
    def weaken(model):
        model.model.layers[0].self_attn.o_proj.weight[:, 24:] *= 1e-3

    masks = prune(sparsity=0.25, weaken=weaken).masks
    assert (~masks[BLOCK + "q_proj.weight"].keep)[24:].all() and BLOCK + "k_proj.weight" not in masks


def test_rows_of_a_dead_head_change_nothing_that_its_columns_had_not():
    pruned, model = prune(weaken=weaken_two), zoo.model("llama")
    with torch.no_grad():
        weaken_two(model)
        for index in range(2):
            name = f"model.layers.{index}.self_attn.o_proj.weight"
            model.get_parameter(name).mul_(pruned.masks[name].keep)
        torch.testing.assert_close(pruned.model(zoo.batches()[0]).logits, model(zoo.batches()[0]).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "qwen3", "gemma", "mixtral"])
def test_feed_forward_networks_stay_dense(architecture):
    masks = prune(architecture).masks
    assert masks and all("attn" in name for name in masks)
    assert {mask.pattern for mask in masks.values()} <= {"channel", "neuron"}


@pytest.mark.parametrize("architecture", ["olmo2", "bitnet", "doge"])
def test_heads_that_a_norm_joins_or_a_further_matrix_reads_are_refused(architecture):
    with pytest.raises(ValueError, match="the heads of block 0 are not found"):
        prune(architecture)
