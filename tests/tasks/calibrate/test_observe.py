"""Statistics are sums over exactly the inputs a matrix was multiplied with, shared where inputs are shared."""

import pytest
import torch

from tasks.calibrate.observe import Hessian, InputNorms, Moments
from tasks.calibrate.watch import Watch
from tasks.models.stream.blocks import ResidentBlocks
from tests.tasks import DEVICES
from tests.tasks import models_zoo as zoo


def watched(architecture, make, batches=None, prepare=lambda model: None):
    """One pass through block 0: the watch, and by module name the inputs that plain hooks saw."""
    model = zoo.model(architecture)
    prepare(model)
    if "experts" in str(model):
        model.set_experts_implementation("eager")
    resident = ResidentBlocks(model)
    parameters = {name: parameter.data for name, parameter in model.named_parameters()}
    seen = {}
    for name, module in resident.blocks[0].named_modules():
        if hasattr(module, "weight") and module.weight.ndim == 2:
            module.register_forward_hook(
                lambda _, args, __, name=name: seen.setdefault(name, []).append(args[0].flatten(0, -2))
            )
    with torch.no_grad():
        flow = resident.capture(batches or zoo.batches())
        parameters = {name: parameter.data for name, parameter in model.named_parameters()}
        watch = Watch(resident.linears_of(0), parameters, make)
        with watch:
            for _ in flow.run(resident.blocks[0], 0):
                watch.next_batch()
    return watch, seen


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "gemma3"])
def test_sums_equal_those_over_the_hooked_inputs(architecture):
    norms, seen = watched(architecture, lambda linear: InputNorms(linear.shape[-1]))
    curvature, _ = watched(architecture, lambda linear: Hessian(linear.shape[-1], "float64"))
    assert norms.unseen() == []
    for name, inputs in seen.items():
        matrix = next(key for key in norms.statistics if key.endswith(f".0.{name}.weight"))
        input_TI = torch.cat(inputs).double()
        assert norms.statistics[matrix].count == len(input_TI)
        torch.testing.assert_close(norms.statistics[matrix].squares_I, input_TI.square().sum(0), rtol=1e-6, atol=1e-9)
        sum_II = curvature.statistics[matrix].mean_II * len(input_TI)
        torch.testing.assert_close(sum_II, input_TI.T @ input_TI, rtol=1e-6, atol=1e-9)


def test_linears_that_share_an_input_share_one_statistic():
    watch, _ = watched("llama", lambda linear: InputNorms(linear.shape[-1]))
    by_name = {name.split(".")[-2]: id(statistic) for name, statistic in watch.statistics.items()}
    assert by_name["q_proj"] == by_name["k_proj"] == by_name["v_proj"] and by_name["gate_proj"] == by_name["up_proj"]
    assert len(set(by_name.values())) == 4


@pytest.mark.parametrize("architecture", ["mixtral", "gpt_oss"])
def test_each_expert_has_statistics_of_its_own_tokens(architecture):
    watch, _ = watched(architecture, lambda linear: InputNorms(linear.shape[-1]))
    prefix = "model.layers.0.mlp.experts"
    counts = {name: statistic.count for name, statistic in watch.statistics.items() if name.startswith(prefix)}
    ups = [counts[f"{prefix}.gate_up_proj[{expert}]"] for expert in range(4)]
    downs = [counts[f"{prefix}.down_proj[{expert}]"] for expert in range(4)]
    tokens = sum(batch.numel() for batch in zoo.batches())
    assert ups == downs and sum(ups) == 2 * tokens, "each token goes to two experts"


def test_an_expert_no_token_reaches_is_told_and_assumes_nothing():
    def starve(model):
        with torch.no_grad():  # the router's score of expert 2 can never be among the two highest
            model.model.layers[0].mlp.gate.weight.zero_()
            model.model.layers[0].post_attention_layernorm.weight.fill_(1.0)
            model.model.layers[0].mlp.gate.weight[3, 0] = 1e-6
            model.model.layers[0].mlp.gate.weight[0, 0] = -1e-6
            model.model.layers[0].mlp.gate.weight[1, 0] = -2e-6

    batches = [torch.full((1, 1), 5)]
    watch, _ = watched("mixtral", lambda linear: InputNorms(linear.shape[-1]), batches, starve)
    unseen = watch.unseen()
    assert len(unseen) == 4 and all("experts" in name for name in unseen)
    assert (watch.statistics[unseen[0]].norm_I == 1).all() and watch.statistics[unseen[0]].count == 0


