"""What every surgery on the shelf promises: the same modules with and without memory, a checkpoint that loads again, and an
undoing that plain transformers loads."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from tasks.methods import build, dump, load, names
from tasks.models.build.building import on_meta, operate
from tasks.models.files.checkpoint import load_model, save_model
from tasks.models.files.promises import check_model
from tasks.models.files.resizing import undo_last
from tests.tasks import models_zoo as zoo

FIELDS = {"narrow": {"widths": [24, 16]}, "transform": {"by": "parallel"}, "slorb": {"group": 8}}
surgeries = pytest.mark.parametrize("name", names("surgeries"))
architectures = pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3"])


def changed(name, architecture):
    model = zoo.model(architecture)
    operate(model, build("surgeries", {name: FIELDS[name]}))
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if name == "slorb" and ".slorb." in path:  # which starts at nothing
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model(zoo.batches()[0], use_cache=False).logits


@surgeries
@architectures
def test_a_changed_model_loads_again_and_is_built_alike_without_memory(name, architecture, tmp_path):
    model = changed(name, architecture)
    save_model(model.state_dict(), model.config, tmp_path)
    assert torch.equal(logits(load_model(tmp_path)), logits(model))
    assert check_model(tmp_path).prunable > 0
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    assert shapes == {key: value.shape for key, value in on_meta(model.config).state_dict().items()}


@surgeries
@architectures
def test_no_buffer_is_left_out_of_checkpoints(name, architecture):
    def transient(model):
        return {key for key, _ in model.named_buffers()} - model.state_dict().keys()

    assert transient(changed(name, architecture)) == transient(zoo.model(architecture))


@surgeries
@architectures
def test_a_surgery_that_can_be_undone_leaves_what_plain_transformers_loads(name, architecture, tmp_path):
    model = changed(name, architecture)
    save_model(model.state_dict(), model.config, tmp_path / "changed")
    if not load("surgeries", name).undone:
        with pytest.raises(NotImplementedError):
            undo_last(tmp_path / "changed", tmp_path / "plain")
        return
    undo_last(tmp_path / "changed", tmp_path / "plain")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert not hasattr(plain.config, "surgeries")
    torch.testing.assert_close(logits(plain), logits(model), rtol=0, atol=1e-5)


@surgeries
def test_the_name_is_in_the_dump_and_the_paper_is_named(name):
    surgery = build("surgeries", {name: FIELDS[name]})
    assert dump(surgery).keys() == {name} and build("surgeries", dump(surgery)) == surgery and surgery.paper
