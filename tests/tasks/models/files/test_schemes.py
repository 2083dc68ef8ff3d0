"""Schemes by compressed-tensors' names: made, stored in the formats it infers, and read back where our code is not known."""

import json
import subprocess
import sys

import pytest
import torch
from compressed_tensors.quantization.lifecycle.forward import fake_quantize

from tasks.calibrate.precision import stored_bits
from tasks.calibrate.walk import walk
from tasks.methods import build, dump
from tasks.models.export import export_compressed, inputs_quantized
from tasks.models.files.bits import bits_of
from tasks.models.files.checkpoint import load_extras, load_model, save_model
from tasks.models.files.kv_cache import KVCache
from tasks.models.files.promises import check_masks
from tasks.models.files.quantized import StoredWeights
from tasks.models.files.schemes import fixed_scale, packed, read_scheme, require_readable
from tasks.models.find.linears import find_linears
from tasks.models.stream.blocks import BlockStream, ResidentBlocks
from tests.tasks import models_zoo as zoo
from tests.tasks.models.files.test_quantized import ELSEWHERE

MIXED = {"scheme": {"W4A16": {"group_size": 16}}, "schemes": {"down_proj": {"W8A16": {"group_size": 16}}}}


def exported(directory, quantizer="round_to_nearest", dtype=torch.float32, **fields):
    """Prune to 2:4, quantize, export: (dequantized model, its quantizer, the export, its quantization config)."""
    model = zoo.model("llama", dtype=dtype)
    save_model(model.state_dict(), model.config, directory / "dense")
    walk(BlockStream(directory / "dense", directory / "pruned"), [], build("pruners", "magnitude"), sparsity=0.5, pattern="2:4")
    method, solved = build("quantizers", {quantizer: fields}), directory / "solved"
    walk(BlockStream(directory / "pruned", solved), zoo.batches(), method)
    export_compressed(solved, load_extras(solved), method.scheme_of, directory / "export")
    config = json.loads((directory / "export" / "config.json").read_text())["quantization_config"]
    return load_model(solved), method, directory / "export", config


def scales(directory):
    """What was left beside the weights of a dequantized model."""
    return load_extras(directory / "solved")


def schemes(model, method):
    return {name: method.scheme_of(linear) for name, linear in find_linears(model).items()}


@pytest.mark.parametrize("quantizer", ["round_to_nearest", "gptq", "smooth_quant"])
@pytest.mark.parametrize(
    ("scheme", "stored", "form"),
    [
        ("FP8_DYNAMIC", torch.float8_e4m3fn, "float-quantized"),
        ("FP8", torch.float8_e4m3fn, "float-quantized"),
        ("W8A8", torch.int8, "int-quantized"),
    ],
)
def test_weights_and_inputs_of_eight_bits_read_back_as_our_own_fake_quantized_model(scheme, stored, form, quantizer, tmp_path):
    model, method, export, config = exported(tmp_path, quantizer, torch.bfloat16, scheme=scheme)
    weights, masks = StoredWeights(export), check_masks(export)
    assert config["format"] == form and masks.keys() == find_linears(model).keys()
    assert all(weights.files.read([name])[name].dtype == stored for name in masks)
    assert all(torch.equal(weights.read(name), model.get_parameter(name)) for name in masks)
    tokens_BT = torch.arange(3, 19)[None]
    with torch.no_grad():
        with inputs_quantized(model, schemes(model, method), scales(tmp_path)):
            expected = model(tokens_BT).logits
        assert torch.equal(load_model(export)(tokens_BT).logits, expected)
        assert not torch.equal(model(tokens_BT).logits, expected), "inputs are rounded too"


def test_fixed_scales_of_inputs_are_those_of_the_largest_that_was_seen(tmp_path):
    """E4M3 ends at 448, so what reaches the first block's queries at most is 448 times the stored scale."""
    model, _, export, _ = exported(tmp_path, scheme="FP8")
    peak = 0.0
    with torch.no_grad():
        for tokens_BT in zoo.batches():
            embedded_BTD = model.model.embed_tokens(tokens_BT)
            peak = max(peak, float(model.model.layers[0].input_layernorm(embedded_BTD).abs().max()))
    stored = StoredWeights(export).files.read(["model.layers.0.self_attn.q_proj.input_scale"]).popitem()[1]
    assert stored.shape == (1,) and float(448 * stored) == pytest.approx(peak, rel=1e-5)
    fixed = {"model.layers.0.self_attn.q_proj.weight": read_scheme("FP8")}
    with pytest.raises(ValueError, match="q_proj has no input_scale, and its scheme fixes one"), inputs_quantized(model, fixed):
        pass