def test_inputs_that_are_not_finite_are_an_error_naming_the_linear():
    def poison(model):
        model.model.layers[0].input_layernorm.weight.data[3] = torch.nan

    watch, _ = watched("llama", lambda linear: InputNorms(linear.shape[-1]), prepare=poison)
    with pytest.raises(ValueError, match=r"inputs of model\.layers\.0\.self_attn\.\w+_proj\.weight are not finite"):
        watch.unseen()


def test_a_product_that_cannot_be_seen_is_an_error():
    model = zoo.model("mixtral")
    model.set_experts_implementation("batched_mm")
    resident = ResidentBlocks(model)
    with torch.no_grad():
        flow = resident.capture(zoo.batches())
        parameters = {name: parameter.data for name, parameter in model.named_parameters()}
        watch = Watch(resident.linears_of(0), parameters, lambda linear: InputNorms(linear.shape[-1]))
        with watch:
            list(flow.run(resident.blocks[0], 0))
    with pytest.raises(ValueError, match="no input of .*experts.gate_up_proj was seen"):
        watch.unseen()


@pytest.mark.parametrize("kind", [InputNorms, lambda width: Hessian(width, "float64")])
def test_statistics_of_ranks_merge_by_adding(kind):
    input_TI = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    whole, left, right = kind(6), kind(6), kind(6)
    whole.add(input_TI), left.add(input_TI[:7]), right.add(input_TI[7:])
    left.merge(right)
    assert left.count == whole.count
    torch.testing.assert_close(left.norm_I, whole.norm_I)


@pytest.mark.parametrize("width", [3, 256, 600, 2100])
def test_a_hessian_summed_in_strips_is_the_whole_product(width):
    hessian, parts = Hessian(width, "float64"), torch.randn(2, 5, width, dtype=torch.float64)
    for part in parts:
        hessian.add(part)
        expected = torch.einsum("bti,btj->ij", parts[: hessian.count // 5], parts[: hessian.count // 5])
        torch.testing.assert_close(hessian.mean_II * hessian.count, expected)
    order_I = torch.randperm(width)
    torch.testing.assert_close(hessian.reordered(order_I).mean_II, hessian.mean_II[order_I][:, order_I])


@pytest.mark.parametrize("kind", [InputNorms, Moments, Hessian])
def test_what_is_assumed_lies_where_the_weights_do(kind):
    statistic = kind(4)
    statistic.assume_nothing("meta")
    held = [*vars(statistic).values(), *getattr(statistic, "strips", [])]
    assert {value.device.type for value in held if isinstance(value, torch.Tensor)} == {"meta"}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_hessian_of_halves_is_as_exact_as_one_of_floats(device, dtype):
    input_TI = torch.randn(4096, 300, generator=torch.Generator().manual_seed(0)).to(dtype)
    hessian = Hessian(300)
    for part_TI in input_TI.to(device).split(1024):
        hessian.add(part_TI)
    expected_II = input_TI.double().T @ input_TI.double() / 4096
    assert hessian.mean_II.dtype == torch.float32
    torch.testing.assert_close(hessian.mean_II.cpu().double(), expected_II, rtol=0, atol=2e-5)


def test_the_units_for_bfloat16_are_asked_for_its_products_alone(monkeypatch):
    switch, seen, multiply = torch.backends.mkldnn.matmul, [], torch.mm

    def look(*matrices):
        seen.append(switch.fp32_precision)
        return multiply(*matrices)

    monkeypatch.setattr(torch, "mm", look)
    before = switch.fp32_precision
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        Hessian(3).add(torch.ones(5, 3, dtype=dtype))
    Hessian(3, "float64").add(torch.ones(5, 3, dtype=torch.bfloat16))
    with pytest.raises(IndexError):
        Hessian(4).add(torch.ones(5, dtype=torch.bfloat16))
    assert seen == ["bf16", before, before, before] and switch.fp32_precision == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_order_of_batches_changes_no_bit_of_a_hessian(dtype):
    batches = torch.randn(12, 30, 300, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 2, 300)
    batches = batches.to(dtype)

    def summed(order):
        parts = [Hessian(300) for _ in order]
        for part, numbers in zip(parts, order, strict=True):
            for number in numbers:
                part.add(batches[number])
        for part in parts[1:]:
            parts[0].merge(part)
        return parts[0]

    one = summed([range(12)])
    for order in ([range(5), range(5, 12)], [range(3), range(3, 6), range(6, 9), range(9, 12)], [range(11, -1, -1)]):
        other = summed(order)
        assert torch.equal(one.mean_II, other.mean_II) and torch.equal(one.norm_I, other.norm_I)
