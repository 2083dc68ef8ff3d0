"""Sources are taken in or refused in one line; promises about masks are verified on the stored weights."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tasks.formats.mask import BrokenMask, Mask, save_masks
from tasks.formats.pattern import NM
from tasks.models.files.checkpoint import download, load_model, save_model, validate
from tasks.models.files.layout import MASKS
from tasks.models.files.promises import check_masks, require_subset
from tests.tasks import models_zoo as zoo

LINEAR = "model.layers.0.self_attn.q_proj.weight"


def one_line(caught):
    return "\n" not in str(caught.value)


def test_what_cannot_be_loaded_is_refused_in_one_line(tmp_path):
    zoo.save("llama", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())

    def refusal(match, source=tmp_path, **changes):
        (tmp_path / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(ValueError, match=match) as caught:
            validate(source)
        assert one_line(caught)

    refusal("no model directory /nowhere/at/all", source=Path("/nowhere/at/all"))
    refusal("its own code", auto_map={"AutoModel": "x.Y"})
    refusal("no causal language model type 'lama'; choose one of llama", model_type="lama")
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    refusal("only pickled ones")
    (tmp_path / "pytorch_model.bin").unlink()
    refusal("none at all")
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match="no config.json"):
        validate(tmp_path)


def test_the_hub_is_asked_for_safetensors_only(tmp_path, monkeypatch):
    import huggingface_hub

    asked = {}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **how: asked.update(how, name=name) or tmp_path)
    zoo.save("llama", tmp_path)
    assert download("someone/something", "abc") == tmp_path
    assert asked["name"] == "someone/something" and asked["revision"] == "abc"
    assert not any(pattern.endswith((".bin", ".pt", ".py", "*")) for pattern in asked["allow_patterns"])


def test_missing_weights_are_an_error_not_random_numbers(tmp_path):
    zoo.save("llama", tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state[LINEAR]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="missing_keys"):
        load_model(tmp_path)


@pytest.mark.parametrize("architecture", zoo.ARCHITECTURES)
def test_saving_and_loading_is_exact(architecture, tmp_path):
    model = zoo.model(architecture)
    save_model(model.state_dict(), model.config, tmp_path)
    loaded = load_model(tmp_path)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    assert load_model(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16


def pruned(directory, architecture="llama", name=LINEAR):
    from tasks.models.find.linears import find_linears

    model = zoo.model(architecture)
    linear, parameter = find_linears(model)[name], model.get_parameter(name)
    keep = NM().keep(linear.matrix(parameter.data).abs().reshape(-1, linear.shape[-1]), 0.5).reshape(linear.shape)
    linear.matrix(parameter.data).mul_(keep)
    masks = {name: Mask.of(keep, "2:4", 0.5)}
    save_model(model.state_dict(), model.config, directory, masks)
    return masks


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ("llama", LINEAR),
        ("gpt2", "transformer.h.1.mlp.c_fc.weight"),
        ("mixtral", "model.layers.1.mlp.experts.down_proj"),
        ("gpt_oss", "model.layers.0.mlp.experts.gate_up_proj"),
    ],
)
def test_kept_promises_pass_in_every_storage(architecture, name, tmp_path):
    masks = pruned(tmp_path, architecture, name)
    assert torch.equal(check_masks(tmp_path)[name].keep, masks[name].keep)


def test_each_broken_promise_names_the_linear_and_what_broke(tmp_path):
    masks = pruned(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    dead_row, dead_column = (~masks[LINEAR].keep).nonzero()[0].tolist()
    state[LINEAR][dead_row, dead_column] = 0.5
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(BrokenMask, match=f"{LINEAR} is broken: 1 dead weights are not zero"):
        check_masks(tmp_path)
    keep = masks[LINEAR].keep
    keep[0, :4] = True
    for broken, message in [
        ({LINEAR: Mask.of(keep, "2:4", 0.5)}, "2:4"),
        ({LINEAR: Mask.of(keep[:4], "2:4", 0.5)}, "its shape is"),
        ({"model.layers.7.x": masks[LINEAR]}, "no such weight"),
    ]:
        save_masks(broken, tmp_path / MASKS)
        with pytest.raises(BrokenMask, match=message):
            check_masks(tmp_path)


def test_a_dense_model_has_no_masks_to_break(tmp_path):
    assert check_masks(zoo.save("llama", tmp_path)) == {}


def test_no_bit_may_come_back_to_life():
    parent = torch.tensor([[True, False, True, False]])
    child = parent.clone()
    child[0, 2] = False
    masks = {"w": Mask.of(parent, "unstructured", 0.5)}
    require_subset({"w": Mask.of(child, "unstructured", 0.75)}, masks)
    with pytest.raises(BrokenMask, match="1 dead weights were revived"):
        require_subset(masks, {"w": Mask.of(child, "unstructured", 0.75)})
    with pytest.raises(BrokenMask, match="lost"):
        require_subset({}, masks)
