"""Scores of questions, by hand from the model's own log-likelihoods, and their mean over tasks."""

from __future__ import annotations

import math

import pytest
import torch

from tasks.evaluators import Candidate
from tasks.harness.forms import ANSWER, CHOICE, CONTINUATION, SCHEMA
from tasks.harness.score import _scored, make_task, means, score
from tasks.models.files.checkpoint import save_model
from tests.tasks import data_zoo
from tests.tasks import models_zoo as zoo


@pytest.fixture(scope="module")
def candidate(tmp_path_factory) -> Candidate:
    root = tmp_path_factory.mktemp("score")
    model = zoo.model("llama", layers=1, vocab_size=300, max_position_embeddings=256)
    save_model(model.state_dict(), model.config, root / "model")
    data_zoo.write_tokenizer(root / "data" / "tokenizer")
    return Candidate(root / "model", root / "data")


def scored(candidate, form, rows):
    return score(candidate.model, candidate.tokenizer, [make_task("t", form, rows, delimiter="")], 4, candidate.longest)["t"]


def loglikelihood(candidate, context: str, continuation: str) -> tuple[float, bool]:
    """Of what follows a context, and whether greedy decoding says it."""
    start, ids = len(candidate.tokenizer(context).input_ids), candidate.tokenizer(context + continuation).input_ids
    with torch.inference_mode():
        told_TV = candidate.model(torch.tensor([ids])).logits[0].log_softmax(-1)[start - 1 : -1]
    said = torch.tensor(ids[start:])
    return told_TV.gather(1, said[:, None]).sum().item(), bool((told_TV.argmax(-1) == said).all())


CHOICES = [" zq", " is carried to the farmer", " weighs xyz", " The farmer falls into the basket"]


def test_the_likeliest_choice_is_the_answer_and_normalised_the_likeliest_per_character(candidate):
    rows = [{"query": data_zoo.text(3)[:40], "choices": CHOICES, "gold": gold} for gold in range(4)]
    sums = [loglikelihood(candidate, rows[0]["query"], choice)[0] for choice in CHOICES]
    likeliest = max(range(4), key=sums.__getitem__)
    per_character = max(range(4), key=lambda index: sums[index] / len(CHOICES[index]))
    assert likeliest != per_character
    found = scored(candidate, CHOICE, rows)
    expected = [{"acc": float(gold == likeliest), "acc_norm": float(gold == per_character)} for gold in range(4)]
    assert found.items == expected and found.metrics["acc"] == found.metrics["acc_norm"] == 0.25
    assert found.errors["acc"] == pytest.approx(math.sqrt(0.25 * 0.75 / 3))


def test_of_two_contexts_the_one_counts_that_makes_what_follows_likelier(candidate):
    options, ending = ["The wheat", "The farmer rests and"], " falls into the basket"
    likelier = max((0, 1), key=lambda index: loglikelihood(candidate, options[index], ending)[0])
    rows = [{"context_options": options, "continuation": ending, "gold": gold} for gold in (likelier, 1 - likelier)]
    assert [item["acc"] for item in scored(candidate, SCHEMA, rows).items] == [1.0, 0.0]


def test_a_continuation_is_right_where_greedy_decoding_says_it(candidate):
    context = "The mill"
    with torch.inference_mode():
        ids = candidate.model.generate(
            torch.tensor([candidate.tokenizer(context).input_ids]), max_new_tokens=1, do_sample=False
        )[0]
    said = candidate.tokenizer.decode(ids)[len(context) :]
    rows = [{"context": context, "continuation": text} for text in (said, " weighs")]
    expected = [float(loglikelihood(candidate, context, row["continuation"])[1]) for row in rows]
    assert [item["acc"] for item in scored(candidate, CONTINUATION, rows).items] == expected


def test_a_generated_answer_is_matched_with_all_accepted_ones(candidate):
    row = {"context": "The mill", "answer": "wheat", "aliases": []}
    (said,) = scored(candidate, ANSWER, [row]).said
    rows = [row, {**row, "aliases": ["stone", said]}]
    found = scored(candidate, ANSWER, rows)
    assert [item["exact_match"] for item in found.items] == [0.0, 1.0] and found.metrics["f1"] == pytest.approx(0.5)
    assert found.errors["exact_match"] == pytest.approx(math.sqrt(0.5 / 2))  # n - 1 = 1, and two questions


