"""A sweep pays for what its branches share once, and for a new branch alone; a fork for what differs. Counted in stages that
ran, each of which publishes one artifact."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.pipeline import LENGTH, Home, Ledger, made_home, pretrain

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SPARSITIES = [round(0.05 * number, 2) for number in range(1, 13)]
DENSE, PRUNE = pretrain("dense", 10), {"method": "magnitude", "sequences": 8, "length": LENGTH}


def branches(sparsities: list[float]) -> dict[str, Any]:
    return {"prune": PRUNE, "grid": {"sparsity": {f"s{round(100 * value)}": value for value in sparsities}}}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    with made_home(tmp_path_factory, "sweeps") as home:
        yield home


def ran(home: Home) -> int:
    """How many stages ever ran here."""
    return len(list((home.directory / "store").glob("*/*/record.json")))


def run(home: Home, name: str, *stages: dict[str, Any], **header: Any) -> dict[str, Any]:
    path = home.recipe(name, *stages, evaluate=header.pop("evaluate", None))
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **header}))
    return home.winnow("run", path, "-p", home.profile, "--here", "--json").summary


@pytest.fixture(scope="module")
def swept(home: Home) -> dict[str, Any]:
    return run(home, "sweep", DENSE, branches(SPARSITIES))


def test_a_sweep_of_twelve_branches_pays_for_its_prefix_once(home: Home, swept) -> None:
    assert len(swept["models"]) == 13 and ran(home) == 14  # prepare, pretrain, and each branch
    ledger = Ledger.of(home)
    (parent,) = ledger.parents("sweep")
    assert len(ledger.children(parent)) == 14


def test_a_thirteenth_branch_runs_alone(home: Home, swept) -> None:
    before = ran(home)
    summary = run(home, "sweep", DENSE, branches([*SPARSITIES, 0.7]))
    assert [stage["id"] for stage in summary["stages"] if not stage["cached"]] == ["prune-s70"] and ran(home) == before + 1


def test_a_fork_makes_what_differs_and_reuses_the_rest(home: Home, swept) -> None:
    assert all(stage["cached"] for stage in run(home, "chain", DENSE, {"prune": {**PRUNE, "sparsity": 0.05}})["stages"])
    before = ran(home)
    arguments = ("fork", "chain", "--at", "prune", "--set", "prune.sparsity=0.65", "-p", home.profile, "--json", "--plan")
    text = home.corpus.read_text()
    home.corpus.write_text(text + '\n{"text": "another text"}')
    assert "fork: prepare is not what the run stood on any more" in home.winnow(*arguments, code=2).err
    home.corpus.write_text(text)
    looked = home.winnow(*arguments)
    assert "reused: prepare, pretrain\n" in looked.err and "to make: prune\n" in looked.err and ran(home) == before
    (path,) = (home.directory / "forks").glob("chain-fork-*.yaml")
    made = home.winnow("run", path, "-p", home.profile, "--here", "--json").summary
    assert made["recipe"] == "chain-fork" and ran(home) == before + 1
    planned = {step["id"]: step["key"] for step in json.loads(looked.out)["steps"]}
    assert planned == {stage["id"]: stage["key"] for stage in made["stages"]}
    refused = home.winnow("fork", "chain", "--at", "prune", "--set", "pretrain.seed=3", "-p", home.profile, code=2)
    assert refused.err.splitlines()[-1].startswith("winnow: --set changes pretrain, which does not come from prune")


def test_a_search_stops_what_is_dominated_ranks_the_rest_and_is_found_done_by_the_next_run(home: Home, swept) -> None:
    searched = {"prune": PRUNE, "search": {"sparsity": {"uniform": [0.1, 0.9]}}}
    recover = {"recover": {"tokens": 4 * 16 * LENGTH, "length": LENGTH, "batch": 16}}
    search = {"trials": 6, "sampler": "tpe", "stop": "halving", "together": 3}
    header = {"search": search, "evaluate": {"perplexity": {"length": LENGTH, "tokens": 1024}}}
    summary = run(home, "search", DENSE, searched, recover, **header)
    rows = summary["ranking"]["rows"]
    assert len(rows) == 6 and {row["ended_after"] for row in rows} == {None, "prune"}
    before = ran(home)
    again = run(home, "search", DENSE, searched, recover, **header)
    assert ran(home) == before and again["ranking"] == summary["ranking"]
    assert len(Ledger.of(home).parents("search")) == 2  # one for each run


def test_a_trial_at_which_training_diverges_fails_alone(home: Home, swept) -> None:
    recover = {"tokens": 4 * 16 * LENGTH, "length": LENGTH, "batch": 16}
    trials = [{"recover.learning_rate": rate} for rate in (1e-3, 1e30, 2e-3)]
    searched = {"recover": recover, "search": {"learning_rate": [1e-3, 1e30, 2e-3]}}
    header = {"search": {"trials": trials}, "evaluate": {"perplexity": {"length": LENGTH, "tokens": 1024}}}
    summary = run(home, "diverges", DENSE, {"prune": {**PRUNE, "sparsity": 0.05}}, searched, **header)
    assert list(summary["failed"]) == ["recover-trial1"] and "nan" in summary["failed"]["recover-trial1"]
    assert {row["stage"] for row in summary["ranking"]["rows"]} == {"recover-trial0", "recover-trial2"}
    ledger = Ledger.of(home)
    (parent,) = ledger.parents("diverges")
    status = {name: child.info.status for name, child in ledger.children(parent).items()}
    assert parent.info.status == status["recover-trial2"] == "FINISHED" and status["recover-trial1"] == "FAILED"
