"""MLflow remembers each point once, whatever is replayed, and an MLflow that is away costs nothing but a warning."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow.models import Model as Described

from cluster.database import made
from cluster.logged import NOTE, Model
from cluster.reach import artifact_location
from cluster.registry import promote
from cluster.tracking import BATCH, EXPERIMENT, Tracking, flatten


class Fake:
    """An MLflow client that keeps what it is given; ``away`` makes it refuse the next calls."""

    def __init__(self) -> None:
        self.away, self.rows, self.batches, self.ended = 0, [], [], []

    def log_batch(self, run, metrics=(), params=()):
        if self.away:
            self.away -= 1
            raise ConnectionError("no answer")
        self.batches.append(len(metrics))
        self.rows += [(run, row.key, row.value, row.timestamp, row.step) for row in metrics]

    def set_terminated(self, run, status):
        self.ended.append((run, status))


@pytest.fixture
def tracking() -> Tracking:
    return Tracking(Fake(), "1", "parent", {"a": "run-a", "b": "run-b"}, _due=float("inf"))


def points(tracking: Tracking, id: str, steps: range) -> None:
    for step in steps:
        tracking.point(id, {"loss": float(step)}, step, 1000 + step)


def test_points_are_written_in_batches_in_order(tracking):
    points(tracking, "a", range(2 * BATCH + 5))
    assert tracking.client.rows == []
    tracking.flush()
    assert tracking.client.batches == [BATCH, BATCH, 5]
    assert [row[4] for row in tracking.client.rows] == list(range(2 * BATCH + 5))


@pytest.mark.parametrize("failures", [1, 2, 3])
def test_every_flush_that_fails_keeps_its_points(tracking, failures, caplog):
    points(tracking, "a", range(BATCH + 7))
    points(tracking, "b", range(3))
    for _ in range(failures):
        tracking.client.away = 1
        tracking.flush()
        points(tracking, "b", range(3, 4))
    assert tracking.client.rows == [] and "they are kept" in caplog.text
    tracking.flush()
    tracking.flush()
    assert len(tracking.client.rows) == BATCH + 7 + 3 + failures


def test_a_failure_in_the_middle_keeps_the_rest_and_repeats_nothing(tracking):
    points(tracking, "a", range(3 * BATCH))
    log, calls = tracking.client.log_batch, iter([False, True, False, False])

    def sometimes(run, metrics):
        if next(calls):
            raise TimeoutError
        log(run, metrics)

    tracking.client.log_batch = sometimes
    tracking.flush()
    assert len(tracking.client.rows) == BATCH
    tracking.flush()
    assert [row[4] for row in tracking.client.rows] == list(range(3 * BATCH))


def test_points_that_come_while_a_batch_is_on_its_way_are_not_lost(tracking):
    """Each job's follower is a thread; one writes while another flushes."""
    log = tracking.client.log_batch

    def slow(run, metrics):
        late = threading.Thread(target=points, args=(tracking, "a", range(100, 150)))
        late.start()
        late.join(0.2)
        log(run, metrics)
        tracking.client.log_batch = log

    tracking.client.log_batch = slow
    points(tracking, "a", range(5))
    tracking.flush()
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(5)
    tracking.flush()
    assert sorted(row[4] for row in tracking.client.rows) == [*range(5), *range(100, 150)]


def test_a_point_flushes_by_itself_after_a_while(tracking):
    tracking._due = 0.0
    points(tracking, "a", range(1))
    assert len(tracking.client.rows) == 1


def test_one_that_hangs_is_written_to_seldom(tracking, monkeypatch):
    tried: list[int] = []

    def hangs(run, metrics=()) -> None:
        tried.append(len(metrics))
        time.sleep(0.2)
        raise ConnectionError("timed out")

    monkeypatch.setattr(tracking.client, "log_batch", hangs)
    monkeypatch.setattr("cluster.tracking.FLUSH_SECONDS", 0.0)
    tracking._due, begun = 0.0, time.monotonic()
    while time.monotonic() - begun < 1.0:
        points(tracking, "a", range(1))
        time.sleep(0.01)
    assert tried == [1], "the next try comes after ten times what this one took"


def test_what_was_never_taken_is_said_at_the_end(tracking, caplog):
    points(tracking, "a", range(4))
    tracking.client.away = 1
    tracking.end(None, "FINISHED")
    assert "never took 4 metric points" in caplog.text and tracking.client.ended == [("parent", "FINISHED")]


