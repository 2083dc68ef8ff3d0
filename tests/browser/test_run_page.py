"""The page of a run in Prefect, seen in a browser: what it tells while the run goes on, at its end, and while it waits."""

from __future__ import annotations

import http.server
import json
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from cluster.servers.services import Services
from cluster.turn import Queue
from tests.browser import Browser
from tests.pipeline import LENGTH, Home, made_home, pretrain, prune
from tests.pipeline.test_standing import Ui

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
EVALUATE = {"perplexity": {"length": LENGTH, "tokens": 1024}, "size": {}}
STEPS = 1500  # long enough for somebody to look on


class Told(http.server.BaseHTTPRequestHandler):
    """What a webhook is called with."""

    calls: list[dict[str, Any]] = []

    def do_POST(self) -> None:
        self.calls.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    with made_home(tmp_path_factory, "page") as home, http.server.ThreadingHTTPServer(("127.0.0.1", 0), Told) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        home.variables["WINNOW_WEBHOOK_URL"] = f"http://127.0.0.1:{server.server_address[1]}/hook"
        _deploy(home)
        home.winnow("up")
        home.winnow("notify")
        yield home
        server.shutdown()


def _deploy(home: Home) -> None:
    """Two recipes: one that takes a while, and one that claims what will not hold."""
    seen = home.recipe("seen", pretrain("dense", STEPS), prune(), evaluate=EVALUATE)
    pruned = {"prune": {"method": "magnitude", "sequences": 16, "length": LENGTH}, "grid": {"sparsity": [0.3, 0.6]}}
    follower = home.recipe("follower", pretrain("dense", 5), pruned)
    recipe = yaml.safe_load(follower.read_text())
    recipe["claims"] = [
        {"says": "less is more", "stage": "prune", "metric": "sparsity", "order": ["sparsity0_3", "sparsity0_6"]}
    ]
    follower.write_text(yaml.safe_dump(recipe))
    home.directory.mkdir(parents=True)
    listed = [{"recipe": str(file), "profile": str(home.profile)} for file in (seen, follower)]
    (home.directory / "deployments.yaml").write_text(yaml.safe_dump({"deployments": listed}))


@pytest.fixture(scope="module")
def ui(home: Home) -> Ui:
    return Ui(Services(home.directory).environment())


