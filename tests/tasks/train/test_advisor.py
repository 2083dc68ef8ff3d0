"""A run ends when its target is reached or out of reach, at the same step when it is resumed, and says which."""

from __future__ import annotations

import math

import pytest

from tasks.data.tokens import Sampler, Tokens
from tasks.methods import build, validate
from tasks.stage import stage_class
from tasks.train import advisor as module
from tasks.train.advisor import Advisor
from tasks.train.engine import TorchEngine, adamw
from tasks.train.loop import Checkpoints, Telemetry, fit
from tasks.train.schedule import LearningRate
from tasks.train.until import Until
from tests.tasks import data_zoo
from tests.tasks import models_zoo as zoo

STEPS, LENGTH, BATCH = 40, 16, 4


@pytest.fixture
def data(tmp_path):
    for split in ("train", "heldout"):
        data_zoo.write_tokens(tmp_path / "data", split, data_zoo.periodic(2048))
    return tmp_path / "data"


def run(data, perplexity, steps=STEPS, checkpoints=None, stop=None, rate=1e-2):
    """A run on text that can be learned: (advisor, totals, notes, lines of progress, engine)."""
    notes, lines = [], []
    until = Until(perplexity=perplexity, tokens=512, measurements=20)
    advisor = Advisor(until, data, LENGTH, LENGTH * BATCH, notes.append)
    engine = TorchEngine(model := zoo.model("llama", layers=1), adamw(model))

    def progress(done, total, note):
        lines.append(note)
        if done == stop:
            raise KeyboardInterrupt

    telemetry = Telemetry(progress=progress, every=1)
    sampler = Sampler(Tokens(data, "train"), LENGTH, BATCH, 0)
    loss = build("objectives", "cross_entropy").bind()
    schedule = LearningRate(rate, steps)
    totals = fit(engine, sampler, loss, [advisor], steps, schedule, checkpoints=checkpoints, telemetry=telemetry)
    return advisor, totals, notes, lines, engine


def test_it_ends_once_the_target_is_reached_and_not_before(data):
    advisor, totals, notes, lines, _ = run(data, 5)
    assert advisor.outcome == "reached" and totals.steps == advisor.steps[-1] < STEPS
    perplexities = [math.exp(loss) for loss in advisor.losses]
    assert perplexities[-1] <= 5 < min(perplexities[:-1])
    seen = totals.steps * LENGTH * BATCH
    assert notes == [f"until: perplexity 5 reached after {seen:,} tokens, {STEPS * LENGTH * BATCH - seen:,} before the end"]
    assert "held-out perplexity" in lines[0] and lines[0].endswith("wanted 5")
    assert advisor.results() == {"target_reached": 1.0, "stopped_early": 1.0}
    assert totals.last["heldout_perplexity"] == perplexities[-1]


def test_it_ends_past_the_middle_where_the_target_is_out_of_reach(data):
    """At a rate at which nothing is learned the curve is level, and a level curve never comes down."""
    advisor, totals, notes, lines, _ = run(data, 2, rate=1e-6)
    assert advisor.outcome == "out of reach" and STEPS / 2 <= totals.steps < STEPS
    assert notes[0].startswith("until: perplexity 2 out of reach: at the end it would be ") and "stopped after" in notes[0]
    assert advisor.results() == {"target_reached": 0.0, "stopped_early": 1.0}
    assert ", at the end " in lines[-2]


def test_a_run_to_its_end_says_what_it_came_to(data, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 1000)
    advisor, totals, notes, _, _ = run(data, 1.0001)
    assert totals.steps == STEPS and advisor.outcome == "ended"
    assert notes[0].startswith("until: perplexity 1.0001 not reached in 2,560 tokens; it came to ")
    assert advisor.results() == {"target_reached": 0.0, "stopped_early": 0.0}


def test_a_resumed_run_ends_at_the_same_step_with_the_same_weights(data, tmp_path):
    whole = run(data, 5)
    checkpoints = Checkpoints(tmp_path / "checkpoints", seconds=0, probe=1)
    with pytest.raises(KeyboardInterrupt):
        run(data, 5, checkpoints=checkpoints, stop=whole[1].steps - 2)
    again = run(data, 5, checkpoints=Checkpoints(tmp_path / "checkpoints", seconds=0, probe=1))
    assert again[0].losses == whole[0].losses and again[1].steps == whole[1].steps and again[2] == whole[2]
    pairs = zip(again[4].module.parameters(), whole[4].module.parameters(), strict=True)
    assert all(ours.equal(theirs) for ours, theirs in pairs)


def test_looking_on_changes_no_weight(data, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 1000)
    watched = run(data, 1.0001, steps=8)[4]
    engine = TorchEngine(model := zoo.model("llama", layers=1), adamw(model))
    sampler = Sampler(Tokens(data, "train"), LENGTH, BATCH, 0)
    fit(engine, sampler, build("objectives", "cross_entropy").bind(), [], 8, LearningRate(1e-2, 8))
    assert all(a.equal(b) for a, b in zip(watched.module.parameters(), engine.module.parameters(), strict=True))


@pytest.mark.parametrize(
    ("until", "message"),
    [
        ({"perplexity": 1}, "recover.until.perplexity: input should be greater than 1, got 1"),
        ({"perplexity": "low"}, "recover.until.perplexity: input should be a valid number"),
        ({}, "recover.until.perplexity: field required"),
        ({"perplexity": 9, "loss": 2}, "recover.until.loss: no such field; choose one of perplexity, tokens, measurements"),
        ({"perplexity": 9, "measurements": 2}, "recover.until.measurements: input should be greater than or equal to 8"),
        (30, "recover.until: "),
    ],
)
def test_what_is_no_target_is_refused_in_one_line(until, message):
    with pytest.raises(ValueError, match=message) as error:
        validate(stage_class("recover"), {"tokens": 100, "until": until}, "recover")
    assert "\n" not in str(error.value)


def test_a_recipe_without_a_target_has_the_key_it_had():
    assert "until" not in stage_class("recover").model_validate({"tokens": 100}).parameters()
