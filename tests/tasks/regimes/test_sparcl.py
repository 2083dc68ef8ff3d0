"""SparCL on two tasks: masks follow the tasks, easy data go, few gradients count, and forgetting is measured."""

import math

import numpy as np
import pytest
import torch

from tasks.data.batch import IGNORED
from tasks.data.tokens import Sampler
from tasks.formats.selection import quota
from tasks.methods import build
from tasks.models.find.linears import find_linears
from tasks.objectives.cross_entropy import CrossEntropy
from tasks.train.engine import TorchEngine, adamw
from tasks.train.hook import Hook
from tasks.train.loop import fit
from tasks.train.regime import Setting
from tasks.train.schedule import LearningRate
from tests.tasks import data_zoo
from tests.tasks import models_zoo as zoo
from tests.tasks.regimes.gym import UP

STEPS = 40
QUICK = {"budget": "tokens", "refresh": 3, "buffer": 6, "probes": 4}


class Spy(Hook):
    def __init__(self, look):
        self.look, self.seen = look, []

    def after_step(self, run):
        self.seen.append(self.look(run))


@pytest.fixture
def learn(tmp_path):
    """Train on two tasks; (hooks, what ``look`` saw after every step)."""
    data = data_zoo.write_sequence(tmp_path / "data", length=16)

    def run(look=lambda hooks, run: None, steps=STEPS, objective=None, **fields):
        regime, model = build("regimes", {"sparcl": {**QUICK, **fields}}), zoo.model("llama", layers=1)
        hooks = regime.hooks(Setting(find_linears(model), {}, steps, steps, data=data))
        sampler = Sampler(data_zoo.write_tokens(tmp_path / "whole", "train", data_zoo.periodic(64)), 16, 4, 0)
        objective, spy = objective or regime.objective().bind(), Spy(lambda run: look(hooks, run))
        for hook in hooks:
            sampler, objective = hook.sampler(sampler), hook.objective(objective)
        engine = TorchEngine(model, adamw(model), 1.0)
        fit(engine, sampler, objective, [*hooks, spy], steps, LearningRate(3e-3, steps))
        return hooks, spy.seen

    return run


def test_masks_make_room_at_a_new_task_swap_and_freeze(learn):
    hooks, live = learn(lambda hooks, run: hooks[2].masks[UP].live, swap=0.05)
    sizes = {share: 48 * 32 - quota(48 * 32, share) for share in (0.70, 0.75)}
    assert set(live[:20]) == {sizes[0.75]}
    assert live[20:22] == [sizes[0.70]] * 2 and live[22] == sizes[0.75] == live[-1]
    assert [hooks[2].bounds(step) for step in (0, 1, 2, 16, 18, 20)] == [
        None,
        None,
        (0.8, 0.75),
        (0.8, 0.75),
        (0.75, 0.75),
        (0.75, 0.70),
    ]


def test_masks_rest_from_the_freeze_to_the_end_of_the_task(learn):
    _, masks = learn(lambda hooks, run: hooks[2].masks[UP].packed.clone(), swap=0.05)
    assert all(torch.equal(masks[18], later) for later in masks[19:20])
    assert not torch.equal(masks[16], masks[10])


def test_between_refreshes_at_most_a_fifth_of_the_gradients_counts(learn):
    hooks, _ = learn()
    masks = hooks[3]
    for name, bits in masks.kept.items():
        numel = torch.Size(masks.linears[name].shape).numel()
        assert int(np.unpackbits(bits.numpy()).sum()) == numel - quota(numel, 0.8)


def test_a_weight_whose_gradient_is_dropped_does_not_move_without_momentum():
    model = zoo.model("llama", layers=1)
    engine = TorchEngine(model, adamw(model, betas=(0.0, 0.0), weight_decay=0.0), 1.0)
    keep = torch.rand(48, 32, generator=torch.Generator().manual_seed(0)) < 0.2
    engine.focus(UP, keep)
    before = engine.read(UP)
    loss = engine.forward(input_ids=zoo.batches()[0], labels=zoo.batches()[0]).loss
    engine.backward(loss)
    engine.step(1e-2)
    moved = engine.read(UP) != before
    assert moved[keep].all() and not moved[~keep].any()
    engine.focus(UP, None)
    before = engine.read(UP)
    engine.backward(engine.forward(input_ids=zoo.batches()[0], labels=zoo.batches()[0]).loss)
    engine.step(1e-2)
    assert (engine.read(UP) != before).all()


