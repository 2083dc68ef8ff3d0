"""The cost formulas give the published numbers, and every architecture's shape is read right."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tasks.formats.mask import Mask
from tasks.models.accounting import Shape, average_parameters, gpt_shape, live_parameters, shape_of, shape_of_config
from tasks.models.find.linears import find_linears
from tasks.train.schedule import ComputeWindow, ExponentialDensity
from tests.tasks import models_zoo as zoo

# SPDF (arXiv 2303.10464): layers, width, forward FLOPs per token at 0, 50 and 75 %, ratios at 50 and 75 %.
SPDF = [(24, 2048, (3.024e9, 1.817e9, 1.213e9), (1.67, 2.49)), (12, 768, (3.226e8, 2.376e8, 1.952e8), (1.36, 1.65))]


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


# The Journey Matters (arXiv 2501.12486): sparsity, published steps at C = 10 000 dense steps, published N-bar / N with the
# rounding it was published in (the first and third are quotients of two numbers of three digits).
JOURNEY = [
    (0.2, 11_200, 1.02 / 1.14, 5e-3),
    (0.4, 13_050, 0.7651, 2e-3),
    (0.6, 16_375, 0.69 / 1.14, 7e-3),
    (0.8, 25_050, 0.3984, 1e-3),
]


@pytest.mark.parametrize(("sparsity", "steps", "mean", "rounding"), JOURNEY)
def test_ten_thousand_dense_steps_buy_the_published_steps_at_the_published_average(sparsity, steps, mean, rounding):
    start, end, total = ComputeWindow(sparsity).steps(10_000)
    assert total == pytest.approx(steps, rel=1e-3)
    average = average_parameters(1_140_000_000, ExponentialDensity(sparsity, start, end, 1), total)
    assert average / 1.14e9 == pytest.approx(mean, abs=rounding)
    assert average * total == pytest.approx(1.14e9 * 10_000, rel=1e-3)


def test_live_parameters_fall_by_one_ratio_per_event_and_stay():
    live = live_parameters(64, ExponentialDensity(0.75, 1, 3, 2), 5)
    assert live == pytest.approx([64, 32, 32, 16, 16])
    assert average_parameters(64, ExponentialDensity(0.75, 1, 3, 2), 5) == pytest.approx(32)


SMALL = Shape(parameters=1_600, prunable=1_280, active=1_280, layers=1, attention_width=8, hidden=8, vocabulary=40)


def test_bytes_are_a_mask_bit_and_a_value_per_live_weight():
    """1280 prunable weights and 320 others: 160 bytes of mask, a quarter of the prunable values, all the others."""
    assert SMALL.dense_bytes(4) == 6_400
    assert SMALL.masked_bytes(0.25) == 160 + 2 * 320 + 2 * 320


def test_four_bits_in_groups_of_64_are_four_and_a_quarter_bits_a_weight():
    assert SMALL.quantized_bytes(4, 64) == 1_280 * 4.25 / 8 + 2 * 320


def test_bytes_are_those_of_the_tensors_and_the_packed_masks():
    model = zoo.model("llama")
    linears = find_linears(model)
    packed = sum(
        Mask.of(torch.ones(linear.shape, dtype=torch.bool), "unstructured", 0).packed.numel() for linear in linears.values()
    )
    assert shape_of(model).dense_bytes(4) == sum(parameter.nbytes for parameter in model.parameters())
    assert shape_of(model).masked_bytes(1.0, 4) == shape_of(model).dense_bytes(4) + packed


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
