"""Load the tensors of modules on the meta device, and drop them again: only one block of a model is in memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def materialise(module: nn.Module, prefix: str, tensors: dict[str, torch.Tensor], device: str) -> None:
    """Give a module these tensors, whose names begin with ``prefix``, in the dtypes it has them in; ``tensors`` is emptied."""
    wanted, state = module.state_dict(), {}
    while tensors:
        name, tensor = tensors.popitem()
        state[name[len(prefix) :]] = tensor.to(device, non_blocking=True).to(wanted[name[len(prefix) :]].dtype)
    module.load_state_dict(state, strict=False, assign=True)


def rebuild_buffers(model: PreTrainedModel, modules: Iterable[nn.Module], device: str) -> None:
    """Buffers no checkpoint holds (rotary frequencies) get their values the way ``from_pretrained`` gives them: from the
    innermost model around each module."""
    owners = owners_of(model)
    for module in modules:
        for name in module._non_persistent_buffers_set:
            module._buffers[name] = torch.empty_like(module._buffers[name], device=device)
        if module._non_persistent_buffers_set:
            owners[module]._init_weights(module)


def owners_of(model: PreTrainedModel) -> dict[nn.Module, PreTrainedModel]:
    """By module the innermost model around it: each knows how its own modules are initialised."""
    from transformers import PreTrainedModel

    owners: dict[nn.Module, PreTrainedModel] = {}
    for inner in (module for module in model.modules() if isinstance(module, PreTrainedModel)):  # from the outermost on
        owners |= dict.fromkeys(inner.modules(), inner)
    return owners


def tie(model: PreTrainedModel) -> None:
    """Give weights that are stored under another's name alone, as a head under that of the embeddings, that other's values."""
    for name, other in model.all_tied_weights_keys.items():
        module, _, leaf = name.rpartition(".")
        if model.get_parameter(name).is_meta:
            model.get_submodule(module)._parameters[leaf] = model.get_parameter(other)


def to_meta(module: nn.Module) -> None:
    """Drop a module's own tensors, keep their shapes."""
    for name, parameter in module._parameters.items():
        if parameter is not None:
            module._parameters[name] = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = buffer.to("meta")
