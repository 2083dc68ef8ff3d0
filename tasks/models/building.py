"""What builds the model of a config: transformers' own class, or that class changed as the config's own fields say.

A checkpoint of ours may differ from the stock architecture in layers that a transform replaced, or in feed-forward
networks of different widths. Both are said in ``config.json``, so every loader builds the same modules again and no code
travels with a checkpoint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tasks.models.narrow import narrowing
from tasks.models.transform import transform_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def builder(config: PretrainedConfig) -> Any:
    """Builds a config's model by ``from_config`` or ``from_pretrained``.

    A changed class keeps the stock one's name: transformers looks up by it how to convert weights, and nothing of it is
    left in files.
    """
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    transform = transform_of(config)
    changes = [change for change in (transform and transform.apply, narrowing(config)) if change]
    if not changes:
        return AutoModelForCausalLM
    stock = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]

    def initialise(self, config: PretrainedConfig, *args: Any, **kwargs: Any) -> None:
        stock.__init__(self, config, *args, **kwargs)
        for change in changes:
            change(self)

    def from_config(cls, config: PretrainedConfig, **kwargs: Any) -> PreTrainedModel:
        return cls._from_config(config, **kwargs)

    body = {"__init__": initialise, "__module__": stock.__module__, "from_config": classmethod(from_config)}
    return type(stock.__name__, (stock,), body)
