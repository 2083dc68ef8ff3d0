"""``winnow methods`` tells what there is, what it takes, and what it does unless told."""

from __future__ import annotations

import json

import pytest

from flows.shelves import methods
from tasks.methods import SHELVES, names


def told(capsys, name=None):
    methods(name, as_json=True)
    return json.loads(capsys.readouterr().out)


def test_every_method_of_every_shelf_is_told(capsys):
    assert [(method["shelf"], method["method"]) for method in told(capsys)] == [(s, name) for s in SHELVES for name in names(s)]


def test_one_method_tells_its_fields_bounds_choices_defaults_and_patterns(capsys):
    (dsnot,) = told(capsys, "dsnot")
    assert dsnot["patterns"] == ["unstructured", "N:M"] and dsnot["fields"]["cycles"]["takes"] == "float, > 0, <= 1"
    assert dsnot["fields"]["initial"] == {
        "takes": "pruner",
        "required": False,
        "default": "wanda",
        "help": "The pruner whose mask is refined.",
    }
    pruner, allocator = told(capsys, "cfsp")
    assert pruner["fields"]["criterion"]["takes"] == "weights | activation | magnitude | random"
    (sharpness,) = allocator["fields"].values()
    assert (sharpness["takes"], sharpness["default"]) == ("float, >= 0", 1.0) and "angle" in sharpness["help"]


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="no method 'wonda'; choose one of .*wanda"):
        methods("wonda")


def test_the_text_holds_what_the_method_does(capsys):
    methods("heads")
    text = capsys.readouterr().out
    assert "take whole attention heads" in text and "patterns: channel" in text and "no fields" in text


def test_an_evaluator_tells_what_it_measures(capsys):
    assert told(capsys, "divergence")[0]["metrics"] == ["reference_kl", "reference_flips"]


def test_a_field_without_a_default_is_shown_as_required(capsys):
    assert all(field["required"] for field in told(capsys, "narrow")[0]["fields"].values())
    methods("narrow")
    text = capsys.readouterr().out
    assert "required" in text and "None" not in text
