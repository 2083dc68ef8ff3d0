"""Who lives in the zoo, and how each is built: by plain transformers, as the checkpoints on the hub are.

A checkpoint here is bfloat16 with some float32 in it, lies in shards, brings a generation config with two stop tokens, a
chat template and processor files, and holds a tensor that its architecture does not name.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from tests.zoo.architectures import config

VOCABULARY = 300
STOPS = [7, 11]
INDEX = "model.safetensors.index.json"
PROCESSOR = {"processor_class": "AnyProcessor", "image_mean": [0.5, 0.25, 0.125]}
TEMPLATE = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"
SETTINGS = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}


@dataclass(frozen=True)
class Member:
    """``packs``: whether compressed-tensors has a format for its matrices. ``stripped`` is the prefix that the hub's
    names lack. ``further`` is the name of the tensor that the architecture does not name."""

    name: str
    architecture: str
    fields: dict[str, Any] = field(default_factory=dict)
    packs: bool = True
    shards: int = 2
    stripped: str = ""
    further: str = "mtp.fc.weight"


_ALL = (
    Member("opt", "opt"),
    Member("qwen2", "qwen2", {"tie_word_embeddings": True}),
    Member("qwen3", "qwen3"),
    Member("qwen3_5", "qwen3_5"),
    Member("gemma2", "gemma2"),
    Member("gemma3", "gemma3"),
    Member("gemma4", "gemma4"),
    Member("phi", "phi"),
    Member("phi3", "phi3"),
    Member("gpt2", "gpt2", packs=False, stripped="transformer.", further="h.0.attn.bias"),
    Member("gptj", "gptj"),
    Member("gpt_neox", "gpt_neox"),
    Member("gpt_bigcode", "gpt_bigcode", packs=False),
    Member("bloom", "bloom", stripped="transformer."),
    Member("falcon", "falcon", packs=False),
    Member("olmo2", "olmo2"),
    Member("olmoe", "olmoe", packs=False),
    Member("smollm3", "smollm3"),
    Member("granite", "granite"),
    Member("granitemoe", "granitemoe", packs=False),
    Member("starcoder2", "starcoder2"),
    Member("cohere", "cohere"),
    Member("lfm2", "lfm2"),
    Member("mistral", "mistral", shards=4),
    Member("llama", "llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 12}),
    Member("llama_tied", "llama", {"tie_word_embeddings": True}),
    Member("mixtral", "mixtral", packs=False),
    Member("qwen2_moe", "qwen2_moe", packs=False),
    Member("qwen3_moe", "qwen3_moe", {"moe_intermediate_size": 16}, packs=False),
    Member("qwen3_next", "qwen3_next", packs=False),
    Member("deepseek_v2", "deepseek_v2", packs=False),
    Member("deepseek_v3", "deepseek_v3", packs=False, further="model.layers.2.eh_proj.weight"),
    Member("glm4_moe", "glm4_moe", packs=False, further="model.layers.2.eh_proj.weight"),
    Member("gpt_oss", "gpt_oss", packs=False),
)
MEMBERS = {member.name: member for member in _ALL}


def build(member: Member, directory: Path, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Write the member's checkpoint; returns the model that was saved."""
    torch.manual_seed(sum(member.name.encode()))
    made = config(member.architecture, vocab_size=VOCABULARY, **member.fields)
    model = AutoModelForCausalLM.from_config(made, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        _disturb(model)
    model.generation_config = GenerationConfig(bos_token_id=0, pad_token_id=0, eos_token_id=STOPS, **SETTINGS)
    _save(model, directory, member.shards)
    _finish_shards(member, directory)
    _companions(directory, tokenizer)
    return model


def _disturb(model: PreTrainedModel) -> None:
    """Weights larger than a fresh model's, so that blocks change what flows through them; no buffer at its default; and
    float32 where the architecture insists on it, and in one norm where it does not."""
    for tensor in (*model.parameters(), *_persistent(model)):
        tensor.add_(0.1 * torch.randn(tensor.shape).to(tensor.dtype))
    strict = model._keep_in_fp32_modules_strict or ()
    mixed = next(name for name, value in model.named_parameters() if re.search(r"\.1\.", name) and value.ndim == 1)
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name == mixed or set(name.split(".")) & set(strict):
            tensor.data = tensor.data.float() + 1e-4 * torch.randn(tensor.shape)


def _persistent(model: PreTrainedModel) -> Iterator[torch.Tensor]:
    stored = model.state_dict()
    return (value for name, value in model.named_buffers() if name in stored and value.is_floating_point())


def _save(model: PreTrainedModel, directory: Path, shards: int) -> None:
    """In the hub's layout, in as many shards as asked: the size of one is found by trying."""
    total = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    for share in range(99, 0, -1):
        shutil.rmtree(directory, ignore_errors=True)
        model.save_pretrained(directory, max_shard_size=int(total * share / 100))
        if len(list(directory.glob("*.safetensors"))) >= shards:
            return
    raise AssertionError(f"{directory} cannot be cut into {shards} shards")


def _finish_shards(member: Member, directory: Path) -> None:
    """Names as the hub has them, and the further tensor in the last shard."""
    index = json.loads((directory / INDEX).read_text())
    files = sorted(directory.glob("*.safetensors"))
    placed = {}
    for file in files:
        tensors = {name.removeprefix(member.stripped): value for name, value in load_file(file).items()}
        if file == files[-1]:
            tensors[member.further] = torch.randn(16, 32).bfloat16()
        save_file(tensors, file, {"format": "pt"})
        placed |= dict.fromkeys(tensors, file.name)
    index["weight_map"] = dict(sorted(placed.items()))
    (directory / INDEX).write_text(json.dumps(index, indent=2))


def _companions(directory: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(directory)
    for name in ("preprocessor_config.json", "processor_config.json"):
        (directory / name).write_text(json.dumps(PROCESSOR, indent=2))
