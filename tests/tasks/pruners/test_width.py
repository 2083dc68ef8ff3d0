"""Width: what goes is what is shortest, and a model without it is the model in which it is silent."""

from __future__ import annotations

import json

import pytest
import torch

from tasks.calibrate.whole import Whole
from tasks.methods import build
from tasks.models.files.checkpoint import load_model, skeleton
from tasks.models.files.recut import axes_of
from tests.contracts.test_resizers import BATCHES, shrunk
from tests.tasks import models_zoo as zoo


def cut_of(model, sparsity=0.5, **fields):
    return build("pruners", {"width": fields}).cut(Whole(model, BATCHES), sparsity)


def logits(model):
    with torch.no_grad():
        return model(zoo.batches(seed=5)[0], use_cache=False).logits


@pytest.mark.parametrize(
    ("architecture", "axis"),
    [(name, axis) for name in ("llama", "qwen3", "gemma") for axis in ("channels", "groups")] + [("opt", "channels")],
)
def test_the_smaller_models_logits_are_those_of_the_whole_one_with_the_rest_silent(architecture, axis, tmp_path):
    source = zoo.save(architecture, tmp_path / "in")
    shrunk(source, tmp_path / "out", "width", 0.5, {"axes": [axis]})
    whole = load_model(source)
    cut = cut_of(load_model(source), axes=[axis])
    parts = Whole(whole, [])
    for index, (attention, network) in enumerate(zip(parts.attentions(), parts.networks(), strict=True)):
        name = network.down if axis == "channels" else attention.output
        weight = whole.get_parameter(name)
        kept = cut.channels[index] if axis == "channels" else cut.groups[index]
        silent = torch.ones(network.width if axis == "channels" else min(attention.rows.values()), dtype=torch.bool)
        silent[kept] = False
        weight.data[:, silent.repeat_interleave(weight.shape[1] // len(silent))] = 0
    torch.testing.assert_close(logits(load_model(tmp_path / "out")), logits(whole), rtol=1e-4, atol=1e-4)


def test_hidden_features_are_the_same_everywhere_and_every_tensor_follows(tmp_path):
    source = zoo.save("llama", tmp_path / "in", tie_word_embeddings=True)
    shrunk(source, tmp_path / "out", "width", 0.25, {"axes": ["hidden"], "multiple": 8})
    before, after = load_model(source), load_model(tmp_path / "out")
    cut = cut_of(load_model(source), 0.25, axes=["hidden"], multiple=8)
    assert after.config.hidden_size == 24 and after.config.head_dim == 8 and after.config.num_attention_heads == 4
    old, new, kept = before.state_dict(), after.state_dict(), cut.hidden
    assert new["model.embed_tokens.weight"].equal(old["model.embed_tokens.weight"][:, kept])
    assert new["model.norm.weight"].equal(old["model.norm.weight"][kept])
    block = "model.layers.1"
    assert new[f"{block}.self_attn.q_proj.weight"].equal(old[f"{block}.self_attn.q_proj.weight"][:, kept])
    assert new[f"{block}.self_attn.o_proj.weight"].equal(old[f"{block}.self_attn.o_proj.weight"][kept])
    assert new[f"{block}.mlp.down_proj.weight"].equal(old[f"{block}.mlp.down_proj.weight"][kept])
    assert new[f"{block}.input_layernorm.weight"].equal(old[f"{block}.input_layernorm.weight"][kept])


def test_a_square_attention_is_cut_on_the_side_of_the_hidden_states():
    """Queries and outputs are as wide as they read: which side is which is told by what they are, not by their size."""
    model = zoo.model("llama", num_key_value_heads=4)
    axes = axes_of(model, cut_of(model, 0.25, axes=["hidden"]))
    sides = {name.split(".")[-2]: axis for name, ((axis, _),) in axes.items() if ".layers.0." in name}
    reading = dict.fromkeys(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"), 1)
    assert sides == reading | dict.fromkeys(("o_proj", "down_proj", "input_layernorm", "post_attention_layernorm"), 0)


def test_all_at_once_with_the_sizes_in_the_config(tmp_path):
    source = zoo.save("qwen3", tmp_path / "in")
    shrunk(source, tmp_path / "out", "width", 0.5, {"axes": ["channels", "groups", "hidden"]})
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    sizes = ("intermediate_size", "num_attention_heads", "num_key_value_heads", "hidden_size", "head_dim")
    assert [config[name] for name in sizes] == [24, 2, 1, 16, 8]


def test_the_longest_stay_by_hand():
    """A channel that nothing comes through is the first to go; of a group both its heads count."""
    model = zoo.model("llama", layers=1)
    block = model.model.layers[0]
    block.mlp.up_proj.weight.data[[3, 17]] = 0
    block.self_attn.v_proj.weight.data[:8] = 0
    cut = cut_of(model, 2 / 48, axes=["channels"])
    assert sorted({*range(48)} - set(cut.channels[0].tolist())) == [3, 17]
    assert cut_of(model, axes=["groups"]).groups[0].tolist() == [1]
    assert cut_of(model, axes=["channels"], multiple=16).channels[0].shape == (32,)


def test_what_no_config_tells_is_refused_before_any_work(tmp_path):
    method = build("pruners", {"width": {"axes": ["groups"]}})
    with pytest.raises(ValueError, match="unsupported: block 0 has no attention with queries, keys and values in three"):
        method.check_model(skeleton(zoo.save("gpt2", tmp_path / "gpt2")), 0.5)
    with pytest.raises(ValueError, match="there are only 1 groups of heads, and 1 have to stay"):
        method.check_model(skeleton(zoo.save("llama", tmp_path / "one", num_key_value_heads=1)), 0.5)
    with pytest.raises(ValueError, match="unsupported: llama cannot have the sizes that would be left .*multiple of"):
        wide = build("pruners", {"width": {"axes": ["hidden"]}})
        wide.check_model(skeleton(zoo.save("llama", tmp_path / "llama")), 0.04)
    for kind, axis, told in (("bloom", "channels", "no width of feed-forward networks"), ("gemma4", "groups", "per-layer")):
        narrow = build("pruners", {"width": {"axes": [axis]}})
        with pytest.raises(ValueError, match=f"unsupported: {kind}.* cannot have the sizes that would be left .*{told}"):
            narrow.check_model(skeleton(zoo.save(kind, tmp_path / kind)), 0.5)
    with pytest.raises(ValueError, match="width.axes: hidden is listed twice"):
        build("pruners", {"width": {"axes": ["hidden", "hidden"]}})
