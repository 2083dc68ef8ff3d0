"""The form of a deployment: this recipe's fields and values, and a filled-in form as settings."""

from __future__ import annotations

import copy

import pytest
from jsonschema import Draft202012Validator

from cluster.documents import load_yaml
from flows.form import changes, fields_schema
from flows.override import Setting, changed
from flows.recipe import SHIPPED, parse_recipe
from tests.flows.recipes import BASE

RECIPES = sorted(SHIPPED.rglob("*.yaml"))


def shown(schema):
    """What a form that nobody touched sends: every default."""
    if "properties" not in schema:
        return schema.get("default")
    found = {name: shown(field) for name, field in schema["properties"].items()}
    return {name: value for name, value in found.items() if value is not None}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_form_of_every_shipped_recipe_is_valid_and_untouched_changes_nothing(path):
    document = load_yaml(path)
    schema = fields_schema(document)
    Draft202012Validator.check_schema(schema)
    assert list(Draft202012Validator(schema).iter_errors(shown(schema))) == []
    assert list(changes(document, shown(schema))) == []


def test_the_form_has_the_methods_the_bounds_the_help_and_the_values_of_this_recipe():
    groups = fields_schema(BASE)["properties"]
    prune, quantize = groups["prune"]["properties"], groups["quantize"]["properties"]
    assert prune["method"]["default"] == "wanda" and "sparsegpt" in prune["method"]["enum"]
    assert (prune["sparsity"]["minimum"], prune["sparsity"]["exclusiveMaximum"]) == (0, 1) and "default" not in prune[
        "sparsity"
    ]
    assert prune["pattern"]["default"] == "2:4" and "N:M" in prune["pattern"]["description"]
    assert quantize["gptq"]["properties"]["group_size"]["default"] == 64
    assert groups["pretrain"]["properties"]["tokens"]["default"] == 10_000
    for group in groups.values():
        assert all(field.get("description") for field in group.get("properties", {}).values())


def test_what_differs_from_the_form_is_set_and_comes_out_as_if_edited_by_hand():
    form = shown(fields_schema(BASE))
    form["prune"] |= {"pattern": "unstructured", "sparsity": 0.6}
    form["quantize"]["gptq"]["group_size"] = 32
    found = list(changes(BASE, form))
    assert sorted(found) == [
        Setting("prune.pattern", "unstructured"),
        Setting("prune.sparsity", 0.6),
        Setting("quantize.method.group_size", 32),
    ]
    by_hand = copy.deepcopy(BASE)
    by_hand["stages"][2] = {"prune": {"method": "wanda", "pattern": "unstructured", "sparsity": 0.6}}
    by_hand["stages"][4] = {"quantize": {"method": {"gptq": {"group_size": 32}}}}
    assert parse_recipe(changed(BASE, found), "").nodes == parse_recipe(by_hand, "").nodes


def test_another_method_leaves_the_fields_of_the_first_behind_unless_they_were_changed():
    form = shown(fields_schema(BASE))
    form["quantize"]["method"] = "round_to_nearest"
    assert list(changes(BASE, form)) == [Setting("quantize.method", "round_to_nearest")]
    form["quantize"]["gptq"]["bits"] = 3
    with pytest.raises(ValueError, match="fields.quantize.gptq.bits: the method chosen is round_to_nearest; set its fields by"):
        list(changes(BASE, form))


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"prune": {"sparsty": 1}}, "fields.prune.sparsty: no such field; choose one of method"),
        ({"nosuch": {}}, "fields.nosuch: no such field; choose one of seed, prepare"),
        ({"prune": 5}, "fields.prune: fields by name are needed, got 5"),
    ],
)
def test_what_the_form_does_not_have_is_refused(fields, line):
    with pytest.raises(ValueError, match=line):
        list(changes(BASE, fields))


def test_what_a_grid_sets_is_not_asked_for():
    document = {
        **BASE,
        "stages": [*BASE["stages"][:2], {"prune": {"method": "wanda"}, "grid": {"sparsity": [0.5], "batch": [1]}}],
    }
    assert not {"sparsity", "batch"} & fields_schema(document)["properties"]["prune"]["properties"].keys()
