"""One member as it lies on the disk: its source, its exports, and what the pipeline says of them in case.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

PACKED = ("_packed", "_scale", "_shape", "_zero_point", "_g_idx")


@dataclass(frozen=True)
class Case:
    home: Path

    @cached_property
    def facts(self) -> dict[str, Any]:
        return json.loads((self.home / "case.json").read_text())

    @property
    def exports(self) -> list[str]:
        return self.facts["exports"]

    @property
    def masked(self) -> dict[str, int]:
        return self.facts["masked"]

    @property
    def tokens(self) -> torch.Tensor:
        return torch.tensor(self.facts["tokens"])

    @property
    def logits(self) -> dict[str, torch.Tensor]:
        return load_file(self.home / "logits.safetensors")

    def directory(self, export: str) -> Path:
        return self.home / "source" if export == "source" else self.home / "exports" / export

    def weights(self, export: str) -> dict[str, torch.Tensor]:
        return read_all(self.directory(export))

    def model(self, export: str, exact: bool = False) -> PreTrainedModel:
        return load(self.directory(export), exact)[0]

    def info(self, export: str) -> dict[str, list[str]]:
        """What loading found missing, unexpected or of another shape."""
        return load(self.directory(export), False)[1]


@lru_cache(8)
def read_all(directory: Path) -> dict[str, torch.Tensor]:
    """The tensors of the files that transformers calls a model's."""
    return {name: value for path in sorted(directory.glob("model*.safetensors")) for name, value in load_file(path).items()}


def by_glob(directory: Path) -> dict[str, list[str]]:
    """The names in every safetensors file of a folder, the way serving engines find them."""
    names = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            names[path.name] = list(file.keys())
    return names


@lru_cache(8)
def load(directory: Path, exact: bool) -> tuple[PreTrainedModel, dict[str, list[str]]]:
    """The model in its own dtype, or, to be ``exact``, in float32; and what loading it found."""
    model, info = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32 if exact else "auto", output_loading_info=True
    )
    for parameter in model.parameters():  # products of unaligned matrices differ in the last bit
        parameter.data = parameter.data.clone()
    return model.eval(), {kind: sorted(map(str, found)) for kind, found in info.items()}


def stem(name: str) -> str:
    """The name of the weight that a packed tensor belongs to."""
    return next((name.removesuffix(suffix) for suffix in PACKED if name.endswith(f"weight{suffix}")), name)


def few(names) -> str:
    """Some names and how many there are; nothing of none."""
    names = sorted(map(str, names))
    return f"{', '.join(names[:2])}{' ...' if len(names) > 2 else ''} ({len(names)})" if names else ""
