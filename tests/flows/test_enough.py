"""A text with too few tokens for a stage is refused when they are counted, and from then on when a plan is made."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from rich.console import Console

from cluster.profile import load_profile
from flows.launch import launch
from flows.plan import prepare
from tests.flows.recipes import BASE

TEXT = {"prepare": {"corpus": {"stdlib": {"only": ["email"]}}, "tokenizer": {"train": 300}}}
MODEL = {"architecture": {**BASE["model"]["architecture"], "max_position_embeddings": 1 << 17}}
PRETRAIN = {"pretrain": {"method": "dense", "tokens": 64, "length": 16, "batch": 4}}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    path = tmp_path / "recipe.yaml"

    def run(*stages: dict, evaluate: dict) -> None:
        path.write_text(yaml.safe_dump({**BASE, "model": MODEL, "evaluate": evaluate, "stages": [TEXT, *stages]}))
        launch(str(path), "local", Console(quiet=True), quiet=True, here=True)

    run.plan = lambda: prepare(str(path), load_profile("local"))
    run.made = lambda: sorted(place.name for place in (tmp_path / "home" / "store").glob("[a-z]*"))
    return run


def test_too_few_tokens_for_a_later_stage_cost_no_stage_before_it(run) -> None:
    many = {"method": "wanda", "pattern": "2:4", "sequences": 100_000, "length": 64}
    with pytest.raises(ValueError, match="^recipe.prune: corpus is too small: the calibration split holds .* 6,400,000 are"):
        run(PRETRAIN, {"prune": many}, evaluate={})
    assert run.made() == ["prepare"]
    with pytest.raises(ValueError, match="^recipe.prune: corpus is too small"):
        run.plan()
    long = {"perplexity": {"length": 100_000, "tokens": None}}
    with pytest.raises(ValueError, match="^recipe.pretrain.perplexity: corpus is too small: the heldout split"):
        run(PRETRAIN, evaluate=long)
    assert run.made() == ["prepare"]
