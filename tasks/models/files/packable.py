"""Whether a quantized model of one kind can be packed by compressed-tensors and loaded again, told from its modules alone.

Asked of a model without memory, so that the answer comes before any block is solved. What is refused here is what no
reader would take: another storage than one matrix a module, and models whose own code trips over packed weights.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

import torch
from torch import nn

from tasks.models.build.surgery import surgeries_of
from tasks.models.find.linears import find_linears

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def require_packable(model: PreTrainedModel, names: Collection[str]) -> None:
    """Raise ValueError, in one line that names the matrix and its kind, where one of ``names`` cannot be packed; ``model``
    is on the meta device."""
    linears = {name: linear for name, linear in find_linears(model).items() if name in names}
    for name, linear in linears.items():
        if len(linear.shape) != 2 or linear.transposed:
            kind = "a fused stack of experts" if len(linear.shape) != 2 else "a transposed Conv1D matrix"
            raise ValueError(f"unsupported: compressed-tensors packs nn.Linear only, and {name} is {kind}")
    if reasons := [surgery.unpacked for surgery in surgeries_of(model.config) if surgery.unpacked]:
        raise ValueError(f"unsupported: {reasons[0]}")
    _require_loadable(model, [name.removesuffix(".weight") for name in linears])


def _require_loadable(model: PreTrainedModel, packed: Iterable[str]) -> None:
    """transformers initialises a model before it reads a checkpoint. The code with which some kinds do so looks for weights
    by name (Falcon, GPT-BigCode and nanochat in 5.23), where packed ones are not: no one could load the export."""
    weights = {name: model.get_submodule(name)._parameters.pop("weight") for name in packed}
    try:
        _initialise(model, model, "")
    except AttributeError as error:
        kind = type(model).__name__
        raise ValueError(f"unsupported: transformers cannot load a {kind} whose matrices are packed: {error}") from error
    finally:
        for name, weight in weights.items():
            parameters = model.get_submodule(name)._parameters
            others = {key: parameters.pop(key) for key in list(parameters)}
            parameters.update({"weight": weight, **others})  # in the order they were


@torch.no_grad()
def _initialise(module: nn.Module, owner: PreTrainedModel, name: str) -> None:
    """What ``from_pretrained`` does to what it has not read: children first, each by the model nearest around it."""
    from transformers import PreTrainedModel

    owner = module if isinstance(module, PreTrainedModel) else owner
    for key, child in module.named_children():
        _initialise(child, owner, f"{name}.{key}".removeprefix("."))
    try:
        owner._init_weights(module)
    except AttributeError as error:
        raise AttributeError(f"its initialisation of {name} finds no weights there") from error
