"""What can be packed and loaded again is told without weights, and the answer is that of the export itself."""

import pytest

from tasks.models.build.building import on_meta
from tasks.models.files.packable import require_packable
from tasks.models.find.linears import find_linears
from tests.tasks import models_zoo as zoo


@pytest.mark.parametrize("architecture", ["llama", "opt", "qwen3", "gemma", "gemma3", "olmo2", "bitnet"])
def test_what_the_export_writes_is_let_through_and_left_as_it_was(architecture):
    model = on_meta(zoo.config(architecture))
    before = {name: (value.shape, value.dtype) for name, value in model.state_dict().items()}
    require_packable(model, find_linears(model))
    assert {name: (value.shape, value.dtype) for name, value in model.state_dict().items()} == before
    assert list(model.state_dict()) == list(before)


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        ("gpt2", "transformer.h.0.attn.c_attn.weight is a transposed Conv1D matrix"),
        ("mixtral", "model.layers.0.mlp.experts.gate_up_proj is a fused stack of experts"),
        ("gpt_oss", "model.layers.0.mlp.experts.gate_up_proj is a fused stack of experts"),
    ],
)
def test_another_storage_is_named_with_its_matrix(architecture, kind):
    model = on_meta(zoo.config(architecture))
    with pytest.raises(ValueError, match=f"packs nn.Linear only, and {kind}$"):
        require_packable(model, find_linears(model))


def test_a_model_whose_own_code_trips_over_packed_weights_is_refused_and_left_as_it_was():
    from transformers import FalconConfig

    model = on_meta(FalconConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(ValueError, match="its initialisation of transformer.h.0.self_attention.query_key_value finds no"):
        require_packable(model, find_linears(model))
    assert model.transformer.h[0].self_attention.query_key_value.weight.shape == (64, 32)  # multi-query
