"""Flips count answers that changed both ways, which an average hides."""

from __future__ import annotations

import json

import pytest

from tasks.evaluate import Evaluate
from tasks.methods import build


def report(folder, **tasks):
    folder.mkdir()
    (folder / "items.json").write_text(json.dumps(tasks))
    return folder


def answers(metric, *right):
    return [{metric: float(one)} for one in right]


def test_answers_that_change_both_ways_are_counted_though_the_accuracy_stays(tmp_path):
    ours = report(tmp_path / "ours", arc=answers("acc", 1, 0, 1, 0), trivia=answers("exact_match", 0, 0))
    theirs = report(tmp_path / "theirs", arc=answers("acc", 0, 1, 1, 0), trivia=answers("exact_match", 1, 0))
    found = build("evaluators", "flips").contrast(ours, theirs)
    assert (found["flips.arc"], found["right_to_wrong.arc"], found["wrong_to_right.arc"]) == (0.5, 0.25, 0.25)
    assert (found["flips.trivia"], found["right_to_wrong.trivia"], found["wrong_to_right.trivia"]) == (0.5, 0.5, 0)
    assert found["flips"] == 0.5 and found["right_to_wrong"] == 0.375


def test_shares_are_of_counts_and_do_not_depend_on_which_way_answers_changed(tmp_path):
    right = answers("acc", *[1] * 95, *[0] * 5)
    one_way, both = answers("acc", *[1] * 89, *[0] * 11), answers("acc", *[1] * 94, 0, *[1] * 5)
    theirs = report(tmp_path / "theirs", arc=right)
    for name, changed in (("one_way", one_way), ("both", both)):
        assert build("evaluators", "flips").contrast(report(tmp_path / name, arc=changed), theirs)["flips"] == 0.06


def test_a_model_equal_to_its_reference_has_none(tmp_path):
    same = report(tmp_path / "same", arc=answers("acc", 1, 0, 1))
    assert set(build("evaluators", "flips").contrast(same, same).values()) == {0.0}


def test_reports_of_different_questions_are_not_compared(tmp_path):
    ours, theirs = (report(tmp_path / name, arc=answers("acc", *right)) for name, right in (("a", [1]), ("b", [1, 0])))
    with pytest.raises(ValueError):
        build("evaluators", "flips").contrast(ours, theirs)


def test_where_no_answer_is_right_or_wrong_there_is_nothing_to_flip(tmp_path):
    same = report(tmp_path / "same", wikitext=answers("word_perplexity", 20))
    with pytest.raises(ValueError, match="no answer of wikitext is right or wrong"):
        build("evaluators", "flips").contrast(same, same)


def test_it_takes_two_reports_and_no_model():
    assert Evaluate(method="flips").roles() == {"ours": "metrics", "theirs": "metrics"}