def test_a_task_loses_three_tenths_of_its_sequences_in_four_steps_and_the_easiest_first(learn):
    hooks, left = learn(lambda hooks, run: [len(alive) for alive in hooks[0].tasks.alive])
    assert [left[step][0] for step in (0, 1, 3, 5, 7, 19)] == [40, 37, 34, 31, 28, 28]
    assert [left[step][1] for step in (19, 21, 23, 25, 27, 39)] == [40, 37, 34, 31, 28, 28]


def test_the_easiest_are_those_predicted_wrong_least_often(learn):
    hooks, _ = learn(steps=4)
    sequence = hooks[0]
    sequence.tasks.alive[0] = np.arange(40)
    sequence.seen[0], sequence.wrong[0] = np.ones(40), np.linspace(1, 0, 40)
    sequence._remove(sequence.run, 0)
    assert sequence.tasks.alive[0].tolist() == list(range(37))


def test_a_batch_holds_only_what_is_left_and_every_rank_its_own_share(learn):
    hooks, _ = learn(steps=4)
    tasks = hooks[0].tasks
    tasks.alive[0], tasks.since[0] = np.array([3, 5, 8, 13, 21]), 0
    whole = tasks.at(0).tokens.numpy()
    numbers = set(tasks.drawn)
    assert numbers < {3, 5, 8, 13, 21} and len(numbers) == 4
    assert np.array_equal(np.concatenate([tasks.at(0, rank, 2).tokens for rank in (0, 1)]), whole)


def test_forgetting_is_the_rise_since_a_task_was_learned_and_replay_lowers_it(learn):
    forgot = {}
    for buffer in (0, 6):
        hooks, _ = learn(steps=200, buffer=buffer, sparsity=0.0, gradient_sparsity=0.0, removed=0.0)
        losses, results = hooks[0].losses, hooks[0].results()
        assert [len(row) for row in losses] == [1, 2]
        assert results["forgetting"] == results["task_forgetting.first"] == losses[1][0] - losses[0][0]
        assert results["task_loss.second"] == losses[1][1]
        forgot[buffer] = results["forgetting"]
    assert forgot[0] > 1.0 and forgot[6] < 0.5 * forgot[0]


def test_the_buffer_holds_past_sequences_with_what_was_said_of_them(learn):
    hooks, seen = learn(lambda hooks, run: len(hooks[1].past))
    assert seen[18] == 0 and seen[19] == seen[-1] == 6
    replay = hooks[1]
    assert replay.logits_BTV.shape == (6, 16, zoo.VOCABULARY) and replay.logits_BTV.dtype == torch.float16
    first = {tuple(row) for row in (hooks[0].tasks.tasks[0].sequence(number, 16) for number in range(40))}
    assert {tuple(row) for row in replay.past.tokens.numpy()} <= first


def test_the_objective_it_is_given_is_what_it_minimises(learn):
    """A distillation, say: here cross-entropy and a pull on the head, which moves only where the pull is passed on."""
    engines = []

    def pulled(engine, batch):
        engines.append(engine)
        loss, metrics = CrossEntropy().bind()(engine, batch)
        return loss + 1000 * engine.module.lm_head.weight.square().mean(), metrics | {"pull": loss.detach() * 0}

    def head(hooks, run):
        return float(run.engine.read("lm_head.weight").norm()), [len(alive) for alive in hooks[0].tasks.alive]

    (plain, left), (drawn, as_many) = (learn(head, objective=objective)[1][-1] for objective in (None, pulled))
    assert engines and drawn < 0.98 * plain
    assert left == as_many == [28, 28]  # and how wrong each sequence was is known as before


def test_prompts_are_read_and_neither_learned_replayed_nor_judged(learn, monkeypatch):
    data_zoo.completions(monkeypatch, prompt=12)
    hooks, _ = learn()
    sequence, replay = hooks[:2]
    assert (replay.past.labels[:, :12] == IGNORED).all() and torch.equal(replay.past.labels[:, 12:], replay.past.tokens[:, 12:])
    _, tensors = replay.state_dict()
    replay.load_state_dict({}, tensors)
    assert torch.equal(replay.past.labels, tensors["labels"])
    assert sequence.wrong[1].any() and not (4 * sequence.wrong[1] % 1).any()  # shares of four tokens each
    assert all(math.isfinite(loss) for row in sequence.losses for loss in row)


def test_data_that_are_no_sequence_are_refused(tmp_path):
    data_zoo.write_tokens(tmp_path, "train", data_zoo.periodic(64))
    model = zoo.model("llama", layers=1)
    with pytest.raises(ValueError, match="corpus: {sequence: {NAME: CORPUS"):
        build("regimes", "sparcl").hooks(Setting(find_linears(model), {}, 4, 4, data=tmp_path))
