"""A day in Prefect's UI: a form filled in, a schedule paused and resumed, a run cancelled, mistakes told."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from cluster.servers.services import Services
from cluster.store.local import LocalStore
from flows.schedules import MADE, MARKED
from tests.browser import CHROMIUM, DRIVER, Browser
from tests.pipeline import Home, made_home, pretrain, prune
from tests.pipeline.test_standing import Ui

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
Run = dict[str, Any]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    missing = [str(program) for program in (CHROMIUM, DRIVER) if not program.exists()]
    assert not missing, f"{', '.join(missing)}: install Debian's packages chromium and chromium-driver"
    with made_home(tmp_path_factory, "browser") as home:
        recipe = home.recipe("tiny", pretrain("dense", 10), prune(), evaluate={"size": {}})
        home.directory.mkdir(parents=True)
        _list(home, [{"recipe": str(recipe), "profile": str(home.profile), "schedule": "0 3 29 2 *"}])
        home.winnow("up")
        yield home


def _list(home: Home, deployments: list[dict[str, Any]]) -> None:
    listing = {"deployments": deployments, "promote": str(home.profile)}
    (home.directory / "deployments.yaml").write_text(yaml.safe_dump(listing))


@pytest.fixture(scope="module")
def ui(home: Home) -> Ui:
    return Ui(Services(home.directory).environment())


@pytest.fixture(scope="module")
def browser(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    server = Services(home.directory).server("prefect")
    browser = Browser(server.url.removesuffix("/api"), server.token, tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def page(browser: Browser, ui: Ui) -> str:
    """Where the deployment is in the UI."""
    found = browser.until(lambda: deployments(ui).get("tiny"), "deployed")
    return f"/deployments/deployment/{found['id']}"


def deployments(ui: Ui) -> dict[str, Run]:
    return {found["name"]: found for found in ui.ask("POST", "/deployments/filter", {})}


def runs(ui: Ui) -> dict[str, Run]:
    return {run["id"]: run for run in ui.ask("POST", "/flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 200})}


def ended(ui: Ui, id: str, seconds: float = 400) -> Run:
    deadline = time.monotonic() + seconds
    while (run := ui.ask("GET", f"/flow_runs/{id}"))["state_type"] not in ENDED:
        assert time.monotonic() < deadline, f"still {run['state_name']}"
        time.sleep(0.5)
    return run


def submitted(browser: Browser, ui: Ui, page: str, before: set[str]) -> str:
    """The id of the run that a form began."""
    return browser.press_until("Submit", lambda: next(iter(runs(ui).keys() - before), None), "a new run")


def pruned(home: Home) -> list[dict[str, Any]]:
    """The parameters of every pruned artifact, the newest first."""
    records = LocalStore(home.directory / "store").records("prune")
    return [record.params for record in sorted(records, key=lambda record: record.created, reverse=True)]


def test_a_form_runs_what_it_says(home: Home, ui: Ui, browser: Browser, page: str) -> None:
    browser.open(f"{page}/run")
    assert browser.field("prune", "method").text == "wanda"
    assert browser.field("prune", "sequences").get_attribute("value") == "16"
    browser.choose("magnitude", "prune", "method")
    browser.fill(8, "prune", "sequences")
    browser.picture("form")
    run = ended(ui, submitted(browser, ui, page, set(runs(ui))))
    browser.open(f"/runs/flow-run/{run['id']}")
    browser.reads("Completed")
    browser.picture("completed")
    assert run["state_type"] == "COMPLETED", run["state"]["message"]
    (made,) = pruned(home)
    assert (list(made["method"]), made["sequences"], made["pattern"]) == (["magnitude"], 8, "2:4")


def test_a_chosen_model_gets_its_alias(home: Home, ui: Ui, browser: Browser, page: str) -> None:
    (record,) = LocalStore(home.directory / "store").records("prune")
    browser.open(f"/deployments/deployment/{deployments(ui)['promote']['id']}/run")
    browser.fill(record.address, "model")
    browser.picture("promote")
    run = ended(ui, submitted(browser, ui, page, set(runs(ui))))
    assert run["state_type"] == "COMPLETED", run["state"]["message"]
    client = MlflowClient(Services(home.directory).server("mlflow").url)
    assert client.get_model_version_by_alias("tiny", "champion").tags["winnow.address"] == record.address
    assert "is no model; choose what one of load, pretrain" in home.winnow("promote", "prepare/", code=2).err


def test_what_is_wrong_is_told_where_it_was_typed(ui: Ui, browser: Browser, page: str) -> None:
    before = set(runs(ui))
    browser.open(f"{page}/run")
    browser.fill(7, "prune", "sparsity")
    browser.press("Submit")
    browser.reads("7 is greater than or equal to the maximum of 1")
    browser.picture("refused")
    assert set(runs(ui)) == before


def test_a_mistake_ends_a_run_with_one_line(home: Home, ui: Ui, browser: Browser, page: str) -> None:
    before, id = set(runs(ui)), page.rpartition("/")[2]
    browser.open(f"{page}/run")
    browser.add("prune.sparsty=0.6", "overrides")
    wrong = {"": submitted(browser, ui, page, before)}
    for name, parameters in {
        "recipe nosuch: no such file": {"recipe": "nosuch"},
        "recipe.stages[0].prepare.corpus: files.paths[0]: texts is relative": {
            "recipe": yaml.safe_dump({"name": "tiny", "stages": [RELATIVE]})
        },
        "no profile 'nosuch'; choose one of cluster, local": {"profile": "nosuch"},
    }.items():
        asked = {"parameters": parameters, "enforce_parameter_schema": False}
        wrong[name] = ui.ask("POST", f"/deployments/{id}/create_flow_run", asked)["id"]
    wrong["recipe.stages[2].prune.sparsty: no such field; choose one of seed, model, method"] = wrong.pop("")
    for line, run in wrong.items():
        state = ended(ui, run)["state"]
        assert state["type"] == "FAILED" and state["message"].startswith(line) and "\n" not in state["message"], state
    browser.open(f"/runs/flow-run/{run}")
    browser.reads("prune.sparsty: no such field")
    browser.picture("failed")


@pytest.fixture(scope="module")
def schedule(ui: Ui, browser: Browser, page: str) -> str:
    """A schedule of every minute, made in the UI with one field of its own, then paused and resumed."""
    made = _made(ui, browser, page)
    assert made["parameters"] == GIVEN, made
    browser.until(lambda: any(str(one["slug"]).startswith(MARKED) for one in _schedules(ui)), "marked")
    for active in (False, True):
        browser.switch("Every minute", active)
        browser.until(lambda active=active: _is(ui, made["id"], active, GIVEN), f"active: {active}, its parameters as before")
    browser.picture("resumed")
    return made["id"]


RELATIVE = {"prepare": {"corpus": {"files": {"paths": ["texts"]}}, "tokenizer": {"train": 512}}}


def _made(ui: Ui, browser: Browser, page: str) -> dict[str, Any]:
    """A schedule with a field of its own. The dialog of Prefect 3.8 closes at times without having sent anything: it is filled
    in again then, as a person would."""
    for _ in range(3):
        browser.open(page)
        browser.press("Schedule")
        browser.press("Cron")
        browser.fill(12, "prune", "sequences")
        browser.picture("schedule")
        browser.submit("Save")
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if found := [one for one in _schedules(ui) if one["slug"] != MADE]:
                return found[0]
            time.sleep(0.2)
    raise AssertionError(f"no schedule was made, and there are {_schedules(ui)}; the page says: {browser.text()}")


GIVEN = {"fields": {"prune": {"sequences": 12}}}


def _schedules(ui: Ui) -> list[dict[str, Any]]:
    return deployments(ui)["tiny"]["schedules"]


def _is(ui: Ui, id: str, active: bool, parameters: dict[str, Any]) -> bool:
    return any((one["id"], one["active"], one["parameters"]) == (id, active, parameters) for one in _schedules(ui))


def test_a_schedule_that_was_paused_and_resumed_runs_with_its_own_parameters(home: Home, ui: Ui, schedule: str) -> None:
    deadline = time.monotonic() + 400
    while not (fired := [run for run in runs(ui).values() if _fired(run, schedule)]):
        assert time.monotonic() < deadline, "the schedule did not fire"
        time.sleep(1)
    run = ended(ui, fired[0]["id"])
    assert run["state_type"] == "COMPLETED", run["state"]["message"]
    assert run["parameters"] == {**deployments(ui)["tiny"]["parameters"], **GIVEN}
    assert 12 in [made["sequences"] for made in pruned(home)]


def _fired(run: Run, schedule: str) -> bool:
    return (run["created_by"] or {}).get("id") == schedule and run["state_type"] in ("PENDING", "RUNNING", *ENDED)


def test_a_run_is_cancelled_from_its_page(ui: Ui, browser: Browser, page: str, schedule: str) -> None:
    ui.client.delete(f"/deployments/{page.rpartition('/')[2]}/schedules/{schedule}")
    asked = {"parameters": {"overrides": ["pretrain.tokens=4000000"]}}
    run = ui.ask("POST", f"/deployments/{page.rpartition('/')[2]}/create_flow_run", asked)
    browser.open(f"/runs/flow-run/{run['id']}")
    browser.until(lambda: ui.ask("GET", f"/flow_runs/{run['id']}")["state_type"] == "RUNNING", "running", 60)
    browser.press("Open menu", inside="//main")
    browser.press("Cancel")
    browser.press("Cancel Flow Run")
    assert ended(ui, run["id"], 60)["state_type"] == "CANCELLED"
    browser.reads("Cancelled")
    browser.picture("cancelled")


def test_what_the_file_no_longer_lists_goes_and_what_others_made_stays(home: Home, ui: Ui, page: str) -> None:
    id = page.rpartition("/")[2]
    (theirs,) = ui.ask("POST", f"/deployments/{id}/schedules", [{"schedule": {"cron": "0 4 29 2 *"}, "active": False}])
    (entry,) = yaml.safe_load((home.directory / "deployments.yaml").read_text())["deployments"]
    _list(home, [{**entry, "schedule": None}, {**entry, "name": "second"}])
    assert "deployed second" in home.winnow("deploy").out
    found = deployments(ui)
    assert [one["id"] for one in found["tiny"]["schedules"]] == [theirs["id"]]
    assert [one["slug"] for one in found["second"]["schedules"]] == ["winnow"]
    _list(home, [{**entry, "schedule": None}])
    assert "removed second" in home.winnow("deploy").out
    assert deployments(ui).keys() == {"tiny", "promote"}
