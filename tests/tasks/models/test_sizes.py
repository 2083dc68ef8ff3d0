"""Sizes that transformers itself proposes are never refused, and values that are no sizes are left to it."""

from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tasks.models.sizes import check_sizes
from tasks.models.source import Architecture


def test_the_defaults_of_every_model_type_pass_given_or_not():
    for model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        if model_type == "gemma4_assistant":  # its defaults make no config, says transformers
            continue
        known = AutoConfig.for_model(model_type)
        check_sizes(model_type, {})
        check_sizes(model_type, {name: value for name, value in known.to_dict().items() if isinstance(value, int)})


def test_tokens_and_switches_are_no_sizes():
    Architecture(model_type="llama", pad_token_id=-1, attention_bias=True, use_cache=False, pretraining_tp=0).config(300)


def test_an_alias_is_the_same_size():
    assert Architecture(model_type="gpt2", hidden_size=64, num_attention_heads=2).config().n_embd == 64
