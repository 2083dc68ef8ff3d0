"""Servers that stand: a run triggered in the Prefect UI completes and is seen in MLflow; ``down`` leaves nothing."""

from __future__ import annotations

import base64
import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from cluster.processes import family
from cluster.services import STANDING, Services
from tests.pipeline import LENGTH, Home, Ledger, lives, made_home, pretrain, prune

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

EVALUATE = {"perplexity": {"length": LENGTH, "tokens": 1024}}
Answer = dict[str, Any]


class Ui:
    """Prefect's API as its UI talks to it: a login, a CSRF token, JSON."""

    def __init__(self, environment: dict[str, str]) -> None:
        login = base64.b64encode(environment["PREFECT_API_AUTH_STRING"].encode()).decode()
        self.client = httpx.Client(
            base_url=environment["PREFECT_API_URL"], headers={"Authorization": f"Basic {login}"}, timeout=60, trust_env=False
        )
        name = str(uuid.uuid4())
        token = self.ask("GET", f"/csrf-token?client={name}")["token"]
        self.client.headers |= {"Prefect-Csrf-Client": name, "Prefect-Csrf-Token": token}

    def ask(self, method: str, path: str, document: Any = None) -> Any:
        answer = self.client.request(method, path, json=document)
        assert answer.is_success, f"{answer.status_code}: {answer.text}"
        return answer.json()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    with made_home(tmp_path_factory, "standing") as home:
        home.winnow("up")
        yield home


@pytest.fixture(scope="module")
def ui(home: Home) -> Ui:
    return Ui(Services(home.directory).environment())


@pytest.fixture(scope="module")
def deployment(ui: Ui) -> str:
    deadline = time.monotonic() + 60
    while not (found := ui.ask("POST", "/deployments/filter", {})):
        assert time.monotonic() < deadline, "the deployment was not registered"
        time.sleep(0.5)
    (deployment,) = found
    assert deployment["name"] == "pipeline"
    return deployment["id"]


@pytest.fixture(scope="module")
def triggered(home: Home, ui: Ui, deployment: str) -> Answer:
    """A flow run from a form filled in with YAML text, at its end."""
    recipe = home.recipe("triggered", pretrain("dense", 10), prune(), evaluate=EVALUATE).read_text()
    parameters = {"recipe": recipe, "profile": str(home.profile)}
    run = ui.ask("POST", f"/deployments/{deployment}/create_flow_run", {"parameters": parameters})
    deadline = time.monotonic() + 240
    while (run := ui.ask("GET", f"/flow_runs/{run['id']}"))["state_type"] not in ("COMPLETED", "FAILED", "CRASHED"):
        assert time.monotonic() < deadline, f"still {run['state_name']}"
        time.sleep(1)
    return run


def test_all_four_stand_and_are_healthy(home: Home) -> None:
    found = json.loads(home.winnow("status", "--json").out)
    assert found.keys() == set(STANDING) and all(health["alive"] and health["healthy"] for health in found.values())


def test_the_api_is_closed_to_who_does_not_log_in(ui: Ui) -> None:
    assert httpx.post(f"{ui.client.base_url}deployments/filter", json={}, trust_env=False).status_code == 401


def test_a_triggered_run_completes_and_its_tasks_have_names(ui: Ui, triggered: Answer) -> None:
    assert (triggered["state_name"], triggered["name"]) == ("Completed", "triggered")
    tasks = ui.ask("POST", "/task_runs/filter", {"task_runs": {"flow_run_id": {"any_": [triggered["id"]]}}})
    names = sorted(task["name"].rpartition("-")[0] for task in tasks)
    assert names == ["evaluate/evaluate", "evaluate/evaluate", "prepare/files", "pretrain/dense", "prune/wanda"]
    assert {task["state_name"] for task in tasks} == {"Completed"} and {task["run_count"] for task in tasks} == {1}


def test_the_mlflow_server_shows_it(home: Home, triggered: Answer, tmp_path) -> None:
    ledger = Ledger(Services(home.directory).server("mlflow").url)
    (parent,) = ledger.parents("triggered")
    assert parent.data.tags["prefect.flow_run_id"] == triggered["id"] and parent.info.status == "FINISHED"
    children = ledger.children(parent)
    assert children.keys() == {"prepare", "pretrain", "pretrain.evaluate", "prune", "prune.evaluate"}
    assert parent.data.metrics["prune.evaluate.perplexity"] == children["prune.evaluate"].data.metrics["perplexity"]
    assert ledger.figures(parent, tmp_path)


def test_a_schedule_is_accepted_and_plans_runs(ui: Ui, deployment: str) -> None:
    nightly = {"schedule": {"cron": "0 3 * * *", "timezone": "UTC"}, "active": True}
    (made,) = ui.ask("POST", f"/deployments/{deployment}/schedules", [nightly])
    wanted = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
    deadline = time.monotonic() + 60
    while not (planned := ui.ask("POST", "/flow_runs/filter", wanted)):
        assert time.monotonic() < deadline, "no run was scheduled"
        time.sleep(1)
    assert planned[0]["deployment_id"] == deployment and planned[0]["expected_start_time"].split("T")[1].startswith("03:00")
    ui.client.delete(f"/deployments/{deployment}/schedules/{made['id']}").raise_for_status()


def test_down_leaves_no_process_and_what_was_done_is_known_without_servers(home: Home, triggered: Answer) -> None:
    servers = Services(home.directory).state.servers.values()
    seen = family([server.process for server in servers], {server.mark for server in servers})
    assert len(seen) > 10
    home.winnow("down")
    assert [process for process in seen if lives(process)] == []
    assert json.loads(home.winnow("status", "--json").out) == {}
    again = home.run(home.root / "triggered.yaml")
    assert all(stage["cached"] for stage in again.summary["stages"]) and again.seen == set()
    assert len(Ledger.of(home).parents("triggered")) == 2
