"""What every objective on the shelf promises, and that every regime minimises the one it is given."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from tasks.data.batch import IGNORED, Batch
from tasks.data.tokens import Sampler
from tasks.methods import build, dump, names
from tasks.models.find.linears import find_linears
from tasks.train.engine import TorchEngine, adamw
from tasks.train.loop import fit
from tasks.train.objective import Objective
from tasks.train.ready import tells
from tasks.train.regime import Setting
from tasks.train.schedule import LearningRate
from tests.contracts.test_methods_without_torch import SCRIPT
from tests.contracts.test_regimes import QUICK
from tests.tasks import data_zoo
from tests.tasks import models_zoo as zoo

objectives = pytest.mark.parametrize("name", names("objectives"))
TOKENS = zoo.batches(1, rows=4)[0]
FIELDS = {
    "mixture": {"of": {"distillation": {"ce": 0}, "attention": {}, "hidden_states": {"ce": 0}}, "weights": {"attention": 0.5}}
}


def made(name: str) -> Objective:
    return build("objectives", {name: FIELDS.get(name, {})}, Objective)


def telling(name: str, model):
    """A model that can say what an objective asks for."""
    tells(model, made(name).asks())
    return model


class Teacher:
    """A model that learns nothing; counts how often it is asked."""

    def __init__(self, model) -> None:
        self.model, self.asked = model.requires_grad_(False), 0

    def __call__(self, **given):
        self.asked += 1
        return self.model(**given)

    def set_attn_implementation(self, name: str) -> None:
        self.model.set_attn_implementation(name)


def taught(scale: float = 1.0) -> Teacher:
    model = zoo.model("llama", layers=1)
    for parameter in model.parameters():
        parameter.data.mul_(scale)
    return Teacher(model)


def measured(name: str, batch: Batch, teacher: Teacher | None = None, logits_bytes: int | None = None):
    engine = TorchEngine(model := telling(name, zoo.model("llama", layers=1)), adamw(model))
    return engine, *made(name).bind(teacher and telling(name, teacher), logits_bytes)(engine, batch)


@objectives
def test_it_is_finite_says_the_cross_entropy_and_every_weight_but_the_teachers_learns(name):
    engine, loss, metrics = measured(name, Batch(TOKENS), teacher := taught(0.5))
    engine.backward(loss)
    assert loss.isfinite() and not any(value.requires_grad or not value.isfinite() for value in metrics.values())
    assert metrics["loss"].item() == pytest.approx(measured("cross_entropy", Batch(TOKENS))[1].item(), rel=1e-6)
    assert all(parameter.grad.any() for parameter in engine.module.parameters())
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())


@objectives
def test_a_teacher_is_asked_once_a_batch_where_one_is_needed_and_never_where_none_is(name):
    measured(name, Batch(TOKENS), teacher := taught())
    assert teacher.asked == made(name).needs_teacher()


@objectives
def test_a_student_equal_to_its_teacher_learns_nothing_from_it(name):
    _, _, metrics = measured(name, Batch(TOKENS), taught())
    assert all(value.item() == pytest.approx(0, abs=1e-6) for term, value in metrics.items() if term != "loss")


@objectives
def test_labels_of_every_token_are_no_labels_and_what_is_ignored_is_not_scored(name):
    labels = TOKENS.clone()
    _, plain, _ = measured(name, Batch(TOKENS), taught(0.5))
    _, labelled, _ = measured(name, Batch(TOKENS, labels), taught(0.5))
    assert labelled.item() == pytest.approx(plain.item(), rel=1e-6)
    labels[0], labels[1:, :7] = IGNORED, IGNORED
    _, part, metrics = measured(name, Batch(TOKENS, labels), taught(0.5))
    ours = zoo.model("llama", layers=1)(TOKENS).logits[1:, 6:-1].log_softmax(-1)
    by_hand = -ours.gather(-1, TOKENS[1:, 7:, None]).mean()
    assert metrics["loss"].item() == pytest.approx(by_hand.item(), rel=1e-5) and part.item() != plain.item()


class OneBatch:
    """A text of one batch: prompts of different lengths, and padding behind two of the three."""

    batch, length = TOKENS.shape

    def at(self, step: int, rank: int, ranks: int) -> Batch:
        labels, documents = TOKENS.clone(), torch.ones_like(TOKENS)
        for row, (prompt, end) in enumerate([(2, 16), (12, 14), (5, 7)]):
            labels[row, :prompt], labels[row, end:], documents[row, end:] = IGNORED, IGNORED, 0
        return Batch(TOKENS, labels, documents)


@objectives
def test_how_a_batch_is_shared_out_over_micro_batches_changes_nothing(name):
    """They are a profile's affair, and another profile finds the same artifact."""
    found = []
    for micro_batch in (3, 1):
        engine = TorchEngine(model := telling(name, zoo.model("llama", layers=1)), adamw(model))
        objective = made(name).bind(telling(name, taught(0.5)))
        fit(engine, OneBatch(), objective, [], 4, LearningRate(1e-3, 4, 0.0, 1.0), micro_batch=micro_batch)
        found.append(torch.cat([value.detach().flatten() for value in model.parameters()]))
    moved = found[0] - torch.cat([value.flatten() for value in zoo.model("llama", layers=1).parameters()])
    assert (found[1] - found[0]).norm() <= 1e-4 * moved.norm()


LABELS = TOKENS.clone()
LABELS[0], LABELS[1:, :7] = IGNORED, IGNORED
SEVEN = 7 * 4 * zoo.VOCABULARY  # bytes of the float32 logits of seven tokens


