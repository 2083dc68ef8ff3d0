"""A scale is folded where the block computes what it did, told by what it computes and not by names."""

import pytest
import torch

from tasks.calibrate.both import Both, Magnitudes
from tasks.calibrate.folds import find_folds
from tasks.calibrate.observe import Hessian, InputNorms, Moments
from tasks.calibrate.opened import Observers, open_block
from tasks.formats.pattern import Unstructured
from tasks.models.stream.blocks import ResidentBlocks
from tests.tasks import models_zoo as zoo


def opened(architecture, dtype=torch.float32, **fields):
    stream = ResidentBlocks(zoo.model(architecture, dtype=dtype, **fields))
    stream.model.set_experts_implementation("eager")
    flow = stream.capture(zoo.batches())
    allocation = dict.fromkeys(stream.linears, 0.0)
    observers = Observers(lambda linear: InputNorms(linear.shape[-1]))
    return open_block(stream, 0, flow, observers, allocation, Unstructured()).view


def found(view, sources="any"):
    def short(name):
        return name.removeprefix(view.prefix).removesuffix(".weight").rpartition(".")[2]

    return {short(fold.source): {short(name) for name in fold.consumers} for fold in find_folds(view, sources)}


QKV, GATED = {"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"}
NORMS = {"input_layernorm": QKV, "post_attention_layernorm": GATED}


@pytest.mark.parametrize(
    ("architecture", "fields", "expected"),
    [
        ("llama", {}, NORMS | {"up_proj": {"down_proj"}}),
        ("llama", {"num_key_value_heads": 4}, NORMS | {"up_proj": {"down_proj"}, "v_proj": {"o_proj"}}),
        ("gemma", {}, NORMS | {"up_proj": {"down_proj"}}),  # norms that multiply by one more than their weights
        ("nemotron", {}, {"input_layernorm": QKV, "post_attention_layernorm": {"up_proj"}}),  # such norms, with a bias
        ("gpt2", {}, {"ln_1": {"c_attn"}, "ln_2": {"c_fc"}}),  # what a GELU puts out has nothing to be folded into
        ("opt", {}, {"self_attn_layer_norm": QKV, "final_layer_norm": {"fc1"}, "v_proj": {"out_proj"}, "fc1": {"fc2"}}),
        ("mixtral", {}, {"input_layernorm": QKV}),  # the router reads what experts read
    ],
)
def test_what_makes_an_input_is_found_by_what_the_block_computes(architecture, fields, expected):
    with torch.no_grad():
        view = opened(architecture, **fields)
        before = {name: value.clone() for name, value in view.module.state_dict().items()}
        assert found(view) == expected
        assert found(view, "norms") == {name: its for name, its in expected.items() if "norm" in name or "ln_" in name}
    assert all(torch.equal(value, before[name]) for name, value in view.module.state_dict().items()), "all is put back"


@pytest.mark.parametrize("architecture", ["llama", "gemma", "nemotron", "gpt2", "opt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scaling_and_folding_change_no_output(architecture, dtype):
    with torch.no_grad():
        view = opened(architecture, dtype)
        expected = torch.cat(list(view.run())).float()
        folds = find_folds(view)
        parameters = {view.prefix + name: value.data for name, value in view.module.named_parameters()}
        for fold in folds:
            scale_I = torch.logspace(-0.5, 0.5, view.matrices[fold.consumers[0]].shape[1])
            for name, value in fold.apart(view, scale_I).items():
                (view.matrices[name] if name in view.matrices else parameters[name]).copy_(value)
            for name in fold.consumers:
                view.matrices[name].mul_(scale_I)
        difference = (torch.cat(list(view.run())).float() - expected).norm() / expected.norm()
    assert folds and difference < (1e-5 if dtype == torch.float32 else 0.02)


def test_a_divided_statistic_is_that_of_divided_inputs():
    generator = torch.Generator().manual_seed(0)
    value_TI, scale_I = torch.randn(50, 6, generator=generator), torch.rand(6, generator=generator) + 0.5
    for make in (InputNorms, Moments, Magnitudes, Hessian, lambda width: Both(Magnitudes(width), Hessian(width))):
        given, wanted = make(6), make(6)
        given.add(value_TI)
        wanted.add(value_TI / scale_I)
        divided = given.divided(scale_I)
        assert torch.allclose(divided.norm_I, wanted.norm_I, rtol=1e-5)
        if isinstance(wanted, Both):
            assert torch.allclose(divided.own.peak_I, wanted.own.peak_I) and torch.allclose(
                divided.own.mean_I, wanted.own.mean_I
            )
            assert torch.allclose(divided.other.mean_II, wanted.other.mean_II, rtol=1e-4, atol=1e-5)


def test_magnitudes_of_parts_are_those_of_the_whole():
    value_TI = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    whole, first, second = Magnitudes(4), Magnitudes(4), Magnitudes(4)
    whole.add(value_TI)
    first.add(value_TI[:11])
    second.add(value_TI[11:])
    first.merge(second)
    assert torch.equal(first.peak_I, whole.peak_I) and torch.equal(whole.peak_I, value_TI.abs().amax(0))
    assert torch.allclose(first.mean_I, value_TI.abs().mean(0)) and torch.allclose(first.mean_I, whole.mean_I)
    turned = whole.reordered(torch.tensor([2, 0, 3, 1]))
    assert torch.equal(turned.peak_I, whole.peak_I[[2, 0, 3, 1]]) and torch.equal(turned.mean_I, whole.mean_I[[2, 0, 3, 1]])
