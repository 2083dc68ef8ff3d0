"""The cost formulas give the published numbers, and every architecture's shape is read right."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tasks.models.accounting import Shape, shape_of, shape_of_config
from tasks.models.find.linears import find_linears
from tests.tasks import models_zoo as zoo

# SPDF (arXiv 2303.10464): layers, width, forward FLOPs per token at 0, 50 and 75 %, ratios at 50 and 75 %.
SPDF = [(24, 2048, (3.024e9, 1.817e9, 1.213e9), (1.67, 2.49)), (12, 768, (3.226e8, 2.376e8, 1.952e8), (1.36, 1.65))]


def gpt_shape(layers: int, width: int) -> Shape:
    """A GPT as SPDF counts it: q, k, v, o and an FFN of four widths, the head tied to the embedding of 50 257 tokens."""
    matrices, words = 12 * layers * width**2, 50_257
    return Shape(matrices + words * width, matrices, matrices, layers, width, width, words)


@pytest.mark.parametrize(("layers", "width", "flops", "ratios"), SPDF)
def test_the_formula_gives_the_published_flops_and_ratios(layers, width, flops, ratios):
    found = [gpt_shape(layers, width).forward_flops(2048, density) for density in (1.0, 0.5, 0.25)]
    assert found == pytest.approx(flops, rel=1e-3)
    assert [found[0] / found[1], found[0] / found[2]] == pytest.approx(ratios, abs=6e-3)


def test_training_costs_three_forward_passes():
    large, small = gpt_shape(24, 2048), gpt_shape(12, 768)
    assert large.training_flops(26e9, 2048) == pytest.approx(2.36e20, rel=2e-3)
    assert large.training_flops(26e9, 2048, 0.25) == pytest.approx(9.46e19, rel=2e-3)
    assert small.training_flops(2.5e9, 2048) == pytest.approx(2.42e18, rel=2e-3)
    assert small.training_flops(2.5e9, 2048, 0.25) == pytest.approx(1.46e18, rel=5e-3)


def test_a_llama_is_read_with_its_grouped_heads():
    """Width 32, FFN 48, 4 heads of 8 of which 2 for keys and values, two layers."""
    shape = shape_of(zoo.model("llama"))
    assert shape.prunable == shape.active == 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 48)
    assert (shape.layers, shape.attention_width, shape.hidden, shape.vocabulary) == (2, 32, 32, 64)
    assert shape.parameters == shape.prunable + 2 * 64 * 32 + 5 * 32


def test_a_gpt2_is_twelve_squares_a_layer():
    shape = shape_of(zoo.model("gpt2"))
    assert shape.prunable == shape.active == 2 * 12 * 32**2
    assert (shape.layers, shape.attention_width, shape.hidden, shape.vocabulary) == (2, 32, 32, 64)


def test_a_mixtral_token_uses_two_of_four_experts():
    shape = shape_of(zoo.model("mixtral"))
    attention, experts = 2 * (2 * 32 * 32 + 2 * 16 * 32), 2 * 4 * 3 * 32 * 48
    assert shape.prunable == attention + experts
    assert shape.active == attention + experts // 2


def test_heads_wider_than_the_model_count_in_attention():
    assert shape_of(zoo.model("qwen3", head_dim=16)).attention_width == 4 * 16


@pytest.mark.parametrize("architecture", zoo.ARCHITECTURES)
def test_a_shape_is_read_off_a_config_without_building_the_model(architecture):
    model = zoo.model(architecture)
    assert shape_of_config(zoo.config(architecture)) == shape_of(model)
    assert shape_of(model).prunable == sum(torch.Size(linear.shape).numel() for linear in find_linears(model).values())


def test_a_model_without_attention_is_charged_its_matrices_alone():
    config = AutoConfig.for_model("xlstm", hidden_size=32, num_heads=4, num_hidden_layers=2, vocab_size=64)
    with torch.device("meta"):
        shape = shape_of(AutoModelForCausalLM.from_config(config))
    assert shape.attention_width == 0 and 0 < shape.prunable < shape.parameters
