"""A stage gives back what it did not mean to change: bytes, dtypes, buffers, files, names; the seam refuses what lost any."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, DeepseekV3Config, Glm4MoeConfig, MixtralConfig

from flows.export import _write as export_files
from tasks.calibrate.walk import walk
from tasks.methods import build
from tasks.models.files.checkpoint import load_model, skeleton
from tasks.models.files.layout import MASKS, NAMES
from tasks.models.files.names import hub_names
from tasks.models.files.promises import check_model
from tasks.models.files.trained import Origin
from tasks.models.find.linears import find_linears
from tasks.models.stream.blocks import BlockStream
from tests.tasks import models_zoo as zoo

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    "first_k_dense_replace": 1,
}
LATENT = {
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "n_group": 1,
    "topk_group": 1,
}
CONFIGS = {
    "deepseek_v3": lambda: DeepseekV3Config(**SIZES, **LATENT),
    "glm4_moe": lambda: Glm4MoeConfig(**SIZES, head_dim=8, n_group=1, topk_group=1),
    "mixtral": lambda: MixtralConfig(**{name: SIZES[name] for name in list(SIZES)[:6]}, num_local_experts=4),
}
MTP = {f"model.layers.2.{name}": torch.rand(32, 32).bfloat16() for name in ("eh_proj.weight", "enorm.weight")}


def checkpoint(kind, directory):
    """A bfloat16 checkpoint as the hub has it, in several shards, with float32 buffers, heads that no class knows of and
    files beside the weights."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind](), dtype=torch.bfloat16)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.data = 0.3 + torch.rand(buffer.shape)
    model.save_pretrained(directory, max_shard_size="20KB")
    save_file(MTP, directory / "mtp.safetensors", {"format": "pt"})
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    index["weight_map"] |= dict.fromkeys(MTP, "mtp.safetensors")
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))
    (directory / "processor_config.json").write_text("{}")
    return directory


def tensors(directory):
    """As a loader reads them that takes every safetensors file of a folder for weights."""
    return {name: value for file in directory.glob("*.safetensors") for name, value in load_file(file).items()}


def same_bytes(first, second):
    return first.dtype == second.dtype and first.view(torch.uint8).equal(second.view(torch.uint8))


@pytest.fixture(params=CONFIGS)
def source(request, tmp_path):
    return checkpoint(request.param, tmp_path / "source")


def prune(source, output, method="wanda"):
    walk(BlockStream(source, output), zoo.batches(), build("pruners", method), sparsity=0.5, pattern="2:4")
    return output


def export(artifact, directory):
    directory.mkdir()
    export_files(artifact, directory)
    return directory


def test_pruning_changes_the_pruned_matrices_and_not_a_byte_beside_them(source, tmp_path):
    before, after = tensors(source), tensors(export(prune(source, tmp_path / "pruned"), tmp_path / "out"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not same_bytes(before[name], after[name])}
    assert changed and all(value.ndim == 2 and "gate.weight" not in name for name in changed for value in [before[name]])
    assert all((after[name] != 0).reshape(-1, 4).sum(1).le(2).all() for name in changed)
    assert torch.float32 in {value.dtype for value in before.values()} or not any("bias" in name for name in before)


def test_a_model_that_was_trained_keeps_what_training_did_not_touch(source, tmp_path):
    model = load_model(source, dtype=torch.float32)
    origin = Origin.of(model, source, tmp_path / "scratch")
    origin.write(model.named_parameters(), model, {}, None, tmp_path / "trained")
    check_model(tmp_path / "trained")
    before, after = tensors(source), tensors(export(tmp_path / "trained", tmp_path / "out"))
    assert before.keys() == after.keys() and all(same_bytes(before[name], after[name]) for name in before)


@pytest.mark.parametrize("made", ["pruned", "trained"])
def test_everything_beside_the_weights_travels(made, source, tmp_path):
    if made == "pruned":
        artifact = prune(source, tmp_path / "made")
    else:
        model = load_model(source, dtype=torch.float32)
        artifact = tmp_path / "made"
        Origin.of(model, source, tmp_path / "scratch").write(model.named_parameters(), model, {}, None, artifact)
    out = export(artifact, tmp_path / "out")
    for name in ("config.json", "generation_config.json", "processor_config.json"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    assert sorted(hub_names(artifact)) == sorted(tensors(source)) and not (out / NAMES).exists()


def test_an_export_of_an_export_is_the_same_model(source, tmp_path):
    once = export(prune(source, tmp_path / "pruned"), tmp_path / "once")
    twice = export(prune(once, tmp_path / "again", "magnitude"), tmp_path / "twice")
    first, second = tensors(once), tensors(twice)
    assert (once / MASKS).exists() and first.keys() == second.keys()
    assert all(same_bytes(first[name], second[name]) for name in first)


def broken(directory, change):
    file = next(file for file in directory.glob("*.safetensors") if any("up_proj" in name for name in load_file(file)))
    state = load_file(file)
    change(state, next(name for name in state if "up_proj" in name))
    save_file(state, file, {"format": "pt"})
    names = {name: path.name for path in directory.glob("*.safetensors") for name in load_file(path)}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda state, name: state.pop(name), "is not stored"),
        (lambda state, name: state.update({name: state[name][:-1].contiguous()}), "is stored as"),
        (lambda state, name: state.update({"model.stray.weight": torch.ones(2)}), "stores model.stray.weight, which neither"),
    ],
)
def test_the_seam_refuses_a_missing_an_unknown_and_a_reshaped_tensor(change, match, tmp_path):
    artifact = prune(checkpoint("deepseek_v3", tmp_path / "source"), tmp_path / "pruned")
    check_model(artifact)
    broken(artifact, change)
    with pytest.raises(ValueError, match=match) as caught:
        check_model(artifact)
    assert "\n" not in str(caught.value)


