"""What a deployment is made of: its own recipe as text, checked like a run, and a form without the recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from flows.registration import SHIPPED, Entry, form, listed, registration, registrations
from tests.flows.command import winnow
from tests.flows.recipes import BASE


@pytest.fixture
def recipe(tmp_path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(BASE))
    return path


def test_the_shipped_file_deploys_and_each_deployment_has_its_own_recipe():
    made = registrations(listed(SHIPPED).deployments, SHIPPED.parent)
    assert made and all(one.parameters["recipe"].count("\n") > 1 for one in made)
    assert all("recipe" not in one.form["properties"] for one in made)


def test_a_recipe_is_found_beside_the_file_that_names_it_and_its_settings_are_in_its_text(recipe):
    made = registration(Entry(recipe="mine.yaml", set=("prune.pattern=unstructured", "prune.sparsity=0.6")), recipe.parent)
    assert yaml.safe_load(made.parameters["recipe"])["stages"][2]["prune"]["sparsity"] == 0.6
    assert made.form["properties"]["fields"]["properties"]["prune"]["properties"]["sparsity"]["default"] == 0.6
    settings = ["set:prune.pattern=unstructured", "set:prune.sparsity=0.6"]
    assert (made.name, made.tags) == ("tiny", ["winnow", "recipe:tiny", "deployed:tiny", *settings])


def test_a_part_of_a_recipe_is_a_deployment_whose_form_asks_for_no_other():
    entry = Entry(recipe="quickstart", name="evaluate-pruned", only="prune")
    made = registration(entry)
    assert made.parameters["only"] == "prune" and not {"only", "until"} & made.form["properties"].keys()


def test_the_menu_of_profiles_has_those_there_are():
    profiles = form(BASE, "local", {})["properties"]["profile"]
    assert profiles["default"] == "local" and "local" in profiles["enum"]


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        ({"recipe": "nosuch"}, "recipe nosuch: no such file"),
        ({"recipe": "quickstart", "profile": "nosuch"}, "no profile 'nosuch'"),
        ({"recipe": "quickstart", "schedule": "daily"}, "should be a cron line of five fields"),
        ({"recipe": "quickstart", "schedule": "0 3 31 2 *"}, "should be a cron line of five fields that comes due"),
        ({"recipe": "quickstart", "schedule": "61 2 * * *"}, "should be a cron line of five fields"),
        ({"recipe": "quickstart", "schedule": "0 3 * * *,"}, "should be a cron line of five fields"),
        ({"recipe": "quickstart", "schedule": "0 3 * * *", "timezone": "Mars"}, "should be a time zone"),
        ({"recipe": "quickstart", "set": ["prune.sparsty=1"]}, "prune.sparsty: no such field"),
        ({"recipe": "quickstart", "until": "nosuch"}, "no stage 'nosuch' in recipe quickstart"),
        ({"recipe": "quickstart", "nme": "a"}, "no field 'deployments.0.nme'"),
    ],
)
def test_what_is_wrong_in_the_file_is_one_line_before_any_server_is_asked(entry, line, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path))
    (tmp_path / "deployments.yaml").write_text(yaml.safe_dump({"deployments": [entry]}))
    for command in (["deploy"], ["up"]):
        assert winnow(*command) == 2
        told = capsys.readouterr().err
        assert line in told and told.count("\n") == 1


def test_two_deployments_of_one_name_are_refused():
    with pytest.raises(ValueError, match="deployment quickstart is there twice"):
        registrations([Entry(recipe="quickstart"), Entry(recipe="quickstart")])


def test_a_recipe_with_relative_paths_is_refused(tmp_path):
    path = tmp_path / "relative.yaml"
    corpus = {"files": {"paths": ["here.txt"]}}
    path.write_text(yaml.safe_dump({"name": "a", "stages": [{"prepare": {"corpus": corpus, "tokenizer": {"train": 300}}}]}))
    with pytest.raises(ValueError, match="here.txt"):
        registration(Entry(recipe=str(path)))


def test_without_a_server_the_command_says_how_to_get_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path))
    assert winnow("deploy", "quickstart") == 2
    assert "no Prefect runs here: start it with winnow up" in capsys.readouterr().err
