"""Tiny random models of every architecture the walker promises to treat, saved the way the pipeline saves."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    BitNetConfig,
    DogeConfig,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GptOssConfig,
    LlamaConfig,
    MixtralConfig,
    Olmo2Config,
    OPTConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3MoeConfig,
)
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from tasks.models.checkpoint import save_model

VOCABULARY = 64
_COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
    "max_position_embeddings": 64,
}  # fmt: skip
_GQA = {**_COMMON, "num_key_value_heads": 2}
_HEADS = {**_GQA, "head_dim": 8}
_EXPERTS = {"num_experts_per_tok": 2}
ARCHITECTURES = ["llama", "gpt2", "opt", "qwen3", "gemma", "gemma3", "mixtral", "qwen3_moe", "gpt_oss"]


def config(architecture: str, layers: int = 2, **overrides) -> PretrainedConfig:
    depth = {"num_hidden_layers": layers}
    gpt2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": layers, "n_head": 4, "n_positions": 64}
    opt = {"ffn_dim": 48, "word_embed_proj_dim": 32}
    kinds = ["sliding_attention", "full_attention"] * layers
    sliding = {"sliding_window": 8, "layer_types": kinds[:layers]}
    made = {
        "llama": lambda: LlamaConfig(**{**_GQA, **depth, **overrides}),
        "gpt2": lambda: GPT2Config(**{**gpt2, **overrides}),
        "opt": lambda: OPTConfig(**{**_COMMON, **opt, **depth, **overrides}),
        "qwen3": lambda: Qwen3Config(**{**_HEADS, **depth, **overrides}),
        "gemma": lambda: GemmaConfig(**{**_HEADS, **depth, **overrides}),
        "gemma3": lambda: Gemma3TextConfig(**{**_HEADS, **sliding, **depth, **overrides}),
        "mixtral": lambda: MixtralConfig(**{**_GQA, **_EXPERTS, "num_local_experts": 4, **depth, **overrides}),
        "qwen3_moe": lambda: Qwen3MoeConfig(
            **{**_HEADS, **_EXPERTS, "num_experts": 4, "moe_intermediate_size": 24, **depth, **overrides}
        ),
        "gpt_oss": lambda: GptOssConfig(
            **{**_HEADS, **_EXPERTS, "num_local_experts": 4, "layer_types": kinds[:layers], **depth, **overrides}
        ),
        # norms over all heads or channels, and a matrix more in the attention
        "olmo2": lambda: Olmo2Config(**{**_GQA, **depth, **overrides}),
        "bitnet": lambda: BitNetConfig(**{**_GQA, **depth, **overrides}),
        "doge": lambda: DogeConfig(**{**_HEADS, **depth, **overrides}),
    }
    return made[architecture]()


def model(architecture: str, layers: int = 2, dtype: torch.dtype = torch.float32, **overrides) -> PreTrainedModel:
    """A random model. Weights are larger than a fresh model's, so that blocks really change what flows through them."""
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(config(architecture, layers, **overrides), dtype=dtype).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape).to(dtype))
    return made


class _Linear(nn.Linear):
    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return functional.linear(value.double(), self.weight.double())


class _Embedding(nn.Embedding):
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return functional.embedding(tokens, self.weight.double())


class _Norm(LlamaRMSNorm):
    def forward(self, value: torch.Tensor) -> torch.Tensor:
        square = value.double().square().mean(-1, keepdim=True)
        return self.weight.double() * (value * torch.rsqrt(square + self.variance_epsilon))


def in_double(llama: PreTrainedModel) -> PreTrainedModel:
    """The same model with float32 weights and gradients, and all between them in float64: the order of a sum, and with it
    the processor, decides no bit of what is stored."""
    kinds = {nn.Linear: _Linear, nn.Embedding: _Embedding, LlamaRMSNorm: _Norm}
    for module in llama.modules():
        module.__class__ = kinds.get(type(module), type(module))
    return llama


def save(architecture: str, directory: Path, layers: int = 2, **overrides) -> Path:
    made = model(architecture, layers, **overrides)
    save_model(made.state_dict(), made.config, directory)
    return directory


def batches(count: int = 3, rows: int = 2, length: int = 16, seed: int = 1) -> list[torch.Tensor]:
    """Random tokens; the last batch is shorter, as real ones are."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [rows] * (count - 1) + [max(1, rows - 1)]
    return [torch.randint(3, VOCABULARY, (size, length), generator=generator) for size in sizes]
