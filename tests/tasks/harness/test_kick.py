"""What LLM-KICK's tasks ask and how they are scored, with a test for each fault that its published scripts have:

- an alias in the question counts: test_an_alias_in_the_question_counts_for_nothing
- one question more is run than is divided by: test_as_many_questions_are_scored_as_are_divided_by (test_llm_kick.py)
- questions come from the split for training: test_an_exam_asks_what_is_in_test_and_shows_what_is_in_dev (test_suites.py); of
  other files it is the user who names them
- an empty answer is found in every right one: test_nothing_said_is_wrong, test_nothing_said_is_wrong_by_every_score
  (test_answers.py), test_a_model_that_says_nothing_is_wrong_though_its_prompts_hold_the_answer (test_llm_kick.py)
- a letter is looked for at the end: test_a_letter_is_found_whatever_stands_around_it
- a sparsity beside N:M is ignored: tests/flows/test_bad_input.py refuses one that contradicts it
- the dense model is decoded otherwise, answers are sampled: test_decoding_is_greedy_for_every_form, and the contract that
  numbers measured again are the same (tests/contracts/test_evaluators.py)
"""

from __future__ import annotations

import pytest

from tasks.harness import kick
from tests.tasks import data_zoo


def judged(form, said: str, **row) -> dict[str, float]:
    return form.judge(row, said)


def test_an_alias_in_the_question_counts_for_nothing():
    """The published scorer looks for it in prompt and continuation together."""
    (row,) = kick.closed([{"ask": "Question: Is Paris in France?\nAnswer:", "accepted": ["France"]}])
    assert "France" in row["context"]
    assert judged(kick.FACTOID, " I do not know.", **row) == {"acc": 0.0}
    assert judged(kick.FACTOID, " It is in france, yes.", **row) == {"acc": 1.0}


def test_nothing_said_is_wrong():
    """The published one finds an empty answer inside every right one."""
    assert judged(kick.RECALL, "", accepted=["Onion"]) == {"exact_match": 0.0, "containment": 0.0, "f1": 0.0}
    assert judged(kick.FACTOID, "", accepted=["Onion"]) == {"acc": 0.0}
    assert judged(kick.RECALL, "onions, Onion", accepted=["Onion"])["containment"] == 1.0


@pytest.mark.parametrize("said", ["B", " B", " B.", "(B)", "\nB)", " **B**", " B\n", "B, because", ' "B"'])
def test_a_letter_is_found_whatever_stands_around_it(said):
    """The published one looks at the last character of all."""
    assert kick.letter(said) == "B" and judged(kick.LETTER, said, letter="B") == {"acc": 1.0}


@pytest.mark.parametrize("said", ["", " ", "b", "E", "Because", "AB", "B2", "Answer", "The answer is not known, B"])
def test_what_begins_with_no_letter_is_wrong(said):
    assert kick.letter(said) is None and judged(kick.LETTER, said, letter="B") == {"acc": 0.0}


def test_decoding_is_greedy_for_every_form():
    for form in (kick.FACTOID, kick.RECALL, kick.LETTER, kick.SUMMARY, kick.faithful(8)):
        assert form.config["output_type"] == "generate_until" and not form.config["generation_kwargs"]["do_sample"]


def test_rouge_by_hand():
    # Five and four words; four of them shared, three pairs of the four and three; the longest common row is four words.
    found = kick.rouge("wheat fell into the basket", "wheat fell into basket")
    assert found["rouge1"] == pytest.approx(2 * (4 / 5) * 1 / (4 / 5 + 1))
    assert found["rouge2"] == pytest.approx(2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3))
    assert found["rougeL"] == pytest.approx(2 * (4 / 5) * 1 / (4 / 5 + 1))
    assert kick.rouge("", "wheat")["rouge1"] == 0 and kick.rouge("falling", "falls")["rouge1"] == 1  # of one stem


def test_recall_and_k_precision_are_of_the_answers_and_of_the_text_shown():
    (row,) = kick.opened([{"ask": "Q", "accepted": ["brown fox"], "evidence": "a quick brown fox runs"}], 13)
    assert row["evidence"] == "a quick brown" and row["context"].startswith("a quick brown\n\n")
    found = judged(kick.faithful(8), "quick fox", **row)
    assert found == {"recall": 0.5, "k_precision": 0.5}  # the fox is right, and not in what was shown
    assert judged(kick.faithful(8), "\n\n quick fox\n\nQuestion: brown?", **row) == found


def test_empty_lines_before_a_summary_do_not_end_it():
    assert kick.SUMMARY.config["generation_kwargs"]["until"] == []
    assert judged(kick.SUMMARY, "\n\nwheat fell", summary="wheat fell")["rouge1"] == 1


def question(number: int) -> dict:
    return {"question": f"Which {number}?", "choices": ["w", "x", "y", "z"], "letter": "C"}


def test_an_exam_question_follows_as_many_examples_as_fit():
    row = {**question(9), "subject": "law", "examples": [question(number) for number in range(5)]}
    (asked,) = kick.examined([row], 5, 10_000, len)
    assert asked["context"].count("Answer: C\n\n") == 5 and asked["context"].endswith(
        "Which 9?\nA. w\nB. x\nC. y\nD. z\nAnswer:"
    )
    assert asked["letter"] == "C" and "law" in asked["context"]
    (two,) = kick.examined([row], 2, 10_000, len)
    assert two["context"].count("Answer: C") == 2
    short = len(two["context"]) + kick.LETTER_TOKENS
    assert kick.examined([row], 5, short, len) == [two] != kick.examined([row], 5, short - 1, len)
    (none,) = kick.examined([row], 5, 1, len)  # a question is asked whatever its length
    assert "Answer: C" not in none["context"] and "Which 9?" in none["context"]


def test_a_story_is_cut_at_its_end(tmp_path):
    from tasks.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(data_zoo.write_tokenizer(tmp_path))
    text = data_zoo.text(3)
    beginning = kick.first_tokens(text, 20, tokenizer)
    assert text.startswith(beginning) and len(tokenizer(beginning).input_ids) == 20
    assert kick.first_tokens("short", 20, tokenizer) == "short"
    (row,) = kick.summarised([{"document": text, "summary": "s"}], lambda whole: whole[:10])
    assert row["context"].startswith(text[:10] + "\n\n")


def test_in_chat_each_question_is_a_message_of_the_template(tmp_path):
    from tasks.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(data_zoo.write_tokenizer(tmp_path))
    with pytest.raises(ValueError, match="the tokenizer has no chat template; leave chat out"):
        kick.in_chat([{"context": "x"}], tokenizer)
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    assert kick.in_chat([{"context": "x", "letter": "A"}], tokenizer) == [{"context": "<user>x<assistant>", "letter": "A"}]
