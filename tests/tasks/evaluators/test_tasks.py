"""Tasks that lm-eval reads from YAML files: groups count once in the mean, and what tells no known number is refused."""

from __future__ import annotations

import json

import pytest

from tasks.evaluators import Candidate
from tasks.methods import build
from tasks.models.files.checkpoint import save_model
from tests.tasks import data_zoo
from tests.tasks import models_zoo as zoo

pytestmark = pytest.mark.slow  # lm-eval looks through all the tasks it brings


@pytest.fixture(scope="module")
def candidate(tmp_path_factory) -> Candidate:
    root = tmp_path_factory.mktemp("tasks")
    model = zoo.model("llama", layers=1, vocab_size=300, max_position_embeddings=256)
    save_model(model.state_dict(), model.config, root / "model")
    data_zoo.write_tokenizer(root / "data" / "tokenizer")
    return Candidate(root / "model", root / "data")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("include")
    for name, count, metrics in (("suba", 9, ["acc"]), ("subb", 3, ["acc"]), ("strange", 3, ["brier_score"])):
        rows = [{"query": data_zoo.text(n, 2), "choices": [" falls", " weighs"], "gold": n % 2} for n in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        asked = {"output_type": "multiple_choice", "doc_to_text": "query", "doc_to_choice": "choices", "doc_to_target": "gold"}
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}}}
        listed = [{"metric": metric, "aggregation": metric.replace("acc", "mean")} for metric in metrics]
        task = {"task": name, "test_split": "test", **source, **asked, "metric_list": listed}
        (folder / f"{name}.yaml").write_text(json.dumps(task))
    group = {"group": "both", "task": ["suba", "subb"], "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}]}
    (folder / "both.yaml").write_text(json.dumps(group))
    return folder


def test_the_mean_is_over_tasks_and_not_over_groups_of_them(candidate, folder):
    found = build("evaluators", {"tasks": {"names": ["both"], "include": str(folder)}}).measure(candidate)
    one, other = found["accuracy.suba"], found["accuracy.subb"]
    assert found["accuracy"] == pytest.approx((one + other) / 2)
    assert found["accuracy.both"] == pytest.approx((9 * one + 3 * other) / 12)


def test_questions_are_counted_over_all_tasks(candidate, folder):
    told = []
    counted = Candidate(candidate.directory, candidate.data, progress=lambda *how_far: told.append(how_far))
    files = {name: str(folder / f"{name}.jsonl") for name in ("suba", "subb")}
    build("evaluators", {"tasks": {"files": files, "limit": 5}}).measure(counted)
    assert sorted(set(told)) == [(done, 8, "questions") for done in range(9)] and told == sorted(told)
    told.clear()
    build("evaluators", {"tasks": {"names": ["suba", "subb"], "include": str(folder)}}).measure(counted)
    assert told == sorted(told) and told[-1] == (12, 0, "questions")  # how many there are is not known before they are read


def test_a_task_of_which_no_number_is_known_is_refused(candidate, folder):
    with pytest.raises(ValueError, match="task strange tells brier_score, and none of acc, acc_norm"):
        build("evaluators", {"tasks": {"names": ["strange"], "include": str(folder)}}).measure(candidate)
