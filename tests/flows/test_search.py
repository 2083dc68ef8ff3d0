"""A search decides by what trials came to: the same ones every time, dominated ones stopped, nothing made twice."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import yaml

from cluster.store.local import LocalStore
from flows.plan import Plan, make_plan
from flows.ranking import ranking
from flows.recipe import parse_recipe
from flows.search import explore, left, survivors
from flows.spared import Spared
from flows.summary import summarise
from tests.flows.recipes import BASE, publish, recipe

PREPARE, PRETRAIN = BASE["stages"][:2]
STAGES = (
    PREPARE,
    PRETRAIN,
    {"prune": {"method": "wanda"}, "search": {"sparsity": {"uniform": [0.1, 0.9]}}},
    {"recover": {"tokens": 10_000}, "search": {"learning_rate": {"log": [1e-4, 1e-2]}}},
    {"quantize": {"method": {"gptq": {"group_size": 64}}}},
)


class Bench:
    """Runs a search on artifacts that take no work: a model is worse the sparser it was made."""

    def __init__(self, tmp_path, **search):
        self.store, self.tmp = LocalStore(tmp_path / "store"), tmp_path
        self.search, self.made, self.records, self.plans = search, [], {}, []

    def plan(self, trials=None) -> Plan:
        written = recipe(*STAGES, evaluate={"perplexity": {}}, search=self.search)
        self.plans.append(make_plan(parse_recipe(yaml.safe_load(written.text), written.text, None, trials), self.store))
        return self.plans[-1]

    def make(self, plan: Plan) -> None:
        for step in plan.steps:
            if not step.cached:
                self.made.append(step.id)
                publish(self.store, step, self.tmp / step.artifact.key, **self.quality(plan, step))
            self.records[step.id] = self.store.require(step.artifact)

    def quality(self, plan: Plan, step) -> dict[str, float]:
        trials = [trial for trial in self.plans[-1].recipe.trials if step.node.measures in trial.nodes]
        return {"perplexity": 100 * trials[0].values["prune.sparsity"]} if trials else {"perplexity": 1.0}

    def run(self) -> list[str]:
        """What was made, by this run alone."""
        before, self.records = len(self.made), {}
        explore(self.plan(), self.plan, self.make, self.records)
        return self.made[before:]

    def values(self) -> list[float]:
        return [trial.values["prune.sparsity"] for trial in self.plans[-1].recipe.trials]


@pytest.mark.parametrize("search", [{"sampler": "tpe"}, {"stop": "median"}, {"sampler": "tpe", "stop": "halving"}])
def test_a_search_that_ran_is_found_done_and_asks_for_the_same_trials(tmp_path, search):
    bench = Bench(tmp_path, trials=10, **search)
    assert left(bench.plan(), bench.plan) and bench.run()
    values = bench.values()
    assert len(values) == 10
    assert not left(bench.plan(), bench.plan)
    assert bench.run() == [] and bench.values() == values


def test_a_search_that_was_interrupted_goes_on_where_it_was(tmp_path):
    whole, cut = Bench(tmp_path / "whole", trials=10, sampler="tpe"), Bench(tmp_path / "cut", trials=10, sampler="tpe")
    everything = whole.run()

    class Killed(Exception):
        pass

    def make(plan):
        if len(bench_made := cut.made) > 20:
            raise Killed(bench_made)
        Bench.make(cut, plan)

    cut.records = {}
    with pytest.raises(Killed):
        explore(cut.plan(), cut.plan, make, cut.records)
    first = list(cut.made)
    assert 0 < len(first) < len(everything)
    assert first + cut.run() == everything and cut.values() == whole.values()


def test_the_estimator_looks_where_it_was_good(tmp_path):
    bench = Bench(tmp_path, trials=24, sampler="tpe")
    bench.run()
    values = bench.values()
    assert sum(values[12:]) < sum(values[:12]) and min(values) < 0.2


def test_a_trial_that_fails_is_told_as_failed_and_the_others_go_on(tmp_path):
    bench, failures = Bench(tmp_path, trials=8, sampler="tpe"), {}
    spared = []

    def make(plan):
        spared.append(Spared(plan, SimpleNamespace(failed=lambda step, error: failures.update({step.id: error}))))
        for step in plan.steps:
            if step.id in ("recover-trial2", "recover-trial6"):
                spared[-1].failed(step, ValueError("the gradient norm is nan at step 1"))
            elif not spared[-1].lost(step):
                Bench.make(bench, replace(plan, steps=(step,)))

    explore(bench.plan(), bench.plan, make, bench.records, failures)
    made = set(bench.made)
    assert (
        failures.keys() == {"recover-trial2", "recover-trial6"} and {"prune-trial2", "prune-trial7", "quantize-trial7"} <= made
    )
    assert not {"quantize-trial2", "quantize-trial6"} & made
    plan = bench.plans[-1]
    assert [trial.number for trial in survivors(plan, failures)] == [0, 1, 3, 4, 5, 7]
    summary = summarise(plan, bench.records, {}, 0.0, failures)
    assert summary["failed"]["recover-trial6"] == "the gradient norm is nan at step 1" and summary["ranking"]["rows"]


def test_what_is_everybodys_ends_a_search(tmp_path):
    plan = Bench(tmp_path, trials=2).plan()
    spared = Spared(plan, SimpleNamespace(failed=None))
    for id, error in (("pretrain", ValueError("nan")), ("prune-trial0", OSError("no space left on device"))):
        with pytest.raises(type(error), match=str(error)):
            spared.failed(plan.by_id[id], error)


@pytest.mark.parametrize("stop", ["median", "halving"])
def test_a_dominated_trial_goes_no_further_than_the_rung_that_showed_it(tmp_path, stop):
    bench = Bench(tmp_path, trials=12, stop=stop)
    made = bench.run()
    values = bench.values()
    ended = {number for number in range(12) if f"quantize-trial{number}" in made}
    assert {f"prune-trial{number}" for number in range(12)} <= set(made)
    assert 2 <= len(ended) < 12 and values.index(min(values)) in ended
    assert max(values[4:]) in [values[number] for number in range(12) if f"recover-trial{number}" not in made]


def test_the_table_ranks_what_ended_best_first_and_then_what_was_stopped(tmp_path):
    bench = Bench(tmp_path, trials=12, stop="median")
    bench.run()
    plan = bench.plans[-1]
    found = summarise(plan, bench.records, {}, 0.0)["ranking"]
    ended = [row for row in found["rows"] if row["ended_after"] is None]
    assert len(found["rows"]) == 12 and found["rows"][: len(ended)] == ended
    assert [row["perplexity"] for row in ended] == sorted(row["perplexity"] for row in ended)
    assert ended[0]["values"]["prune.sparsity"] == min(bench.values())
    assert {row["ended_after"] for row in found["rows"][len(ended) :]} <= {"prune", "recover"}


def test_a_grid_is_ranked_too_and_a_chain_is_not():
    grid = recipe(PREPARE, {**PRETRAIN, "grid": {"seed": [0, 1]}}, evaluate={"perplexity": {}})
    models = [
        {"stage": node.id, "base": node.base, "branch": node.branch, "address": "a", "perplexity": 9.0 - number}
        for number, node in enumerate(grid.models())
    ]
    assert [row["values"] for row in ranking(grid, models)["rows"]] == [{"seed": "seed1"}, {"seed": "seed0"}]
    assert ranking(recipe(PREPARE, PRETRAIN), [{**models[0], "stage": "pretrain", "branch": {}}]) is None


def test_branches_that_end_at_different_stages_are_ranked_by_what_they_came_to():
    """By the metric alone, be they of the stage before or after; what a failure or a search stopped comes last."""
    prune = {"prune": {"pattern": "2:4"}, "grid": {"method": ["wanda", "magnitude"]}}
    recover, quantize = BASE["stages"][3:]
    stages = [PREPARE, PRETRAIN, prune, recover, {"id": "packed", "from": "prune", **quantize}]
    branched = recipe(*stages, evaluate={"perplexity": {}})
    numbers = {"recover-wanda": 9.0, "packed-wanda": 9.5, "recover-magnitude": 10.0, "packed-magnitude": 12.0, "prune": 8.0}
    models = [
        {
            "stage": node.id,
            "base": node.base,
            "branch": node.branch,
            "address": "a",
            "perplexity": numbers.get(node.id, 8.0),
        }
        for node in branched.models()
        if node.branch
    ]
    rows = ranking(branched, models)["rows"]
    assert [row["stage"] for row in rows] == sorted(numbers, key=numbers.get)[1:] and not any(
        row["ended_after"] for row in rows
    )
    early = [model for model in models if "magnitude" not in model["stage"] or model["base"] == "prune"]
    rows = ranking(branched, early)["rows"]
    assert [(row["stage"], row["ended_after"]) for row in rows[1:]] == [("packed-wanda", None), ("prune-magnitude", "prune")]


def test_what_was_merged_with_others_is_no_branch_of_its_own():
    tuned = {"recover": {"tokens": 10_000}, "grid": {"learning_rate": [1e-3, 1e-4], "seed": [0, 1]}}
    merged = recipe(PREPARE, PRETRAIN, BASE["stages"][2], tuned, {"merge": {"method": "uniform"}, "gather": ["seed"]})
    models = [
        {"stage": node.id, "base": node.base, "branch": node.branch, "address": "a", "perplexity": float(number)}
        for number, node in enumerate(merged.models())
    ]
    assert {row["stage"].partition("-")[0] for row in ranking(merged, models)["rows"]} == {"merge"}
