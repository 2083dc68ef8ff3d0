"""Recall and K-precision of what is said, file by file and in the mean."""

from __future__ import annotations

import json

import pytest

from tasks.data.place import reading
from tasks.evaluators import Candidate
from tasks.methods import build
from tasks.models.files.checkpoint import save_model
from tests.tasks import data_zoo
from tests.tasks import models_zoo as zoo


@pytest.fixture
def folder(tmp_path):
    model = zoo.model("llama", layers=1, vocab_size=300, max_position_embeddings=512)
    save_model(model.state_dict(), model.config, tmp_path / "model")
    data_zoo.write_tokenizer(tmp_path / "data" / "tokenizer")
    rows = [{"question": f"Number {number}?", "answer": "mill", "evidence": data_zoo.text(number)} for number in range(3)]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def faithfulness(folder, **fields):
    return build("evaluators", {"faithfulness": fields}, context=reading(folder))


def test_both_scores_are_means_over_questions_and_then_over_files(folder):
    files = {"one": "asked.jsonl", "two": "asked.jsonl"}
    report = folder / "report"
    found = faithfulness(folder, files=files, new=12, evidence=300).measure(
        Candidate(folder / "model", folder / "data", report=report)
    )
    items = json.loads((report / "items.json").read_text())
    assert items["one"] == items["two"] and len(items["one"]) == 3
    for metric in ("recall", "k_precision"):
        assert found[metric] == found[f"{metric}.one"] == pytest.approx(sum(item[metric] for item in items["one"]) / 3)
        assert 0 <= found[metric] <= 1 and f"{metric}_stderr.two" in found


def test_a_limit_takes_the_first_questions(folder):
    report = folder / "report"
    faithfulness(folder, files={"one": "asked.jsonl"}, new=4, limit=2).measure(
        Candidate(folder / "model", folder / "data", report=report)
    )
    assert len(json.loads((report / "items.json").read_text())["one"]) == 2


def test_what_cannot_be_asked_is_refused(folder):
    with pytest.raises(ValueError, match="files"):
        faithfulness(folder, files={})
    with pytest.raises(ValueError, match="is no name of a task"):
        faithfulness(folder, files={"One two": "asked.jsonl"})
    method = faithfulness(folder, files={"one": "asked.jsonl"})
    with pytest.raises(ValueError, match="^faithfulness.new 64 leaves no room for a question in the model's 64 positions$"):
        method.check_positions(64)
    (folder / "asked.jsonl").write_text('{"question": "x", "answer": "y"}\n')
    with pytest.raises(ValueError, match="question 1 has no evidence"):
        method.sources()["faithfulness one"].fingerprint()
