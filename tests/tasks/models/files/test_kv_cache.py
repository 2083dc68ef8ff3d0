"""A cache in 8 bits: its scales are what flows into it, readers round by them, and every check of a model knows them."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from tasks.models.export import export_compressed
from tasks.models.files.checkpoint import load_extras, load_model
from tasks.models.files.kv_cache import KVCache, require_cached
from tasks.models.files.names import write_as_on_hub
from tasks.models.files.promises import check_model
from tasks.models.files.schemes import integers
from tasks.models.files.shards import TensorFiles
from tasks.models.stream.blocks import ResidentBlocks
from tests.tasks import models_zoo as zoo
from tests.tasks.models.files.test_quantized import quantized

LARGEST = {"FP8": 448, "INT8": 127}


def export(directory, architecture="llama", kind=None, dtype=torch.float32):
    source, method = quantized(directory, architecture, dtype, quantizer="round_to_nearest")
    cache = KVCache(kind, zoo.batches()) if kind else None
    found = export_compressed(source, load_extras(source), method.scheme_of, directory / "packed", kv_cache=cache)
    assert found["logits_difference"] == 0
    return directory / "packed"


@pytest.mark.parametrize(("kind", "dtype"), [("FP8", torch.bfloat16), ("INT8", torch.float32)])
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3"])
def test_readers_round_what_is_cached_and_the_model_keeps_its_promises(architecture, kind, dtype, tmp_path):
    packed = export(tmp_path, architecture, kind, dtype)
    check_model(packed)
    scheme = json.loads((packed / "config.json").read_text())["quantization_config"]["kv_cache_scheme"]
    assert (scheme["num_bits"], scheme["type"]) == (8, {"FP8": "float", "INT8": "int"}[kind])
    files = TensorFiles(packed)
    assert len([name for name in files if name.endswith((".k_scale", ".v_scale"))]) == 4
    plain = export(tmp_path / "plain", architecture, None, dtype)
    tokens = zoo.batches()[0]
    with torch.no_grad():
        rounded, exact = (load_model(each)(tokens).logits.float() for each in (packed, plain))
        cached = load_model(packed).generate(tokens, max_new_tokens=4, do_sample=False)
    assert 0 < (rounded - exact).abs().max() < 0.3 * exact.abs().max() and cached.shape[1] == tokens.shape[1] + 4


def test_a_scale_is_the_largest_key_over_the_largest_number(tmp_path):
    model = zoo.model("llama")
    seen = {}
    attention = model.model.layers[1].self_attn
    attention.v_proj.register_forward_hook(lambda module, inputs, value: seen.setdefault("v", []).append(value.abs().max()))
    for kind, largest in LARGEST.items():
        scales = KVCache(kind, zoo.batches()).fit(model, ResidentBlocks(model).through).scales["model.layers.1.self_attn"]
        wanted = max(seen["v"]) / largest if kind == "FP8" else 2 * max(seen["v"]) / 255
        assert scales["v_scale"] == pytest.approx(float(wanted), rel=1e-5) and scales["k_scale"] > 0


def test_an_export_has_the_scales_by_the_hubs_names(tmp_path):
    packed = export(tmp_path, "llama", "FP8")
    hub = tmp_path / "hub"
    shutil.copytree(packed, hub, ignore=shutil.ignore_patterns("model*"))
    write_as_on_hub(packed, hub)
    assert set(TensorFiles(hub)) == set(TensorFiles(packed))
    tokens = zoo.batches()[0]
    with torch.no_grad():
        first, second = (AutoModelForCausalLM.from_pretrained(each)(tokens).logits for each in (packed, hub))
    assert torch.equal(first, second)


def test_a_model_whose_cache_the_library_does_not_round_is_refused_in_one_line():
    symmetric, not_symmetric = ([integers(4, 8, symmetric)] for symmetric in (True, False))
    require_cached(zoo.model("llama"), symmetric)
    with pytest.raises(ValueError, match="^kv_cache: .*; choose symmetric weights$"):
        require_cached(zoo.model("llama"), not_symmetric)
    without = zoo.model("llama")
    for layer in without.model.layers:
        layer.self_attn = torch.nn.Identity()
    for model in (without, zoo.model("opt"), zoo.model("gemma4")):  # whose heads differ in width from layer to layer
        refused = f"^kv_cache: compressed-tensors does not round the cache of a {type(model).__name__}; leave kv_cache out$"
        with pytest.raises(ValueError, match=refused):
            require_cached(model, symmetric)
