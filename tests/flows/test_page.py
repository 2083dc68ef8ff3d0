"""What a run's page is told, and that a Prefect server that is gone costs one line and no time."""

from __future__ import annotations

import socket
import time

import pytest

from cluster.ray.events import Metrics, Progress
from cluster.store.local import LocalStore
from flows.messenger import Messenger
from flows.page import LINES, Page
from flows.summary import summarise
from tests.flows.recipes import BASE, plan, publish


class Notebook:
    """A messenger that keeps what it is given."""

    def __init__(self) -> None:
        self.shown, self.lines, self.closed = {}, [], False

    def show(self, key, type, data, description="", task_run=None):
        self.shown[key] = (type, data, description)

    def log(self, text, level=0, task_run=None):
        self.lines.append(text)

    def close(self):
        self.closed = True


@pytest.fixture
def made(tmp_path):
    return plan(LocalStore(tmp_path / "store"), *BASE["stages"][:3], evaluate=["size"], name="my_recipe")


@pytest.fixture
def page(made):
    return Page(made, Notebook(), lambda step: {"MLflow": f"http://mlflow/{step.id}", "Ray job": ""}, lambda: None)


def progress(done: int, seconds: float) -> Progress:
    return Progress(done, 100, "steps", timestamp=int(1000 * seconds))


def test_what_comes_before_the_first_step_is_no_part_of_the_pace(made, page):
    step = made.by_id["pretrain"]
    page.started(step)
    page.event(step, Progress(0, 0, "steps", "compiling the layers", timestamp=0))
    assert page.messenger.shown["my-recipe-pretrain-progress"][2] == "**pretrain** 0 steps · compiling the layers"
    page.event(step, progress(1, 60.0))
    page.running["pretrain"].shown = 0.0
    page.event(step, progress(21, 70.0))
    assert page.messenger.shown["my-recipe-pretrain-progress"][2].startswith(
        "**pretrain** 21 of 100 steps · 2.0 steps/s · 0:39"
    )


def test_progress_tells_rate_time_left_and_loss_and_not_at_every_event(made, page):
    step = made.by_id["pretrain"]
    page.started(step)
    page.event(step, progress(0, 0.0))
    page.event(step, Metrics(1, {"loss": 4.25, "tokens_per_second": 12_300.0}))
    page.event(step, progress(10, 5.0))
    assert page.messenger.shown["my-recipe-pretrain-progress"][1] == 0
    page.running["pretrain"].shown = 0.0
    page.event(step, progress(20, 10.0))
    type, data, text = page.messenger.shown["my-recipe-pretrain-progress"]
    assert (type, data) == ("progress", 20)
    assert text == "**pretrain** 20 of 100 steps · 2.0 steps/s · 0:40 left · loss 4.250 · 12,300 tokens/s"


def test_lines_of_a_job_come_with_stage_and_rank_without_secrets_and_not_all_at_once(made, page):
    step = made.by_id["pretrain"]
    page.started(step)
    page.line(step, "\x1b[36m(rank 1 pid=12, ip=10.0.0.2)\x1b[0m a warning")
    page.line(step, "(tasks.job:produce pid=3494) password=hunter2hunter2")
    page.line(step, "Running entrypoint for job abc-1: exec /somewhere/python -m tasks.job")
    page.line(step, "the driver's own")
    told = ["pretrain | rank 1 | a warning", "pretrain | rank 0 | password=***", "pretrain | job | the driver's own"]
    assert page.messenger.lines == told
    for number in range(3 * LINES):
        page.line(step, f"line {number}")
    assert len(page.messenger.lines) <= 2 * LINES + 2 and "more lines" in page.messenger.lines[-1]


def test_a_stage_stands_beside_what_it_came_from_and_the_whole_run_at_the_end(made, page, tmp_path):
    store = LocalStore(tmp_path / "store")
    for step in made.steps:
        page.started(step)
        page.finished(step, publish(store, step, tmp_path / step.id, bytes=2.0e6, sparsity=0.5), 0.5)
    type, text, _ = page.messenger.shown["my-recipe-prune"]
    assert type == "markdown" and "|  | pretrain (before) | **prune** |" in text
    assert "| size | 2.00 MB | 2.00 MB |" in text and "[MLflow](http://mlflow/prune)" in text and "Ray job" not in text
    page.close(
        summarise(made, page.records, {}, time.time()), {"MLflow": "http://mlflow"}, "it broke with token=hunter2hunter2"
    )
    whole = page.messenger.shown["my-recipe-summary"][1]
    assert "| **prune** | 50.0% | 2.00\u00a0MB |" in whole and "it broke" in whole and "hunter2" not in whole
    assert "| prune | made | 1.0 |" in whole and page.messenger.closed


@pytest.fixture
def nobody(monkeypatch):
    """A Prefect address at which nobody answers."""
    from flows.pipeline import refresh_global_settings_context

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with monkeypatch.context() as patch:
        patch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{port}/api")
        refresh_global_settings_context()
        yield
    refresh_global_settings_context()


def test_a_server_that_is_gone_costs_one_line_and_a_moment(nobody, monkeypatch):
    said = []
    monkeypatch.setattr("flows.messenger.LOG.warning", lambda text, *_: said.append(text))
    begun = time.monotonic()
    messenger = Messenger("00000000-0000-0000-0000-000000000000")
    for number in range(5000):
        messenger.log(f"line {number}")
        messenger.show("a", "progress", number)
    assert time.monotonic() - begun < 5
    messenger.close()
    assert time.monotonic() - begun < 15
    assert said == ["the page of this run is not told further until Prefect answers: %s"]


def test_what_goes_wrong_on_the_page_is_a_line_and_nothing_more(made, page, monkeypatch):
    said = []
    monkeypatch.setattr("flows.page.LOG.warning", lambda text, *given: said.append(text % given))
    page.task_run = lambda: 1 / 0
    page.started(made.by_id["pretrain"])
    assert said == ["the page of this run lacks something: ZeroDivisionError: division by zero"]


def test_slow_work_still_shows_a_rate_and_how_long_it_will_take() -> None:
    assert Progress(28, 152, "windows", timestamp=100_000).speed(0, 0) == ("0.28 windows/s", "7:22 left")
    assert Progress(28, 0, "windows", timestamp=100_000).speed(0, 0) == ("0.28 windows/s", "")
    assert Progress(28, 152, "windows", timestamp=900).speed(0, 0) == ("", ""), "in the first second it says nothing"
