"""The shipped examples run as they are, every regime and quantizer of the shelf among them."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from flows.launch import launch
from flows.recipe import load_recipe
from tasks.methods import names

EXAMPLES = Path(__file__).resolve().parents[2] / "flows" / "recipes" / "examples"
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_an_example_runs_from_text_to_numbers(path, tmp_path, monkeypatch):
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    _, summary = launch(str(path), "local", Console(quiet=True), quiet=True, here=True)
    assert all(stage["done"] for stage in summary["stages"])
    vocabulary = summary["stages"][0]["metrics"]["vocabulary"]
    for model in summary["models"]:
        assert model["perplexity"] < 1.1 * vocabulary, model["stage"]  # not worse than guessing
        assert model.get("pattern_holds", 1.0) == 1.0, model["stage"]


def test_every_regime_objective_and_quantizer_of_the_shelf_has_an_example():
    stages = [node.stage for path in EXAMPLES.glob("*.yaml") for node in load_recipe(str(path)).models()]
    assert {stage.method.name for stage in stages} >= set(names("regimes"))
    assert {stage.objective.name for stage in stages if getattr(stage, "objective", None)} == set(names("objectives"))
    assert {stage.method.name for stage in stages if stage.stage_name() == "quantize"} == set(names("quantizers"))
