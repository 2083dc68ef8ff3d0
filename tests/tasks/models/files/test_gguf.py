"""A GGUF file is made a plain model directory: its weights as stored, its tokenizer, and what they were dequantized from."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quants
from safetensors import safe_open

from tasks.models.checkpoint import Checkpoint
from tasks.models.files.checkpoint import load_model
from tests.tasks import models_zoo as zoo

NAMES = {  # llama.cpp's of a llama's tensors
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.0.input_layernorm": "blk.0.attn_norm",
    "model.layers.0.post_attention_layernorm": "blk.0.ffn_norm",
    "model.layers.0.self_attn.q_proj": "blk.0.attn_q",
    "model.layers.0.self_attn.k_proj": "blk.0.attn_k",
    "model.layers.0.self_attn.v_proj": "blk.0.attn_v",
    "model.layers.0.self_attn.o_proj": "blk.0.attn_output",
    "model.layers.0.mlp.gate_proj": "blk.0.ffn_gate",
    "model.layers.0.mlp.up_proj": "blk.0.ffn_up",
    "model.layers.0.mlp.down_proj": "blk.0.ffn_down",
}


@pytest.fixture(scope="module")
def model():
    return zoo.model("llama", layers=1, hidden_size=64, intermediate_size=64)


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    return written(model, tmp_path_factory.mktemp("gguf") / "tiny-q8_0.gguf")


def written(model, path, **extra):
    """The model in 8-bit numbers; the rows of its queries and keys stand in another order there."""
    config = model.config
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(1)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<end>", "t", "1", "t1", *(f"other{number}" for number in range(config.vocab_size - 4))])
    writer.add_token_types([1] * config.vocab_size)
    writer.add_token_merges(["t 1"])
    writer.add_eos_token_id(0)
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        known = NAMES[name.removesuffix(".weight")]
        weight = value.numpy()
        if weight.ndim == 1:
            writer.add_tensor(f"{known}.weight", weight)
        else:
            packed = quants.quantize(weight, GGMLQuantizationType.Q8_0)
            writer.add_tensor(f"{known}.weight", packed, raw_dtype=GGMLQuantizationType.Q8_0)
    for name, values in extra.items():
        writer.add_tensor(f"{name}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_it_becomes_a_plain_directory_with_its_weights_and_what_they_were(model, file, tmp_path):
    directory = Checkpoint(gguf=str(file)).fetch(tmp_path)
    config = json.loads((directory / "config.json").read_text())
    assert config["dequantized_from"] == "tiny-q8_0.gguf: F32, Q8_0" and "quantization_config" not in config
    assert (directory / "tokenizer.json").exists() and not list(tmp_path.glob("*.half"))
    read = load_model(directory).state_dict()
    for name, value in model.state_dict().items():
        assert read[name].dtype == torch.bfloat16
        if ".q_proj" not in name and ".k_proj" not in name:
            limit = 2**-8 * value.abs().max() + 2**-7 * value.abs().max()  # of 8-bit blocks, and of bfloat16
            assert (read[name].float() - value).abs().max() <= limit, name
    assert Checkpoint(gguf=str(file)).fetch(tmp_path) == directory


def test_what_is_no_such_file_is_refused(file, tmp_path):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cut.gguf cannot be read: ") as refusal:
        Checkpoint(gguf=str(cut)).fetch(tmp_path)
    assert "\n" not in str(refusal.value) and not list(tmp_path.glob("source-*"))
    (tmp_path / "x.gguf").write_bytes(b"no")
    with pytest.raises(ValueError, match="is no GGUF file: it does not begin with GGUF"):
        Checkpoint(gguf=str(tmp_path / "x.gguf")).fingerprint()


def test_tied_weights_are_written_once(tmp_path):
    tied = zoo.model("llama", layers=1, hidden_size=64, intermediate_size=64, tie_word_embeddings=True)
    directory = Checkpoint(gguf=str(written(tied, tmp_path / "tied.gguf"))).fetch(tmp_path)
    with safe_open(directory / "model.safetensors", "pt") as weights:
        assert "model.embed_tokens.weight" in weights.keys() and "lm_head.weight" not in weights.keys()  # noqa: SIM118
    read = load_model(directory)
    assert read.lm_head.weight is read.model.embed_tokens.weight


def test_scaled_rotary_positions_are_refused_and_not_left_out(model, tmp_path):
    scaled = written(model, tmp_path / "scaled.gguf", rope_freqs=np.array([1, 1, 4, 8], np.float32))
    with pytest.raises(ValueError, match=r"scales its rotary positions \(rope_freqs.weight\), which transformers leaves out"):
        Checkpoint(gguf=str(scaled)).fetch(tmp_path)
