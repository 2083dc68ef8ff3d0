"""Streaming a model block by block is the model: the same activations, the same weights, the same files to others."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tasks.calibrate.method import BlockMethod
from tasks.calibrate.walk import walk
from tasks.models.files.checkpoint import load_model
from tasks.models.files.layout import MASKS
from tasks.models.stream.blocks import BlockStream, ResidentBlocks
from tasks.models.stream.capture import capture
from tests.tasks import models_zoo as zoo


class Untouched(BlockMethod):
    def solve(self, view):
        return {}


def eager(model):
    """Experts one by one, as the stream runs them, and aligned weights, or products differ in the last bit."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    if any("experts" in name for name, _ in model.named_modules()):
        model.set_experts_implementation("eager")
    return model


def in_memory(module):
    return any(not parameter.is_meta for parameter in module.parameters())


def outputs_of_last_block(model, batches):
    caught = []
    hook = ResidentBlocks(model).blocks[-1].register_forward_hook(lambda module, args, output: caught.append(output))
    with torch.no_grad():
        for tokens in batches:
            model(tokens, use_cache=False)
    hook.remove()
    return caught


@pytest.mark.parametrize("architecture", zoo.ARCHITECTURES)
def test_running_the_blocks_one_by_one_is_running_the_model(architecture, tmp_path):
    zoo.save(architecture, tmp_path, layers=3)
    batches = zoo.batches()
    expected = outputs_of_last_block(eager(load_model(tmp_path)), batches)
    stream = BlockStream(tmp_path)
    with torch.no_grad():
        flow = stream.capture(batches)
        for index in range(stream.depth):
            block = stream.read(index)
            flow.hidden = list(flow.run(block, index))
            stream.write(index, block, {}, {})
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(flow.hidden, expected, strict=True))


@pytest.mark.parametrize("architecture", [*zoo.ARCHITECTURES, "gemma4_shared", "gemma3n", "bamba"])
def test_logits_come_out_of_one_block_at_a_time_as_out_of_the_whole_model(architecture, tmp_path):
    zoo.save(architecture, tmp_path, layers=3)
    batches, model, stream = zoo.batches(), eager(load_model(tmp_path)), BlockStream(tmp_path)
    held = []  # for every call of a block, how many blocks are in memory
    for block in stream.blocks:
        block.register_forward_hook(lambda *called: held.append(sum(in_memory(each) for each in stream.blocks)))
    with torch.no_grad():
        expected = [model(tokens, use_cache=False).logits for tokens in batches]
        found = list(stream.logits(batches))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    assert held == [1] * 3 * len(batches)
    assert all(parameter.is_meta for parameter in stream.model.parameters())


class _Handing(torch.nn.Module):
    """Blocks that return two values, of which the next one gets both where they are handed ``on``."""

    def __init__(self, on):
        super().__init__()
        self.blocks, self.on = torch.nn.ModuleList(torch.nn.Bilinear(4, 4, 4) for _ in range(2)), on

    def forward(self, tokens_BT, use_cache):
        hidden, state = tokens_BT[..., None].expand(-1, -1, 4).float(), torch.ones(1)
        for block in self.blocks:
            hidden, state = block(hidden, [state if self.on else hidden])
        return hidden


def test_what_blocks_return_besides_hidden_states_may_be_left_but_not_handed_on():
    model = _Handing(on=False)
    assert capture(model, model.blocks, zoo.batches(), "cpu").besides == 1
    model = _Handing(on=True)
    with pytest.raises(ValueError, match="^unsupported: _Handing, whose blocks hand on more than hidden states$"):
        capture(model, model.blocks, zoo.batches(), "cpu")
    assert all(isinstance(block, torch.nn.Bilinear) for block in model.blocks)