def test_the_mean_over_tasks_and_its_error_by_hand():
    figures = {"accuracy.a": 0.5, "accuracy_stderr.a": 0.3, "accuracy.b": 0.7, "accuracy_stderr.b": 0.4, "f1.a": 0.2}
    assert means(figures, "accuracy", "f1", "recall") == pytest.approx({"accuracy": 0.6, "accuracy_stderr": 0.25, "f1": 0.2})


def test_a_continuation_is_asked_after_the_delimiter_unless_there_is_a_space(candidate):
    def asked(context, continuation, delimiter):
        task = make_task("t", CONTINUATION, [{"context": context, "continuation": continuation}], delimiter=delimiter)
        task.build_all_requests()
        return [request.args for request in task.instances]

    assert asked("The mill", "falls", " ") == [("The mill", " falls")]
    assert asked("The mill", " falls", " ") == [("The mill", " falls")]
    assert asked("The mill ", "falls", " ") == [("The mill ", "falls")]
    assert asked("The mill", "falls", "\n") == [("The mill", "\nfalls")]


def test_questions_of_digits_are_text(candidate):
    rows = [{"query": text, "choices": [" falls", "7"], "gold": 0} for text in ("1984", "The mill", "0")]
    assert len(scored(candidate, CHOICE, rows).items) == 3
    told = [{"context_options": ["one", "two"], "continuation": "7", "gold": 1}]
    assert len(scored(candidate, SCHEMA, told).items) == 1


def test_a_model_that_says_nan_is_broken_and_no_guesser(candidate, tmp_path):
    broken = Candidate(candidate.directory, candidate.data)
    with torch.no_grad():
        broken.model.lm_head.weight.fill_(float("inf"))
    with pytest.raises(ValueError, match="the model is broken: its log-likelihoods of t are NaN"):
        scored(broken, CHOICE, [{"query": "The mill", "choices": [" falls", " weighs"], "gold": 0}])


def test_what_lm_eval_cannot_ask_is_told_in_one_line(candidate):
    with pytest.raises(ValueError, match="lm-eval cannot ask t: "):
        scored(candidate, CHOICE, [{"query": "The mill", "choices": [" falls" * 300, " weighs"], "gold": 0}])


def test_questions_that_lose_their_beginning_are_counted(candidate, caplog):
    long, short = "The mill weighs wheat. " * 200, "The mill"
    scored(candidate, CHOICE, [{"query": query, "choices": [" falls", " weighs"], "gold": 0} for query in (long, short)])
    assert "task t: 2 of 4 requests exceed 256 tokens and lose their beginning" in caplog.text


def test_of_several_filters_the_first_counts_and_each_question_once():
    found = {"alias": "t", "exact_match,strict": 0.0, "exact_match_stderr,strict": 0.1, "exact_match,flexible": 1.0}
    samples = [
        {"filter": which, "exact_match": float(which == "flexible"), "filtered_resps": ["a"]}
        for which in ("strict", "flexible")
    ]
    one = _scored(found, samples)
    assert one.metrics == {"exact_match": 0.0} and one.errors == {"exact_match": 0.1} and one.items == [{"exact_match": 0.0}]


def test_how_far_it_is_goes_to_the_stage_and_no_bar_is_drawn(candidate, capfd):
    rows = [{"query": data_zoo.text(3)[:40], "choices": CHOICES, "gold": 0}] * 3
    told: list[tuple[int, int, str]] = []
    task = make_task("t", CHOICE, rows, delimiter="")
    score(candidate.model, candidate.tokenizer, [task], 4, candidate.longest, progress=lambda *how_far: told.append(how_far))
    assert sorted(set(told)) == [(done, 3, "questions") for done in range(4)] and told == sorted(told)
    assert "it/s" not in "".join(capfd.readouterr())
