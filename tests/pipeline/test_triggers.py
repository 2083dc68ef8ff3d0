"""What one run pretrains starts the deployment that compresses it, on real servers; a restart forgets nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate

from cluster.servers.services import Services
from flows.schedules import skip_missed
from tests.pipeline import Home, made_home, pretrain, prune

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

DENSE = pretrain("dense", 10)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """Standing servers, and a deployment of a recipe that prunes what it pretrains."""
    with made_home(tmp_path_factory, "triggers") as home, pytest.MonkeyPatch.context() as patch:
        for name, value in home.variables.items():
            patch.setenv(name, value)
        listed = {"recipe": str(home.recipe("compress", DENSE, prune())), "profile": str(home.profile)}
        home.directory.mkdir(exist_ok=True)
        (home.directory / "deployments.yaml").write_text(yaml.safe_dump({"deployments": [listed]}))
        Services(home.directory).start(mode="up")
        yield home


def client() -> SyncPrefectClient:
    """Of the server as it is now: settings that this process read before would name another."""
    server = Services().server("prefect")
    return SyncPrefectClient(server.url, auth_string=server.token)


def test_what_one_run_pretrains_starts_the_deployment_and_a_restart_forgets_nothing(home: Home) -> None:
    while not deployments():
        time.sleep(1)
    with client() as prefect:  # on a shared server somebody else's flow may have a deployment of the same name
        prefect.create_deployment(prefect.create_flow_from_name("elses"), "compress")
    refused = home.winnow("trigger", "none", "--on", "pretrain", code=2)
    assert "choose one of compress" in refused.err
    for _ in range(2):  # a second time changes nothing
        home.winnow("trigger", "compress", "--on", "pretrain")
    home.run(home.recipe("weekly", DENSE))
    deadline = time.monotonic() + 300
    while not (done := [run for run in triggered() if run.state and run.state.is_final()]):
        assert time.monotonic() < deadline, triggered()
        time.sleep(1)
    assert done[0].state.is_completed(), done[0].state
    compressed = home.run(home.recipe("compress", DENSE, prune()))
    assert all(stage["cached"] for stage in compressed.summary["stages"])
    assert len(triggered()) == 1  # neither its own run nor the one that found all cached started it again
    Services(home.directory).stop()
    Services(home.directory).start(["prefect"], mode="up")
    with client() as prefect:
        (automation,) = prefect.read_automations_by_name("winnow: compress on pretrain")
    assert automation.enabled


def test_a_recipe_deployed_again_goes_on_by_its_schedule_and_settings(home: Home) -> None:
    recipe = home.recipe("nightly", DENSE)
    times = ("--schedule", "30 2 * * *", "--timezone", "Europe/Berlin")
    home.winnow("deploy", recipe, "-p", home.profile, *times, "--set", "pretrain.seed=3")
    assert "runs at 30 2 * * * Europe/Berlin, pretrain.seed=3" in home.winnow("deploy", recipe).out
    with client() as prefect:
        kept = prefect.read_deployment_by_name("winnow/nightly")
        assert (kept.schedules[0].schedule.cron, kept.schedules[0].active) == ("30 2 * * *", True)
        assert yaml.safe_load(kept.parameters["recipe"])["stages"][1]["pretrain"]["seed"] == 3
        assert kept.parameters["profile"] == str(home.profile)
        prefect.update_deployment_schedule(kept.id, kept.schedules[0].id, active=False)
        listed = {one["name"]: one for one in json.loads(home.winnow("deployments", "--json").out)}
        paused = [{"when": "30 2 * * *", "timezone": "Europe/Berlin", "paused": True}]
        assert listed["nightly"] == {
            **{"name": "nightly", "recipe": "nightly", "set": ["pretrain.seed=3"], "profile": str(home.profile)},
            **{"copy": False, "schedules": paused, "paused": True, "last_run": None},
        }
        assert listed["compress"]["last_run"]["state"] == "completed" and not listed["compress"]["paused"]
        assert listed["promote"]["recipe"] is None and "nightly" in home.winnow("deployments").out
        home.winnow("deploy", recipe, "--schedule", "none")
        assert not prefect.read_deployment_by_name("winnow/nightly").schedules


def deployments() -> list[Any]:
    with client() as prefect:
        return [one for one in prefect.read_deployments() if one.name == "compress" and "winnow" in one.tags]


def triggered() -> list[Any]:
    """Runs of the deployment: nobody else asks for one."""
    with client() as prefect:
        known = {one.id for one in deployments()}
        return [run for run in prefect.read_flow_runs() if run.deployment_id in known]


def test_of_the_runs_that_a_schedule_missed_the_last_is_made_up_for(home: Home) -> None:
    now = datetime.now(UTC)
    with client() as prefect:
        prefect.create_work_pool(WorkPoolCreate(name="unworked", type="process"))
        home.winnow("deploy", home.recipe("hourly", DENSE), "--pool", "unworked", "--schedule", "0 * * * *")
        id = prefect.read_deployment_by_name("winnow/hourly").id
        past = {"start_time": f"{now - timedelta(hours=4):%Y-%m-%dT%H:%M:%SZ}", "end_time": f"{now:%Y-%m-%dT%H:%M:%SZ}"}
        prefect.request("POST", "/deployments/{id}/schedule", path_params={"id": id}, json=past)
        skip_missed(prefect, now)
        runs = [run for run in prefect.read_flow_runs() if run.deployment_id == id and run.expected_start_time < now]
        runs.sort(key=lambda run: run.expected_start_time)
        *skipped, last = runs
        assert skipped and {run.state.name for run in skipped} == {"Skipped"} and last.state.is_scheduled()
