"""What is read from transformers' source is what transformers says; what the walker is said not to understand it refuses."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tasks.models.files import known
from tasks.models.files.intake import UNSUPPORTED, check_type
from tasks.models.find.linears import find_linears
from tasks.models.source import WIDTHS, Architecture

COMMON = ("llama", "gpt2", "opt", "qwen3", "gemma3_text", "mixtral", "gpt_neox", "falcon")
FACTS = (*WIDTHS, "n_embd", "n_positions", "max_position_embeddings", "vocab_size")
UNTOLD = {"gpt-sw3"}  # an alias that transformers makes while it is imported
BUILT_WITH_LAYERS = {"gemma3n_text": "intermediate_size"}  # one number in the source, one a layer in the config


def config(model_type: str) -> PretrainedConfig:
    made = AutoConfig.for_model(model_type)
    made.allow_global_per_layer_attribute_access = True
    return made


def agrees(model_type: str) -> None:
    made = config(model_type)
    real = {name for name in dir(made) if not name.startswith("_") and name != "push_to_hub"}
    assert real <= known.config_names(model_type), model_type
    defaults = known.config_defaults(model_type)
    for name in FACTS:
        if defaults.get(name) is not None and BUILT_WITH_LAYERS.get(model_type) != name:
            assert getattr(made, name) == defaults[name], (model_type, name)
    assert known.aliases(model_type) == type(made).attribute_map


def test_the_causal_models_are_those_of_transformers():
    assert known.causal_models() == dict(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


@pytest.mark.parametrize("model_type", COMMON)
def test_fields_defaults_and_aliases_of_a_config_are_those_of_transformers(model_type):
    agrees(model_type)


@pytest.mark.slow
def test_fields_defaults_and_aliases_of_every_config_are_those_of_transformers():
    for model_type in known.causal_models().keys() - UNTOLD - {"gemma4_assistant"}:  # which has no default config
        agrees(model_type)


@pytest.mark.parametrize(
    ("model_type", "overrides"),
    [
        ("llama", {"hidden_size": 96, "intermediate_size": 100, "max_position_embeddings": 77}),
        ("gpt2", {"hidden_size": 96, "n_positions": 77}),
        ("opt", {}),
    ],
)
def test_a_plain_config_tells_what_the_real_one_does(model_type, overrides):
    made = Architecture(model_type=model_type, **overrides)
    real = made.config().to_dict()
    plain: dict[str, Any] = made.plain
    assert {name: plain[name] for name in FACTS if plain.get(name) is not None} == {
        name: real[name] for name in FACTS if real.get(name) is not None
    }


@pytest.mark.parametrize("model_type", UNSUPPORTED)
def test_a_type_said_to_be_unsupported_is_refused_by_name_and_by_structure(model_type):
    with pytest.raises(ValueError, match=f"unsupported: model type {model_type} has "):
        check_type(model_type)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_config(config(model_type))
    with pytest.raises(ValueError, match="^unsupported: "):
        find_linears(model)