@pytest.mark.parametrize("kind", ["FP8", "INT8"])
def test_no_fixed_scale_is_zero_in_the_dtype_it_is_stored_in(kind):
    """The least of float16 is 6e-8, so a 448th of small activations is none."""
    args = KVCache(kind, []).args
    for peak in (0.0, 1e-20, 1e-6, 1e-3, 3.0):
        scale = fixed_scale(args, torch.tensor(peak), torch.float16)
        value = torch.tensor([peak, -peak, peak / 3], dtype=torch.float16)
        rounded = fake_quantize(value, scale, None, args)
        assert scale.dtype == torch.float16 and scale > 0 and rounded.isfinite().all()
        assert (rounded.float() - value.float()).abs().max() <= max(1e-5, 0.04 * peak)


@pytest.mark.parametrize("fields", [{"scheme": {"W4A16_ASYM": {"group_size": 16}}}, {"symmetric": False, "group_size": None}])
@pytest.mark.parametrize("quantizer", ["gptq", "awq"])
def test_asymmetric_weights_read_back_where_all_have_one_scheme(quantizer, fields, tmp_path):
    model, _, export, config = exported(tmp_path, quantizer, torch.bfloat16, **fields)
    weights, masks = StoredWeights(export), check_masks(export)
    assert config["format"] == "pack-quantized" and masks.keys() == find_linears(model).keys()
    assert all(torch.equal(weights.read(name), model.get_parameter(name)) for name in masks)
    with torch.no_grad():
        assert torch.equal(load_model(export)(torch.arange(3, 19)[None]).logits, model(torch.arange(3, 19)[None]).logits)


@pytest.mark.parametrize("spec", [{"W8A8": {"symmetric": False}}, {"W4A8": {"symmetric": False, "group_size": 16}}])
def test_asymmetric_weights_with_rounded_inputs_are_not_packed_and_read_back_with_both(spec, tmp_path):
    """Readers that dequantize a checkpoint at once leave inputs as they are, so they are asked for it only where they must."""
    model, method, export, config = exported(tmp_path, dtype=torch.bfloat16, scheme=spec)
    assert config["format"] == "int-quantized" and "dequantize" not in config
    tokens_BT = torch.arange(3, 19)[None]
    with torch.no_grad():
        with inputs_quantized(model, schemes(model, method)):
            expected = model(tokens_BT).logits
        assert torch.equal(load_model(export)(tokens_BT).logits, expected)
        assert not torch.equal(model(tokens_BT).logits, expected), "inputs are rounded too"
    require_readable([read_scheme(spec), read_scheme("W8A8")])


@pytest.mark.parametrize(
    "spec",
    [
        "FP8_DYNAMIC",
        "W8A8",
        {"W8A8": {"symmetric": False}},
        *({name: {"group_size": 16}} for name in ("W2A16", "W4A16_ASYM", "W6A16", "W4A8", "W2A4", "W4AFP8")),
    ],
)
def test_a_scheme_takes_on_disk_what_a_budget_is_charged_for_it(spec, tmp_path):
    model, method, export, _ = exported(tmp_path, dtype=torch.bfloat16, scheme=spec)
    its, found = schemes(model, method), bits_of(export)
    charged = sum(stored_bits(model.get_parameter(name).shape, scheme) for name, scheme in its.items())
    shapes = sum(2 * 64 for scheme in its.values() if packed(scheme))  # of a packed matrix its two sizes are stored too
    assert 8 * (found.bytes["values"] + found.bytes["scales"]) == charged + shapes