def test_parameters_are_named_by_their_way():
    assert flatten({"a": {"b": 1, "c": {"d": [1]}}, "e": {}, "f": None}) == {"a.b": 1, "a.c.d": [1], "e": {}}


def test_artifacts_lie_beside_a_database_file_not_where_the_user_stands():
    assert artifact_location("sqlite:////home/me/mlflow.db") == "file:///home/me/mlflow-artifacts"
    assert artifact_location("http://127.0.0.1:5000") is None


@pytest.mark.slow
def test_a_first_run_that_is_killed_while_it_makes_the_database_leaves_none_that_cannot_be_gone_on_with(tmp_path):
    start = f"from cluster.tracking import Tracking; Tracking.start('sqlite:///{tmp_path}/mlflow.db', 'tiny', {{}}, {{}})"
    environment = {**os.environ, "WINNOW_HOME": str(tmp_path), "MLFLOW_DISABLE_TELEMETRY": "true"}
    first = subprocess.Popen([sys.executable, "-c", start], env=environment)
    while not any(b"TABLE jobs" in file.read_bytes() for file in tmp_path.rglob("mlflow.db")):  # one of its last tables
        assert first.poll() is None, "it made nothing"
        time.sleep(0.01)
    first.kill()
    assert first.wait() == -9
    again = subprocess.run([sys.executable, "-c", start], env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    left = {file.name for file in tmp_path.iterdir()}
    assert left <= {"mlflow.db", "mlflow-artifacts", "locks"} and (tmp_path / "mlflow.db").stat().st_mode & 0o077 == 0


@pytest.mark.slow
def test_a_database_whose_making_an_older_version_left_half_done_is_kept_aside_and_made_anew(tmp_path):
    """MLflow goes on with its tables from the version that stands there, and finds what it would add."""
    database = tmp_path / "mlflow.db"
    start = f"from cluster.tracking import make_database; make_database('sqlite:///{database}')"
    environment = {**os.environ, "WINNOW_HOME": str(tmp_path), "MLFLOW_DISABLE_TELEMETRY": "true"}
    make = partial(subprocess.run, [sys.executable, "-c", start], env=environment, check=True)
    make()
    whole = database.read_bytes()
    with closing(sqlite3.connect(database)) as opened, opened:
        opened.execute("DELETE FROM experiments")
        opened.execute("UPDATE alembic_version SET version_num = '728d730b5ebd'")
    half = database.read_bytes()
    make()
    assert database.read_bytes() == half, "somebody may be making it"
    os.utime(database, (0, 0))
    assert f"{database} was never made in full; it is kept as" in make(capture_output=True, text=True).stderr
    assert made(database) and len(database.read_bytes()) == len(whole)
    assert (tmp_path / "mlflow.half").read_bytes() == half
    os.utime(database, (0, 0))
    make()
    assert database.stat().st_mtime == 0, "what has an experiment stays"


@pytest.fixture(scope="module")
def remembered(tmp_path_factory):
    """A run told twice, by a flow that was killed and by the one that attached to its jobs; the client and both."""
    root = tmp_path_factory.mktemp("mlflow")
    runs = []
    for process in ("dead", "alive"):
        run = Tracking.start(f"sqlite:///{root}/mlflow.db", "tiny", {"winnow.process": process}, {"prune": {"sparsity": 0.5}})
        run.close_abandoned(lambda name, here=process: name == here)
        run.child("prune", {"winnow.key": "abc"}, {"method": {"wanda": {}}})
        run.link("dead", run.parent)
        for _ in range(2):  # the second telling is a replay: same steps, same times
            points(run, "prune", range(1500))
            run.flush()
        runs.append(run)
    last = runs[-1]
    last.scalars("prune", {"sparsity": 0.5})
    last.scalars(None, {"sparsity": 0.5}, "prune.")
    last.model("dead", Model("pretrain-dense-abb", "abb", {}, {}))
    told = Model("prune-wanda-abc", "abc", {"winnow.address": "prune/wanda-abc", NOTE: "| | prune |"}, {"perplexity": 12.5})
    told = told._replace(metrics={**told.metrics, "bytes": 1e6}, params={"method.wanda": "{}"}, parents=("abb", "data"))
    for config in ('{"vocab_size": 512}', "no JSON: of a model that is there nothing is read"):
        last.model("prune", told._replace(config=lambda text=config: text))
    last.text(None, "name: tiny", "recipe.yaml")
    last.dataset("prune", "prepare", "d" * 64, "prepare/files-ddd")
    last.end("prune", "FINISHED")
    last.end(None, "FINISHED")
    return SimpleNamespace(client=last.client, dead=runs[0], run=last, root=root)


@pytest.mark.slow
def test_a_replayed_curve_lands_on_the_same_points(remembered):
    history = remembered.client.get_metric_history(remembered.run.run("prune"), "loss")
    assert [(point.step, point.value) for point in history] == [(step, float(step)) for step in range(1500)]


@pytest.mark.slow
def test_parent_and_child_know_each_other_and_carry_their_numbers(remembered):
    parent = remembered.client.get_run(remembered.run.parent)
    child = remembered.client.get_run(remembered.run.run("prune"))
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id and child.data.tags["winnow.key"] == "abc"
    assert parent.data.metrics["prune.sparsity"] == child.data.metrics["sparsity"] == 0.5
    assert parent.data.params == {"prune.sparsity": "0.5"} and child.data.params == {"method.wanda": "{}"}
    assert parent.info.status == child.info.status == "FINISHED"
    assert child.inputs.dataset_inputs[0].dataset.name == "prepare"


@pytest.mark.slow
def test_a_run_whose_process_is_gone_is_closed_as_killed_with_its_children(remembered):
    for run in (remembered.dead.parent, remembered.dead.run("prune")):
        assert remembered.client.get_run(run).info.status == "KILLED"
    assert remembered.client.get_experiment_by_name(EXPERIMENT).experiment_id == remembered.run.experiment


@pytest.mark.slow
def test_a_model_is_logged_with_its_evaluation(remembered):
    model = model_of(remembered)
    assert model.name == "prune-wanda-abc" and model.status.name == "READY" and model.params == {"method.wanda": "{}"}
    assert model.tags["winnow.address"] == "prune/wanda-abc" and model.source_run_id == remembered.run.run("prune")
    assert sorted((metric.key, metric.value) for metric in model.metrics) == [("bytes", 1e6), ("perplexity", 12.5)]


def model_of(remembered):
    """The pruned one, of which there is one however often it was told."""
    found = remembered.client.search_logged_models([remembered.run.experiment], "tags.`winnow.key` = 'abc'")
    (model,) = found
    return model


@pytest.mark.slow
def test_a_model_says_what_goes_in_and_comes_out_how_large_it_is_and_from_which_it_was_made(remembered, tmp_path):
    model, run = model_of(remembered), remembered.client.get_run(remembered.run.run("prune"))
    file = remembered.client.list_logged_model_artifacts(model.model_id)[0].path
    described = Described.load(str(Path(model.artifact_location.removeprefix("file://")) / file))
    assert described.signature.inputs.input_names() == ["input_ids"] and described.model_size_bytes == 1_000_000
    assert described.signature.outputs.inputs[0].shape == (-1, -1, 512)
    assert [each.model_id for each in run.inputs.model_inputs] == [remembered.run.models["abb"]]
    assert [each.model_id for each in run.outputs.model_outputs] == [model.model_id]


@pytest.mark.slow
def test_a_description_of_a_model_follows_its_numbers_until_somebody_writes_another(remembered):
    for text, written in (("| | prune | twice", ""), ("| | prune | again", "mine")):
        if written:
            remembered.client.set_logged_model_tags(model_of(remembered).model_id, {NOTE: written})
        remembered.run.model("prune", Model("", "abc", {NOTE: text}, {}))
        assert model_of(remembered).tags[NOTE] == written or text


@pytest.mark.slow
def test_artifacts_are_found_beside_the_database(remembered):
    assert [found.name for found in remembered.root.rglob("recipe.yaml")] == ["recipe.yaml"]
    assert (remembered.root / "mlflow-artifacts").is_dir()


@pytest.mark.slow
def test_a_promoted_model_is_one_version_whoever_asks_and_no_other_mlflow_is_touched(remembered, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where MLflow would make a database of its own if it went by its defaults
    ask = (f"sqlite:///{remembered.root}/mlflow.db", "prune/wanda-abc", "abc", "winnow")
    assert [promote(*ask, alias).version for alias in ("champion", "champion", "shadow")] == [1, 1, 1]
    version = remembered.client.get_model_version_by_alias("winnow", "champion")
    model = model_of(remembered)
    assert version.source == f"models:/{model.model_id}" and version.tags["winnow.address"] == "prune/wanda-abc"
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="^prune/wanda-def: MLflow knows no such model"):
        promote(ask[0], "prune/wanda-def", "def", "winnow", "champion")
