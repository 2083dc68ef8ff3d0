"""What a model costs: parameters and FLOPs, by the formulas the sparse-pretraining papers use.

Per token and forward pass (SPDF, arXiv 2303.10464): 2 FLOPs per live weight of the prunable matrices, 4 * T * d per layer
for attention scores and values (counted in full, not halved for causality) and 2 * d * V for the LM head. Inference costs
one forward pass, training three. A run whose density moves is counted at its mean density, which is what N-bar, the average
of the live parameters over the steps, stands for (The Journey Matters, arXiv 2501.12486).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig

    from tasks.models.build.transform import Transform


@dataclass(frozen=True)
class Shape:
    """The numbers the formulas need. ``prunable`` weights in all, ``active`` of them used by one token (experts);
    ``unpruned`` ones in the matrices beside them that stay dense (the low rank of a doped layer)."""

    parameters: int
    prunable: int
    active: int
    layers: int
    attention_width: float
    hidden: int
    vocabulary: int
    unpruned: int = 0

    def forward_flops(self, length: int, density: float = 1.0) -> float:
        """FLOPs per token of a forward pass over sequences of ``length`` tokens at a density of the prunable weights."""
        attention = 4 * length * self.attention_width * self.layers
        return 2 * (self.active * density + self.unpruned) + attention + 2 * self.hidden * self.vocabulary

    def training_flops(self, tokens: float, length: int, density: float = 1.0) -> float:
        """FLOPs of training on ``tokens`` tokens at a mean ``density``."""
        return 3 * self.forward_flops(length, density) * tokens

    def iso_sparsity(self, dense: Shape, length: int) -> float:
        """The sparsity at which a token costs what it costs in ``dense``: the formula is linear in the density, so no search
        is needed. 1 or more where no mask makes this model as cheap."""
        return 1 - (dense.forward_flops(length) - self.forward_flops(length, 0)) / (2 * self.active)


def shape_of(model: nn.Module) -> Shape:
    """Read off a model, which may live on the meta device."""
    from tasks.models.find.linears import Unpruned, find_linears

    config = model.config.get_text_config()
    prunable = active = 0
    for linear in find_linears(model).values():
        count = 1
        for side in linear.shape:
            count *= side
        experts = linear.shape[0] if len(linear.shape) == 3 else 1
        prunable += count
        active += count * min(getattr(config, "num_experts_per_tok", 1) or 1, experts) // experts
    widths = [_attention_width(layer) for layer in config.per_layer_config]  # they may differ from layer to layer
    return Shape(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        prunable=prunable,
        active=active,
        layers=config.num_hidden_layers,
        attention_width=sum(widths) / len(widths),
        hidden=config.hidden_size,
        vocabulary=config.vocab_size,
        unpruned=sum(module.weight.numel() for module in model.modules() if isinstance(module, Unpruned)),
    )


def _attention_width(layer: PretrainedConfig) -> int:
    """Heads times their width, of one layer's config; 0 where there are none that attend."""
    heads = getattr(layer, "num_attention_heads", None)
    if heads is None:
        return 0
    return heads * (getattr(layer, "head_dim", None) or layer.hidden_size // heads)


def shape_of_config(config: PretrainedConfig) -> Shape:
    """The shape of a model that is not built: nothing is allocated."""
    from tasks.models.build.building import on_meta

    return shape_of(on_meta(config))


def iso_sparsity(dense: PretrainedConfig, transform: Transform, length: int) -> float:
    """The sparsity of the prunable matrices at which a token of the transformed model costs what it costs in the dense one,
    attention and LM head included, which a wide model makes dearer too."""
    sparsity = shape_of_config(transform.resize(dense)).iso_sparsity(shape_of_config(dense), length)
    if sparsity >= 1:
        raise ValueError(
            f"transform {transform.name}: what stays dense at sparsity {transform.sparsity:g} alone costs "
            "more than the dense model; choose a lower sparsity or a larger model"
        )
    return sparsity
