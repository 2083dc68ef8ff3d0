"""A soup on a cluster: its members train side by side, and one that diverges costs itself alone."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest

from tests.pipeline import LENGTH, SHARED, Done, Home, Ledger, made_home, pretrain, prune

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    with made_home(tmp_path_factory, "soups") as home:
        yield home


def recovered(name: str, tokens: int, **grid: Any) -> dict[str, Any]:
    return {"id": name, "recover": {"tokens": tokens, "learning_rate": 1e-3, **SHARED}, **({"grid": grid} if grid else {})}


def stages(**rates: float) -> list[dict[str, Any]]:
    members = recovered("members", 5 * 16 * LENGTH, case={name: {"learning_rate": rate} for name, rate in rates.items()})
    soup = {"id": "soup", "merge": {}, "gather": True}
    return [pretrain("dense", 20), prune(), members, soup, recovered("later", 4 * 16 * LENGTH)]


@pytest.fixture(scope="module")
def made(home: Home) -> Done:
    measured = {"perplexity": {"length": LENGTH, "tokens": 2048}, "divergence": {"length": LENGTH, "tokens": 2048}}
    measured["divergence"]["reference"] = "parent"
    return home.run(home.recipe("soups", *stages(wild=1e6, slow=1e-3, fast=4e-3), evaluate=measured))


def test_a_member_that_diverges_costs_a_soup_that_member_and_what_follows_goes_on_from_it(home: Home, made: Done) -> None:
    lost = {"members-wild", "members-wild.perplexity", "members-wild.divergence"}
    found = {stage["id"]: stage for stage in made.summary["stages"]}
    assert {id for id, stage in found.items() if not stage["done"]} == lost and made.summary["failed"].keys() == {
        "members-wild"
    }
    assert found["soup"]["metrics"]["merged_models"] == 2 and found["later.divergence"]["metrics"]["reference_kl"] > 0


def test_prefect_and_mlflow_say_which_member_failed(home: Home, made: Done) -> None:
    with sqlite3.connect(home.directory / "prefect" / "prefect.db") as database:
        (flow,) = database.execute("select state_type from flow_run").fetchall()
        tasks = set(database.execute("select name, state_type from task_run").fetchall())
        told = [line for (line,) in database.execute("select message from log").fetchall()]
    assert flow == ("COMPLETED",) and {("members-wild", "FAILED"), ("soup", "COMPLETED"), ("later", "COMPLETED")} <= tasks
    assert sum("soup | goes on with 2 of its 3 members, without members-wild (" in line for line in told) == 1
    ledger = Ledger.of(home)
    (parent,) = ledger.parents("soups")
    ended = {id: run.info.status for id, run in ledger.children(parent).items()}
    assert parent.info.status == "FINISHED" and ended.pop("members-wild") == "FAILED" and set(ended.values()) == {"FINISHED"}


def test_the_soup_is_that_of_a_recipe_that_never_had_the_member(home: Home, made: Done) -> None:
    keys = {stage["id"]: stage["key"] for stage in made.summary["stages"]}
    fewer = home.winnow("run", home.recipe("fewer", *stages(slow=1e-3, fast=4e-3)), "-p", home.profile, "--here", "--json")
    for stage in fewer.summary["stages"]:
        assert stage["cached"] and stage["key"] == keys[stage["id"]], stage["id"]


def test_a_soup_with_one_member_left_fails_in_one_line(home: Home, made: Done) -> None:
    done = home.run(home.recipe("alone", *stages(slow=1e-3, wild=1e6)), code=2)
    (line,) = done.err.splitlines()
    assert done.out == "" and line.startswith(
        "winnow: soup: 1 of 2 members left, and a merge takes 2 or more; without members-wild ("
    )
