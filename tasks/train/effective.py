"""Forward passes that read a function of a weight instead of the weight: dense storage, sparse use.

The engine keeps and updates the stored weights as ever; while a module runs, what it multiplies with is ``effective``
of them. Only the module's own look-up is changed, so this works on any module, under gradient checkpointing (it runs
again) and under ZeRO-3 (the parameter is whole while its module runs). Where a block runs compiled, its matrices are
swapped around the whole of it: what is compiled sees weights, and never how they come about.

Shapes: O = output features, I = input features, T = tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from tasks.formats.semi_structured import SIDE, sparse_estimate
from tasks.models.find.linears import Linear
from tasks.train.compiled import compiled_around
from tasks.train.recomputed import Recomputed

Stored = Mapping[str, torch.Tensor]  # weights by name, in the layout of the module that owns them
Effective = Callable[[Stored], Stored]  # the weights of a module or block -> those to compute with
Gradients = Sequence[torch.Tensor | None]
Back = Callable[[Gradients, Sequence[torch.Tensor]], Gradients]
Place = tuple[nn.Module, str]  # a module and the key of its parameter


class InPlaceOf(torch.autograd.Function):
    """The ``effective`` weights of a module or block, all at once, in place of its weights. ``back`` makes of their gradients,
    and of what is ``saved``, those of the weights; without it they pass as they are."""

    @staticmethod
    def forward(ctx: Any, back: Back | None, saved: Sequence[torch.Tensor], effective: Sequence[torch.Tensor], *weights):
        ctx.back = back
        ctx.save_for_backward(*saved)
        ctx.set_materialize_grads(False)  # what was not computed with gets no gradient, and takes no step
        return tuple(effective)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None):
        return None, None, None, *(ctx.back(gradients, ctx.saved_tensors) if ctx.back else gradients)


class SparseGradientLinear(torch.autograd.Function):
    """A linear map whose weight gradient comes from a 2:4 estimate of the output's gradient along the tokens.

    Both products run in the gradient's dtype: under autocast that is the lower precision of the forward pass.
    """

    @staticmethod
    def forward(ctx: Any, input_TI: torch.Tensor, weight_OI: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(input_TI, weight_OI)
        return input_TI @ weight_OI.T

    @staticmethod
    def backward(ctx: Any, gradient_TO: torch.Tensor):
        input_TI, weight_OI = ctx.saved_tensors
        padded_TO = functional.pad(gradient_TO, (0, 0, 0, -len(gradient_TO) % SIDE))
        estimate_OT = sparse_estimate(padded_TO.T.contiguous())[:, : len(gradient_TO)]
        to_input_TI = gradient_TO @ weight_OI.to(gradient_TO.dtype)
        return to_input_TI.to(input_TI.dtype), (estimate_OT @ input_TI.to(gradient_TO.dtype)).to(weight_OI.dtype)


def substitute(model: nn.Module, linears: Mapping[str, Linear], effective: Effective, sparse_gradients: bool = False) -> None:
    """From now on ``model`` computes with ``effective`` of these parameters, which stay as they are.

    ``sparse_gradients`` sends them through :class:`SparseGradientLinear`; only plain matrices can.
    """
    swaps: dict[nn.Module, dict[Place, str]] = {}
    for name, linear in linears.items():
        if sparse_gradients and len(linear.shape) != 2:
            raise ValueError(f"unsupported: 2:4 gradient estimates of {name}, a fused stack of experts; set mvue to false")
        path, _, key = name.rpartition(".")
        owner = model.get_submodule(path)
        if sparse_gradients:
            inner: Any = owner
            while isinstance(inner.forward, _Swap):  # what is swapped already stays so
                inner = inner.forward
            inner.forward = _Map(owner, key, linear)
        swaps.setdefault(compiled_around(model, path) or owner, {})[owner, key] = name
    for module, places in swaps.items():
        around = module.forward if isinstance(module.forward, Recomputed) else module  # what runs again is swapped again
        around.forward = _Swap(around.forward, places, effective)


class _Swap:
    """A module's forward pass with some parameters, its own or its children's, replaced for its duration."""

    def __init__(self, forward: Callable[..., Any], places: Mapping[Place, str], effective: Effective) -> None:
        self.forward, self.places, self.effective = forward, places, effective  # which may swap something else in turn
        self.compiled = getattr(forward, "compiled", False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        stored = {name: module._parameters[key] for (module, key), name in self.places.items()}
        try:
            self._set(self.effective(stored))
            return self.forward(*args, **kwargs)
        finally:
            self._set(stored)

    def _set(self, weights: Stored) -> None:
        for (module, key), name in self.places.items():
            module._parameters[key] = weights[name]


class _Map:
    """A linear module's forward pass through :class:`SparseGradientLinear`."""

    def __init__(self, module: nn.Module, key: str, linear: Linear) -> None:
        self.module, self.key, self.linear = module, key, linear

    def __call__(self, value: torch.Tensor) -> torch.Tensor:
        weight = getattr(self.module, self.key)
        output = SparseGradientLinear.apply(value.flatten(0, -2), self.linear.matrix(weight))
        bias = getattr(self.module, "bias", None)
        return (output if bias is None else output + bias).view(*value.shape[:-1], -1)