@pytest.mark.slow
def test_eight_bits_and_two_schemes_in_one_model_load_where_our_code_is_not_known(tmp_path):
    asymmetric = {"scheme": {"W4A16_ASYM": {"group_size": 16}}}
    made = [exported(tmp_path / "eight", scheme="FP8_DYNAMIC"), exported(tmp_path / "mixed", "gptq", **MIXED)]
    made += [exported(tmp_path / "fixed", scheme="FP8"), exported(tmp_path / "asymmetric", **asymmetric)]
    config = made[1][3]
    groups = [(group["weights"]["num_bits"], group["targets"]) for group in config["config_groups"].values()]
    assert groups == [(8, [r"re:.*\.down_proj$"]), (4, ["Linear"])]
    assert (config["format"], config["ignore"]) == ("pack-quantized", ["lm_head"])
    places = [str(place) for _, _, export, _ in made for place in (export, export / "logits")]
    told = subprocess.run([sys.executable, "-c", ELSEWHERE, *places], check=True, cwd=tmp_path, capture_output=True, text=True)
    assert "Could not match" not in told.stderr + told.stdout
    for model, method, export, _ in made:
        with torch.no_grad(), inputs_quantized(model, schemes(model, method), scales(export.parent)):
            assert torch.equal(torch.load(export / "logits"), model(torch.arange(3, 19)[None]).logits)


def test_schemes_of_two_formats_are_mixed_and_what_is_unquantized_stays_as_it_was(tmp_path):
    model, _, export, config = exported(tmp_path, schemes={"down_proj": "FP8_DYNAMIC", "k_proj": "UNQUANTIZED"}, group_size=16)
    assert config["format"] == "mixed-precision" and check_masks(export)
    assert config["ignore"] == [*(f"model.layers.{block}.self_attn.k_proj" for block in (0, 1)), "lm_head"]
    weights, pruned = StoredWeights(export), load_model(tmp_path / "pruned")
    for name in find_linears(model):
        assert torch.equal(weights.read(name), model.get_parameter(name))
        assert torch.equal(weights.read(name), pruned.get_parameter(name)) == ("k_proj" in name)


def test_a_preset_is_the_fields_it_stands_for(tmp_path):
    named = exported(tmp_path / "named", scheme={"W4A16": {"group_size": 16}})[2]
    told = exported(tmp_path / "told", group_size=16)[2]
    for file in ("config.json", "model.safetensors"):
        assert (named / file).read_bytes() == (told / file).read_bytes()


