"""Questions are well formed, fair and the same every time; lm-eval's scores are the model's own likelihoods."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from tasks.data.tokenizer import train_tokenizer
from tasks.evaluators import Candidate
from tasks.methods import build
from tasks.metrics import METRICS
from tasks.models.files.checkpoint import save_model
from tests.tasks import data_zoo
from tests.tasks import models_zoo as zoo

TEXTS = [data_zoo.text(number) for number in range(30)]


def evaluator(**fields):
    return build("evaluators", {"multiple_choice": fields})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    data_zoo.write_heldout(directory, TEXTS)
    return directory


def test_each_question_continues_a_document_with_its_true_next_line(data):
    for item in evaluator(items=100).make_items(data):
        assert any(item["query"] + item["choices"][item["gold"]] in text for text in TEXTS)
        assert len(item["query"]) == 240 and item["query"].endswith("\n")
        assert len(item["choices"]) == len(set(item["choices"])) == 4


def test_wrong_lines_are_about_as_long_as_the_true_one(data):
    for item in evaluator(items=100).make_items(data):
        lengths = [len(line) for line in item["choices"]]
        assert max(lengths) - min(lengths) <= 12


def test_answers_are_balanced_so_that_guessing_scores_the_chance(data):
    counts = Counter(item["gold"] for item in evaluator(items=400).make_items(data))
    assert set(counts) == {0, 1, 2, 3} and all(70 <= count <= 130 for count in counts.values())


def test_the_same_seed_asks_the_same_questions_and_no_place_is_asked_twice(data):
    items = evaluator(items=100).make_items(data)
    assert items == evaluator(items=100).make_items(data) != evaluator(items=100, seed=1).make_items(data)
    assert len({(item["query"], item["choices"][item["gold"]]) for item in items}) == 100


def test_too_few_lines_are_refused(tmp_path):
    data_zoo.write_heldout(tmp_path, TEXTS[:1])
    with pytest.raises(ValueError, match="too few lines for multiple choice"):
        evaluator().make_items(tmp_path)


def test_lm_eval_scores_what_the_likelihoods_say(data, tmp_path):
    tokenizer = train_tokenizer(TEXTS, 300)
    tokenizer.save_pretrained(data / "tokenizer")
    model = zoo.model("llama", layers=1, vocab_size=300, max_position_embeddings=512)
    save_model(model.state_dict(), model.config, tmp_path / "model")
    candidate, right = Candidate(tmp_path / "model", data), []
    for item in evaluator(items=30).make_items(data):
        scores = []
        for choice in item["choices"]:
            context = tokenizer(item["query"], add_special_tokens=False).input_ids
            whole = tokenizer(item["query"] + choice, add_special_tokens=False).input_ids
            with torch.no_grad():
                log_TV = torch.log_softmax(candidate.model(torch.tensor([whole])).logits[0], -1)
            scores.append(sum(log_TV[place - 1, whole[place]].item() for place in range(len(context), len(whole))))
        right.append(scores.index(max(scores)) == item["gold"])
    found = evaluator(items=30).measure(candidate)
    assert found["task_accuracy"] == pytest.approx(sum(right) / 30) and found["task_chance"] == 0.25
    assert found.keys() <= METRICS.keys() and found["task_accuracy_stderr"] > 0