def test_what_transformers_keeps_in_float32_is_in_float32_while_blocks_run(tmp_path):
    source = checkpoint("deepseek_v3", tmp_path)
    ours, theirs = skeleton(source).state_dict(), load_model(source).state_dict()
    assert {name: value.dtype for name, value in ours.items()} == {name: value.dtype for name, value in theirs.items()}
    assert find_linears(skeleton(source))


def test_large_models_are_written_in_shards_with_an_index(tmp_path):
    from tasks.models.files.shards import TensorFiles, write_shards

    source = checkpoint("mixtral", tmp_path / "source")
    (tmp_path / "out").mkdir()
    write_shards(TensorFiles(source), tmp_path / "out", largest=50_000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert all(file.stat().st_size < 60_000 for file in (tmp_path / "out").glob("*.safetensors"))
    before, after = tensors(source), tensors(tmp_path / "out")
    assert before.keys() == after.keys() == index["weight_map"].keys()
    assert all(same_bytes(before[name], after[name]) for name in before)


def test_a_head_that_is_not_the_embedding_it_is_said_to_be_tied_to_stays_itself(tmp_path):
    model = zoo.model("llama", tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "source")
    state = load_file(tmp_path / "source" / "model.safetensors")
    save_file(state | {"lm_head.weight": torch.rand(64, 32)}, tmp_path / "source" / "model.safetensors", {"format": "pt"})
    walk(BlockStream(tmp_path / "source", tmp_path / "pruned"), zoo.batches(), build("pruners", "magnitude"), sparsity=0.0)
    model = load_model(tmp_path / "source", dtype=torch.float32)
    origin = Origin.of(model, tmp_path / "source", tmp_path / "scratch")
    origin.write(model.named_parameters(), model, {}, None, tmp_path / "trained")
    before = tensors(tmp_path / "source")
    for made in ("pruned", "trained"):
        after = tensors(export(tmp_path / made, tmp_path / f"{made}-out"))
        assert before.keys() == after.keys() and all(same_bytes(before[name], after[name]) for name in before)


def test_what_pruning_keeps_of_a_matrix_keeps_the_precision_it_is_stored_in(tmp_path):
    model = zoo.model("llama")
    model.save_pretrained(tmp_path / "source")
    config = json.loads((tmp_path / "source" / "config.json").read_text()) | {"dtype": "bfloat16"}
    (tmp_path / "source" / "config.json").write_text(json.dumps(config))
    before, after = tensors(tmp_path / "source"), tensors(prune(tmp_path / "source", tmp_path / "pruned"))
    assert {value.dtype for value in after.values()} == {torch.float32}
    assert all(torch.equal(after[name][after[name] != 0], before[name][after[name] != 0]) for name in before)


def test_a_packed_model_names_the_matrices_no_class_knows_as_left_alone(tmp_path):
    from tasks.models.export import export_compressed
    from tasks.models.files.checkpoint import load_extras

    model = zoo.model("llama")
    model.save_pretrained(tmp_path / "source")
    state = load_file(tmp_path / "source" / "model.safetensors")
    save_file(state | {"mtp.fc.weight": torch.rand(8, 8)}, tmp_path / "source" / "model.safetensors", {"format": "pt"})
    method = build("quantizers", {"round_to_nearest": {"group_size": 8}})
    walk(BlockStream(tmp_path / "source", tmp_path / "rounded"), zoo.batches(), method)
    export_compressed(tmp_path / "rounded", load_extras(tmp_path / "rounded"), method.scheme_of, tmp_path / "packed")
    scheme = json.loads((tmp_path / "packed" / "config.json").read_text())["quantization_config"]
    assert {"lm_head", "mtp.fc"} <= set(scheme["ignore"]) and "mtp.fc.weight" in tensors(tmp_path / "packed")
