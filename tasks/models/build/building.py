"""Build the model of a config: transformers' own class, or that class changed by the surgeries the config lists."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from tasks.models.build.surgery import Surgery, add_surgery, surgeries_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def builder(config: PretrainedConfig) -> Any:
    """Builds a config's model by ``from_config`` or ``from_pretrained``.

    A changed class keeps the stock one's name: transformers looks up by it how to convert weights, and nothing of it is
    left in files.
    """
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    surgeries = surgeries_of(config)
    if not surgeries:
        return AutoModelForCausalLM
    stock = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]

    def initialise(self, config: PretrainedConfig, *args: Any, **kwargs: Any) -> None:
        stock.__init__(self, config, *args, **kwargs)
        for surgery in surgeries:
            surgery.apply(self)

    def from_config(cls, config: PretrainedConfig, **kwargs: Any) -> PreTrainedModel:
        return cls._from_config(config, **kwargs)

    body = {"__init__": initialise, "__module__": stock.__module__, "from_config": classmethod(from_config)}
    return type(stock.__name__, (stock,), body)


def operate(model: PreTrainedModel, surgery: Surgery) -> None:
    """Change a model that is there already, and its config so that it is built the same way from now on."""
    surgery.apply(model)
    add_surgery(model.config, surgery)


def on_meta(config: PretrainedConfig) -> PreTrainedModel:
    """The modules of a config's model, without memory."""
    with torch.device("meta"):
        return builder(config).from_config(config)


def hollow(model: PreTrainedModel) -> PreTrainedModel:
    """A model from the meta device on the CPU: parameters have their shapes and no memory, buffers that were not there yet
    have memory and no values. Optimizers and regimes take it for a model; an engine that cuts it up gives each rank its
    pieces of the weights."""
    from torch import nn

    shells: dict[int, nn.Parameter] = {}  # a tied one is one
    for module in model.modules():
        for key, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in shells:
                nothing = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
                shells[id(parameter)] = nn.Parameter(nothing, parameter.requires_grad)
            module._parameters[key] = None if parameter is None else shells[id(parameter)]
        for key, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[key] = torch.zeros_like(buffer, device="cpu")
    return model


def learn_padding(model: PreTrainedModel) -> None:
    """Let the token that pads elsewhere, often the end of text, learn like any other: nothing is padded here."""
    from torch import nn

    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.padding_idx = None
