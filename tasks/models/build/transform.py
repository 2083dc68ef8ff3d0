"""A transform makes a model bigger and sparser at the FLOPs of the dense one (Sparse-IFT, arXiv 2303.11525).

What it makes is still one of transformers' models. Some take other sizes, in the config; others replace matrices of the
decoder blocks, by the surgery ``transform``.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import TYPE_CHECKING

from pydantic import Field

from tasks.methods import Method, build
from tasks.models.build.surgery import Surgery, add_surgery

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel


class Transform(Method):
    """Root of the transforms. Sizes are whole numbers, so the sparsity at which the model costs what the dense one costs is
    another than ``sparsity``, near it: :func:`tasks.models.accounting.iso_sparsity`. At 0 only factorized replaces anything."""

    sparsity: float = Field(0.75, ge=0, lt=1)
    """Sparsity that the sizes are set for: the larger model at this sparsity costs about what the architecture costs dense."""

    @property
    def replaces(self) -> bool:
        """Whether it replaces modules, and not sizes alone."""
        return type(self).replace is not Transform.replace

    def resize(self, config: PretrainedConfig) -> PretrainedConfig:
        """The config of the transformed model; the one given stays as it is."""
        resized = deepcopy(config)
        add_surgery(resized, build("surgeries", {"transform": {"by": self}}, Surgery))
        return resized

    def replace(self, layer: nn.Module, outputs: int, inputs: int) -> nn.Module:
        """What takes the place of one linear layer of a decoder block; the layer itself where nothing changes."""
        raise NotImplementedError

    def apply(self, model: PreTrainedModel) -> None:
        """Replace the layers of a freshly built model."""
        from tasks.models.find.linears import find_linears

        for name, linear in find_linears(model).items():
            if len(linear.shape) == 3:
                raise ValueError(
                    f"unsupported: {self.name} replaces single matrices, and {name} is a fused stack of experts; choose wide"
                )
            path, _, child = name.removesuffix(".weight").rpartition(".")
            owner = model.get_submodule(path)
            setattr(owner, child, self.replace(getattr(owner, child), *linear.shape))
            # GPT-2 starts a layer from the module that owns it, and would again when a checkpoint is loaded.
            owner._is_hf_initialized = not owner._non_persistent_buffers_set


def enlarged(config: PretrainedConfig, sizes: Mapping[str, int]) -> PretrainedConfig:
    """A config of other sizes, checked: every prunable matrix must have become larger on both sides."""
    from tasks.models.build.building import on_meta
    from tasks.models.find.linears import find_linears

    names = {config.attribute_map.get(name, name): size for name, size in sizes.items()}
    larger = type(config).from_dict({**config.to_dict(), **names})
    if sizes:
        before, after = find_linears(on_meta(config)), find_linears(on_meta(larger))
        for name, linear in before.items():
            if any(new <= old for old, new in zip(linear.shape[-2:], after[name].shape[-2:], strict=True)):
                raise ValueError(
                    f"unsupported: {config.model_type} does not take all its widths from {', '.join(names)}; "
                    f"{name} stays {list(linear.shape)}"
                )
    return larger
