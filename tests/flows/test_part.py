"""``--only`` and ``--until``: which stages are made then, under the same keys, and what is said where that cannot be."""

from __future__ import annotations

import pytest

from cluster.store.local import LocalStore
from flows.part import WHOLE, Part, chosen, up_to
from flows.plan import Plan, alone, make_plan
from tests.flows.command import winnow
from tests.flows.recipes import BASE, publish, recipe

TWO = [*BASE["stages"][:3], {"id": "again", "from": "pretrain", "prune": {"method": "magnitude", "sparsity": 0.5}}]
ALL = "prepare, pretrain, prune, recover, quantize"
SWEPT = [*BASE["stages"][:3], {"id": "tuned", **BASE["stages"][3], "grid": {"seed": [0, 1]}}]


@pytest.fixture
def store(tmp_path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def part(store: LocalStore, *stages, only: str | None = None, until: str | None = None, **header) -> Plan:
    whole = recipe(*stages, **header)
    named = chosen(whole, Part(only, until))
    plan = make_plan(up_to(whole, named), store)
    return alone(plan, named) if only is not None else plan


def ids(plan: Plan) -> list[str]:
    return [step.id for step in plan.steps]


def made(store: LocalStore, tmp_path, *stages: str) -> None:
    for step in make_plan(recipe(), store).steps:
        if step.id in stages:
            publish(store, step, tmp_path / step.id)


def test_until_a_stage_is_what_feeds_it_itself_and_the_evaluations_under_the_keys_of_the_whole_recipe(store):
    plan, whole = part(store, until="prune"), make_plan(recipe(), store)
    assert ids(plan) == ["prepare", "pretrain", "pretrain.size", "pretrain.speed", "prune", "prune.size", "prune.speed"]
    assert all(step == whole.by_id[step.id] for step in plan.steps)
    assert ids(part(store, until="quantize")) == ids(whole)
    assert up_to(recipe(), chosen(recipe(), WHOLE)) == recipe()


def test_until_a_branch_leaves_the_other_one_out(store):
    stages = [id for id in ids(part(store, *TWO, until="again")) if "." not in id]
    assert stages == ["prepare", "pretrain", "again"]


def test_what_an_evaluation_compares_with_is_made_as_well(store):
    compared = {"divergence": {"reference": "dense"}, "size": {}}
    plan = part(store, until="prune.divergence", evaluate=compared)
    assert {"pretrain", "prune", "prune.divergence"} <= set(ids(plan)) and "recover" not in ids(plan)


def test_only_makes_a_stage_and_its_evaluations_beside_what_is_there(store, tmp_path):
    made(store, tmp_path, "prepare", "pretrain", "pretrain.size")
    plan = part(store, only="prune")
    assert [step.id for step in plan.due] == ["prune", "prune.size", "prune.speed"]
    assert [step.id for step in plan.steps if step.cached] == ["prepare", "pretrain", "pretrain.size"]
    assert [[step.id for step in job] for job in plan.jobs()] == [["prune", "prune.size"], ["prune.speed"]]


def test_only_an_evaluation_is_one_too(store, tmp_path):
    made(store, tmp_path, "prepare", "pretrain")
    assert [step.id for step in part(store, only="pretrain.size").due] == ["pretrain.size"]


def test_only_needs_no_more_than_the_parents_and_shows_no_evaluation_of_a_model_that_is_gone(store, tmp_path):
    made(store, tmp_path, "prepare", "pretrain.size", "prune")
    untaught = {"recover": {"tokens": 10_000, "objective": "cross_entropy"}}
    plan = part(store, *BASE["stages"][:3], untaught, only="recover")
    assert ids(plan) == ["prepare", "prune", "recover", "recover.size", "recover.speed"]


def test_only_what_is_made_already_makes_nothing(store, tmp_path):
    made(store, tmp_path, "pretrain", "pretrain.size", "pretrain.speed")
    assert part(store, only="pretrain").due == []


def test_a_missing_or_damaged_parent_is_named_with_its_remedy(store, tmp_path):
    made(store, tmp_path, "prepare")
    with pytest.raises(ValueError) as refused:
        part(store, only="prune")
    assert str(refused.value) == (
        "--only: model of prune, pretrain, is not made yet; run --only pretrain first, or --until prune"
    )
    made(store, tmp_path, "pretrain")
    (record,) = (store.root / "pretrain").glob("*/record.json")
    record.write_text("{")
    with pytest.raises(ValueError, match="pretrain, is damaged; run --only pretrain first"):
        part(store, only="prune")


def test_a_stage_goes_by_its_id_its_name_in_a_grid_or_its_kind(store):
    whole = recipe(*SWEPT)
    branches = {"tuned-seed0", "tuned-seed1"}
    for name in ("tuned", "recover"):
        assert {id for id in chosen(whole, Part(until=name)) if "." not in id} == branches
    assert {id for id in chosen(whole, Part(only="tuned-seed0")) if "." not in id} == {"tuned-seed0"}


@pytest.mark.parametrize(
    ("options", "stages", "line"),
    [
        (Part(only="prnue"), (), f"--only: no stage 'prnue' in recipe tiny; choose one of {ALL}"),
        (Part(until=""), (), f"--until: no stage '' in recipe tiny; choose one of {ALL}"),
        (
            Part(until="prune"),
            [{**TWO[2], "id": "once"}, TWO[3]],
            "--until: prune is the kind of several stages; choose one of once, again",
        ),
        (Part("prune", "prune"), (), "--only and --until exclude each other; give one of them"),
    ],
)
def test_what_names_no_stage_is_refused_in_one_line_with_the_choices(options, stages, line):
    whole = recipe(*BASE["stages"][:2], *stages) if stages else recipe()
    with pytest.raises(ValueError) as refused:
        chosen(whole, options)
    assert str(refused.value) == line


def test_claims_are_judged_where_all_models_of_the_recipe_are(store):
    claim = {"says": "pruning keeps it", "stage": "recover", "order": ["slow", "fast"], "metric": "perplexity"}
    grid = {"learning_rate": {"slow": 1.0e-4, "fast": 1.0e-3}}
    stages = [*BASE["stages"][:3], {**BASE["stages"][3], "grid": grid}]
    assert part(store, *stages, claims=[claim], until="recover").recipe.claims
    assert not part(store, *stages, claims=[claim], until="prune").recipe.claims


@pytest.mark.parametrize("command", [("plan",), ("run",), ("run", "--here")])
def test_the_commands_refuse_before_anything_starts(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path / "home"))
    assert winnow(command[0], "quickstart", *command[1:], "--until", "nope") == 2
    assert "no stage 'nope'" in (told := capsys.readouterr().err) and told.count("\n") == 1
    assert not list(tmp_path.glob("home/store/*/*"))
