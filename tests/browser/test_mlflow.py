"""MLflow's own UI, as whoever follows our links finds it: on the runs, with the columns and charts that matter; a stage's run
with what the stage did; a model with what goes in and comes out; runs compared by what a choice is made by."""

from __future__ import annotations

import json
from collections.abc import Iterator
from urllib.parse import quote

import pytest

from cluster.overview import page
from cluster.registry import promote
from cluster.servers.services import Services
from cluster.tracking import EXPERIMENT, Tracking
from tests.browser import Browser
from tests.dashboards.told import Teller

pytestmark = pytest.mark.slow
REQUIRED = ("perplexity <= 1.05 * dense",)


@pytest.fixture(scope="module")
def runs(teller: Teller) -> list[Tracking]:
    """Three runs of a recipe; as tests/browser/test_dashboard.py tells two of them."""
    plans = [teller.plan(require=REQUIRED), teller.plan("sparser", prune={"sparsity": 0.6, "pattern": "unstructured"})]
    plans.append(teller.plan("sparsest", prune={"sparsity": 0.7, "pattern": "unstructured"}))
    return [teller.run(plan, 1 - number / 10).tracking for number, plan in enumerate(plans)]


@pytest.fixture(scope="module")
def server(services: Services, runs: list[Tracking]) -> str:
    return services.server("mlflow").url


@pytest.fixture(scope="module")
def browser(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(server, "", tmp_path_factory.mktemp("chromium"))
    browser.driver.set_window_size(2400, 1600)  # the table draws the columns there is room for, beside MLflow's assistant
    yield browser
    browser.close()


def test_the_link_opens_on_the_runs_with_the_columns_that_matter(server: str, browser: Browser) -> None:
    browser.driver.get(page(server, EXPERIMENT))
    browser.reads("sparsest")
    text = " ".join(browser.text().split())
    browser.picture("mlflow-runs")
    wanted = ("perplexity", "sparsity", "bytes", "seconds", "Winnow: models", "the models and their")
    assert not [name for name in wanted if name not in text]


def test_its_charts_are_few_and_chosen_and_the_others_are_grouped_by_stage(server: str, browser: Browser) -> None:
    browser.driver.get(page(server, EXPERIMENT) + "&compareRunsMode=CHART")
    browser.reads("Models (4)")
    browser.reads("prepare (1)")
    browser.picture("mlflow-charts")


def test_the_view_is_listed_where_mlflow_lists_views(browser: Browser, server: str) -> None:
    browser.driver.get(f"{server}/#/experiments/1/runs?workflowType=machine_learning")
    browser.press("Views")
    browser.reads("Winnow: models")


def test_the_run_of_a_stage_says_what_it_did(browser: Browser, server: str, runs: list[Tracking]) -> None:
    browser.driver.get(f"{server}/{runs[-1].page('prune')}")
    browser.reads("pretrain (before)")
    browser.picture("mlflow-stage")


def test_a_model_and_its_version_say_what_they_are(browser: Browser, server: str, runs: list[Tracking]) -> None:
    key, id = list(runs[-1].models.items())[-1]
    model = runs[-1].client.get_logged_model(id)
    browser.driver.get(f"{server}/#/experiments/{runs[-1].experiment}/models/{id}")
    browser.reads("Take it by")
    browser.picture("mlflow-model")
    moved = promote(server, model.tags["winnow.address"], key, "looked_at", "shadow", force=True)
    browser.driver.get(f"{server}/#/models/looked_at/versions/{moved.version}")
    browser.reads("Inputs (1) Outputs (1)")
    browser.reads("Take it by")
    browser.picture("mlflow-version")


def test_runs_that_are_compared_open_on_what_differs_and_on_quality(
    browser: Browser, server: str, runs: list[Tracking]
) -> None:
    named = {"runs": [run.parent for run in runs], "experiments": [runs[-1].experiment]}
    query = "&".join(f"{name}={quote(json.dumps(value))}" for name, value in named.items())
    browser.driver.get(f"{server}/#/compare-runs?{query}")
    browser.until(lambda: browser._all("//*[contains(@class, 'js-plotly-plot')]//*[contains(@class, 'axis-title')]"), "axes")
    titles = {one.text for one in browser._all("//*[contains(@class, 'js-plotly-plot')]//*[contains(@class, 'axis-title')]")}
    browser.picture("mlflow-compare")
    assert {"prune.sparsity", "perplexity"} <= titles
