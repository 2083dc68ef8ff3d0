"""Trials are drawn from the seed alone, share what they agree on, and become ordinary stages with ordinary keys."""

from __future__ import annotations

import pytest

from cluster.store.local import LocalStore
from flows.trials import Axis, draw
from tests.flows.recipes import BASE, plan, recipe

PREPARE, PRETRAIN = BASE["stages"][:2]
RATE = {"learning_rate": {"log": [1e-4, 1e-2]}}
PRUNE = {"prune": {"pattern": "2:4"}, "search": {"method": ["wanda", "magnitude"]}}
RECOVER = {"recover": {"tokens": 10_000}, "search": RATE}


def searched(trials=8, *stages, **header):
    return recipe(
        PREPARE,
        PRETRAIN,
        *(stages or (PRUNE, RECOVER)),
        evaluate={"perplexity": {}},
        **{"search": {"trials": trials}, **header},
    )


def test_a_range_is_drawn_within_its_bounds_in_four_digits_and_a_whole_one_in_whole_numbers():
    shares = [number / 1000 for number in range(1000)]
    assert {Axis([], 1, 4).at(share) for share in shares} == {1, 2, 3, 4}
    assert {Axis([], 1, 8, log=True).at(share) for share in shares} == set(range(1, 9))
    values = [Axis([], 1e-4, 1e-2, log=True).at(share) for share in shares]
    assert values[0] == 1e-4 and max(values) <= 1e-2 and values == sorted(values) and values[500] == pytest.approx(1e-3)
    assert all(float(f"{value:.4g}") == value for value in values)
    assert [Axis(["a", "b"]).at(share) for share in (0.0, 0.49, 0.5, 0.999)] == ["a", "a", "b", "b"]


def test_what_a_trial_draws_hangs_on_seed_number_and_field_alone():
    axis = Axis([], 0.0, 1.0)
    assert [draw(axis, 0, number, "prune.sparsity") for number in range(3)] == [0.5398, 0.2593, 0.6715]
    few, many = searched(3), searched(9)
    assert [trial.values for trial in many.trials[:3]] == [trial.values for trial in few.trials]
    more = searched(3, PRUNE, {**RECOVER, "search": {**RATE, "weight_decay": {"uniform": [0.0, 0.1]}}})
    assert all(trial.values.items() <= other.values.items() for trial, other in zip(few.trials, more.trials, strict=True))
    assert searched(3, search={"trials": 3, "seed": 1}).trials[0].values != few.trials[0].values


def test_the_same_recipe_has_the_same_keys_and_they_are_those_of_the_stages_written_out(tmp_path):
    store = LocalStore(tmp_path)
    made = plan(store, PREPARE, PRETRAIN, PRUNE, RECOVER, search={"trials": 4})
    again = plan(store, PREPARE, PRETRAIN, PRUNE, RECOVER, search={"trials": 4})
    assert [step.artifact.key for step in made.steps] == [step.artifact.key for step in again.steps]
    trial = made.recipe.trials[2]
    written = plan(
        store,
        PREPARE,
        PRETRAIN,
        {"prune": {"pattern": "2:4", "method": trial.values["prune.method"]}},
        {"recover": {"tokens": 10_000, "learning_rate": trial.values["recover.learning_rate"]}},
    )
    ends = [made.by_id[trial.nodes[-1]].artifact.key, made.by_id[trial.nodes[0]].artifact.key]
    assert ends == [written.by_id["recover"].artifact.key, written.by_id["prune"].artifact.key]


def test_trials_that_agree_up_to_a_stage_share_it(tmp_path):
    found = searched(8)
    stages = [node for node in found.nodes if not node.measures]
    assert [node.id for node in stages if node.name in ("prepare", "pretrain")] == ["prepare", "pretrain"]
    assert len([node for node in stages if node.name == "prune"]) == 2  # of two methods
    assert len([node for node in stages if node.name == "recover"]) == 8
    assert {len(trial.nodes) for trial in found.trials} == {2}
    methods = {found.node(trial.nodes[0]).stage.method.name == trial.values["prune.method"] for trial in found.trials}
    assert methods == {True} == {found.node(trial.nodes[1]).parents["model"] == trial.nodes[0] for trial in found.trials}
    keys = [
        step.artifact.key for step in plan(LocalStore(tmp_path), PREPARE, PRETRAIN, PRUNE, RECOVER, search={"trials": 8}).steps
    ]
    assert len(keys) == len(set(keys))


