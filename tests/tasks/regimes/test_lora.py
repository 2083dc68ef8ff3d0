"""Sparse LoRA: nothing but the branches trains, no dead weight lives, and what is merged is what was trained."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from tasks.data.tokenizer import train_tokenizer
from tasks.formats.mask import Mask, load_masks
from tasks.methods import build
from tasks.models.files.layout import MASKS
from tasks.models.find.linears import find_linears
from tasks.train.engine import TorchEngine
from tasks.train.regime import Setting
from tests.tasks import data_zoo
from tests.tasks import models_zoo as zoo
from tests.tasks.regimes.gym import UP
from tests.tasks.train.test_training import context, pruned, recover

LORA = {"lora": {"rank": 2, "alpha": 6}}


def enter(architecture: str = "llama", masks=None):
    """A tiny model with its branches, in an engine; (regime, setting, engine)."""
    regime, model = build("regimes", LORA), zoo.model(architecture, layers=1)
    for name, mask in (masks or {}).items():
        model.get_parameter(name).data.mul_(mask.keep)
    setting = Setting(find_linears(model), masks or {}, 4, 4)
    regime.setup(model, setting)
    return regime, setting, TorchEngine(model, regime.optimizer(model, (0.9, 0.95), 0.1), 1.0)


def train(engine: TorchEngine, steps: int = 3) -> None:
    for _ in range(steps):
        engine.backward(engine.forward(input_ids=zoo.batches()[0], labels=zoo.batches()[0]).loss)
        engine.step(1e-2)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral", "gpt_oss"])  # transposed, and stacks of experts
def test_it_begins_as_the_model_and_computes_the_same_before_and_after_the_merge(architecture):
    regime, setting, engine = enter(architecture)
    tokens, plain = zoo.batches()[0], zoo.model(architecture, layers=1)
    assert torch.equal(engine.module(tokens).logits, plain(tokens).logits)
    train(engine)
    trained = engine.module.eval()(tokens).logits.detach()
    regime.finish(engine, setting)
    torch.testing.assert_close(engine.module(tokens).logits, trained, rtol=1e-4, atol=1e-4)
    plain.load_state_dict({name: engine.read(name) for name, _ in plain.named_parameters()}, strict=False)
    torch.testing.assert_close(plain(tokens).logits, trained, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(zoo.model(architecture, layers=1)(tokens).logits, trained, atol=1e-2)


def test_only_branches_train_and_they_hold_two_thin_matrices_each():
    _, setting, engine = enter()
    sizes = {name: shard.numel for name, shard in engine.shards()}
    expected = {
        name.replace("weight", f"lora.{side}"): 2 * linear.shape[index]
        for name, linear in setting.linears.items()
        for index, side in enumerate(("up", "down"))
    }
    assert sizes == expected
    before = {name: engine.read(name) for name, _ in engine.module.named_parameters()}
    train(engine)
    assert {name for name, weight in before.items() if not torch.equal(engine.read(name), weight)} == sizes.keys()


def test_what_is_merged_is_the_product_inside_the_mask():
    keep = torch.rand(48, 32, generator=torch.Generator().manual_seed(0)) < 0.5
    regime, setting, engine = enter(masks={UP: Mask.of(keep, "unstructured", 0.4)})
    train(engine)
    before, inside = engine.read(UP), UP.replace("weight", "lora")
    added = 3 * engine.read(f"{inside}.up") @ engine.read(f"{inside}.down")
    regime.finish(engine, setting)
    torch.testing.assert_close(engine.read(UP), (before + added) * keep)
    assert added[~keep].any()


def test_a_recovered_model_has_its_names_its_masks_and_every_other_tensor_as_it_was(tmp_path):
    data_zoo.write_tokens(tmp_path / "data", "train", data_zoo.periodic(16 * 50))
    train_tokenizer([data_zoo.text(0)], 260).save_pretrained(tmp_path / "data" / "tokenizer")
    student = pruned(tmp_path / "in", torch.bfloat16)
    recover(method=LORA).run(context(tmp_path / "data", tmp_path, inputs={"model": student}))
    before, after = (load_file(directory / "model.safetensors") for directory in (student, tmp_path / "out"))
    masks = load_masks(tmp_path / "out" / MASKS)
    assert after.keys() == before.keys() and masks.keys() == load_masks(student / MASKS).keys()
    for name, weight in after.items():
        assert weight.dtype == torch.bfloat16 and torch.equal(weight, before[name]) == (name not in masks)
        assert name not in masks or not weight[~masks[name].keep].any()