def test_what_was_written_before_schemes_is_written_the_same():
    assert dump(build("quantizers", "gptq")) == {
        "gptq": {"bits": 4, "group_size": 128, "symmetric": True, "percent_damp": 0.01, "act_order": True, "double": False}
    }
    assert dump(build("quantizers", "round_to_nearest")) == {
        "round_to_nearest": {"bits": 4, "group_size": 128, "symmetric": True}
    }
    named = build("quantizers", {"round_to_nearest": MIXED})
    assert dump(named) == {"round_to_nearest": MIXED} and build("quantizers", dump(named)) == named


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"scheme": "W4A17"}, "^no scheme 'W4A17' in compressed-tensors; choose one of FP8, FP8_DYNAMIC, INT8, "),
        (
            {"scheme": "NVFP4"},
            "^gptq cannot make NVFP4: the scales of its inputs are fixed per tensor_group; choose one of FP8, FP8_DYNAMIC, ",
        ),
        (
            {"scheme": "NVFP4A16"},
            "^gptq cannot make NVFP4A16: its weights have a scale per tensor_group, not per group, channel or tensor",
        ),
        ({"scheme": "MXFP8A16"}, "^gptq cannot make MXFP8A16: its scales are rounded to torch.uint8; choose one of "),
        ({"scheme": {"W4A16": {"group": 64}}}, "^W4A16.group: no such field; choose one of num_bits, type, "),
        (
            {"scheme": {"W8A8": {"group_size": 64}}},
            "^W8A8: group_size requires strategy to be set to 'group'; groups are {strategy: group, ",
        ),
        ({"scheme": "UNQUANTIZED"}, "^scheme UNQUANTIZED leaves every matrix as it is; name another, or leave the stage out$"),
        (
            {"scheme": "W4A16"},
            r"^group_size 128 does not divide the input width 32 \(model.layers.0.self_attn.q_proj.weight\); "
            r"write scheme: {W4A16: {group_size: 16}} \(or 8, 4\)$",
        ),
        ({"group_size": 5}, r"q_proj.weight\); write group_size: 8 \(or 4, 2\)$"),
        ({"group_size": 24}, r"q_proj.weight\); write group_size: 16 \(or 8, 4\)$"),
        ({"schemes": {"q_proj": "UNQUANTIZED"}, "group_size": 48}, r"k_proj.weight\); write group_size: 16 \(or 8, 4\)$"),
        (
            {"schemes": {"q_proj": {"W4A16": {"num_bits": 3, "group_size": 24}}}, "group_size": 8},
            r"q_proj.weight\); write schemes: {q_proj: {W4A16: {num_bits: 3, group_size: 32}}} \(or 16, 8\)$",
        ),
        (
            {"schemes": {"q_proj": {"W4A16": {"group_size": 7}}}, "group_size": 8},
            r"write schemes: {q_proj: {W4A16: {group_size: 8}}} \(or 4, 2\)$",
        ),
        ({"scheme": {"W4A16": {"strategy": "channel"}}}, r"is {strategy: channel, group_size: null}$"),
        (
            {"scheme": {"W4A16": {"observer": "nope"}}},
            "^W4A16.observer: no such field; choose one of num_bits, type, symmetric, ",
        ),
        ({"scheme": {"UNQUANTIZED": {"num_bits": 4}}}, "^UNQUANTIZED leaves weights as they are, so .*; leave num_bits out$"),
        (
            {"scheme": {"FP8_DYNAMIC": {"num_bits": 4}}},
            "^gptq cannot make FP8_DYNAMIC with num_bits 4: its weights are 4-bit floats; leave num_bits out, or choose one",
        ),
        (
            {"scheme": {"W4A16": {"type": "float"}}},
            "^gptq cannot make W4A16 with type float: its .*; leave type out, or choose",
        ),
        (
            {"schemes": {"downproj": "W8A8"}, "group_size": 8},
            "^schemes: no matrix has 'downproj' as a part of its name; choose one of "
            "self_attn, q_proj, k_proj, v_proj, o_proj, mlp, gate_proj, up_proj, down_proj$",
        ),
        (
            {"schemes": {"down_proj": "W8A8", "layers.0": "FP8_DYNAMIC"}, "group_size": 8},
            "^schemes: model.layers.0.mlp.down_proj.weight is in down_proj and in layers.0, which differ; name parts apart$",
        ),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line_before_any_work(fields, match):
    resident = ResidentBlocks(zoo.model("llama"))
    with pytest.raises(ValueError, match=match):
        walk(resident, zoo.batches(), build("quantizers", {"gptq": fields}))


def test_what_is_proposed_instead_can_be_made_and_read():
    for spec in ("NVFP4", {"W4A16": {"type": "float"}}):
        with pytest.raises(ValueError) as refused:
            build("quantizers", {"gptq": {"scheme": spec}}).named_schemes()
        for name in str(refused.value).rpartition("choose one of ")[2].split(", "):
            require_readable(build("quantizers", {"gptq": {"scheme": name}}).named_schemes())
    with pytest.raises(ValueError, match="reads packed asymmetric weights back where all have one scheme alone"):
        require_readable([read_scheme("W4A16_ASYM"), read_scheme("W4A16")])


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"scheme": "W8A8", "bits": 8}, "gptq: scheme says what bits says; leave one of them out"),
        ({"scheme": ["W8A8"]}, "gptq.scheme: a scheme is written NAME or"),
        ({"scheme": ""}, "gptq.scheme: a scheme is written NAME or"),
        ({"schemes": {"down_proj": ""}}, "gptq.schemes: a scheme is written NAME or"),
        ({"scheme": {"W8A8": None}}, "gptq.scheme: a scheme is written NAME or"),
        ({"schemes": {"down_proj": 8}}, "gptq.schemes: a scheme is written NAME or"),
    ],
)
def test_a_scheme_is_said_once_and_in_its_form(fields, match):
    with pytest.raises(ValueError, match=match):
        build("quantizers", {"gptq": fields})
