"""Scores of answers by hand, and the faults that scorers are known for."""

from __future__ import annotations

import pytest

from tasks.harness.answers import contained, contains, exact_match, f1, normalised, precision_in, recall


def test_normalisation_is_that_of_squad():
    assert normalised("  The   Beatles' “Help!” was a hit.") == "beatles “help” was hit"


def test_exact_match_takes_one_of_the_accepted():
    assert exact_match(" The Onion.", ["leek", "onion"]) and not exact_match("onions", ["onion"])


@pytest.mark.parametrize("said", ["", "  ", "the", "?!"])
def test_nothing_said_is_wrong_by_every_score(said):
    accepted = ["Paris", "the"]
    assert not exact_match(said, accepted) and not contains(said, accepted) and not contained(said, accepted)
    assert f1(said, accepted) == recall(said, accepted) == precision_in(said, "Paris is the capital") == 0


def test_an_accepted_answer_that_is_empty_is_said_by_nobody():
    assert not exact_match("", [""]) and not contains("anything", ["", "the"]) and not contained("anything", [""])


def test_containment_goes_both_ways_and_by_whole_words():
    assert contains("It is Paris, France", ["paris"]) and not contains("comparison", ["paris"])
    assert contained("Bonaparte", ["Napoleon Bonaparte"]) and not contains("Bonaparte", ["Napoleon Bonaparte"])
    assert not contained("part", ["Napoleon Bonaparte"])


def test_f1_recall_and_k_precision_by_hand():
    # Said: four words once the article is gone; two of the three accepted words are among them.
    said, accepted = "the old king of France", ["king Louis France"]
    assert f1(said, accepted) == pytest.approx(2 * 2 / (4 + 3))
    assert recall(said, accepted) == pytest.approx(2 / 3)
    assert precision_in(said, "France had a king") == pytest.approx(2 / 4)
    assert precision_in("king king", "king") == pytest.approx(1 / 2)  # said twice, and there once
    assert recall("a long answer that names king Louis XIV of France", accepted) == 1.0


def test_the_best_over_all_accepted_answers_counts():
    assert f1("onion", ["leek", "an onion"]) == 1.0 and recall("onion", ["leek soup", "onion soup"]) == 0.5