@pytest.mark.parametrize("architecture", zoo.ARCHITECTURES)
def test_a_method_that_does_nothing_gives_back_the_same_model(architecture, tmp_path):
    source, output = zoo.save(architecture, tmp_path / "in"), tmp_path / "out"
    report = walk(BlockStream(source, output), zoo.batches(), Untouched())
    assert [block.error for block in report.blocks] == [0.0, 0.0]
    before, after = load_model(source), AutoModelForCausalLM.from_pretrained(output)
    tokens = zoo.batches()[0]
    with torch.no_grad():
        assert torch.equal(before(tokens).logits, after(tokens).logits)
    assert all(torch.equal(value, after.state_dict()[name]) for name, value in before.state_dict().items())
    assert not (output / MASKS).exists()


def test_one_shard_per_block_and_nothing_stays_in_memory(tmp_path):
    source, output = zoo.save("llama", tmp_path / "in", layers=3), tmp_path / "out"
    stream = BlockStream(source, output)
    walk(stream, zoo.batches(), Untouched())
    index = json.loads((output / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == 4
    assert index["weight_map"].keys() == load_file(source / "model.safetensors").keys()
    assert all(parameter.is_meta for parameter in stream.model.parameters())


@pytest.mark.parametrize("architecture", ["mixtral", "qwen3_moe"])
def test_a_hub_checkpoint_with_one_file_entry_per_expert_is_converted(architecture, tmp_path):
    model = zoo.model(architecture)
    model.save_pretrained(tmp_path / "hub")
    assert any(".experts.0." in name for name in load_file(tmp_path / "hub" / "model.safetensors"))
    walk(BlockStream(tmp_path / "hub", tmp_path / "out"), zoo.batches(), Untouched())
    after = load_model(tmp_path / "out")
    assert all(torch.equal(value, after.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_hub_gpt2_without_prefix_and_with_old_buffers_is_converted(tmp_path):
    zoo.save("gpt2", tmp_path / "in")
    state = load_file(tmp_path / "in" / "model.safetensors")
    bare = {name.removeprefix("transformer."): value for name, value in state.items()}
    save_file(bare | {"h.0.attn.bias": torch.ones(1, 1, 64, 64)}, tmp_path / "in" / "model.safetensors", {"format": "pt"})
    walk(BlockStream(tmp_path / "in", tmp_path / "out"), zoo.batches(), Untouched())
    after = load_model(tmp_path / "out").state_dict()
    assert all(torch.equal(value, after[name]) for name, value in state.items())


def test_sharded_and_half_precision_checkpoints_are_read(tmp_path):
    model = zoo.model("llama", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "in", max_shard_size="10KB")
    assert len(list((tmp_path / "in").glob("*.safetensors"))) > 2
    walk(BlockStream(tmp_path / "in", tmp_path / "out"), zoo.batches(), Untouched())
    after = load_model(tmp_path / "out")
    assert after.dtype == torch.bfloat16
    assert all(torch.equal(value, after.state_dict()[name]) for name, value in model.state_dict().items())


def test_tied_embeddings_stay_tied(tmp_path):
    zoo.save("gemma", tmp_path / "in")
    walk(BlockStream(tmp_path / "in", tmp_path / "out"), zoo.batches(), Untouched())
    model = load_model(tmp_path / "out")
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_a_quantized_or_incomplete_checkpoint_is_refused(tmp_path):
    zoo.save("llama", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "x"}}))
    with pytest.raises(ValueError, match="is quantized"):
        BlockStream(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(ValueError, match="does not fit its config"):
        BlockStream(tmp_path)


def test_where_the_config_names_no_dtype_it_is_that_of_the_weights(tmp_path):
    model = zoo.model("llama", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "in")
    config = json.loads((tmp_path / "in" / "config.json").read_text())
    del config["dtype"]
    (tmp_path / "in" / "config.json").write_text(json.dumps(config))
    walk(BlockStream(tmp_path / "in", tmp_path / "out"), zoo.batches(), Untouched())
    stored = [value for file in (tmp_path / "out").glob("*.safetensors") for value in load_file(file).values()]
    assert {value.dtype for value in stored} == {torch.bfloat16}
