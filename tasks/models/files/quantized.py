"""Quantized checkpoints, read through compressed-tensors: each weight as a loaded model would have it."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path

import torch

from tasks.models.files.checkpoint import skeleton
from tasks.models.files.kv_cache import stored_scales
from tasks.models.files.schemes import compressor_of, stored_schemes
from tasks.models.files.shards import TensorFiles


class StoredWeights:
    """The weights of a model directory as a loaded model would have them, one at a time, quantized or not."""

    def __init__(self, directory: Path) -> None:
        self.files = TensorFiles(directory)
        self.skeleton = skeleton(directory)
        quantization = json.loads((directory / "config.json").read_text()).get("quantization_config")
        self.schemes = stored_schemes(quantization, self.skeleton)
        self.cache_scales = stored_scales(quantization, self.skeleton)  # of keys and values, which are no weights

    @cached_property
    def _parts(self) -> dict[str, dict[str, str]]:
        """What each weight is stored as: the tensors' own names in the file by their last parts, by the weight's name."""
        parts: dict[str, dict[str, str]] = {}
        for name in self.files:
            module, dot, leaf = name.rpartition(".")
            scheme = self.schemes.get(module)
            beside = scheme is not None and leaf in (*compressor_of(scheme).compression_param_names(scheme), "input_scale")
            parts.setdefault(f"{module}.weight" if beside else f"{module}{dot}{leaf}", {})[leaf] = name
        return parts

    def names(self) -> set[str]:
        """What is stored, by the names it would have if nothing were quantized."""
        return set(self._parts)

    def __contains__(self, name: str) -> bool:
        return name in self._parts

    def read(self, name: str) -> torch.Tensor:
        scheme = self.schemes.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        stored = self.files.read(self._parts[name].values())
        if scheme is None:
            return stored[name]
        local = {leaf: stored[other] for leaf, other in self._parts[name].items()}
        return compressor_of(scheme).decompress(local, scheme)["weight"]
