"""The layer of SLoRB: a matrix that multiplies sums of consecutive inputs, beside the sparse one it makes up for.

Shapes: B = batch, T = tokens, I = input features, G = groups of them, O = output features.
"""

from __future__ import annotations

import torch
from torch import nn

from tasks.models.find.linears import Linear, Unpruned

NAME = "slorb"  # what it is called in the module whose outputs it adds to


class Sums(Unpruned):
    """``weight`` [O, G] times the sums of every ``group`` inputs. It is the product of two matrices, of which the one that
    adds up is not stored, and costs a ``group``-th of what the dense matrix costs."""

    def __init__(self, weight_OG: torch.Tensor, group: int) -> None:
        super().__init__(weight_OG)
        self.group = group

    def forward(self, value_BTI: torch.Tensor) -> torch.Tensor:
        return super().forward(value_BTI.unflatten(-1, (-1, self.group)).sum(-1))


def add_sums(model: nn.Module, linear: Linear, group: int) -> None:
    """Beside one linear of ``model``, from nothing on. Raises ValueError where it cannot be."""
    path = linear.name.rpartition(".")[0]
    layer = model.get_submodule(path)
    if hasattr(layer, NAME):
        raise ValueError(f"{linear.name} has a branch of sums (slorb) already; recover with masked, which trains it on")
    outputs, inputs = linear.shape
    layer.add_module(NAME, Sums(model.get_parameter(linear.name).data.new_zeros(outputs, inputs // group), group))
    layer.register_forward_hook(_added)


def place_of(linear: Linear) -> str:
    """The name of the parameter beside a linear."""
    return f"{linear.name.rpartition('.')[0]}.{NAME}.weight"


def group_means(lost_OI: torch.Tensor, group: int) -> torch.Tensor:
    """[O, G]: the weight whose product is nearest to that with ``lost_OI`` where inputs are alike and know nothing of each
    other."""
    return lost_OI.unflatten(-1, (-1, group)).mean(-1)


def spread(weight_OG: torch.Tensor, group: int) -> torch.Tensor:
    """[O, I]: the dense matrix that computes the same."""
    return weight_OG.repeat_interleave(group, 1)


def _added(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output_BTO: torch.Tensor) -> torch.Tensor:
    return output_BTO + layer.get_submodule(NAME)(inputs[0])
