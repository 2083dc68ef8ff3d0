"""A tiny model for the contracts of the shelves: odd widths, or widths that groups divide, on anisotropic inputs."""

import pytest
import torch

from tests.tasks import models_zoo as zoo


@pytest.fixture(scope="package")
def tiny():
    """Build a fresh one-block llama. Its norms stretch some features a hundredfold, and correlate them all."""

    def build(odd=False, dead_feature=False):
        sizes = {"hidden_size": 22, "intermediate_size": 37, "num_attention_heads": 1, "num_key_value_heads": 1}
        model = zoo.model("llama", layers=1, **(sizes if odd else {}))
        width = model.config.hidden_size
        with torch.no_grad():
            mixing = torch.randn(width, width, generator=torch.Generator().manual_seed(2))
            model.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight @ mixing)
            for norm in (model.model.layers[0].input_layernorm, model.model.layers[0].post_attention_layernorm):
                norm.weight.copy_(torch.logspace(-1, 1, width))
                if dead_feature:
                    norm.weight[3] = 0
        return model

    return build
