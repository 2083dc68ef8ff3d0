"""The layers that take the place of one linear layer in a transformed model, and how they start.

A layer is built from the one it replaces: its bias, its type and place, and the spread of its weights, so that outputs
start at the dense layer's mean square, whatever initialisation the architecture has. On the meta device nothing starts.
That is before masks: a mask drawn at initialisation takes its share of the mean square, as it does in a dense layer.

Names: U, V = the factors of a product of two matrices, theta = a matrix of the dense layer's shape.
Shapes: B = batch, T = tokens, I = input features, O = output features.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from tasks.models.find.linears import Unpruned

ACTIVATIONS = {"relu": functional.relu, "identity": lambda value: value}
# Of a normal variable of variance 1 that went through the activation: mean, and mean square.
_MOMENTS = {"relu": (1 / math.sqrt(2 * math.pi), 0.5), "identity": (0.0, 1.0)}


class Parallel(nn.Sequential):
    """sum_j activation(theta_j z) + bias. Branches are alike, so the sum's mean square is k (m2 + (k - 1) m1^2) times one's."""

    def __init__(self, layer: nn.Module, outputs: int, inputs: int, branches: int, activation: str) -> None:
        super().__init__(*(_linear(layer, outputs, inputs) for _ in range(branches)))
        self.activation, self.bias = activation, layer.bias
        mean, square = _MOMENTS[activation]
        for branch in self:
            _spread(branch, _std(layer) / math.sqrt(branches * (square + (branches - 1) * mean**2)))

    def forward(self, value_BTI: torch.Tensor) -> torch.Tensor:
        activation = ACTIVATIONS[self.activation]
        total_BTO = sum(activation(branch(value_BTI)) for branch in self)
        return total_BTO if self.bias is None else total_BTO + self.bias


class Factorized(nn.Module):
    """V activation(U z) + bias. U spreads as the dense layer did; V is scaled so that the output has its mean square."""

    def __init__(self, layer: nn.Module, outputs: int, inputs: int, rank: int, activation: str) -> None:
        super().__init__()
        self.u, self.v = _linear(layer, rank, inputs), _linear(layer, outputs, rank)
        self.activation, self.v.bias = activation, layer.bias
        _spread(self.u, _std(layer))
        _spread(self.v, 1 / math.sqrt(rank * _MOMENTS[activation][1]))

    def forward(self, value_BTI: torch.Tensor) -> torch.Tensor:
        return self.v(ACTIVATIONS[self.activation](self.u(value_BTI)))


class Doped(nn.Module):
    """V U z + theta z + bias. ``theta`` is the dense layer, kept as it started; U and V are never pruned and start with a
    ``share`` of its mean square: what a mask of that sparsity takes from theta."""

    def __init__(self, layer: nn.Module, outputs: int, inputs: int, rank: int, share: float) -> None:
        super().__init__()
        self.theta = layer
        self.u = Unpruned(_linear(layer, rank, inputs).weight.data)
        self.v = Unpruned(_linear(layer, outputs, rank).weight.data)
        _spread(self.u, _std(layer))
        _spread(self.v, math.sqrt(share / rank))

    def forward(self, value_BTI: torch.Tensor) -> torch.Tensor:
        return self.theta(value_BTI) + self.v(self.u(value_BTI))


def _linear(like: nn.Module, outputs: int, inputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False, device=like.weight.device, dtype=like.weight.dtype)


def _std(layer: nn.Module) -> float:
    return 0.0 if layer.weight.is_meta else float(layer.weight.detach().float().std(correction=0))


def _spread(layer: nn.Module, std: float) -> None:
    if not layer.weight.is_meta:
        nn.init.normal_(layer.weight, std=std)
