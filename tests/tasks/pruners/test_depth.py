"""Depth: the blocks that go are those that change least, and a model without them is the model with them passed over."""

from __future__ import annotations

import json

import pytest
import torch

from tasks.calibrate.whole import Whole, skipped
from tasks.methods import build
from tasks.models.cut import Cut
from tasks.models.files.checkpoint import load_model, save_model, skeleton
from tasks.models.files.recut import check_sizes, config_of, recut, renumbered
from tasks.models.find.linears import decoder_blocks
from tests.contracts.test_resizers import BATCHES, shrunk
from tests.tasks import models_zoo as zoo


def idle(model, index: int) -> None:
    """Make a block give back what it is given."""
    block = decoder_blocks(model)[1][index]
    for module in (block.self_attn.o_proj, block.mlp.down_proj):
        module.weight.data.zero_()


def logits(directory):
    with torch.no_grad():
        return load_model(directory)(zoo.batches(seed=5)[0]).logits


@pytest.mark.parametrize("index", [0, 2])
def test_a_block_that_does_nothing_goes_first_and_changes_nothing(index, tmp_path):
    model = zoo.model("llama", layers=4)
    idle(model, index)
    save_model(model.state_dict(), model.config, tmp_path / "in")
    shrunk(tmp_path / "in", tmp_path / "out", "depth", 0.25)
    told = json.loads((tmp_path / "out" / "report" / "depth.json").read_text())
    assert told["gone"] == [index] and told["influence"][index] == pytest.approx(0, abs=1e-6)
    whole = Whole(model, BATCHES)
    assert whole.loss([index]) == pytest.approx(whole.loss(), rel=1e-6) and whole.loss([1]) != pytest.approx(
        whole.loss(), rel=1e-3
    )
    torch.testing.assert_close(logits(tmp_path / "out"), logits(tmp_path / "in"), rtol=0, atol=1e-5)


def test_influence_by_hand():
    """A block that turns every hidden state by a right angle has influence 1, one that doubles it 0, one that negates it 2."""

    class Block(torch.nn.Module):
        def __init__(self, change) -> None:
            super().__init__()
            self.change = change

        def forward(self, hidden_states):
            return self.change(hidden_states)

    class Model(torch.nn.Module):
        device = "cpu"

        def __init__(self) -> None:
            super().__init__()
            changes = (lambda x: torch.stack([-x[..., 1], x[..., 0]], -1), lambda x: 2 * x, lambda x: -x)
            self.blocks = torch.nn.ModuleList(map(Block, changes))

        def forward(self, input_ids, use_cache):
            hidden = torch.stack([input_ids, input_ids + 1], -1).float()
            for block in self.blocks:
                hidden = block(hidden_states=hidden)

    class Blocks(Whole):
        @property
        def blocks(self):
            return self.model.blocks

    assert Blocks(Model(), BATCHES).influences() == pytest.approx([1, 0, 2], abs=1e-6)


