"""What one run pretrains starts the deployment that compresses it, on real servers; a restart forgets nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient

from cluster.servers.services import Services
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


def deployments() -> list[Any]:
    with client() as prefect:
        return [one for one in prefect.read_deployments() if one.name == "compress"]


def triggered() -> list[Any]:
    """Runs of the deployment: nobody else asks for one."""
    with client() as prefect:
        known = {one.id for one in deployments()}
        return [run for run in prefect.read_flow_runs() if run.deployment_id in known]
