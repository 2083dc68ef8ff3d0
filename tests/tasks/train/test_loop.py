"""The loop learns, and goes on after a crash as if nothing had happened."""

from __future__ import annotations

import json
import math

import pytest
import torch

from tasks.data.batch import IGNORED, Batch
from tasks.data.tokens import Sampler
from tasks.methods import build
from tasks.models.find.linears import find_linears
from tasks.objectives.cross_entropy import CrossEntropy
from tasks.train.engine import TorchEngine, adamw
from tasks.train.hook import Hook
from tasks.train.loop import Checkpoints, Telemetry, fit
from tasks.train.losses import next_token_loss
from tasks.train.regime import Setting
from tasks.train.schedule import LearningRate
from tests.tasks import data_zoo
from tests.tasks import models_zoo as zoo

DENSE_STEPS = 20


class Crash(Exception):
    pass


class CrashAt(Hook):
    def __init__(self, step: int) -> None:
        self.step = step

    def after_step(self, run) -> None:
        if run.step == self.step:
            raise Crash


class Losses(Telemetry):
    """Every step's metrics."""

    def __init__(self) -> None:
        super().__init__(
            log=lambda metrics, step: self.seen.update({step: metrics}), every=1, note=lambda text: self.told.append(text)
        )
        self.told: list[str] = []
        self.seen: dict[int, dict[str, float]] = {}


@pytest.fixture
def sampler(tmp_path) -> Sampler:
    return Sampler(data_zoo.write_tokens(tmp_path / "data", "train", data_zoo.periodic(16 * 50)), 16, 4, seed=0)


def train(
    sampler,
    method="dense",
    hooks=(),
    objective=None,
    telemetry=None,
    checkpoints=None,
    architecture="llama",
    epsilon=1e-8,
    **options,
):
    """Train a tiny model under a regime; (engine, totals, the regime's hooks)."""
    model = zoo.model(architecture, layers=1).train()
    regime = build("regimes", method)
    steps = regime.total_steps(DENSE_STEPS)
    own = regime.hooks(Setting(find_linears(model), {}, DENSE_STEPS, steps))
    engine = TorchEngine(model, adamw(model, epsilon=epsilon), 1.0)
    totals = fit(
        engine,
        sampler,
        objective or CrossEntropy().bind(),
        [*own, *hooks],
        steps,
        LearningRate(1e-2, steps),
        telemetry=telemetry or Losses(),
        checkpoints=checkpoints,
        **options,
    )
    return engine, totals, own


def everything(engine: TorchEngine) -> dict[str, torch.Tensor]:
    """Weights and moments."""
    return {
        f"{name}/{kind}": values.clone()
        for name, shard in engine.shards()
        for kind, values in {"master": shard.master, **shard.moments}.items()
    }


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(values, other[name]) for name, values in one.items())


def test_the_loss_goes_down(sampler):
    losses = Losses()
    _, totals, _ = train(sampler, telemetry=losses)
    assert losses.seen[1]["loss"] > 3 and losses.seen[DENSE_STEPS]["loss"] < 1.5
    assert totals.last["loss"] == losses.seen[DENSE_STEPS]["loss"] and totals.density_steps == DENSE_STEPS


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])  # gpt2 has dropout
@pytest.mark.parametrize("crash", [4, 13, 25])  # before, inside and after the pruning window
def test_a_run_killed_after_a_snapshot_ends_like_the_undisturbed_one_bit_for_bit(sampler, tmp_path, crash, architecture):
    method = {"gradual": {"sparsity": 0.6, "interval": 2}}
    losses, resumed = Losses(), Losses()
    whole, totals, hooks = train(sampler, method, telemetry=losses, architecture=architecture)
    checkpoints = lambda attempt: Checkpoints(tmp_path / "checkpoints", 0.0, attempt, probe=1)  # noqa: E731
    with pytest.raises(Crash):
        train(sampler, method, [CrashAt(crash)], checkpoints=checkpoints(0), architecture=architecture)
    again, totals_again, hooks_again = train(
        sampler, method, [CrashAt(-1)], telemetry=resumed, checkpoints=checkpoints(1), architecture=architecture
    )
    assert losses.told == [] and [text.partition(" of ")[0] for text in resumed.told] == [f"goes on from step {crash - 1}"]
    assert min(resumed.seen) == crash  # the snapshot of the step before the crash
    assert same(everything(whole), everything(again))
    assert totals == totals_again
    assert hooks[0].state_dict()[0] == hooks_again[0].state_dict()[0]
    assert all(losses.seen[step]["loss"] == metrics["loss"] for step, metrics in resumed.seen.items())


@pytest.mark.parametrize(("architecture", "method"), [("gpt2", "dense"), ("llama", {"fst": {"refresh": 5}})])
def test_what_a_model_draws_comes_of_seed_and_step_and_nothing_drawn_before(sampler, architecture, method):
    """Dropout, and FST's estimates of gradients."""

    def trained(seed: int) -> dict[str, torch.Tensor]:
        return everything(train(sampler, method, architecture=architecture, seed=seed)[0])

    first = trained(0)
    torch.rand(7)
    assert same(first, trained(0)) and not same(first, trained(1))


