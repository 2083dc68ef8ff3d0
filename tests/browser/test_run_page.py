"""The page of a run in Prefect, seen in a browser: what it tells while the run goes on, at its end, and while it waits."""

from __future__ import annotations

import http.server
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from cluster.profile import CHECKOUT
from cluster.servers.services import Services
from tests.pipeline import LENGTH, Home, made_home, pretrain, prune
from tests.pipeline.test_standing import Ui

webdriver = pytest.importorskip("selenium.webdriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(500),
    pytest.mark.skipif(not shutil.which("chromedriver"), reason="no Chromium here"),
]
SCREENSHOTS = CHECKOUT / "build" / "screenshots"
EVALUATE = {"perplexity": {"length": LENGTH, "tokens": 1024}, "size": {}}
OPTIONS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1400,1300"
)


class Browser:
    """Chromium, logged in to the Prefect UI."""

    def __init__(self, profile: str, url: str, login: str) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or ""
        for option in (*OPTIONS.split(), f"--user-data-dir={profile}"):
            options.add_argument(option)
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
        self.url = url
        self.driver.get(f"{url}/login")
        self.until(lambda: self.driver.find_elements("css selector", "input"))[0].send_keys(f"{login}\n")
        self.until(lambda: "/login" not in self.driver.current_url)

    def until(self, condition: Callable[[], Any], seconds: float = 60) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.3)
        return found

    def text(self) -> str:
        return self.driver.execute_script("return document.body.innerText")

    def see(self, path: str, *words: str, shot: str, tab: str = "") -> str:
        """The text of a page once it shows all of these words; a picture of it is kept."""
        self.driver.get(self.url + path)
        if tab:
            self.until(lambda: self.driver.execute_script(CLICK, tab))
        self.until(lambda: all(word in self.text() for word in words))
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.driver.save_screenshot(SCREENSHOTS / f"{shot}.png")
        return self.text()


CLICK = """
const shown = [...document.querySelectorAll('button, [role=tab], .p-tab')]
    .find(each => each.innerText.trim() === arguments[0] && each.offsetParent);
if (shown) shown.click();
return Boolean(shown);
"""


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
        home.winnow("up")
        home.winnow("notify")
        yield home
        server.shutdown()


@pytest.fixture(scope="module")
def ui(home: Home) -> Ui:
    return Ui(Services(home.directory).environment())


