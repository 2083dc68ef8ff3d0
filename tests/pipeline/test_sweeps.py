"""A sweep pays for what its branches share once, and for a new branch alone; a fork for what differs; and what one run
pretrains starts the deployment that compresses it. Counted in jobs of Ray, on one set of standing servers."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from prefect.client.orchestration import get_client

from cluster.ray.follower import get_json
from cluster.servers.services import Services
from tests.pipeline import Home, Ledger, made_home, pretrain, prune

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SERVE = """
import sys
from prefect import serve
from flows.pipeline import pipeline
recipe, profile = sys.argv[1:]
parameters = {"recipe": open(recipe).read(), "profile": profile}
serve(pipeline.to_deployment(name="compress", parameters=parameters), print_starting_message=False)
"""
SPARSITIES = [0.05 * number for number in range(1, 13)]
DENSE, MORE = pretrain("dense", 10), pretrain("dense", 12)


def branches(sparsities: list[float]) -> dict[str, Any]:
    fields = {"method": "magnitude"}
    return {"prune": fields, "grid": {"sparsity": {f"s{round(100 * value)}": round(value, 2) for value in sparsities}}}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """Standing servers, and a deployment of a recipe that prunes what it pretrains."""
    with made_home(tmp_path_factory, "sweeps") as home, pytest.MonkeyPatch.context() as patch:
        for name, value in home.variables.items():
            patch.setenv(name, value)
        command = [sys.executable, "-c", SERVE, str(home.recipe("compress", MORE, prune())), str(home.profile)]
        Services(home.directory).start(mode="up", deployments=command)
        yield home


def jobs(home: Home) -> int:
    """How many jobs Ray was ever given here."""
    ray = Services(home.directory).server("ray")
    return len(get_json(f"{ray.url}/api/jobs/", {"Authorization": f"Bearer {ray.token}"}))


@pytest.fixture(scope="module")
def swept(home: Home) -> tuple[int, dict[str, Any]]:
    before = jobs(home)
    done = home.run(home.recipe("sweep", DENSE, branches(SPARSITIES)))
    return jobs(home) - before, done.summary


def test_a_sweep_of_twelve_branches_pays_for_its_prefix_once(home: Home, swept) -> None:
    paid, summary = swept
    assert len(summary["models"]) == 13 and paid == 14  # prepare, pretrain, and each branch
    ledger = Ledger.of(home)
    (parent,) = ledger.parents("sweep")
    assert len(ledger.children(parent)) == 14


def test_a_thirteenth_branch_runs_alone(home: Home, swept) -> None:
    before = jobs(home)
    done = home.run(home.recipe("sweep", DENSE, branches([*SPARSITIES, 0.7])))
    assert jobs(home) - before == 1
    assert [stage["id"] for stage in done.summary["stages"] if not stage["cached"]] == ["prune-s70"]


def test_a_fork_makes_what_differs_and_reuses_the_rest(home: Home, swept) -> None:
    chain = home.recipe("chain", DENSE, {"prune": {"method": "magnitude", "sparsity": 0.05}})
    assert all(stage["cached"] for stage in home.run(chain).summary["stages"])
    before = jobs(home)
    arguments = ("fork", "chain", "--at", "prune", "--set", "prune.sparsity=0.65", "-p", home.profile, "--json")
    looked = home.winnow(*arguments, "--plan")
    assert "reused: prepare, pretrain\n" in looked.err and "to make: prune\n" in looked.err and jobs(home) == before
    assert [step["id"] for step in json.loads(looked.out)["steps"] if not step["cached"]] == ["prune"]
    forked = home.winnow(*arguments)
    assert jobs(home) - before == 1 and forked.summary["recipe"] == "chain-fork"
    same = home.run(home.recipe("sweep", DENSE, branches([0.65])))
    assert same.summary["models"][-1]["key"] == forked.summary["models"][-1]["key"] and jobs(home) - before == 1
    refused = home.winnow("fork", "chain", "--at", "prune", "--set", "pretrain.seed=3", "-p", home.profile, code=2)
    assert refused.err.splitlines()[-1].startswith("winnow: --set changes pretrain, which does not come from prune")


def test_what_one_run_pretrains_starts_the_deployment_and_a_restart_forgets_nothing(home: Home, swept) -> None:
    refused = home.winnow("trigger", "none", "--on", "pretrain", code=2)
    assert "choose one of compress" in refused.err
    for _ in range(2):  # a second time changes nothing
        home.winnow("trigger", "compress", "--on", "pretrain")
    home.run(home.recipe("weekly", MORE))
    deadline = time.monotonic() + 120
    while not (done := [run for run in triggered(home) if run.state and run.state.is_final()]):
        assert time.monotonic() < deadline, triggered(home)
        time.sleep(1)
    assert done[0].state.is_completed(), done[0].state
    assert all(stage["cached"] for stage in home.run(home.recipe("compress", MORE, prune())).summary["stages"])
    time.sleep(3)
    assert len(triggered(home)) == 1  # neither its own run nor the run that found it all cached started it again
    Services(home.directory).stop()
    Services(home.directory).start(["prefect"], mode="up")
    os.environ.update(Services(home.directory).environment())
    with get_client(sync_client=True) as client:
        (automation,) = client.read_automations_by_name("winnow: compress on pretrain")
    assert automation.enabled


def triggered(home: Home) -> list[Any]:
    os.environ.update(Services(home.directory).environment())
    with get_client(sync_client=True) as client:
        known = {one.id for one in client.read_deployments()}
        return [run for run in client.read_flow_runs() if run.deployment_id in known]
