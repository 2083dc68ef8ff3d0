"""SmoothQuant moves outliers from inputs to weights, exactly, and eight bits hold both better."""

import pytest
import torch

from tasks.calibrate.walk import walk
from tasks.methods import build, dump
from tasks.models.export import inputs_quantized
from tasks.models.find.linears import find_linears
from tasks.models.stream.blocks import ResidentBlocks
from tasks.quantize import Quantize
from tasks.quantizers.smooth_quant import smoothing
from tests.tasks import models_zoo as zoo


def with_outliers(factor=30.0):
    """A model that computes what another does, but with a few inputs ``factor`` times as large: what a norm multiplies, the
    columns after it are divided by."""
    model = zoo.model("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            attention, network = layer.self_attn, layer.mlp
            for norm, readers in (
                (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
                (layer.post_attention_layernorm, (network.gate_proj, network.up_proj)),
            ):
                norm.weight[::8] *= factor
                for reader in readers:
                    reader.weight[:, ::8] /= factor
    return model


def test_a_scale_worked_out_by_hand():
    """Inputs up to 16, a column up to 1/4: at alpha 1/2 the scale is 4 / (1/2) = 8, so both get up to 2."""
    peak_I, largest_I = torch.tensor([16.0, 1.0, 0.0, 3.0]), torch.tensor([0.25, 1.0, 1.0, 0.0])
    assert torch.allclose(smoothing(peak_I, largest_I, 0.5), torch.tensor([8.0, 1.0, 1.0, 1.0]))
    assert torch.allclose(peak_I[:2] / smoothing(peak_I, largest_I, 1.0)[:2], torch.ones(2)), "alpha 1: inputs are all alike"
    assert torch.allclose(largest_I[:2] * smoothing(peak_I, largest_I, 0.0)[:2], torch.ones(2)), "alpha 0: weights are"


def test_outliers_cost_plain_w8a8_dearly_and_smoothed_little():
    tokens_BT, errors = zoo.batches()[0], {}
    with torch.no_grad():
        expected = with_outliers()(tokens_BT).logits
        assert torch.allclose(expected, zoo.model("llama")(tokens_BT).logits, atol=1e-4), "the channels are scaled exactly"
        for spec in ({"round_to_nearest": {"scheme": "W8A8"}}, "smooth_quant", {"smooth_quant": {"rounding": "gptq"}}):
            resident, method = ResidentBlocks(with_outliers()), build("quantizers", spec)
            walk(resident, zoo.batches(), method)
            schemes = {name: method.scheme_of(linear) for name, linear in find_linears(resident.model).items()}
            with inputs_quantized(resident.model, schemes):
                errors[str(spec)] = float((resident.model(tokens_BT).logits - expected).norm() / expected.norm())
    plain, smoothed, by_gptq = errors.values()
    assert smoothed < 0.6 * plain and by_gptq < 0.6 * plain


def test_eight_bits_are_meant_unless_something_else_is_said():
    assert dump(build("quantizers", "smooth_quant"))["smooth_quant"] == {
        "scheme": "W8A8",
        "rounding": {"round_to_nearest": {}},
        "alpha": 0.5,
    }
    method = build("quantizers", {"smooth_quant": {"bits": 8, "group_size": None}})
    assert method.scheme is None and build("quantizers", dump(method)) == method
    assert build("quantizers", {"smooth_quant": {"scheme": "FP8"}}).scheme == "FP8"
    precision = {"budget": 8.5, "choices": [{"W6A8": {"group_size": 16}}, "W8A8"]}
    Quantize(method="smooth_quant", precision=precision, sequences=1, length=8).check_written()
    stated = Quantize(method={"smooth_quant": {"scheme": "W8A8"}}, precision=precision, sequences=1, length=8)
    with pytest.raises(ValueError, match="precision chooses what smooth_quant.scheme says"):
        stated.check_written()
    with pytest.raises(ValueError, match="alpha: input should be less than or equal to 1"):
        build("quantizers", {"smooth_quant": {"alpha": 2}})
