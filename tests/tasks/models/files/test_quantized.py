"""Exports are read back by plain transformers, give the same logits, and carry their masks."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from tasks.calibrate.walk import walk
from tasks.formats.mask import BrokenMask
from tasks.methods import build
from tasks.models.export import export_compressed
from tasks.models.files.checkpoint import load_extras, load_model, save_model
from tasks.models.files.promises import check_masks
from tasks.models.files.quantized import StoredWeights
from tasks.models.stream.blocks import BlockStream
from tests.tasks import models_zoo as zoo

ZOO_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "num_hidden_layers",
    "max_position_embeddings",
    "sliding_window",
    "layer_types",
)
ELSEWHERE = """
import sys, torch
from transformers import AutoModelForCausalLM
for directory, logits in zip(sys.argv[1::2], sys.argv[2::2]):
    model = AutoModelForCausalLM.from_pretrained(directory, dtype="auto").eval()
    with torch.no_grad():
        torch.save(model(torch.arange(3, 19)[None]).logits, logits)
assert not any(name.split(".")[0] in ("tasks", "flows", "cluster") for name in sys.modules)
"""


def quantized(directory, architecture="llama", dtype=torch.float32, quantizer="gptq", **fields):
    """Prune to 2:4, quantize; the directory of the dequantized model and the quantizer."""
    model = zoo.model(architecture, dtype=dtype)
    save_model(model.state_dict(), model.config, directory / "dense")
    walk(
        BlockStream(directory / "dense", directory / "pruned"),
        zoo.batches(),
        build("pruners", "wanda"),
        sparsity=0.5,
        pattern="2:4",
    )
    method = build("quantizers", {quantizer: {"group_size": 8, **fields}})
    walk(BlockStream(directory / "pruned", directory / "quantized"), zoo.batches(), method)
    return directory / "quantized", method


@pytest.mark.parametrize(("stored", "said"), [("bfloat16", "float32"), ("bfloat16", "float16"), ("float32", "bfloat16")])
@pytest.mark.parametrize(("quantizer", "fields"), [("gptq", {"symmetric": False}), ("awq", {})])
def test_weights_stored_in_another_dtype_than_their_config_says_read_back(stored, said, quantizer, fields, tmp_path):
    """The model computes in what the config says, and codes and scales are of that."""
    model = zoo.model("llama", dtype=getattr(torch, stored))
    model.config.dtype = said
    save_model(model.state_dict(), model.config, tmp_path / "dense")
    method = build("quantizers", {quantizer: {"group_size": 8, **fields}})
    walk(BlockStream(tmp_path / "dense", tmp_path / "solved"), zoo.batches(), method)
    found = export_compressed(tmp_path / "solved", load_extras(tmp_path / "solved"), method.scheme_of, tmp_path / "out")
    assert found["logits_difference"] == 0 and load_model(tmp_path / "out").dtype == getattr(torch, said)
    with torch.no_grad():
        exact, rounded = (load_model(tmp_path / each)(zoo.batches()[0]).logits.float() for each in ("dense", "out"))
    assert 0 < (rounded - exact).norm() < 0.3 * exact.norm()


@pytest.mark.parametrize(
    ("architecture", "dtype", "fields"),
    [
        ("llama", torch.float32, {}),
        ("llama", torch.bfloat16, {"bits": 8}),
        ("llama", torch.float16, {"bits": 3, "group_size": 16}),
        ("qwen3", torch.bfloat16, {}),
        ("qwen3", torch.float32, {"group_size": None}),
        ("opt", torch.float32, {}),
        ("gemma", torch.float32, {"quantizer": "round_to_nearest"}),
        ("gemma3", torch.bfloat16, {"bits": 8, "group_size": None}),
    ],
)
def test_the_export_reads_back_exactly_with_its_masks(architecture, dtype, fields, tmp_path):
    source, method = quantized(tmp_path, architecture, dtype, **fields)
    found = export_compressed(source, load_extras(source), method.scheme_of, tmp_path / "packed")
    masks = check_masks(tmp_path / "packed")
    assert found == {"logits_difference": 0.0} and masks
    packed, dequantized = StoredWeights(tmp_path / "packed"), load_model(source).state_dict()
    for name in masks:
        assert f"{name}_packed" in packed.files and torch.equal(packed.read(name), dequantized[name])


def test_layers_of_a_class_of_their_own_outside_the_blocks_are_left_alone(tmp_path):
    """A vision tower's pooling head projects by a subclass of nn.Linear, which readers that look for Linear match as well."""
    from transformers import AutoModelForCausalLM, Gemma3Config

    text = {name: value for name, value in zoo.config("gemma3").to_dict().items() if name in ZOO_FIELDS}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}
    config = Gemma3Config(
        text_config=text,
        vision_config={**vision, "patch_size": 14, "vision_use_head": True},
        mm_tokens_per_image=4,
        image_token_index=60,
        boi_token_index=61,
        eoi_token_index=62,
    )
    model = AutoModelForCausalLM.from_config(config)
    save_model(model.state_dict(), model.config, tmp_path / "dense")
    method = build("quantizers", {"round_to_nearest": {"group_size": 8}})
    walk(BlockStream(tmp_path / "dense", tmp_path / "solved"), zoo.batches(), method)
    found = export_compressed(tmp_path / "solved", load_extras(tmp_path / "solved"), method.scheme_of, tmp_path / "packed")
    head = "model.vision_tower.head.attention.out_proj"
    ignored = json.loads((tmp_path / "packed" / "config.json").read_text())["quantization_config"]["ignore"]
    assert found["logits_difference"] == 0 and {head, "lm_head"} <= set(ignored)
    assert torch.equal(load_model(tmp_path / "packed").get_parameter(f"{head}.weight"), model.get_parameter(f"{head}.weight"))


