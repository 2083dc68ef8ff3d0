"""What every pruner that leaves a smaller model promises: a plain checkpoint, told by its config, that any program loads."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from tasks.calibrate.resized import resize
from tasks.calibrate.resizer import Resizer
from tasks.context import Context, Execution
from tasks.data.batch import Batch
from tasks.methods import build, dump, load, names
from tasks.models.files.checkpoint import load_model, skeleton
from tasks.models.files.names import write_as_on_hub
from tasks.models.files.promises import check_model
from tasks.stage import stage_class
from tests.tasks import models_zoo as zoo

FIELDS = {"width": {"axes": ["channels", "groups"]}}
NAMES = [name for name in names("pruners") if issubclass(load("pruners", name), Resizer)]
resizers = pytest.mark.parametrize("name", NAMES)
ROUTED = ["mixtral", "qwen3_moe", "gpt_oss"]
HOME = [(name, kind) for name in NAMES for kind in (ROUTED if name == "experts" else ["llama", "qwen3", "gemma3", "gemma"])]
BATCHES = [Batch(tokens) for tokens in zoo.batches()]


def shrunk(source, output, name, sparsity=0.5, fields=None):
    output.mkdir()
    (output / "report").mkdir()
    notes = []
    context = Context({}, output, output.parent / "scratch", Execution(), report=notes.append)
    method = build("pruners", {name: FIELDS.get(name, {}) if fields is None else fields}, Resizer)
    method.check_model(skeleton(source), sparsity)
    return resize(method, sparsity, source, BATCHES, context), notes


def home(name: str) -> str:
    """An architecture that a method can make smaller."""
    return next(kind for method, kind in HOME if method == name)


@pytest.mark.parametrize(("name", "architecture"), HOME)
def test_plain_transformers_loads_the_smaller_model_from_its_config_alone(name, architecture, tmp_path):
    source = zoo.save(architecture, tmp_path / "in", layers=4)
    metrics, _ = shrunk(source, tmp_path / "out", name)
    model, found = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(found[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    before = sum(parameter.numel() for parameter in load_model(source).parameters())
    assert metrics["parameters_gone"] == pytest.approx(1 - sum(value.numel() for value in model.parameters()) / before)
    assert 0.2 < metrics["parameters_gone"] < 0.6 and check_model(tmp_path / "out").masks == {}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "surgeries" not in config and "auto_map" not in config
    with torch.no_grad():
        assert model(BATCHES[0].tokens).logits.isfinite().all()


@resizers
def test_a_model_with_the_hubs_names_goes_back_to_them(name, tmp_path):
    """One matrix per expert, as a mixture of experts lies on the hub."""
    model = zoo.model("mixtral" if name not in ("width", "mix") else "llama", layers=4)
    model.save_pretrained(tmp_path / "in")
    shrunk(tmp_path / "in", tmp_path / "out", name)
    (tmp_path / "hub").mkdir()
    write_as_on_hub(tmp_path / "out", tmp_path / "hub")
    shutil.copyfile(tmp_path / "out" / "config.json", tmp_path / "hub" / "config.json")
    again, found = AutoModelForCausalLM.from_pretrained(tmp_path / "hub", output_loading_info=True)
    assert not any(found[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ours, theirs = load_model(tmp_path / "out").state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys() and all(value.equal(theirs[key]) for key, value in ours.items())


@resizers
def test_the_same_model_and_text_give_the_same_bytes(name, tmp_path):
    source = zoo.save(home(name), tmp_path / "in", layers=4)
    for place in ("one", "two"):
        shrunk(source, tmp_path / place, name)
    files = sorted(path.name for path in (tmp_path / "one").iterdir() if path.is_file())
    assert files and all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in files)


@resizers
@pytest.mark.parametrize("architecture", ["gpt2", "opt", "mixtral", "deepseek_v3", "phi3", "olmo2"])
def test_every_architecture_is_made_smaller_or_refused_in_one_line(name, architecture, tmp_path):
    source = zoo.save(architecture, tmp_path / "in", layers=4)
    try:
        shrunk(source, tmp_path / "out", name)
    except ValueError as refusal:
        assert name != "depth" and str(refusal).startswith("unsupported: ") and "\n" not in str(refusal)
        return
    assert check_model(tmp_path / "out").masks == {}


@pytest.mark.parametrize("name", [name for name in NAMES if load("pruners", name).foretold])
def test_a_sparsity_that_takes_nothing_is_refused_before_any_work(name, tmp_path):
    source = skeleton(zoo.save(home(name), tmp_path / "in", layers=4))
    with pytest.raises(ValueError, match=r"sparsity 0.01 takes none of \d+ \w+; choose 0.\d+, which takes 1"):
        build("pruners", {name: FIELDS.get(name, {})}, Resizer).check_model(source, 0.01)


@resizers
def test_what_is_said_of_masks_is_refused(name):
    for field, value in (("pattern", "2:4"), ("unseen", "dense"), ("allocator", "owl")):
        stage = stage_class("prune").model_validate({"method": name, "sparsity": 0.5, field: value})
        with pytest.raises(ValueError, match=f"{name} takes whole parts of a model and makes no masks; leave {field} out"):
            stage.check_written()
    for sparsity in (None, 0, "essential"):
        with pytest.raises(ValueError, match=f"sparsity is needed with {name}: a share above 0 and below 1 of what it takes"):
            stage_class("prune").model_validate({"method": name, "sparsity": sparsity})
    with pytest.raises(ValueError, match=f"{name} takes whole parts of a model and makes no masks; choose a pruner of weights"):
        stage_class("prune").model_validate({"method": {"dsnot": {"initial": name}}, "sparsity": 0.5})


@resizers
def test_the_name_is_in_the_dump_and_the_paper_is_named(name):
    method = build("pruners", {name: FIELDS.get(name, {})})
    assert dump(method).keys() == {name} and build("pruners", dump(method)) == method and method.paper
