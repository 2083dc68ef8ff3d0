"""Wide at 75 % doubles every width; at 50 % a GPT-3 Small becomes the paper's 1092 wide."""

from __future__ import annotations

import pytest

from tasks.methods import build
from tasks.models.accounting import iso_sparsity, shape_of_config
from tasks.models.build.surgery import FIELD
from tests.tasks import models_zoo as zoo


def wide(sparsity, architecture="llama", **overrides):
    return build("transforms", {"wide": {"sparsity": sparsity}}).resize(zoo.config(architecture, **overrides))


def test_at_three_quarters_every_width_doubles_and_heads_stay():
    config = wide(0.75)
    assert (config.hidden_size, config.intermediate_size, config.head_dim) == (64, 96, 16)
    assert (config.num_attention_heads, config.num_key_value_heads, config.num_hidden_layers) == (4, 2, 2)


@pytest.mark.parametrize(("sparsity", "hidden"), [(0.5, 1092), (0.75, 1536)])
def test_gpt3_small_gets_the_papers_widths(sparsity, hidden):
    config = wide(sparsity, "gpt2", layers=1, n_embd=768, n_head=12, n_inner=3072)
    assert (config.n_embd, config.n_inner) == (hidden, 4 * hidden)


def test_rotary_heads_stay_even_and_the_ffn_a_multiple_of_eight():
    """32 / sqrt(0.1) = 101.2, nearest multiple of 2 * 4 heads: 104. FFN: 48 * 3.25 = 156, rounded up to 160."""
    config = wide(0.9)
    assert (config.hidden_size, config.head_dim, config.intermediate_size) == (104, 26, 160)


def test_heads_wider_than_their_share_widen_too():
    assert wide(0.75, "qwen3", head_dim=16).head_dim == 32


def test_the_matrices_pay_for_the_wider_head_and_attention():
    """Dense: 2 layers of 7 680 weights; wide: four times that. Sequences of 16, vocabulary 64, widths 32 and 64.

    Attention and head cost 2 * 4 * 16 * 32 + 2 * 32 * 64 = 8 192 FLOPs dense and twice that wide, so the matrices may cost
    2 * 15 360 - 8 192 = 22 528 of the 122 880 they would cost dense.
    """
    config, transform = zoo.config("llama"), build("transforms", {"wide": {"sparsity": 0.75}})
    assert shape_of_config(config).active == 2 * 7_680
    assert iso_sparsity(config, transform, 16) == pytest.approx(1 - 22_528 / 122_880)


def test_an_ordinary_model_comes_out():
    assert not hasattr(wide(0.75), FIELD)


def test_where_embeddings_alone_cost_more_than_the_dense_model_it_is_refused():
    config = zoo.config("llama", layers=1, vocab_size=5_000)
    with pytest.raises(ValueError, match="transform wide: what stays dense at sparsity 0.75 alone costs more than"):
        iso_sparsity(config, build("transforms", "wide"), 16)
