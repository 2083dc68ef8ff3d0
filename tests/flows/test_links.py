"""A cached stage is told by the MLflow run that made it: nothing is written twice, and nothing is missing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from cluster.store.local import LocalStore
from cluster.tracking import Tracking
from flows.chronicle import Chronicle
from flows.summary import summarise
from tests.flows.recipes import BASE, plan, publish

pytestmark = pytest.mark.slow


class Teller:
    """Flow runs of a recipe of three stages, told to a real MLflow; what is missing is made on the way."""

    def __init__(self, root) -> None:
        self.root, self.store, self.uri = root, LocalStore(root / "store"), f"sqlite:///{root}/mlflow.db"

    def tell(self, uri: str = "", **evaluate) -> SimpleNamespace:
        made = plan(self.store, *BASE["stages"][:3], evaluate=evaluate)
        tracking = Tracking.start(uri or self.uri, "tiny", {}, {})
        chronicle = Chronicle(made, self.store, tracking)
        for step in made.steps:
            chronicle.started(step)
            metrics = {f"{step.node.stage.label}_figure": 1.0, "bytes": 7.0, "training_flops": 5.0}
            record = step.record or publish(self.store, step, self.root / step.id, **metrics)
            chronicle.finished(step, record, 0.5)
        summary = {**summarise(made, chronicle.records, {}, 0.0), "seconds": 51.0, "overhead_seconds": 9.0}
        chronicle.close(summary, "FINISHED")
        return SimpleNamespace(tracking=tracking, parent=tracking.client.get_run(tracking.parent))

    def children(self, told) -> dict[str, str]:
        runs = told.tracking.client.search_runs(
            [told.tracking.experiment], f"tags.`mlflow.parentRunId` = '{told.tracking.parent}'"
        )
        return {run.info.run_name: run.info.run_id for run in runs}


@pytest.fixture(scope="module")
def teller(tmp_path_factory):
    return Teller(tmp_path_factory.mktemp("links"))


@pytest.fixture(scope="module")
def first(teller):
    return teller.tell(size={}, pattern={})


@pytest.fixture(scope="module")
def second(teller, first):
    return teller.tell(size={}, pattern={})


def test_a_cached_run_is_a_parent_that_names_the_runs_that_made_its_stages(teller, first, second):
    made = teller.children(first)
    assert made.keys() == {"prepare", "pretrain", "prune"} and teller.children(second) == {}
    assert {id: second.parent.data.tags[f"winnow.cached.{id}"] for id in made} == made
    note = second.parent.data.tags["mlflow.note.content"]
    assert all(f"runs/{run})" in note for run in made.values()) and note.count("| cached |") == 3


def test_a_stages_run_says_what_it_did_beside_the_model_it_came_from(teller, first, second):
    pretrain = teller.children(first)["pretrain"]
    note = first.tracking.client.get_run(teller.children(first)["prune"]).data.tags["mlflow.note.content"]
    assert "| pretrain (before) | **prune** |" in note and "| size | 7 B | 7 B |" in note and f"/runs/{pretrain})" in note
    models = first.tracking.client.search_logged_models([first.tracking.experiment])
    abouts = {model.source_run_id: model.tags["mlflow.note.content"] for model in models}
    assert "winnow export pretrain/" in abouts[pretrain] and len(abouts) == 2


def test_a_cached_runs_parent_has_every_figure_of_every_model(first, second):
    assert second.parent.data.metrics == first.parent.data.metrics
    assert first.parent.data.metrics.keys() >= {"prune/size_figure", "pretrain/pattern_figure", "size_figure", "prune/seconds"}


def test_numbers_that_a_choice_is_made_by_are_the_first_that_mlflow_compares(first):
    names = list(first.parent.data.metrics)  # in the order of its database
    assert names[0] == "bytes" and "/" not in "".join(names[: sum("/" not in name for name in names)])


def test_a_model_artifact_is_one_logged_model(second):
    found = second.tracking.client.search_logged_models([second.tracking.experiment])
    assert sorted(model.tags["winnow.address"].partition("/")[0] for model in found) == ["pretrain", "prune"]


def test_the_parents_seconds_are_the_whole_runs_and_no_stages_work_passes_for_it(first):
    assert first.parent.data.metrics["seconds"] == 51.0
    assert "training_flops" not in first.parent.data.metrics and first.parent.data.metrics["prune/training_flops"] == 5.0


def test_a_new_evaluation_of_a_cached_model_is_told_in_the_models_own_run(teller, first, second):
    told = teller.tell(size={}, pattern={}, perplexity={"tokens": 1024})
    (made, own) = teller.children(first), told.tracking.client.get_run(teller.children(first)["prune"])
    assert teller.children(told) == {} and own.data.metrics["perplexity_figure"] == 1.0
    assert "winnow.evaluate.perplexity" in own.data.tags and own.info.status == "FINISHED"
    assert "| perplexity figure |" in own.data.tags["mlflow.note.content"]
    models = told.tracking.client.search_logged_models([told.tracking.experiment])
    (model,) = [model for model in models if model.source_run_id == made["prune"]]
    assert "perplexity_figure" in {metric.key for metric in model.metrics}


def test_a_model_measured_another_way_gets_a_run_of_its_own(teller, first, second):
    teller.tell(perplexity={"tokens": 1024})
    told = teller.tell(perplexity={"tokens": 2048})
    assert teller.children(told).keys() == {"pretrain", "prune"}


def test_where_mlflow_is_another_or_the_run_is_gone_the_artifact_tells(teller, first, tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    other = teller.tell(uri, size={}, pattern={})
    assert teller.children(other).keys() == {"prepare", "pretrain", "prune"}
    other.tracking.client.delete_run(teller.children(other)["prune"])
    told = teller.tell(uri, size={}, pattern={})
    assert teller.children(told).keys() == {"prune"} and "winnow.cached.pretrain" in told.parent.data.tags