@pytest.mark.slow
def test_the_export_loads_where_our_code_is_not_known(tmp_path):
    source, method = quantized(tmp_path)
    export_compressed(source, load_extras(source), method.scheme_of, tmp_path / "packed")
    subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(tmp_path / "packed"), str(tmp_path / "logits")],
        check=True,
        cwd=tmp_path,
        capture_output=True,
    )
    with torch.no_grad():
        expected = load_model(source)(torch.arange(3, 19)[None]).logits
    assert torch.equal(torch.load(tmp_path / "logits"), expected)


def test_a_mask_broken_in_the_packed_weights_is_found(tmp_path):
    source, method = quantized(tmp_path)
    export_compressed(source, load_extras(source), method.scheme_of, tmp_path / "packed")
    state = load_file(tmp_path / "packed" / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    state[f"{name}_packed"][2, 1] ^= 0x77777777
    save_file(state, tmp_path / "packed" / "model.safetensors", {"format": "pt"})
    with pytest.raises(BrokenMask, match=f"{name} is broken: . dead weights are not zero"):
        check_masks(tmp_path / "packed")


@pytest.mark.parametrize(
    ("architecture", "fields", "match"),
    [
        ("gpt2", {}, "c_attn.weight is a transposed Conv1D matrix"),
        ("mixtral", {}, "experts.gate_up_proj is a fused stack of experts"),
        (
            "llama",
            {"symmetric": False, "schemes": {"down_proj": {"W4A16": {"group_size": 8}}}},
            "name no other beside it",
        ),
    ],
)
def test_what_the_format_cannot_hold_is_refused_in_one_line(architecture, fields, match, tmp_path):
    source, method = quantized(tmp_path, architecture, quantizer="round_to_nearest", **fields)
    with pytest.raises(ValueError, match=f"^unsupported: .*{match}$"):
        export_compressed(source, load_extras(source), method.scheme_of, tmp_path / "packed")


def test_weights_off_the_grid_do_not_pass_the_read_back(tmp_path):
    source, method = quantized(tmp_path)
    scales = load_extras(source)
    scales["model.layers.0.mlp.up_proj.weight"]["scale"] *= 1.3
    with pytest.raises(ValueError, match="does not read back"):
        export_compressed(source, scales, method.scheme_of, tmp_path / "packed")
    del scales["model.layers.0.mlp.up_proj.weight"]
    with pytest.raises(ValueError, match="a scale is needed"):
        export_compressed(source, scales, method.scheme_of, tmp_path / "packed2")
