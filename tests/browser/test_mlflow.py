"""MLflow's own UI, as whoever follows our link finds it: on the runs, with the columns and charts that matter."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator

import pytest

from cluster.overview import page
from cluster.servers.embedded import Server as Record
from cluster.servers.embedded import healthy, mlflow_server
from cluster.servers.processes import Process
from cluster.tracking import EXPERIMENT, Tracking
from tests.browser import Browser
from tests.cluster.test_registry import free_port

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server as ``winnow up`` starts it, with a run whose model passed."""
    home = tmp_path_factory.mktemp("home")
    launch = mlflow_server(home, home, {"mlflow": free_port()})
    with (home / "log").open("w") as log:
        process = subprocess.Popen(launch.command, env=launch.environment, stdout=log, stderr=log, start_new_session=True)
    record = Record(process=Process.of(process.pid), mark="", url=launch.url)
    deadline = time.monotonic() + 180
    while not healthy("mlflow", record):
        assert process.poll() is None and time.monotonic() < deadline, (home / "log").read_text()
        time.sleep(0.5)
    assert page(launch.url, EXPERIMENT) == ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WINNOW_HOME", str(home))
        run = Tracking.start(launch.url, "tiny", {"winnow.recipe": "tiny", "winnow.gates": "passes"}, {})
    run.scalars(None, {"perplexity": 61.25, "sparsity": 0.5, "bytes": 2.5e6, "seconds": 3.0, "prune/perplexity": 68.5})
    run.end(None, "FINISHED")
    yield launch.url
    process.terminate()
    process.wait(30)


@pytest.fixture(scope="module")
def browser(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(server, "", tmp_path_factory.mktemp("chromium"))
    browser.driver.set_window_size(2400, 1600)  # the table draws the columns there is room for, beside MLflow's assistant
    yield browser
    browser.close()


def test_the_link_opens_on_the_runs_with_the_columns_that_matter(server: str, browser: Browser) -> None:
    browser.driver.get(page(server, EXPERIMENT))
    browser.reads("61.25")
    text = " ".join(browser.text().split())
    browser.picture("mlflow-runs")
    wanted = ("perplexity", "sparsity", "bytes", "seconds", "Winnow: models", "the models and their")
    assert not [name for name in wanted if name not in text]


def test_its_charts_are_few_and_chosen_and_the_others_are_grouped_by_stage(server: str, browser: Browser) -> None:
    browser.driver.get(page(server, EXPERIMENT) + "&compareRunsMode=CHART")
    browser.reads("Models (4)")
    browser.reads("prune (1)")
    browser.picture("mlflow-charts")


def test_the_view_is_listed_where_mlflow_lists_views(browser: Browser, server: str) -> None:
    browser.driver.get(f"{server}/#/experiments/1/runs?workflowType=machine_learning")
    browser.press("Views")
    browser.reads("Winnow: models")