@pytest.fixture(scope="module")
def browser(home: Home, ui: Ui, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    server = Services(home.directory).server("prefect")
    browser = Browser(server.url.removesuffix("/api"), server.token, tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


def trigger(ui: Ui, deployment: str, **given: Any) -> str:
    deadline = time.monotonic() + 180
    while not (found := {each["name"]: each["id"] for each in ui.ask("POST", "/deployments/filter", {})}.get(deployment)):
        assert time.monotonic() < deadline, "nothing is served"
        time.sleep(0.5)
    return ui.ask("POST", f"/deployments/{found}/create_flow_run", {"parameters": {}, **given})["id"]


def state(ui: Ui, run: str, *wanted: str, seconds: float = 400) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while (found := ui.ask("GET", f"/flow_runs/{run}"))["state_name"] not in wanted:
        assert time.monotonic() < deadline, f"still {found['state_name']}"
        time.sleep(0.3)
    return found


def errors(ui: Ui, run: str) -> list[str]:
    """What the log of a run tells as errors, once its end is in it: the log is sent by and by."""
    deadline = time.monotonic() + 60
    while True:
        told = ui.ask("POST", "/logs/filter", {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC"})
        if any("Finished in state" in line["message"] for line in told):
            return [line["message"] for line in told if line["level"] >= logging.ERROR]
        assert time.monotonic() < deadline, told
        time.sleep(0.3)


def artifacts(ui: Ui, run: str) -> dict[str, dict[str, Any]]:
    found = ui.ask("POST", "/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run]}}})
    return {each["key"]: each for each in found}


@pytest.fixture(scope="module")
def run(ui: Ui) -> str:
    return trigger(ui, "seen", name="typed by me")


@pytest.fixture(scope="module")
def follower(home: Home, ui: Ui, run: str) -> str:
    """Another run, which has to wait for the first, and whose claim will not hold."""
    deadline = time.monotonic() + 180
    while not Queue(home.directory / "queue" / "own").tickets():
        assert time.monotonic() < deadline, "the first run has not come to its turn"
        time.sleep(0.3)
    return trigger(ui, "follower")


def test_a_run_that_waits_says_for_whom(ui: Ui, browser: Browser, follower: str) -> None:
    waiting = state(ui, follower, "Waiting", "Completed", "Failed")
    message = waiting["state"]["message"]
    assert (waiting["state_name"], waiting["state_type"]) == ("Waiting", "RUNNING")
    assert message.startswith("waiting for seen (since ") and message.endswith("1 ahead")
    browser.open(f"/runs/flow-run/{follower}")
    browser.reads("waiting for seen (since")
    browser.picture("waiting")


def test_a_stage_that_runs_shows_its_progress_with_loss_rate_and_time_left(ui: Ui, browser: Browser, run: str) -> None:
    def progress() -> dict[str, Any] | None:
        found = artifacts(ui, run).get("seen-pretrain-progress")
        return found if found and " left" in found["description"] else None

    artifact = browser.until(progress, "progress is told", 120)
    assert 0 < artifact["data"] < 100 and "loss " in artifact["description"] and "tokens/s" in artifact["description"]
    browser.open(f"/artifacts/artifact/{artifact['id']}")
    browser.reads("loss ")
    browser.picture("progress")


def test_at_the_end_the_page_has_every_stages_numbers_links_and_the_whole(ui: Ui, browser: Browser, run: str) -> None:
    done = state(ui, run, "Completed", "Failed", "Crashed")
    assert (done["state_name"], done["name"]) == ("Completed", "typed by me")
    browser.open(f"/runs/flow-run/{run}")
    browser.reads("pretrain | done in")
    browser.picture("run")
    browser.press("Artifacts")
    browser.reads("seen-summary")
    browser.picture("artifacts")
    kept = artifacts(ui, run)
    browser.open(f"/artifacts/artifact/{kept['seen-summary']['id']}")
    browser.reads("perplexity")
    browser.picture("summary")
    browser.open(f"/artifacts/artifact/{kept['seen-prune']['id']}")
    for words in ("pretrain (before)", "50.0%", "Ray job"):
        browser.reads(words)
    browser.picture("stage")
    browser.driver.get(browser.find("//a[normalize-space(.)='MLflow']").get_attribute("href"))
    browser.reads("perplexity")
    browser.picture("mlflow")


def test_a_cached_run_says_so_stage_by_stage(ui: Ui, browser: Browser, run: str) -> None:
    state(ui, run, "Completed")
    again = trigger(ui, "seen")
    assert state(ui, again, "Completed", "Failed", "Crashed")["name"] == "seen"
    tasks = ui.ask("POST", "/task_runs/filter", {"task_runs": {"flow_run_id": {"any_": [again]}}})
    names = {"prepare", "pretrain", "pretrain.perplexity", "pretrain.size", "prune", "prune.perplexity", "prune.size"}
    assert {task["name"] for task in tasks} == names and {task["state_name"] for task in tasks} == {"Cached"}
    browser.open(f"/runs/flow-run/{again}")
    browser.press("Task Runs")
    browser.reads("Cached")
    browser.picture("cached")


def test_a_failed_run_and_a_claim_that_does_not_hold_call_the_webhook(ui: Ui, follower: str) -> None:
    assert state(ui, follower, "Completed", "Failed", "Crashed")["state_name"] == "Completed"
    wrong = trigger(ui, "seen", parameters={"overrides": ["prune.method=no-such"]})
    state(ui, wrong, "Failed", "Crashed")
    assert errors(ui, wrong) == [state(ui, wrong, "Failed")["state"]["message"]]  # one line, and no trace
    deadline = time.monotonic() + 180
    while len(Told.calls) < 2 and time.monotonic() < deadline:
        time.sleep(0.3)
    claim, failure = sorted(Told.calls, key=lambda call: call["event"].startswith("prefect."))
    assert claim["event"] == "winnow.claim.failed" and "less is more" in claim["text"] and follower in claim["run"]
    assert failure["event"].startswith("prefect.flow-run.") and wrong in failure["run"] and "no-such" in failure["text"]