@pytest.fixture(scope="module")
def browser(home: Home, ui: Ui, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    prefect = Services(home.directory).server("prefect")
    browser = Browser(str(tmp_path_factory.mktemp("chromium")), prefect.url.removesuffix("/api"), prefect.token)
    yield browser
    browser.driver.quit()


def trigger(home: Home, ui: Ui, recipe: str, name: str | None = None) -> str:
    deadline = time.monotonic() + 60
    while not (found := ui.ask("POST", "/deployments/filter", {})):
        assert time.monotonic() < deadline, "nothing is served"
        time.sleep(0.5)
    parameters = {"recipe": recipe, "profile": str(home.profile)}
    body = {"parameters": parameters} | ({"name": name} if name else {})
    return ui.ask("POST", f"/deployments/{found[0]['id']}/create_flow_run", body)["id"]


def state(ui: Ui, run: str, *wanted: str, seconds: float = 240) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while (found := ui.ask("GET", f"/flow_runs/{run}"))["state_name"] not in wanted:
        assert time.monotonic() < deadline, f"still {found['state_name']}"
        time.sleep(0.3)
    return found


@pytest.fixture(scope="module")
def recipe(home: Home) -> str:
    return home.recipe("seen", pretrain("dense", 500), prune(), evaluate=EVALUATE).read_text()


@pytest.fixture(scope="module")
def run(home: Home, ui: Ui, recipe: str) -> str:
    return trigger(home, ui, recipe, "typed by me")


@pytest.fixture(scope="module")
def follower(home: Home, ui: Ui, run: str) -> str:
    """Another run, which has to wait for the first, and will not hold what it claims."""
    state(ui, run, "Running", "Completed")
    time.sleep(1)
    pruned = {"prune": {"method": "magnitude"}, "grid": {"sparsity": [0.3, 0.6]}}
    recipe = yaml.safe_load(home.recipe("follower", pretrain("dense", 5), pruned).read_text())
    recipe["claims"] = [
        {"says": "less is more", "stage": "prune", "metric": "sparsity", "order": ["sparsity0_3", "sparsity0_6"]}
    ]
    return trigger(home, ui, yaml.safe_dump(recipe))


def test_a_stage_that_runs_shows_its_progress_with_loss_rate_and_time_left(ui: Ui, browser: Browser, run: str) -> None:
    def progress() -> list[dict[str, Any]]:
        found = ui.ask("POST", "/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run]}}})
        return [each for each in found if each["key"] == "seen-pretrain-progress" and " left" in each["description"]]

    artifact = browser.until(progress, 120)[0]
    assert 0 < artifact["data"] < 100 and "loss " in artifact["description"] and "tokens/s" in artifact["description"]
    browser.see(f"/runs/flow-run/{run}", "typed by me", "seen-pretrain-progress", tab="Artifacts", shot="progress")


def test_a_run_that_waits_says_for_whom(ui: Ui, browser: Browser, run: str, follower: str) -> None:
    waiting = state(ui, follower, "Waiting", "Completed", "Failed")
    message = waiting["state"]["message"]
    assert (waiting["state_name"], waiting["state_type"]) == ("Waiting", "RUNNING")
    assert message.startswith("waiting for seen (since ") and message.endswith("1 ahead")
    browser.see(f"/runs/flow-run/{follower}", "Waiting", "waiting for seen (since", shot="waiting")


def test_at_the_end_the_page_has_every_stages_numbers_links_and_the_whole(ui: Ui, browser: Browser, run: str) -> None:
    done = state(ui, run, "Completed", "Failed", "Crashed")
    assert (done["state_name"], done["name"]) == ("Completed", "typed by me")
    browser.see(f"/runs/flow-run/{run}", "pretrain | done in", shot="run")
    browser.see(f"/runs/flow-run/{run}", "seen-prune", "seen-pretrain", "seen-summary", tab="Artifacts", shot="artifacts")
    found = ui.ask("POST", "/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run]}}})
    kept = {each["key"]: each for each in found}
    browser.see(f"/artifacts/artifact/{kept['seen-summary']['id']}", "perplexity", "sparsity", "MLflow", shot="summary")
    browser.see(f"/artifacts/artifact/{kept['seen-prune']['id']}", "pretrain (before)", "50.0%", "Ray job", shot="stage")
    (link,) = [each.get_attribute("href") for each in browser.driver.find_elements("link text", "MLflow")]
    browser.driver.get(link)
    browser.until(lambda: "perplexity" in browser.text() and "prune" in browser.text())
    browser.driver.save_screenshot(SCREENSHOTS / "mlflow.png")


def test_a_cached_run_says_so_stage_by_stage(home: Home, ui: Ui, browser: Browser, recipe: str, run: str) -> None:
    state(ui, run, "Completed")
    again = trigger(home, ui, recipe)
    assert state(ui, again, "Completed", "Failed", "Crashed")["name"] == "seen"
    tasks = ui.ask("POST", "/task_runs/filter", {"task_runs": {"flow_run_id": {"any_": [again]}}})
    names = {"prepare", "pretrain", "pretrain.perplexity", "pretrain.size", "prune", "prune.perplexity", "prune.size"}
    assert {task["name"] for task in tasks} == names and {task["state_name"] for task in tasks} == {"Cached"}
    browser.see(f"/runs/flow-run/{again}", "Cached", tab="Task Runs", shot="cached")


def test_a_failed_run_and_a_claim_that_does_not_hold_call_the_webhook(home: Home, ui: Ui, follower: str) -> None:
    assert state(ui, follower, "Completed", "Failed", "Crashed")["state_name"] == "Completed"
    wrong = trigger(home, ui, "no recipe of this name")
    state(ui, wrong, "Failed", "Crashed")
    deadline = time.monotonic() + 60
    while len(Told.calls) < 2 and time.monotonic() < deadline:
        time.sleep(0.3)
    claim, failure = sorted(Told.calls, key=lambda call: call["event"].startswith("prefect."))
    assert claim["event"] == "winnow.claim.failed" and "less is more" in claim["text"] and follower in claim["text"]
    assert failure["event"].startswith("prefect.flow-run.") and wrong in failure["text"]
