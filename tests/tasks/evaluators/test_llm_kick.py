"""Every question is scored once, by what greedy decoding says after the prompt and by nothing else."""

from __future__ import annotations

import json

import pytest
import torch

from tasks.data.place import reading
from tasks.evaluators import Candidate
from tasks.harness.answers import contained, f1
from tasks.methods import build
from tasks.models.files.checkpoint import save_model
from tests.tasks import data_zoo
from tests.tasks import models_zoo as zoo

ASKED = [
    {"question": f"Number {number} of the mill?", "answer": "mill", "evidence": data_zoo.text(number)} for number in range(5)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("kick")
    for kind in ("model", "silent"):
        model = zoo.model("llama", layers=1, vocab_size=300, max_position_embeddings=512)
        if kind == "silent":
            model.lm_head.weight.data.zero_()  # the likeliest token is then the first: the end of the text
        save_model(model.state_dict(), model.config, root / kind)
    data_zoo.write_tokenizer(root / "data" / "tokenizer")
    (root / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ASKED))
    for split in ("dev", "test"):
        (root / "exam" / split).mkdir(parents=True)
        for subject in ("law", "physics"):
            (root / "exam" / split / f"{subject}_{split}.csv").write_text(
                "Which?,w,x,y,z,C\nOther?,w,x,y,z,A\nLast?,w,x,y,z,B\n"
            )
    (root / "a.story").write_text(f"{data_zoo.text(1)}\n@highlight\n\nThe wheat falls")
    return root


def measure(folder, model: str = "model", **fields) -> tuple[dict[str, float], dict]:
    method = build("evaluators", {"llm_kick": fields}, context=reading(folder))
    report = folder / "report"
    found = method.measure(Candidate(folder / model, folder / "data", report=report))
    return found, {file.name: json.loads(file.read_text()) for file in report.glob("*.json")}


def test_it_scores_what_greedy_decoding_says_and_only_that(folder):
    found, report = measure(folder, closed_book="asked.jsonl", batch=1)
    candidate = Candidate(folder / "model", folder / "data")
    scores, told = [], []
    for row in ASKED:
        prompt = f"Answer the question with a few words.\n\nQuestion: {row['question']}\nAnswer:"
        ids = torch.tensor([candidate.tokenizer(prompt).input_ids])
        with torch.inference_mode():
            out = candidate.model.generate(ids, max_new_tokens=32, do_sample=False)
        said = candidate.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).partition("\n")[0]
        scores.append((float(contained(said, ["mill"])), f1(said, ["mill"])))
        told.append(said)
    assert [(item["containment"], item["f1"]) for item in report["items.json"]["closed_book"]] == scores
    assert [item["said"] for item in report["items.json"]["closed_book"]] == told
    assert found["containment.kick_closed_book"] == pytest.approx(sum(score for score, _ in scores) / 5)


def test_a_model_that_says_nothing_is_wrong_though_its_prompts_hold_the_answer(folder):
    found, _ = measure(folder, "silent", factoid="asked.jsonl", closed_book="asked.jsonl", open_book="asked.jsonl")
    assert set(found.values()) == {0.0} and len(found) == 2 * (1 + 3 + 3)


@pytest.mark.parametrize("limit", [1, 4, 9])
def test_as_many_questions_are_scored_as_are_divided_by(limit, folder):
    found, report = measure(folder, factoid="asked.jsonl", limit=limit)
    scores = [item["acc"] for item in report["items.json"]["factoid"]]
    assert len(scores) == min(limit, 5) and found["accuracy.kick_factoid"] == pytest.approx(sum(scores) / len(scores))


def test_an_exam_is_told_as_a_whole_and_by_subject_and_its_limit_is_each_subjects(folder):
    found, report = measure(folder, multiple_choice="exam", limit=2)
    assert len(report["items.json"]["multiple_choice"]) == 4 and report["subjects.json"].keys() == {"law", "physics"}
    assert found["accuracy.kick_multiple_choice"] == pytest.approx(sum(report["subjects.json"].values()) / 2)


def test_summaries_are_scored_against_the_highlights(folder):
    found, _ = measure(folder, summaries="*.story")
    assert found.keys() == {
        f"{metric}.kick_summaries" for metric in ("rouge1", "rouge2", "rouge_l")
    }  # of one story alone there is no error


def test_what_it_cannot_ask_is_refused(folder):
    with pytest.raises(ValueError, match="there is nothing to ask; give one or more of factoid, multiple_choice"):
        build("evaluators", "llm_kick")
    method = build("evaluators", {"llm_kick": {"summaries": "*.story", "factoid": "asked.jsonl"}}, context=reading(folder))
    with pytest.raises(ValueError, match="^llm_kick.summaries are of up to 256 tokens, .* more than the model's 64 positions$"):
        method.check_positions(64)
    assert method.sources().keys() == {"llm_kick.summaries", "llm_kick.factoid"}
    with pytest.raises(ValueError, match="no chat template"):
        measure(folder, factoid="asked.jsonl", chat=True)
