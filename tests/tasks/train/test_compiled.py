"""Compiled blocks train what blocks train: the same losses, masks and names, and what is compiled again is told."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tasks.data.tokens import Sampler
from tasks.methods import build
from tasks.models.build.building import operate
from tasks.models.build.sums import NAME
from tasks.models.find.linears import find_linears
from tasks.surgeries.slorb import Slorb
from tasks.train import compiled
from tasks.train.compiled import Compilation, CompilationFailed, compile_blocks
from tasks.train.engine import TorchEngine, adamw
from tasks.train.hook import Hook
from tasks.train.loop import Checkpoints, Telemetry, fit
from tasks.train.masking import Masking
from tasks.train.recomputed import recompute_blocks
from tasks.train.regime import Setting
from tasks.train.schedule import LearningRate
from tests.contracts.test_regimes import QUICK, Crash
from tests.tasks import data_zoo
from tests.tasks import models_zoo as zoo

STEPS = 6


@pytest.fixture(autouse=True)
def _tracing_is_enough(monkeypatch):
    """What torch takes of the code is what is at stake here, not what its backend makes of that."""
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    torch._dynamo.reset()


@pytest.fixture
def train(tmp_path):
    sampler = Sampler(data_zoo.write_tokens(tmp_path / "data", "train", data_zoo.periodic(16 * 40)), 16, 4, seed=0)

    def run(name, compile, attempt=None, hook=None, recompute="none", **fields):
        """(weights at the end, losses, masks, lines told)"""
        regime, model = build("regimes", {name: {**QUICK.get(name, {}), **fields}}), zoo.model("llama").train()
        recompute_blocks(model, recompute) if recompute == "selective" else None
        compile_blocks(model) if compile else None
        recompute_blocks(model, recompute) if recompute == "layer" else None
        setting = Setting(find_linears(model), {}, STEPS, STEPS, seed=0)
        regime.setup(model, setting)
        hooks, goal, losses, lines = regime.hooks(setting), regime.objective(), [], []
        teacher = zoo.model("llama").requires_grad_(False) if goal.needs_teacher() else None
        compile_blocks(teacher) if compile and teacher else None
        telemetry = Telemetry(log=lambda metrics, step: losses.append(metrics["loss"]), every=1)
        if compile:
            telemetry = replace(telemetry, progress=lambda *told: lines.append(told), compilation=Compilation(lines.append))
        engine = TorchEngine(model, regime.optimizer(model, (0.9, 0.95), 0.1), 1.0)
        checkpoints = None if attempt is None else Checkpoints(tmp_path / "checkpoints", 0.0, attempt, probe=1)
        chunks = 20 * 4 * zoo.VOCABULARY if teacher else None
        objective, watching = goal.bind(teacher, chunks, compile), [*hooks, *([hook] if hook else [])]
        rate = LearningRate(1e-2, STEPS)
        fit(engine, sampler, objective, watching, STEPS, rate, telemetry=telemetry, checkpoints=checkpoints)
        masks = {linear: mask for hook in hooks if isinstance(hook, Masking) for linear, mask in hook.masks.items()}
        return {each: engine.read(each) for each, _ in model.named_parameters()}, losses, masks, lines

    return run


def equal(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


REGIMES = {  # weights swapped around a block, from a step on; with gradients estimated inside it; a branch; a teacher
    "sr_ste": {"dense": 0.4, "recompute": "layer"},
    "ste": {"recompute": "selective"},
    "s_ste": {},
    "lora": {"recompute": "selective"},
    "masked": {"recompute": "selective"},
}


@pytest.mark.parametrize(("name", "fields"), REGIMES.items())
def test_weights_losses_and_masks_are_those_of_blocks_that_are_not_compiled(name, fields, train):
    weights, losses, masks, _ = train(name, compile=False, **fields)
    again, same_losses, same_masks, lines = train(name, compile=True, **fields)
    assert same_losses == losses and equal(again, weights)
    assert masks.keys() == same_masks.keys() and all(mask.keep.equal(same_masks[each].keep) for each, mask in masks.items())
    notes = [line for line in lines if isinstance(line, str)]  # where training stops being dense, and nowhere else
    assert len(notes) == ("dense" in fields) and all(
        each.startswith("the layers were compiled again in step 3") for each in notes
    )
    told = [line for line in lines if not isinstance(line, str) and "compil" in line[2]]
    assert [(done, total) for done, total, _ in told] == [(0, 0), (1, STEPS)]  # of an unknown total no pace is made
    assert told[1][2].startswith("the layers are compiled, ") and told[1][2].endswith(" s with the first step")


def test_a_compiled_run_that_crashed_equals_the_undisturbed_one(train):
    class CrashAtFour(Hook):
        def after_step(self, run) -> None:
            if run.step == 4:
                raise Crash

    whole = train("dense", compile=True, hook=Hook())[0]
    with pytest.raises(Crash):
        train("dense", compile=True, attempt=0, hook=CrashAtFour())
    again, losses, _, _ = train("dense", compile=True, attempt=1, hook=Hook())
    assert len(losses) < STEPS and equal(again, whole)


def test_a_model_with_branches_in_hooks_does_not_run_what_was_compiled_for_one_without():
    tokens = torch.arange(32).view(2, 16)
    for branched in (False, True):
        model, plain = zoo.model("llama").train(), zoo.model("llama").train()
        for each in (model, plain) if branched else ():
            operate(each, Slorb(group=8))
            for name, parameter in each.named_parameters():
                parameter.data.fill_(0.1) if NAME in name else None
        compile_blocks(model)
        assert torch.equal(model(tokens).logits, plain(tokens).logits)
    assert not torch.equal(plain(tokens).logits, zoo.model("llama").train()(tokens).logits)


def test_names_modules_and_linears_are_as_they_were():
    model, plain = zoo.model("gpt2"), zoo.model("gpt2")
    compile_blocks(model)
    assert model.state_dict().keys() == plain.state_dict().keys() and find_linears(model) == find_linears(plain)
    assert [name for name, _ in model.named_modules()] == [name for name, _ in plain.named_modules()]


def test_what_is_compiled_again_is_told_once_and_counted():
    model, lines = zoo.model("llama").train(), []
    compile_blocks(model)
    engine, compilation = TorchEngine(model, adamw(model)), Compilation(lines.append)
    for step, length in enumerate((16, 16, 12, 8, 8), 1):
        with torch.set_grad_enabled(step < 5):
            engine.forward(input_ids=torch.ones(2, length, dtype=torch.int64), use_cache=False)
        assert (compilation.step(step) is None) == (step > 1)
    compilation.end()
    assert len(lines) == 2 and lines[0].startswith("the layers were compiled again in step 3: ") and "\n" not in lines[0]
    assert lines[1] == "the layers were compiled again in 2 steps, the last of them 5"


def test_a_break_in_a_compiled_layer_is_told_by_the_run_that_it_is_in():
    def broken(module, given, output) -> None:
        torch._dynamo.graph_break()

    for hook, told in ((broken, 1), (lambda *given: None, 0)):
        torch._dynamo.reset()
        model, lines = zoo.model("llama", layers=1), []
        model.model.layers[0].mlp.register_forward_hook(hook)
        compile_blocks(model)
        compilation = Compilation(lines.append)
        model(torch.ones(1, 4, dtype=torch.int64))
        compilation.step(1)
        assert len(lines) == told and all("breaks: Call to `torch._dynamo.graph_break()`" in line for line in lines)


def test_what_cannot_be_compiled_is_one_line_that_says_what_to_do(monkeypatch):
    def broken(graph, inputs):
        raise NotImplementedError("no kernel for this")

    monkeypatch.setattr(compiled, "BACKEND", broken)
    model = zoo.model("llama")
    compile_blocks(model)
    with pytest.raises(
        CompilationFailed, match=r"LlamaDecoderLayer cannot be compiled; set compile: false in the profile \("
    ) as told:
        model(torch.ones(1, 4, dtype=torch.int64))
    assert "\n" not in str(told.value)
