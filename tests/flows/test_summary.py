"""The summary adds up: time outside the stages is wall time less the union of their runs."""

from __future__ import annotations

import io
import json
import time
from datetime import UTC, datetime

import pytest
from rich.console import Console

from cluster.store.artifacts import Record
from cluster.store.local import LocalStore
from flows.measured import evaluations_table, without_row
from flows.summary import summarise
from tests.flows.recipes import BASE, plan, publish

BEGUN = 1_700_000_000.0


@pytest.fixture(autouse=True)
def now(monkeypatch):
    monkeypatch.setattr(time, "time", lambda: BEGUN + 100)


def record(step, ended: float, seconds: float, **metrics: float) -> Record:
    created = datetime.fromtimestamp(BEGUN + ended, UTC).isoformat(timespec="milliseconds")
    artifact = step.artifact
    return Record(
        artifact.stage,
        artifact.version,
        artifact.label,
        artifact.params,
        artifact.parents,
        step.parent_addresses,
        {},
        metrics,
        seconds,
        created,
        {},
    )


def overhead(tmp_path, **runs: tuple[float, float]) -> float:
    """The overhead of a run whose stages ended at (second, after running seconds)."""
    made = plan(LocalStore(tmp_path / "store"))
    records = {id.replace("__", "."): run for id, run in runs.items()}
    records = {id: record(made.by_id[id], *run) for id, run in records.items()}
    return summarise(made, records, {}, BEGUN)["overhead_seconds"]


def test_stages_one_after_the_other_add_up(tmp_path):
    assert overhead(tmp_path, prepare=(20, 15), pretrain=(60, 30)) == pytest.approx(100 - 45)


def test_stages_side_by_side_count_once(tmp_path):
    assert overhead(tmp_path, prepare=(50, 40), pretrain=(60, 30), prune=(40, 10)) == pytest.approx(100 - 50)


def test_work_from_before_the_run_began_does_not_count(tmp_path):
    assert overhead(tmp_path, prepare=(10, 30), pretrain=(-5, 3)) == pytest.approx(100 - 10)


def test_nothing_done_is_all_overhead(tmp_path):
    assert overhead(tmp_path) == 100


def test_cached_stages_took_no_time_of_this_run(tmp_path):
    store = LocalStore(tmp_path / "store")
    publish(store, plan(store).by_id["prepare"], tmp_path / "prepare", seconds=30.0)
    made = plan(store)
    summary = summarise(made, {"prepare": made.by_id["prepare"].record}, {"prepare": 0.0}, BEGUN)
    assert summary["overhead_seconds"] == 100
    stage = summary["stages"][0]
    assert (stage["id"], stage["cached"], stage["done"], stage["seconds"]) == ("prepare", True, True, 30.0)


def test_a_model_is_its_stages_numbers_and_its_evaluations(tmp_path):
    made = plan(LocalStore(tmp_path / "store"))
    records = {
        "prepare": record(made.by_id["prepare"], 1, 1, unigram_perplexity=99.0),
        "pretrain": record(made.by_id["pretrain"], 9, 5, sparsity=0.0),
        "pretrain.size": record(made.by_id["pretrain.size"], 10, 1, bytes=10),
        "prune": record(made.by_id["prune"], 12, 1, sparsity=0.5),
    }
    summary = summarise(made, records, {"prune": 0.5}, BEGUN)
    assert [(model["stage"], model["sparsity"], model.get("bytes")) for model in summary["models"]] == [
        ("pretrain", 0.0, 10),
        ("prune", 0.5, None),
    ]
    assert summary["unigram_perplexity"] == 99.0 and summary["recipe"] == "tiny" and summary["seconds"] == 100
    stages = {stage["id"]: stage for stage in summary["stages"]}
    assert stages["prune"]["overhead_seconds"] == 0.5 and not stages["recover"]["done"] and stages["recover"]["metrics"] == {}
    assert json.loads(json.dumps(summary)) == summary


def test_an_evaluation_that_is_a_stage_is_told_apart_and_shown(tmp_path):
    listed = {"id": "apart", "from": {"model": "prune", "reference": "pretrain"}, "evaluate": {"method": "divergence"}}
    made = plan(LocalStore(tmp_path / "store"), *BASE["stages"][:3], listed)
    records = {"apart": record(made.by_id["apart"], 5, 1, reference_kl=0.25, odd_number=7.0)}
    summary = summarise(made, records, {}, BEGUN)
    assert summary["evaluations"] == [
        {
            "stage": "apart",
            "method": "divergence",
            "model": "prune",
            "reference": "pretrain",
            "metrics": {"reference_kl": 0.25, "odd_number": 7.0},
        }
    ]
    shown = Console(file=io.StringIO(), width=100)
    shown.print(evaluations_table(summary["evaluations"]))
    text = shown.file.getvalue()
    assert all(word in text for word in ("apart", "divergence", "prune", "pretrain", "KL to reference 0.25", "odd_number 7"))
    assert without_row(summary["stages"]) == ["odd_number"]
