"""Preparing loses nothing: the splits decode to the documents, each in exactly one split."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tasks.data.corpus import split_of
from tasks.data.tokenizer import load_tokenizer
from tasks.data.tokens import Tokens, heldout_documents
from tasks.prepare import Prepare, unigram_perplexity
from tasks.stage import Context, Execution
from tests.tasks import data_zoo


def prepare(tmp_path, count: int = 40, **fields):
    pattern = data_zoo.write_texts(tmp_path / "texts", count)
    given = {"corpus": {"files": {"paths": [pattern]}}, "tokenizer": {"train": 300}, **fields}
    output = tmp_path / "data"
    output.mkdir()
    metrics = Prepare.model_validate(given).run(Context({}, output, tmp_path / "scratch", Execution()))
    return output, metrics


def documents(directory, split: str) -> list[str]:
    """The texts of a split, cut at the end-of-text token."""
    tokenizer, tokens = load_tokenizer(directory / "tokenizer"), np.concatenate(Tokens(directory, split).shards)
    assert tokens[-1] == tokenizer.eos_token_id
    ends = np.flatnonzero(tokens == tokenizer.eos_token_id)
    return [tokenizer.decode(piece[piece != tokenizer.eos_token_id]) for piece in np.split(tokens, ends + 1)[:-1]]


def test_every_document_comes_back_from_exactly_one_split(tmp_path):
    directory, metrics = prepare(tmp_path)
    found = {split: documents(directory, split) for split in ("train", "calibration", "heldout")}
    expected = {split: [] for split in found}
    for number in range(40):
        expected[split_of(number, 0.05, 0.05)].append(data_zoo.text(number))
    assert found == expected
    assert [row["text"] for row in heldout_documents(directory)] == found["heldout"]
    assert metrics["vocabulary"] == 300
    assert {split: Tokens(directory, split).total for split in found} == {
        split: metrics[f"{split}_tokens"] for split in found
    }


def test_the_unigram_bar_is_the_add_one_smoothed_one():
    train, heldout = np.array([3, 1, 0]), np.array([1, 0, 1])       # p = 4/7, 2/7, 1/7
    assert unigram_perplexity(train, heldout, 3) == pytest.approx(math.sqrt(7 / 4 * 7))


def test_a_corpus_that_leaves_a_split_empty_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no document fell to the calibration split"):
        prepare(tmp_path, count=10)


def test_an_existing_tokenizer_is_taken_as_it_is(tmp_path):
    first, _ = prepare(tmp_path)
    second, _ = prepare(tmp_path / "again", tokenizer={"checkpoint": str(first / "tokenizer")})
    assert np.array_equal(Tokens(first, "train").shards[0], Tokens(second, "train").shards[0])


def test_a_tokenizer_that_cannot_end_texts_is_refused(tmp_path):
    first, _ = prepare(tmp_path)
    tokenizer = load_tokenizer(first / "tokenizer")
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "endless")
    with pytest.raises(ValueError, match="no end-of-text token"):
        prepare(tmp_path / "again", tokenizer={"checkpoint": str(tmp_path / "endless")})


def test_documents_without_text_are_no_documents(tmp_path):
    directory, _ = prepare(tmp_path)
    for number in range(60, 90):
        (tmp_path / "texts" / f"{number:03d}.txt").write_text(" \n")
    again = tmp_path / "again"
    again.mkdir()
    given = {"corpus": {"files": {"paths": [f"{tmp_path}/texts/*.txt"]}}, "tokenizer": {"train": 300}}
    Prepare.model_validate(given).run(Context({}, again, tmp_path / "scratch", Execution()))
    for split in ("train", "calibration", "heldout"):
        assert documents(again, split) == documents(directory, split)
