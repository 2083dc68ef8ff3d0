"""Every matrix of the blocks is found by structure, seen as [O, I], and nothing else is."""

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from tasks.models.accounting import shape_of
from tasks.models.find.linears import Branch, Linear, decoder_blocks, find_linears
from tests.tasks import models_zoo as zoo
from tests.zoo.architectures import config

PER_BLOCK = {
    "llama": 7,
    "gpt2": 4,
    "opt": 6,
    "qwen3": 7,
    "gemma": 7,
    "gemma3": 7,
    "mixtral": 6,
    "qwen3_moe": 6,
    "gpt_oss": 6,
}


@pytest.mark.parametrize("architecture", zoo.ARCHITECTURES)
def test_every_matrix_of_every_block_is_found_and_nothing_else(architecture):
    model = zoo.model(architecture)
    linears = find_linears(model)
    assert len(linears) == 2 * PER_BLOCK[architecture]
    for name, linear in linears.items():
        assert linear.name == name and tuple(linear.matrix(model.get_parameter(name)).shape) == linear.shape
        assert not any(word in name for word in ("norm", "embed", "wte", "wpe", "router", "mlp.gate.", "lm_head", "bias"))


@pytest.mark.parametrize("architecture", zoo.ARCHITECTURES)
def test_what_lives_in_a_branch_is_not_prunable_whatever_it_is_made_of(architecture):
    model = zoo.model(architecture)
    linears, prunable = find_linears(model), shape_of(model).prunable
    for name in linears:
        branch = Branch()
        branch.add_module("inner", nn.Linear(4, 3))
        branch.register_parameter("table", nn.Parameter(torch.zeros(2, 4, 4)))
        model.get_submodule(name.rpartition(".")[0]).add_module("branch", branch)
    assert find_linears(model) == linears and shape_of(model).prunable == prunable


def test_blocks_are_those_of_the_language_model_where_what_sees_has_as_many():
    text = {name: value for name, value in config("gemma3").to_dict().items() if name != "model_type"}
    seeing = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    both = AutoConfig.for_model("gemma3", text_config=text, vision_config={**seeing, "image_size": 16, "patch_size": 8})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(both)
    assert decoder_blocks(model)[0] == "model.language_model.layers"
    assert len(find_linears(model)) == 2 * PER_BLOCK["gemma3"]


def test_a_config_that_does_not_say_how_many_blocks_there_are_is_refused():
    model = zoo.model("llama")
    model.config = PretrainedConfig()
    with pytest.raises(ValueError, match="^unsupported: the config of a LlamaForCausalLM does not say how many blocks it has$"):
        find_linears(model)


def test_transposed_storage_is_seen_as_out_by_in():
    linears = find_linears(zoo.model("gpt2"))
    assert linears["transformer.h.0.mlp.c_fc.weight"] == Linear("transformer.h.0.mlp.c_fc.weight", (128, 32), True)
    assert linears["transformer.h.1.mlp.c_proj.weight"].shape == (32, 128)


@pytest.mark.parametrize(("architecture", "transposed"), [("mixtral", False), ("gpt_oss", True)])
def test_fused_experts_are_oriented_the_way_they_are_used(architecture, transposed):
    linears = find_linears(zoo.model(architecture))
    up = next(linear for name, linear in linears.items() if name.endswith("0.mlp.experts.gate_up_proj"))
    down = next(linear for name, linear in linears.items() if name.endswith("0.mlp.experts.down_proj"))
    assert up.shape == (4, 96, 32) and down.shape == (4, 32, 48) and up.transposed == down.transposed == transposed
    assert list(up.matrices)[3] == f"{up.name}[3]"


def test_matrix_and_stored_are_inverse_views():
    stored = torch.rand(3, 5, 7)
    linear = Linear("w", (3, 7, 5), transposed=True)
    assert linear.matrix(stored).shape == (3, 7, 5) and linear.stored(linear.matrix(stored)).equal(stored)
    assert linear.matrix(stored).data_ptr() == stored.data_ptr()


def test_blocks_are_found_without_weights():
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        prefix, blocks = decoder_blocks(AutoModelForCausalLM.from_config(zoo.config("opt", layers=3)))
    assert prefix == "model.decoder.layers" and len(blocks) == 3


def test_what_is_not_understood_is_refused_in_one_line():
    model = zoo.model("llama")
    model.model.layers[0].mlp.strange = nn.Parameter(torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"^unsupported: model\.layers\.0\.mlp\.strange.*LlamaMLP$"):
        find_linears(model)
    model = zoo.model("llama")
    model.model.layers[1].mlp.down_proj.weight = model.model.layers[0].mlp.down_proj.weight
    with pytest.raises(ValueError, match="is the same parameter as"):
        find_linears(model)
    model = zoo.model("llama")
    model.config.num_hidden_layers = 5
    with pytest.raises(ValueError, match="0 lists of 5 blocks"):
        find_linears(model)
