"""``winnow schema`` accepts what runs and refuses what does not, with help for every field, and imports nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from cluster.documents import load_yaml
from flows.recipe import load_recipe
from flows.schema import profile_schema, recipe_schema, stage_schema
from flows.sweep import RESERVED
from tasks.methods import SHELVES, build, dump, load, names
from tasks.stage import STAGES, stage_class

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "flows" / "recipes").rglob("*.yaml"))


@cache
def validator(make=recipe_schema, *arguments) -> Draft202012Validator:
    Draft202012Validator.check_schema(made := make(*arguments))
    return Draft202012Validator(made)


def complaints(document, *schema) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in validator(*schema).iter_errors(document)]


def recipe(*stages: str, **header):
    """A recipe with these stages, in YAML."""
    return {"name": "a", "stages": [yaml.safe_load(f"{{{stage}}}") for stage in stages], **header}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid_and_so_is_each_stage_as_a_job_gets_it(path):
    assert complaints(load_yaml(path)) == []
    for node in load_recipe(str(path)).nodes:
        fields = node.stage.model_dump(mode="json", exclude_none=True)
        assert complaints(fields, stage_schema, node.name) == [], node.id


@pytest.mark.parametrize("path", sorted((ROOT / "infra" / "profiles").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_profile_is_valid(path):
    assert complaints(load_yaml(path), profile_schema) == []


NEEDED = {"tasks": {"names": ["piqa"]}, "llm_kick": {"factoid": "asked.jsonl"}}  # one of several fields, whichever


@pytest.mark.parametrize("shelf", [shelf for shelf in SHELVES if shelf in recipe_schema()["$defs"]])
def test_every_method_is_valid_by_name_and_with_all_its_fields(shelf):
    shelf_of = Draft202012Validator({"$ref": f"#/$defs/{shelf}", "$defs": recipe_schema()["$defs"]})
    for name in names(shelf):
        if any(info.is_required() for info in load(shelf, name).model_fields.values()):
            assert not shelf_of.is_valid(name)
            continue
        given = {name: NEEDED[name]} if name in NEEDED else name
        for form in (name, {name: None}, given, dump(build(shelf, given))):
            assert shelf_of.is_valid(form), form
    assert not shelf_of.is_valid("nosuch") and not shelf_of.is_valid({name: {"nosuch": 1}}) and not shelf_of.is_valid({})


@pytest.mark.parametrize(
    "stage",
    [
        "prune: {method: wonda, sparsity: 0.5}",
        "prune: {method: {wanda: {adaptive: 3}}, sparsity: 0.5}",
        "prune: {method: {dsnot: {initial: {sparsegpt: {percent_damp: 2}}}}, sparsity: 0.5}",
        "prune: {method: wanda, sparsity: 1.0}",
        "prune: {method: wanda, sparsity: half}",
        "prune: {method: wanda, pattern: 2:4}",  # YAML reads that as a number
        "prune: {sparsity: 0.5}",
        "prune: {method: wanda}, quantize: {method: gptq}",
        "pretrain: {method: {gradual: {sparsity: half}}, tokens: 5}",
        "pretrain: {method: rigl}",
        "pretrain:",
        "prepare: {corpus: nosuch, tokenizer: {train: 300}}",
        "prepare: {corpus: {train: stdlib, held_out: b.txt}, tokenizer: {train: 300}}",
        "prepare: {corpus: stdlib, tokenizer: later}",
        "evaluate: {method: perplexed}",
        "prunes: {}",
        "grid: {}, prune: {}",
    ],
)
def test_a_bad_stage_is_refused(stage):
    assert complaints(recipe(stage))


@pytest.mark.parametrize(
    "stage",
    [
        "prune: {method: wanda, sparsity: essential, allocator: {owl: {spread: 0.1}}}, from: {data: a, model: b}, id: c",
        "pretrain: {tokens: 5}, grid: {method: [static, {rigl: {interval: 5}}], method.sparsity: {half: 0.5}}",
        "pretrain:, grid: {case: {one: {tokens: 5}}}",
        "pretrain: {method: {static: {sparsity: iso}}, tokens: 5, model: {checkpoint: /models/a}}",
        "prepare: {corpus: {train: a.txt, calibration: {files: {paths: [b], field: c}}, heldout: stdlib}, tokenizer: earlier}",
        "evaluate: {method: {perplexity: {length: 64}}}",
        "merge: {method: uniform}, gather: [seed]",
        "merge: {}, gather: true, from: [a, b]",
        "merge: {}, from: {models: [a, b]}",
    ],
)
def test_every_way_of_writing_a_stage_is_accepted(stage):
    assert complaints(recipe(stage)) == []


def test_the_header_is_checked_too():
    assert complaints(recipe("quantize: {method: gptq}", evaluate=["size"], seed=1)) == []
    for odd in ({"evaluate": "size"}, {"seed": -1}, {"models": {}}, {"stages": []}, {"model": {"checkpoint": 3}}):
        assert complaints(recipe("quantize: {method: gptq}") | odd), odd


def test_an_entry_of_a_recipe_has_the_words_that_a_recipe_knows_and_every_stage():
    assert set(recipe_schema()["properties"]["stages"]["items"]["properties"]) == {*RESERVED, *STAGES}


def without_help(part, where=""):
    """Where a property is not described."""
    if isinstance(part, dict) and part.get("type") in ("object", ["object", "null"]):
        for name, field in part.get("properties", {}).items():
            if not field.get("description"):
                yield f"{where}.{name}"
    for key, inner in part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ():
        yield from without_help(inner, f"{where}.{key}")


@pytest.mark.parametrize("make", [recipe_schema, profile_schema])
def test_no_field_of_a_recipe_or_a_profile_is_without_help(make):
    assert list(without_help(make())) == []


@pytest.mark.parametrize(("shelf", "name"), [(shelf, name) for shelf in SHELVES for name in names(shelf)])
def test_no_field_of_a_method_is_without_help(shelf, name):
    assert [field for field, info in load(shelf, name).model_fields.items() if not info.description] == []


def test_the_command_prints_it_within_three_seconds_of_work_and_without_torch():
    code = (
        "import flows.cli, sys; sys.argv = ['winnow', 'schema']; import atexit; atexit.register(lambda: "
        "print(type(sys.modules['torch']).__name__, 'transformers' in sys.modules, file=sys.stderr)); flows.cli.main()"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.monotonic() - began < 10  # three on a machine that does nothing else
    assert json.loads(done.stdout) == recipe_schema() and done.stderr.split() == ["_Lazy", "False"]


def test_what_is_said_of_a_stage_tells_what_it_does_and_not_how():
    verbs = {stage_class(name): stage_schema(name).get("description", "Prepare") for name in STAGES}
    assert not [kind for kind, text in verbs.items() if text.startswith("``") or "scratch" in text.partition("\n")[0]]
