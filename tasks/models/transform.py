"""A transform makes a model bigger and sparser at the FLOPs of the dense one (Sparse-IFT, arXiv 2303.11525).

What it makes is still one of transformers' models: only matrices of the decoder blocks are replaced, and the config says
by which transform, in a field of its own. So every loader here builds the same modules again from ``config.json``, and no
code travels with a checkpoint. Plain transformers ignores the field and cannot load what was replaced.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from pydantic import Field

from tasks.methods import Method, build, dump

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

FIELD = "winnow_transform"


class Transform(Method):
    """Root of the transforms. ``sparsity`` sets the sizes. Sizes are whole numbers, so the sparsity at which the model
    costs what the dense one costs is another, near it: :func:`iso_sparsity`. At 0 only factorized replaces anything."""

    sparsity: float = Field(0.75, ge=0, lt=1)

    def resize(self, config: PretrainedConfig) -> PretrainedConfig:
        """The config of the transformed model; the one given stays as it is."""
        resized = deepcopy(config)
        setattr(resized, FIELD, dump(self))
        return resized

    def replace(self, layer: nn.Module, outputs: int, inputs: int) -> nn.Module:
        """What takes the place of one linear layer of a decoder block; the layer itself where nothing changes."""
        raise NotImplementedError

    def apply(self, model: PreTrainedModel) -> None:
        """Replace the layers of a freshly built model."""
        from tasks.models.linears import find_linears

        for name, linear in find_linears(model).items():
            if len(linear.shape) == 3:
                raise ValueError(f"unsupported: {self.name} replaces single matrices, and {name} is a fused stack of "
                                 "experts; choose wide")  # fmt: skip
            path, _, child = name.removesuffix(".weight").rpartition(".")
            owner = model.get_submodule(path)
            setattr(owner, child, self.replace(getattr(owner, child), *linear.shape))
            # GPT-2 starts a layer from the module that owns it, and would again when a checkpoint is loaded.
            owner._is_hf_initialized = not owner._non_persistent_buffers_set


def transform_of(config: PretrainedConfig | Mapping[str, Any]) -> Transform | None:
    """The transform that a config, or the content of a ``config.json``, carries."""
    spec = config.get(FIELD) if isinstance(config, Mapping) else getattr(config, FIELD, None)
    return build("transforms", spec) if spec else None


def iso_sparsity(dense: PretrainedConfig, transform: Transform, length: int) -> float:
    """The sparsity of the prunable matrices at which a token of the transformed model costs what it costs in the dense one,
    attention and LM head included, which a wide model makes dearer too."""
    from tasks.models.accounting import shape_of_config

    sparsity = shape_of_config(transform.resize(dense)).iso_sparsity(shape_of_config(dense), length)
    if sparsity >= 1:
        raise ValueError(f"transform {transform.name}: what stays dense at sparsity {transform.sparsity:g} alone costs "
                         "more than the dense model; choose a lower sparsity or a larger model")  # fmt: skip
    return sparsity


def enlarged(config: PretrainedConfig, sizes: Mapping[str, int]) -> PretrainedConfig:
    """A config of other sizes, checked: every prunable matrix must have become larger on both sides."""
    from tasks.models.accounting import on_meta
    from tasks.models.linears import find_linears

    names = {config.attribute_map.get(name, name): size for name, size in sizes.items()}
    larger = type(config).from_dict({**config.to_dict(), **names})
    if sizes:
        before, after = find_linears(on_meta(config)), find_linears(on_meta(larger))
        for name, linear in before.items():
            if any(new <= old for old, new in zip(linear.shape[-2:], after[name].shape[-2:], strict=True)):
                raise ValueError(f"unsupported: {config.model_type} does not take all its widths from {', '.join(names)}; "
                                 f"{name} stays {list(linear.shape)}")  # fmt: skip
    return larger
