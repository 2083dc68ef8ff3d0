"""The page of claims shows the newest verdicts of every recipe, with their numbers and a picture, and escapes what it shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.tracking import Tracking
from dashboards.claims import page, read, write
from flows.claims import Claim
from tests.flows.test_claims import models


def told(uri: str, recipe: str, **groups: list[float]) -> None:
    claim = Claim(says=f"{recipe}: a < b", stage="pretrain", order=["a", "b"]).judge(models(**groups))
    tracking = Tracking.start(uri, recipe, {"winnow.recipe": recipe, "winnow.git_commit": "abc"}, {})
    write(tracking, [claim])
    tracking.end(None, "FINISHED")


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/mlflow.db"


def test_the_newest_run_of_each_recipe_counts(uri):
    told(uri, "one", a=[3.0, 4.0], b=[1.0, 2.0])
    told(uri, "one", a=[1.0, 2.0], b=[3.0, 4.0])
    told(uri, "two", a=[2.0, 1.0], b=[1.0, 1.5])
    found = read(uri)
    assert [(result["recipe"], result["claims"][0]["holds"]) for result in found] == [("one", True), ("two", False)]
    text = page(found)
    assert "holds</span>" in text and "does not hold, within noise</span>" in text
    assert "one: a &lt; b" in text and text.count("data:image/png;base64,") == 2 and "1.5 ± 0.71" in text


def test_an_empty_store_says_so(uri):
    Tracking.start(uri, "quiet", {}, {}).end(None, "FINISHED")
    assert "No run in MLflow has claimed anything yet." in page(read(uri))