def test_the_accounting_of_density_is_what_the_schedule_says(sampler):
    method = {"gradual": {"sparsity": 0.6, "interval": 2}}
    _, totals, hooks = train(sampler, method)
    schedule, steps = hooks[0].schedule, build("regimes", method).total_steps(DENSE_STEPS)
    assert totals.density_steps == pytest.approx(sum(1 - schedule.at(step) for step in range(steps)), rel=1e-3)
    assert totals.density_steps == pytest.approx(DENSE_STEPS, rel=0.1)


def test_micro_batches_add_up_to_the_batch(sampler):
    # with its own epsilon Adam turns the rounding of a gradient that is nearly zero into a step of ordinary size
    whole, pieces, halves = (train(sampler, micro_batch=size, epsilon=1e-3)[0] for size in (None, 1, 2))
    for name, parameter in whole.module.named_parameters():
        torch.testing.assert_close(pieces.read(name), parameter.detach(), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(halves.read(name), parameter.detach(), rtol=1e-3, atol=1e-4)


def test_metrics_are_means_over_micro_batches(sampler):
    whole, pieces = Losses(), Losses()
    train(sampler, telemetry=whole)
    train(sampler, telemetry=pieces, micro_batch=1)
    assert pieces.seen[1]["loss"] == pytest.approx(whole.seen[1]["loss"], rel=1e-5)
    assert pieces.seen[1]["gradient_norm"] == pytest.approx(whole.seen[1]["gradient_norm"], rel=1e-4)


class Completions:
    """A sampler of which some tokens only count: of the last sequence of a batch one, of the first none at all."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler, self.batch, self.length = sampler, sampler.batch, sampler.length

    def at(self, step, rank=0, ranks=1) -> Batch:
        tokens = self.sampler.at(step, rank, ranks).tokens
        labels = tokens.clone()
        labels[0], labels[1, :9], labels[-1, :-1] = IGNORED, IGNORED, IGNORED
        return Batch(tokens, labels)


def test_a_token_that_counts_weighs_the_same_in_whatever_micro_batch_it_lies(sampler):
    gradients = [Gradients(), Gradients()]
    whole, pieces = Losses(), Losses()
    for seen, losses, size in ((gradients[0], whole, None), (gradients[1], pieces, 1)):
        train(Completions(sampler), hooks=[seen], telemetry=losses, micro_batch=size)
    for name, gradient in gradients[0].first.items():
        torch.testing.assert_close(gradients[1].first[name], gradient, rtol=1e-4, atol=1e-7)
    batch = Completions(sampler).at(0)
    logits = zoo.model("llama", layers=1)(batch.tokens).logits
    assert batch.predicted == 7 + 15 + 1
    assert whole.seen[1]["loss"] == pytest.approx(pieces.seen[1]["loss"], rel=1e-5)
    assert whole.seen[1]["loss"] == pytest.approx(next_token_loss(logits, batch).item(), rel=1e-5)


class Gradients(Hook):
    """Those of the first step."""

    def after_backward(self, run) -> None:
        if run.step == 0:
            self.first = {name: run.engine.grad(name) for name, _ in run.engine.module.named_parameters()}


class Poisoned:
    """The loss is not a number from the third step on."""

    def __init__(self) -> None:
        self.calls, self.sound = 0, CrossEntropy().bind()

    def __call__(self, engine, batch):
        self.calls += 1
        loss, metrics = self.sound(engine, batch)
        return loss * (math.nan if self.calls > 2 else 1.0), metrics


def test_a_loss_that_is_no_number_stops_the_run_and_updates_nothing(sampler, tmp_path):
    class Last(Hook):
        """Remembers the engine and its state after each good step."""

        def after_step(self, run) -> None:
            self.engine, self.state = run.engine, everything(run.engine)

    last = Last()
    with pytest.raises(FloatingPointError, match="gradient norm is nan at step 2; nothing was updated"):
        train(sampler, hooks=[last], objective=Poisoned(), checkpoints=Checkpoints(tmp_path / "checkpoints", 0.0, probe=1))
    assert same(everything(last.engine), last.state)
    states = [json.loads(file.read_text()) for file in (tmp_path / "checkpoints").glob("step-*/state.json")]
    assert all(state["density_steps"] <= 2 for state in states)


class Order(Hook):
    def __init__(self) -> None:
        self.moments: list[str] = []

    def on_start(self, run) -> None:
        self.moments.append(f"start {run.step}")

    def after_backward(self, run) -> None:
        gradients = [parameter.grad is not None for parameter in run.engine.module.parameters()]
        self.moments.append(f"gradients {run.step} {all(gradients)}")

    def after_step(self, run) -> None:
        gradients = [parameter.grad is None for parameter in run.engine.module.parameters()]
        self.moments.append(f"step {run.step} {all(gradients)}")


def test_hooks_see_dense_gradients_between_backward_and_step_only(sampler):
    order = Order()
    train(sampler, hooks=[order])
    assert order.moments[:5] == ["start 0", "gradients 0 True", "step 1 True", "gradients 1 True", "step 2 True"]
    assert order.moments[-1] == f"step {DENSE_STEPS} True"


def test_curves_carry_tokens_and_rate(sampler):
    losses = Losses()
    train(sampler, telemetry=losses)
    assert losses.seen[3]["tokens"] == 3 * 4 * 16 and losses.seen[3]["tokens_per_second"] > 0
    assert losses.seen[3]["learning_rate"] == LearningRate(1e-2, DENSE_STEPS).at(2)