class Widest:
    """The most logits that a model's head makes at once, and how often it is asked."""

    def __init__(self, model) -> None:
        self.tokens = self.times = 0
        model.get_output_embeddings().register_forward_hook(self.see)

    def see(self, module, given, logits) -> None:
        self.tokens, self.times = max(self.tokens, logits.numel() // zoo.VOCABULARY), self.times + 1


def in_chunks(name: str, batch: Batch, architecture: str, sharded: bool, logits_bytes: int | None, precision: str):
    model = telling(name, zoo.model(architecture).train())
    teacher = telling(name, zoo.model(architecture, layers=2).requires_grad_(False))
    for parameter in teacher.parameters():
        parameter.data.mul_(0.7)
    engine, widest = TorchEngine(model, adamw(model), precision=precision), [Widest(model), Widest(teacher)]
    engine.sharded = sharded
    loss, metrics = made(name).bind(teacher, logits_bytes)(engine, batch)
    engine.backward(loss / 3)
    gradients = {parameter: value.grad for parameter, value in model.named_parameters() if value.grad is not None}
    return {"whole": loss.detach(), **metrics}, gradients, max(each.tokens for each in widest)


@objectives
@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])  # tied to the embedding; a softcap
@pytest.mark.parametrize("batch", [Batch(TOKENS), Batch(TOKENS, LABELS)], ids=["plain", "labelled"])
def test_in_chunks_of_tokens_loss_and_gradients_are_those_of_the_whole(name, batch, architecture, sharded):
    told, gradients, _ = in_chunks(name, batch, architecture, sharded, None, "fp32")
    again, in_pieces, widest = in_chunks(name, batch, architecture, sharded, SEVEN, "fp32")
    assert widest <= 7 and told.keys() == again.keys() and gradients.keys() == in_pieces.keys()
    assert all(again[term].item() == pytest.approx(value.item(), rel=1e-6) for term, value in told.items())
    size = max(gradient.norm() for gradient in gradients.values())
    assert all((in_pieces[each] - gradient).norm() <= 1e-6 * size for each, gradient in gradients.items())


@objectives
def test_a_head_in_pieces_is_asked_as_often_whatever_counts_as_ranks_gather_it_together(name):
    asked = []
    for counting in (0, 1, 9, TOKENS.shape[1]):
        labels = torch.full_like(TOKENS, IGNORED)
        labels[-1, :counting] = TOKENS[-1, :counting]
        model = telling(name, zoo.model("llama").train())
        engine, widest = TorchEngine(model, adamw(model)), Widest(model)
        engine.sharded = True
        loss, metrics = made(name).bind(telling(name, zoo.model("llama", layers=2)), SEVEN)(engine, Batch(TOKENS, labels))
        engine.backward(loss)
        assert all(value.isfinite() for value in metrics.values())
        asked.append(widest.times)
    assert len(set(asked)) == 1 and asked[0] >= 2 * TOKENS.numel() // 7


@objectives
def test_chunks_compute_in_the_precision_of_the_whole(name):
    told, gradients, _ = in_chunks(name, Batch(TOKENS), "llama", False, None, "bf16")
    again, in_pieces, _ = in_chunks(name, Batch(TOKENS), "llama", False, SEVEN, "bf16")
    assert all(again[term].item() == pytest.approx(value.item(), rel=1e-3) for term, value in told.items())
    assert all((in_pieces[each] - gradient).norm() <= 2e-2 * gradient.norm() for each, gradient in gradients.items())


@objectives
def test_logits_that_have_room_are_scored_at_once_to_the_last_bit(name):
    whole, roomy = (measured(name, Batch(TOKENS), taught(0.5), room)[1] for room in (None, TOKENS.numel() * SEVEN))
    assert whole.equal(roomy)


def test_chunks_of_no_token_that_counts_lose_nothing_and_teach_nothing():
    told, gradients, _ = in_chunks(
        "distillation", Batch(TOKENS, torch.full_like(TOKENS, IGNORED)), "llama", False, SEVEN, "fp32"
    )
    assert not any(value.item() for value in told.values()) and not any(gradient.any() for gradient in gradients.values())


@objectives
def test_the_name_is_in_the_dump_and_the_paper_is_named(name):
    method = made(name)
    assert dump(method).keys() == {name} and build("objectives", dump(method)) == method and method.paper


def test_methods_are_built_and_dumped_without_torch():
    command = [sys.executable, "-c", SCRIPT, "objectives", *names("objectives")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", names("regimes"))
def test_every_regime_minimises_the_objective_it_is_given(name, tmp_path):
    """What hooks make of it passes it on whole: a gradient of 1 arrives at the loss of each batch."""
    arrived, plain = [], build("objectives", "cross_entropy").bind()

    def spied(engine, batch):
        loss, metrics = plain(engine, batch)
        if loss.requires_grad:  # a probe of layers only looks
            loss.register_hook(lambda gradient: arrived.append(gradient.item()))
        return loss, metrics

    data, steps = data_zoo.write_sequence(tmp_path / "sequence", length=16), 3
    regime, model = build("regimes", {name: QUICK.get(name, {})}), zoo.model("llama", layers=1)
    setting = Setting(find_linears(model), {}, steps, steps, data=data)
    regime.setup(model, setting)
    hooks = regime.hooks(setting)
    sampler, objective = Sampler(data_zoo.write_tokens(tmp_path / "data", "train", data_zoo.periodic(64)), 16, 4, 0), spied
    for hook in hooks:
        sampler, objective = hook.sampler(sampler), hook.objective(objective)
    engine = TorchEngine(model, regime.optimizer(model, (0.9, 0.95), 0.1))
    fit(engine, sampler, objective, hooks, steps, LearningRate(1e-3, steps))
    assert arrived == [1.0] * steps
