"""Servers that stand: a run triggered in the Prefect UI completes and is seen in MLflow; ``down`` leaves nothing."""

from __future__ import annotations

import base64
import json
import time
import uuid
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from cluster.servers.processes import family
from cluster.servers.services import STANDING, Services
from tests.pipeline import LENGTH, Home, Ledger, lives, made_home, pretrain, prune

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

NEW_SQLALCHEMY = version("prefect").startswith("3.8.") and version("sqlalchemy").startswith("2.1.")
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
        self.client.headers.update({"Prefect-Csrf-Client": name, "Prefect-Csrf-Token": token})

    def ask(self, method: str, path: str, document: Any = None) -> Any:
        deadline = time.monotonic() + 30
        answer = self.client.request(method, path, json=document)
        while answer.status_code == 503 and time.monotonic() < deadline:  # SQLite is busy; the server asks to come again
            time.sleep(1)
            answer = self.client.request(method, path, json=document)
        assert answer.is_success, f"{answer.status_code}: {answer.text}"
        return answer.json()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    with made_home(tmp_path_factory, "standing") as home:
        recipe = home.recipe("triggered", pretrain("dense", 10), prune(), evaluate=EVALUATE)
        home.directory.mkdir(parents=True)
        listing = {"deployments": [{"recipe": str(recipe), "profile": str(home.profile)}], "promote": None}
        (home.directory / "deployments.yaml").write_text(yaml.safe_dump(listing))
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
    assert deployment["name"] == "triggered"
    return deployment["id"]


@pytest.fixture(scope="module")
def triggered(ui: Ui, deployment: str) -> Answer:
    """A flow run from a form that was left as it is, at its end."""
    run = ui.ask("POST", f"/deployments/{deployment}/create_flow_run", {"parameters": {}})
    deadline = time.monotonic() + 240
    while (run := ui.ask("GET", f"/flow_runs/{run['id']}"))["state_type"] not in ("COMPLETED", "FAILED", "CRASHED"):
        assert time.monotonic() < deadline, f"still {run['state_name']}"
        time.sleep(1)
    return run


def test_all_four_stand_and_are_healthy(home: Home) -> None:
    found = json.loads(home.winnow("status", "--json").out)
    assert found.keys() == set(STANDING) and all(health["alive"] and health["healthy"] for health in found.values())


def test_the_api_is_closed_to_who_does_not_log_in(ui: Ui, deployment: str) -> None:
    assert httpx.get(f"{ui.client.base_url}deployments/{deployment}", trust_env=False).status_code == 401


def test_a_triggered_run_completes_and_its_tasks_have_names(ui: Ui, triggered: Answer) -> None:
    assert (triggered["state_name"], triggered["name"]) == ("Completed", "triggered")
    tasks = ui.ask("POST", "/task_runs/filter", {"task_runs": {"flow_run_id": {"any_": [triggered["id"]]}}})
    assert sorted(task["name"] for task in tasks) == ["prepare", "pretrain", "pretrain.perplexity", "prune", "prune.perplexity"]
    assert {task["state_name"] for task in tasks} == {"Completed"} and {task["run_count"] for task in tasks} == {1}


def test_the_mlflow_server_shows_it(home: Home, triggered: Answer, tmp_path: Path) -> None:
    ledger = Ledger(Services(home.directory).server("mlflow").url)
    (parent,) = ledger.parents("triggered")
    assert parent.data.tags["prefect.flow_run_id"] == triggered["id"] and parent.info.status == "FINISHED"
    children = ledger.children(parent)
    assert children.keys() == {"prepare", "pretrain", "prune"}
    assert parent.data.metrics["prune/perplexity"] == children["prune"].data.metrics["perplexity"]
    assert ledger.figures(parent, tmp_path)


@pytest.fixture(scope="module")
def schedule(ui: Ui, deployment: str) -> str:
    """A schedule made in the UI, its runs too far away to come in the way."""
    leap_day = {"schedule": {"cron": "0 3 29 2 *", "timezone": "UTC"}, "active": True}
    (made,) = ui.ask("POST", f"/deployments/{deployment}/schedules", [leap_day])
    return made["id"]


def test_a_schedule_is_accepted(ui: Ui, deployment: str, schedule: str) -> None:
    (kept,) = ui.ask("GET", f"/deployments/{deployment}")["schedules"]
    assert (kept["id"], kept["active"]) == (schedule, True)


@pytest.mark.xfail(NEW_SQLALCHEMY, reason="Prefect 3.8 cannot insert scheduled runs on SQLAlchemy 2.1", strict=True)
def test_a_schedule_plans_runs(ui: Ui, deployment: str, schedule: str) -> None:
    ui.ask("POST", f"/deployments/{deployment}/schedule", {"min_runs": 1, "end_time": "2100-01-01T00:00:00Z"})
    planned = ui.ask("POST", "/flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}})
    assert planned and {run["deployment_id"] for run in planned} == {deployment}
    assert all("-02-29T03:00:00" in run["expected_start_time"] for run in planned)


def test_down_leaves_no_process_and_what_was_done_is_known_without_servers(
    home: Home, triggered: Answer, tmp_path: Path
) -> None:
    servers = Services(home.directory).state.servers.values()
    seen = family([server.process for server in servers], {server.mark for server in servers})
    assert len(seen) > 10
    home.winnow("down")
    assert [process for process in seen if lives(process)] == []
    assert json.loads(home.winnow("status", "--json").out) == {}
    again = home.run(home.root / "triggered.yaml")
    assert all(stage["cached"] for stage in again.summary["stages"]) and again.seen == set()
    ledger = Ledger.of(home)
    served, local = ledger.parents("triggered")
    assert ledger.figures(served, _folder(tmp_path / "served")) == ledger.figures(local, _folder(tmp_path / "local")) != {}


def test_a_schedule_outlives_the_servers(home: Home, deployment: str, schedule: str) -> None:
    home.winnow("down")
    home.winnow("up")
    ui, deadline = Ui(Services(home.directory).environment()), time.monotonic() + 60
    while (found := ui.ask("GET", f"/deployments/{deployment}"))["status"] != "READY":  # until its pool is worked again
        assert time.monotonic() < deadline, "the deployment is not served"
        time.sleep(0.2)
    assert [kept["id"] for kept in found["schedules"]] == [schedule]


def _folder(path: Path) -> Path:
    path.mkdir()
    return path
