"""``--set``: the artifacts are those of a recipe edited by hand, and what is wrong is one line before anything starts."""

from __future__ import annotations

import pytest
import yaml

from cluster.documents import load_yaml
from cluster.store.local import LocalStore
from flows.override import changed, parse_settings
from flows.plan import make_plan
from flows.recipe import load_recipe
from tests.flows.command import winnow
from tests.flows.recipes import BASE

ADAPTIVE = {"method": {"wanda": {"adaptive": True}}, "sparsity": 0.5}
GRID = {"prune": {"method": "wanda"}, "grid": {"sparsity": [0.5, 0.6]}}


@pytest.fixture
def recipe(tmp_path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(BASE))
    return str(path)


def keys(recipe, store) -> dict[str, str]:
    return {step.id: step.artifact.key for step in make_plan(recipe, store).steps}


@pytest.mark.parametrize(
    ("settings", "edit"),
    [
        (["prune.pattern=unstructured", "prune.sparsity=0.6"], {2: {"prune": {"method": "wanda", "sparsity": 0.6}}}),
        (["prune.pattern='4:8'"], {2: {"prune": {"method": "wanda", "pattern": "4:8"}}}),
        (["prune.method.adaptive=true", "prune.pattern=unstructured", "prune.sparsity=0.5"], {2: {"prune": ADAPTIVE}}),
        (["prune.method.sparsegpt.block=64"], {2: {"prune": {"method": {"sparsegpt": {"block": 64}}, "pattern": "2:4"}}}),
        (["prune.method=magnitude"], {2: {"prune": {"method": "magnitude", "pattern": "2:4"}}}),
        (["quantize.method={gptq: {bits: 3}}"], {4: {"quantize": {"method": {"gptq": {"bits": 3}}}}}),
        (["quantize.method.bits=3"], {4: {"quantize": {"method": {"gptq": {"group_size": 64, "bits": 3}}}}}),
        (["recover.learning_rate=1e-4"], {3: {"recover": {"tokens": 10_000, "learning_rate": 1e-4}}}),
        (["pretrain.tokens=1", "pretrain.tokens=20_000"], {1: {"pretrain": {"method": "dense", "tokens": 20_000}}}),
        (
            ["recover.objective=distillation", "recover.objective.temperature=3"],
            {3: {"recover": {"tokens": 10_000, "objective": {"distillation": {"temperature": 3}}}}},
        ),
        (
            ["pretrain.method=static", "pretrain.method.allocator=erk", "pretrain.method.allocator.power=2"],
            {1: {"pretrain": {"method": {"static": {"allocator": {"erk": {"power": 2}}}}, "tokens": 10_000}}},
        ),
        (["seed=3"], {"seed": 3}),
        (
            ["model.architecture.hidden_size=96"],
            {"model": {"architecture": {**BASE["model"]["architecture"], "hidden_size": 96}}},
        ),
        (
            ["evaluate.size={}", "evaluate.perplexity.length=64"],
            {"evaluate": {**BASE["evaluate"], "perplexity": {"length": 64}}},
        ),
    ],
)
def test_a_setting_gives_the_keys_of_the_edited_recipe(recipe, tmp_path, settings, edit):
    stages = [edit.get(position, stage) for position, stage in enumerate(BASE["stages"])]
    header = {name: value for name, value in edit.items() if isinstance(name, str)}
    by_hand = tmp_path / "edited.yaml"
    by_hand.write_text(yaml.safe_dump({**BASE, **header, "stages": stages}))
    store = LocalStore(tmp_path / "store")
    made = keys(load_recipe(recipe, settings=parse_settings(settings)), store)
    assert made == keys(load_recipe(str(by_hand)), store) != keys(load_recipe(recipe), store)


def test_a_setting_leaves_the_document_it_was_given_alone(recipe):
    document = load_yaml(recipe)
    changed(document, parse_settings(["prune.method.adaptive=true", "evaluate.perplexity.length=64"]))
    assert document == load_yaml(recipe)


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("prune.sparsty=0.6", "prune.sparsty: no such field; choose one of seed, model, method"),
        ("prune.sparsity=1.5", "prune.sparsity: input should be less than 1, got 1.5"),
        ("prune.batch=many", "prune.batch: input should be a valid integer"),
        ("prune.method=wnda", "no method 'wnda' in tasks.pruners; choose one of cfsp"),
        ("prune.method.power=1", "wanda.power: no such field; choose one of adaptive"),
        ("prun.sparsity=0.6", "--set prun.sparsity: no stage or field 'prun'; choose one of prepare, pretrain, prune"),
        ("name=other", "--set name: no stage or field 'name'; choose one of"),
        ("prune=1", "--set prune: name a field of it; choose one of seed"),
        ("prune.sparsity", "--set prune.sparsity: STAGE.FIELD=VALUE is needed"),
        ("prune.sparsity=[1", "--set prune.sparsity:1: expected ',' or ']'"),
        ("evaluate.size=5", "size"),
    ],
)
def test_a_wrong_setting_is_one_line_and_exit_code_2(recipe, capsys, tmp_path, monkeypatch, setting, line):
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path / "home"))
    for command in ("plan", "run"):
        assert winnow(command, recipe, "--set", setting) == 2
        told = capsys.readouterr().err
        assert line in told and told.count("\n") == 1
    assert not (tmp_path / "home" / "services.json").exists()


def test_what_a_grid_sets_is_not_overwritten_unsaid():
    document = {"name": "a", "stages": [{"prepare": {}}, GRID, {**GRID, "id": "again", "grid": {"method.adaptive": [True]}}]}
    with pytest.raises(ValueError, match="the kind of several stages|grid sets sparsity of prune"):
        changed(document, parse_settings(["prune.sparsity=0.7"]))
    with pytest.raises(ValueError, match="the recipe's grid sets method.adaptive of again"):
        changed(document, parse_settings(["again.method.adaptive=false"]))