def test_a_stage_beside_the_searched_one_is_not_multiplied_by_it():
    beside = {"id": "beside", "from": "pretrain", "quantize": {"method": {"gptq": {"group_size": 64}}}}
    found = searched(5, PRUNE, beside, {"id": "last", "from": "prune", "quantize": {"method": {"gptq": {"group_size": 64}}}})
    assert [node.id for node in found.nodes if node.base == "beside" and not node.measures] == ["beside"]
    assert len([node for node in found.nodes if node.base == "last"]) == 2


def test_a_search_and_a_grid_multiply():
    found = searched(3, {"prune": {"method": "wanda", "pattern": "2:4"}}, {**RECOVER, "grid": {"seed": [0, 1]}})
    assert [node.id for node in found.nodes if node.name == "recover"] == [
        f"recover-trial{trial}-seed{seed}" for trial in range(3) for seed in range(2)
    ]
    assert found.trials[1].nodes == ("recover-trial1-seed0", "recover-trial1-seed1")


def test_a_method_that_a_grid_or_a_search_chooses_gets_the_fields_that_the_other_does():
    grid, search = {"method": ["static", "rigl"]}, {"method.sparsity": {"uniform": [0.2, 0.4]}}
    stage = {"pretrain": {"tokens": 10_000}}
    for entry in ({**stage, "grid": grid, "search": search}, {**stage, "search": {**search, **grid}}):
        found = recipe(PREPARE, entry, search={"trials": 3}, evaluate={})
        methods = [node.stage.method for node in found.nodes if node.name == "pretrain"]
        assert {method.name for method in methods} <= {"static", "rigl"}
        assert all(0.2 <= method.sparsity <= 0.4 for method in methods)


def test_trials_are_taken_together_by_gather():
    stages = [PREPARE, PRETRAIN, {"prune": {"method": "wanda", "pattern": "2:4"}}, RECOVER, {"merge": {}, "gather": ["trial"]}]
    found = recipe(*stages, search={"trials": 3}, evaluate={})
    assert len(set(found.node("merge").parents.values())) == 3
    with pytest.raises(ValueError, match="recipe.merge: it takes trials together, which stop and tpe do not let end together"):
        recipe(*stages, search={"trials": 3, "stop": "median"}, evaluate={"perplexity": {}})


def test_trials_may_be_written_out():
    trials = [{"recover.learning_rate": rate} for rate in (0.001, 0.002)]
    found = searched(trials, {"prune": {"method": "wanda", "pattern": "2:4"}}, RECOVER)
    assert [found.node(trial.nodes[0]).stage.learning_rate for trial in found.trials] == [0.001, 0.002]


@pytest.mark.parametrize(
    ("stages", "search", "line"),
    [
        ((RECOVER,), None, r"stages\[2\].search: the recipe does not say how many trials; add search: {trials: N}"),
        ((PRUNE,), {"trials": 0}, "recipe.search.trials"),
        ((PRUNE,), {"trials": 2, "sampler": "grid"}, "recipe.search.sampler"),
        ((PRUNE,), {"trials": 2, "objective": "loss of hair"}, "recipe.search.*objective.*choose one of perplexity"),
        ((PRUNE,), {"trials": [{"prune.pattern": "2:4"}]}, r"trials\[0\]: no value for prune.method"),
        (
            (PRUNE,),
            {"trials": [{"prune.method": "wanda", "x": 1}]},
            r"trials\[0\]: no searched field 'x'; choose some of prune",
        ),
        ((BASE["stages"][2],), {"trials": 2}, "recipe.search: no stage says what is searched"),
        (
            ({**RECOVER, "search": {"weight_decay": {"log": [0, 1]}}},),
            {"trials": 2},
            "a logarithmic range begins above 0, got 0",
        ),
        (
            ({**RECOVER, "search": {"weight_decay": {"normal": [0, 1]}}},),
            {"trials": 2},
            r"weight_decay: \[values\], {uniform: \[",
        ),
        (
            ({**RECOVER, "search": {"weight_decay": {"uniform": [2, 1]}}},),
            {"trials": 2},
            r"weight_decay: \[values\], {uniform: \[",
        ),
        (({**RECOVER, "search": []},), {"trials": 2}, "search: {field: values} is needed"),
        (({**RECOVER, "search": {"speed": [1]}},), {"trials": 2}, "speed"),
    ],
)
def test_what_is_wrong_with_a_search_is_one_line_that_names_the_field(stages, search, line):
    with pytest.raises(ValueError, match=line) as refused:
        recipe(PREPARE, PRETRAIN, *stages, search=search)
    assert "\n" not in str(refused.value)


def test_a_search_that_decides_needs_something_to_decide_by():
    with pytest.raises(ValueError, match="recipe.search.objective: no model is measured; add evaluate: {perplexity: {}}"):
        recipe(PREPARE, PRETRAIN, PRUNE, search={"trials": 2, "stop": "median"}, evaluate={})