def test_by_perplexity_each_that_goes_is_the_one_least_missed_of_those_left():
    whole = Whole(zoo.model("llama", layers=4), BATCHES)
    cut = build("pruners", {"depth": {"criterion": "perplexity"}}).cut(whole, 0.5)
    first, second = cut.scores["gone"]
    alone = [whole.loss([index]) for index in range(4)]
    assert alone[first] == min(alone) == cut.scores["loss"][1]
    assert cut.scores["loss"][2] == min(whole.loss([first, index]) for index in range(4) if index != first)
    assert sorted((*cut.blocks, first, second)) == [0, 1, 2, 3]


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "bamba", "smollm3", "mixtral", "qwen2_moe", "gpt2", "openai-gpt"])
def test_what_stays_keeps_its_weights_order_and_kind(architecture, tmp_path):
    """Lists in the config that have an entry a layer lose those of the blocks that went."""
    lists = {"smollm3": {"no_rope_layers": [1, 0, 1, 0]}, "qwen2_moe": {"mlp_only_layers": [1, 3]}}
    lists |= {"bamba": {"attn_layer_indices": [1, 3]}}
    source = zoo.save(architecture, tmp_path / "in", layers=4, **lists.get(architecture, {}))
    shrunk(source, tmp_path / "out", "depth", 0.25)
    gone = json.loads((tmp_path / "out" / "report" / "depth.json").read_text())["gone"]
    kept = [index for index in range(4) if index not in gone]
    before, after = load_model(source), load_model(tmp_path / "out")
    old, new = decoder_blocks(before)[1], decoder_blocks(after)[1]
    assert len(new) == 3
    for place, index in enumerate(kept):
        ours, theirs = new[place].state_dict(), old[index].state_dict()
        assert ours.keys() == theirs.keys() and all(value.equal(theirs[name]) for name, value in ours.items())
    for name in ("layer_types", "no_rope_layers"):
        if told := getattr(before.config, name, None):
            assert getattr(after.config, name) == [told[index] for index in kept]
    if dense := getattr(before.config, "mlp_only_layers", None):  # a list of numbers: they are others now
        assert after.config.mlp_only_layers == [place for place, index in enumerate(kept) if index in dense] != dense
    with torch.no_grad(), skipped(old, gone):
        expected = before(zoo.batches()[0], use_cache=False).logits
        torch.testing.assert_close(after(zoo.batches()[0], use_cache=False).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("blocks", [(1, 2, 3), (0, 2, 3), (0, 1, 3)])
@pytest.mark.parametrize(
    ("architecture", "first"),
    [
        ("deepseek_v3", "first_k_dense_replace"),
        ("glm4_moe", "first_k_dense_replace"),
        ("ernie4_5_moe", "moe_layer_start_index"),
    ],
)
def test_dense_blocks_before_those_of_experts_may_go_and_may_stay(architecture, first, blocks, tmp_path):
    source = zoo.save(architecture, tmp_path / "in", layers=4, **{first: 2})
    check_sizes(skeleton(source), Cut(blocks=blocks))
    recut(source, tmp_path / "out", tmp_path / "scratch", Cut(blocks=blocks))
    before, after = load_model(source), load_model(tmp_path / "out")
    assert getattr(after.config, first) == sum(index < 2 for index in blocks)
    gone = [index for index in range(4) if index not in blocks]
    with torch.no_grad(), skipped(decoder_blocks(before)[1], gone):
        expected = before(zoo.batches()[0], use_cache=False).logits
        torch.testing.assert_close(after(zoo.batches()[0], use_cache=False).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("blocks", [(1, 2, 3), (0, 2, 3), (0, 1, 3)])
def test_what_a_config_says_of_layers_by_their_numbers_goes_with_them(blocks, tmp_path):
    """Heads are wider in every second block."""
    source = zoo.save("gemma4", tmp_path / "in", layers=4, hidden_size_per_layer_input=0)
    check_sizes(skeleton(source), Cut(blocks=blocks))
    recut(source, tmp_path / "out", tmp_path / "scratch", Cut(blocks=blocks))
    before, after = load_model(source), load_model(tmp_path / "out")
    widths = [layer.head_dim for layer in after.config.per_layer_config]
    assert widths == [(8, 16)[index % 2] for index in blocks]
    gone = [index for index in range(4) if index not in blocks]
    with torch.no_grad(), skipped(decoder_blocks(before)[1], gone):
        expected = before(zoo.batches()[0], use_cache=False).logits
        torch.testing.assert_close(after(zoo.batches()[0], use_cache=False).logits, expected, rtol=1e-4, atol=1e-4)


def test_a_block_that_is_not_as_the_config_would_have_it_is_refused():
    """Only the last block of this architecture has a bias behind its attention."""
    model = zoo.model("gpt_neox_japanese", layers=3)
    assert len(check_sizes(model, Cut(blocks=(0, 2))).state_dict()) < len(model.state_dict())
    with pytest.raises(ValueError, match=r"is smaller so \(nothing is left for its .*layers.1.attention.dense_bias\)$"):
        check_sizes(model, Cut(blocks=(0, 1)))


def test_a_config_whose_layers_are_told_otherwise_is_refused(tmp_path, monkeypatch):
    """What is not understood of a config shows in what the model computes."""
    source = zoo.save("smollm3", tmp_path / "in", layers=4, no_rope_layers=[0, 1, 1, 1])

    def unread(config, model, cut):
        return {**config_of(config, model, cut), "no_rope_layers": [1, 1, 0]}

    monkeypatch.setattr("tasks.models.files.recut.config_of", unread)
    with pytest.raises(ValueError, match="unsupported: smollm3 without some of its blocks is not what it was"):
        shrunk(source, tmp_path / "out", "depth", 0.25)


def test_names_are_renumbered_and_those_of_blocks_that_went_are_none():
    numbers = {0: 0, 2: 1, 11: 2}
    told = [
        "model.layers.2.mlp.up_proj.weight",
        "model.layers.1.mlp.up_proj.weight",
        "model.layers.11.x.0.weight",
        "lm_head.weight",
    ]
    assert [renumbered(name, "model.layers", numbers) for name in told] == [
        "model.layers.1.mlp.up_proj.weight",
        None,
        "model.layers.2.x.0.weight",
        "lm_head.weight",
    ]
