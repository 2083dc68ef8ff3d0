"""The dashboard as people use it: Chromium on the page that ``winnow up`` serves, over real MLflow servers; once on PostgreSQL.

The tests follow a day: nothing is there, one run, several in every state. At the end the console has said nothing, and nothing
was asked of any other place than this machine.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from cluster import overview
from cluster.servers.services import Services
from cluster.tracking import EXPERIMENT
from dashboards.app import make_service
from dashboards.reading import Reading
from dashboards.sight import Places
from dashboards.static import NAME, write
from flows.dashboard import dashboard
from tests.browser import Browser, chromium
from tests.dashboards.told import Teller
from tests.pipeline.cloud import POSTGRES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
REQUIRED = ("perplexity <= 1.05 * dense",)
PAGES = ("", "waterfall", "compare", "table", "claims")
EVIL = "<img src=x onerror=alert(1)>" + "long" * 50
CUT = """return [...document.querySelectorAll('.ag-right-aligned-cell')]
    .filter(cell => cell.scrollWidth > cell.clientWidth).map(cell => cell.innerText)"""
BROKEN = """return [...document.querySelectorAll('.ag-header-cell-text')].filter(head => {
    const range = document.createRange(); range.selectNodeContents(head)
    return range.getClientRects().length > head.innerText.trim().split(/\\s+/).length}).map(head => head.innerText)"""
WIDE = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"


class Page(Browser):
    """A window on the dashboard, which keeps what its console said and what it asked for."""

    def __init__(self, url: str, profile: Path) -> None:
        self.url, self.driver = url, chromium(profile)
        self.said: list[str] = []
        self.hosts: set[str] = set()

    def open(self, path: str) -> None:
        self.driver.get(self.url + path)
        self.until(lambda: self._all("//main/div[@id]"), f"a page at {path}")

    def size(self, width: int, height: int, scheme: str = "light") -> None:
        shape = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", shape)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)

    def heed(self) -> None:
        """Take in what was said and asked for since."""
        self.said += [entry["message"] for entry in self.driver.get_log("browser")]
        for entry in self.driver.get_log("performance"):
            told = json.loads(entry["message"])["message"]
            address = urlsplit(
                told["params"].get("request", {}).get("url", "") if told["method"] == "Network.requestWillBeSent" else ""
            )
            if address.scheme in ("http", "https", "ws", "wss"):
                self.hosts.add(address.netloc)

    def click(self, text: str) -> None:
        """A link or a button that says this."""
        self.until(lambda: self._click(f"//*[self::a or self::button][normalize-space(.)='{text}']"), f"a link {text}")

    def close(self) -> None:
        self.heed()
        super().close()


@pytest.fixture(scope="module")
def page(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    page = Page(f"{services.server('dashboard').url}/", tmp_path_factory.mktemp("chromium"))
    page.size(1280, 900)
    yield page
    page.close()


def test_before_the_first_run_the_page_says_how_to_make_one(page: Page, services: Services) -> None:
    assert overview.page(services.server("mlflow").url, EXPERIMENT) == ""  # nor is there a place in MLflow to name
    for name in PAGES:
        page.open(name)
        page.reads("No chosen run has claimed anything" if name == "claims" else "MLflow has no run of a recipe yet")
    page.picture("dashboard_empty")


@pytest.fixture(scope="module")
def one(page: Page, teller: Teller) -> str:
    """The first run, told while the page is open."""
    page.open("")
    return teller.run(teller.plan(require=REQUIRED), flow="11111111-1111-1111-1111-111111111111").tracking.parent


def test_one_run_answers_at_a_glance_without_a_reload(page: Page, one: str) -> None:
    champion = "quantize ★ champion of tiny, version 1"  # it is so at the run's end, a moment after its models are there
    page.reads(f"Smallest within 5 % of dense perplexity {champion} 2.50 MB, perplexity 63 (-1.6 % against dense)")
    page.reads("2 of 4 models are beaten by none")
    page.picture("dashboard_one")


def test_a_point_says_what_tells_it_from_its_neighbour_and_a_click_opens_it(page: Page, one: str) -> None:
    point = page.find("(//*[@id='pareto']//*[contains(@class,'points')]//*[contains(@class,'point')])[last()]")
    ActionChains(page.driver).move_to_element(point).perform()
    page.until(
        lambda: "other than its neighbour" in page.find("//*[contains(@class,'hoverlayer')]").get_attribute("textContent"),
        "a hover",
    )
    page.picture("dashboard_hover")
    ActionChains(page.driver).click(point).perform()
    page.until(lambda: "/model?model=" in page.driver.current_url, "opened")
    page.reads("take it by winnow export")
    page.reads("95 % interval")


def test_the_waterfall_names_the_stage_that_lost_the_most(page: Page, one: str) -> None:
    page.click("Waterfall")
    page.reads("prune lost the most: perplexity 64 → 70 (+9.4 %).")
    page.until(lambda: len(page._all("//*[@id='waterfall']//*[contains(@class,'trace bars')]")) == 4, "four panels")


@pytest.fixture(scope="module")
def several(teller: Teller, one: str) -> Any:
    """A cached run, another recipe, one that failed; and one that still runs, to be told on."""
    teller.run(teller.plan(require=REQUIRED))
    teller.run(
        teller.plan("sparser", prune={"sparsity": 0.6, "pattern": "unstructured"}, require=("perplexity <= 0.9 * dense",)), 0.9
    )
    broken = teller.run(teller.plan("broken", prune={"sequences": 17}), 1.1, "FAILED", "prune")
    broken.tracking.tag(None, "winnow.recipe", EVIL)
    return teller.run(teller.plan("moving", pretrain={"tokens": 20_000}), 1.0, "", "pretrain")


def test_states_are_told_apart_and_what_runs_moves(page: Page, several: Any) -> None:
    page.open("table?rows=runs")
    for state in ("finished", "cached", "failed", "running"):
        page.find(f"//*[contains(@class,'pill') and contains(@class,'{state}')]")
    page.picture("dashboard_states")
    several.tracking.end("pretrain", "FINISHED")
    several.tracking.end(None, "KILLED")
    page.find("//*[contains(@class,'pill') and contains(@class,'killed')]")
    assert not page._all("//*[contains(@class,'pill') and contains(@class,'running')]")


def test_a_choice_stands_in_the_address_and_its_link_opens_the_same(page: Page, several: Any, tmp_path: Path) -> None:
    page.open("table")
    words = page.find("//*[@id='c-find']")
    words.send_keys("prune.sparsity=0.6")
    page.until(lambda: "find=prune.sparsity=0.6" in page.driver.current_url, "in the address")
    page.reads("3 models of 5 runs")
    page.find("//*[@id='c-recipe']").click()
    page.until(lambda: page._click("//*[@role='option' or self::label][contains(., 'sparser')]"), "a recipe to choose")
    page.until(lambda: "recipe=sparser" in page.driver.current_url, "in the address")
    fresh = Page(page.url, tmp_path / "fresh")
    fresh.driver.get(page.driver.current_url)
    fresh.reads("3 models of 1 run")
    assert fresh.find("//*[@id='c-find']").get_attribute("value") == "prune.sparsity=0.6"
    assert "sparser" in fresh.find("//*[@id='c-recipe']").text
    fresh.close()
    page.said, page.hosts = page.said + fresh.said, page.hosts | fresh.hosts
    words.send_keys(Keys.CONTROL, "a")
    words.send_keys("nosuch")
    page.reads("0 models")


def test_a_link_may_name_a_recipe_and_a_metric_that_no_run_has_yet(page: Page, several: Any) -> None:
    page.open("table?recipe=later&y=tasks_accuracy")
    page.reads("0 models")
    page.until(lambda: "later" in page.find("//*[@id='c-recipe']").text, "what the link chose")
    assert "recipe=later" in page.driver.current_url and "y=tasks_accuracy" in page.driver.current_url


def test_ticked_models_are_compared_and_the_table_leaves_as_csv(page: Page, several: Any) -> None:
    page.open("table?find=quantize/")
    ticks = page.until(
        lambda: (found := page._all("//*[contains(@class,'ag-selection-checkbox')]//input"))[1:] and found, "rows"
    )
    ticks[0].click()
    page.until(lambda: "pick=" in page.driver.current_url, "picked")
    page.until(lambda: len(page._all("//*[contains(@class,'ag-selection-checkbox')]//input")) > 1, "rows")
    page._all("//*[contains(@class,'ag-selection-checkbox')]//input")[1].click()
    page.reads("2 picked")
    address = page.find("//a[normalize-space(.)='CSV']").get_attribute("href")
    rows = list(csv.DictReader(io.StringIO(urllib.request.urlopen(address).read().decode())))
    assert sorted(float(row["perplexity"]) for row in rows) == pytest.approx([63.0, 69.3])
    page.click("Compare")
    for words in (
        "Recipes: what differs",
        "prune.sparsity",
        "± is half of a 95 % interval",
        "Sparsity by matrix",
        "✕ fails",
        "✓ passes",
    ):
        page.reads(words)
    page.until(
        lambda: page._all("//*[@id='curves']//*[contains(@class,'scatterlayer')]//*[contains(@class,'js-line')]"), "curves"
    )
    page.picture("dashboard_compare")


def test_no_number_and_no_word_of_the_tables_head_is_cut(page: Page, several: Any) -> None:
    page.open("table")
    page.until(lambda: page._all("//*[contains(@class,'ag-cell')]"), "rows")
    assert page.driver.execute_script(CUT) == []
    broken = page.driver.execute_script(BROKEN)
    assert broken == []


def test_ticks_survive_what_is_read_anew_and_back_and_forward_lead_through_the_choices(page: Page, several: Any) -> None:
    page.open("table?find=quantize/")
    boxes = "//*[contains(@class,'ag-selection-checkbox')]//input"
    page.until(lambda: page._all(boxes)[1:], "rows")
    page._all(boxes)[0].click()
    page.reads("1 picked")
    known = _version(page)
    page.click("read again")
    page.until(lambda: _version(page) >= known + 2, "read again")  # asked for, and done
    page.until(lambda: "reading all again" not in page.text(), "told of")
    assert [one.is_selected() for one in page._all(boxes)].count(True) == 1
    page.click("Claims")
    page.reads("has claimed anything")
    page.driver.back()
    page.reads("1 picked")
    page.driver.back()
    page.until(lambda: "pick=" not in page.driver.current_url and " picked" not in page.text(), "as it was before")
    page.driver.forward()
    page.reads("1 picked")
    assert page.find("//*[@id='c-find']").get_attribute("value") == "quantize/"


def _version(page: Page) -> int:
    return int(urllib.request.urlopen(f"{page.url}version").read())


def test_an_answer_that_comes_late_and_an_address_that_leads_nowhere_are_mended(page: Page, several: Any) -> None:
    page.open("nosuch")
    page.reads("There is no page nosuch here")
    page.click("Choose a model")
    page.reads("beaten by none")
    late = {"known": {"children": "of another choice"}, "drawn": {"data": "/?find=another"}}
    page.driver.execute_script(
        "for (const [id, told] of Object.entries(arguments[0])) dash_clientside.set_props(id, told)", late
    )
    page.until(lambda: "of another choice" not in page.text(), "mended")


@pytest.mark.parametrize("name", PAGES)
def test_no_page_scrolls_sideways_in_light_or_dark(page: Page, several: Any, name: str) -> None:
    page.open(name)
    for scheme in ("light", "dark"):
        for width, height in ((1280, 900), (1920, 1080)):
            page.size(width, height, scheme)
            time.sleep(0.3)  # figures follow the window
            page.picture(f"dashboard_{name or 'choose'}_{width}_{scheme}")
            wide = page.driver.execute_script(WIDE)
            assert wide <= 0, f"{name} is {wide} pixels too wide at {width}"
    page.size(1280, 900)


def test_every_page_is_reached_by_keyboard(page: Page, several: Any) -> None:
    page.open("")
    for _ in range(12):
        ActionChains(page.driver).send_keys(Keys.TAB).perform()
        if page.driver.switch_to.active_element.text == "Table":
            break
    ActionChains(page.driver).send_keys(Keys.ENTER).perform()
    page.until(lambda: "/table" in page.driver.current_url, "at the table")
    page.find("//*[@id='theme']").send_keys(Keys.ENTER)
    page.until(lambda: page.driver.execute_script("return document.documentElement.dataset.theme") == "light", "light")


def test_a_run_keeps_the_pages_as_one_file(page: Page, teller: Teller, several: Any, tmp_path: Path) -> None:
    chronicle = teller.run(teller.plan("kept", recover={"tokens": 30_000}))
    write(chronicle.tracking, chronicle.uri)
    file = chronicle.tracking.client.download_artifacts(chronicle.tracking.parent, NAME, str(tmp_path))
    page.driver.get(f"file://{file}")
    page.until(lambda: len(page._all("//*[contains(@class,'main-svg')]")) >= 4, "figures")
    page.reads("prune lost the most")
    page.picture("dashboard_file")


def test_the_command_names_the_page_that_stands_and_writes_all_runs_into_a_file(
    services: Services, several: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dashboard("local", None, None, "/", None, False, True)
    assert json.loads(capsys.readouterr().out)["url"] == f"{services.server('dashboard').url}/"
    dashboard("local", None, None, "/", tmp_path / "all.html", False, True)
    assert json.loads(capsys.readouterr().out)["runs"] >= 5 and "sparser" in (tmp_path / "all.html").read_text()
    with pytest.raises(ValueError, match="--prefix: '/a b/' is no path; give one like /winnow"):
        dashboard("local", None, None, "a b", None, False, True)


def test_nothing_was_said_in_the_console_and_nobody_else_was_asked(page: Page, services: Services) -> None:
    page.heed()
    assert page.said == []
    assert page.hosts == {urlsplit(services.server("dashboard").url).netloc}


@pytest.mark.skipif(not POSTGRES, reason="no PostgreSQL under /usr/lib/postgresql: apt-get install postgresql")
def test_it_reads_a_server_on_postgresql_and_the_page_says_when_its_own_server_is_gone(
    postgresql: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path / "home"))
    teller = Teller(postgresql, tmp_path)
    teller.run(teller.plan(require=REQUIRED))
    reading = Reading(postgresql)
    reading.start()
    service = make_service(reading, Places(), "127.0.0.1", 0)
    threading.Thread(target=service.serve_forever, daemon=True).start()
    page = Page(f"http://127.0.0.1:{service.server_port}/", tmp_path / "chromium")
    page.open("")
    page.reads("Smallest within 5 % of dense perplexity quantize ★ champion of tiny, version 1 2.50 MB, perplexity 63")
    page.heed()
    said, port = list(page.said), service.server_port
    service.shutdown()
    service.server_close()
    page.reads("This dashboard's server does not answer")
    again = make_service(reading, Places(), "127.0.0.1", port)
    threading.Thread(target=again.serve_forever, daemon=True).start()
    page.until(lambda: "does not answer" not in page.text(), "an answer again")
    page.close()
    again.shutdown()
    assert said == []


@pytest.fixture
def postgresql(tmp_path: Path) -> Iterator[str]:
    """The address of an MLflow server on a PostgreSQL of its own."""
    place, ports = Path(tempfile.mkdtemp(prefix="winnow-postgres-")), [_free(), _free()]
    if not os.geteuid():
        shutil.chown(place, "nobody")
    binaries, url = POSTGRES[-1], f"http://127.0.0.1:{ports[1]}"
    script = f"{binaries}/initdb -D {place}/data -U mlflow -A trust --no-sync >/dev/null && "
    script += f"exec {binaries}/postgres -D {place}/data -k {place} -h 127.0.0.1 -p {ports[0]} -F"
    command = ["sh", "-c", script] if os.geteuid() else ["runuser", "-u", "nobody", "--", "sh", "-c", script]
    database = f"postgresql://mlflow@127.0.0.1:{ports[0]}/postgres"
    options = ["--host", "127.0.0.1", "--port", str(ports[1]), "--workers", "1", "--backend-store-uri", database]
    options += ["--artifacts-destination", str(tmp_path / "artifacts")]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (place.parent / f"{place.name}.log").open("w") as log:
        started = [subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)]
        try:
            _until(lambda: socket.create_connection(("127.0.0.1", ports[0]), 1).close() is None)
            server = [sys.executable, "-m", "mlflow", "server", *options]
            started.append(subprocess.Popen(server, env=environment, stdout=log, stderr=log, start_new_session=True))
            _until(lambda: urllib.request.urlopen(f"{url}/health", timeout=2).status == 200)
            yield url
        finally:
            for process in started[::-1]:
                os.killpg(process.pid, 15)
                process.wait(20)
            shutil.rmtree(place, ignore_errors=True)


def _free() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


def _until(holds: Any, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if holds():
                return
        except OSError:
            pass
        assert time.monotonic() < deadline, "it does not answer"
        time.sleep(0.2)
