"""Tiny random models of every architecture the walker promises to treat, saved the way the pipeline saves."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from tasks.formats.mask import Mask
from tasks.formats.pattern import parse_pattern
from tasks.models.build.sums import Sums
from tasks.models.files.checkpoint import save_model
from tasks.models.find.linears import find_linears
from tests.zoo.architectures import VOCABULARY, config

ARCHITECTURES = ["llama", "gpt2", "opt", "qwen3", "gemma", "gemma3", "mixtral", "qwen3_moe", "gpt_oss"]


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


class _Sums(Sums):
    def forward(self, value: torch.Tensor) -> torch.Tensor:
        sums = value.double().unflatten(-1, (-1, self.group)).sum(-1)
        return functional.linear(sums, self.weight.double())


def in_double(llama: PreTrainedModel) -> PreTrainedModel:
    """The same model with float32 weights and gradients, and all between them in float64: the order of a sum, and with it
    the processor, decides no bit of what is stored."""
    kinds = {nn.Linear: _Linear, nn.Embedding: _Embedding, LlamaRMSNorm: _Norm, Sums: _Sums}
    for module in llama.modules():
        module.__class__ = kinds.get(type(module), type(module))
    return llama


def save(architecture: str, directory: Path, layers: int = 2, **overrides) -> Path:
    made = model(architecture, layers, **overrides)
    save_model(made.state_dict(), made.config, directory)
    return directory


def prune(made: PreTrainedModel, pattern: str) -> dict[str, Mask]:
    """Half of every matrix becomes zero, the smallest weights that ``pattern`` lets go; the masks."""
    masks = {}
    for name, linear in find_linears(made).items():
        matrix = linear.matrix(made.get_parameter(name).data)
        parts = matrix.reshape(-1, *matrix.shape[-2:])
        keep = torch.stack([parse_pattern(pattern).keep(part.abs(), 0.5) for part in parts]).reshape(matrix.shape)
        matrix.mul_(keep)
        masks[name] = Mask.of(keep, pattern, 0.5)
    return masks


def batches(count: int = 3, rows: int = 2, length: int = 16, seed: int = 1) -> list[torch.Tensor]:
    """Random tokens; the last batch is shorter, as real ones are."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [rows] * (count - 1) + [max(1, rows - 1)]
    return [torch.randint(3, VOCABULARY, (size, length), generator=generator) for size in sizes]
