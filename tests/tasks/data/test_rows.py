"""Rows hold whole documents, each once, and say of every token whether it counts and whose it is."""

from __future__ import annotations

import pytest

from tasks.data.batch import IGNORED
from tasks.data.rows import Rows, reading
from tasks.data.tokens import Sampler, Tokens, TokenWriter
from tests.tasks import data_zoo

DOCUMENTS = [([1, 2, 3, 4, 5], 2), ([6, 7, 8], 1), ([9, 10], 1), ([11, 12, 13, 14, 15, 16, 17, 18, 19], 4)]  # with its prompt


def written(directory, documents=DOCUMENTS, split="train"):
    directory.mkdir(exist_ok=True)
    writer = TokenWriter(directory, split, 64)
    for tokens, prompt in documents:
        writer.add(tokens, [place >= prompt for place in range(len(tokens))])
    writer.flush()
    return directory


def test_documents_share_rows_that_they_fill_best(tmp_path):
    """Of 8: the first leaves 3, which the second fills; the third opens a row; the fourth is cut at 8 and fills one."""
    rows = reading(written(tmp_path), "train", together=True)
    assert isinstance(rows, Rows) and rows.sequences(8) == 3
    batch = rows.batch([0, 1, 2], 8)
    assert batch.tokens.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8], [9, 10, 0, 0, 0, 0, 0, 0], [*range(11, 19)]]
    assert batch.documents.tolist() == [[1] * 5 + [2] * 3, [1, 1, 0, 0, 0, 0, 0, 0], [1] * 8]
    x = IGNORED
    assert batch.labels.tolist() == [[x, x, 3, 4, 5, x, 7, 8], [x, 10, x, x, x, x, x, x], [x, x, x, x, 15, 16, 17, 18]]
    assert batch.asked["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 0, 1, 2, 3, 4, 5], [*range(8)]]
    assert batch.predicted == 3 + 2 + 1 + 4


def test_alone_each_document_has_a_row_and_padding_after_it(tmp_path):
    rows = reading(written(tmp_path), "train", together=False)
    batch = rows.batch(range(rows.sequences(8)), 8)
    assert len(batch) == 4 and batch.documents.max() == 1 and batch.asked.keys() == {"input_ids"}
    assert batch.tokens[1].tolist() == [6, 7, 8, 0, 0, 0, 0, 0] and batch.labels[1].tolist()[:3] == [IGNORED, 7, 8]
    assert batch.predicted == 10


@pytest.mark.parametrize("length", [4, 7, 8, 16])
def test_every_document_that_has_something_to_learn_is_in_one_row_once(tmp_path, length):
    sizes = [3 + (7 * number) % 11 for number in range(200)]
    documents = [([1 + (number + place) % 60 for place in range(size)], 1 + number % 5) for number, size in enumerate(sizes)]
    rows = reading(written(tmp_path, documents), "train", together=True)
    pieces = [piece for row in rows.layout(length) for piece in row]
    assert len(set(pieces)) == len(pieces) and all(
        sum(end - start for _, start, end in row) <= length for row in rows.layout(length)
    )
    learned = sum(max(0, min(size, length) - max(prompt, 1)) for size, (_, prompt) in zip(sizes, documents, strict=True))
    assert rows.batch(range(rows.sequences(length)), length).predicted == learned
    filled = sum(end - start for _, start, end in pieces) / (length * rows.sequences(length))
    assert filled > 0.85


def test_a_row_too_short_for_any_answer_is_refused(tmp_path):
    rows = reading(written(tmp_path, [([1, 2, 3, 4], 3)]), "train", together=True)
    with pytest.raises(ValueError, match="no document of split train has anything to learn in its first 3 tokens"):
        rows.sequences(3)


def test_plain_text_stays_packed_and_among_tasks_is_cut_as_ever(tmp_path):
    plain = data_zoo.write_tokens(tmp_path / "plain", "train", data_zoo.periodic(20))
    assert isinstance(reading(tmp_path / "plain", "train", together=True), Tokens)
    data_zoo.write_tokens(written(tmp_path / "both", split="train-a"), "train-b", data_zoo.periodic(20))
    rows = reading(tmp_path / "both", "train", together=True)
    batch = rows.batch(range(rows.sequences(8)), 8)
    assert batch.tokens[-2:].equal(plain.batch([0, 1], 8).tokens) and batch.documents[-2:].eq(1).all()
    assert batch.labels[-2:, 1:].equal(batch.tokens[-2:, 1:])


def test_a_sampler_draws_rows_without_repetition_in_an_epoch(tmp_path):
    sampler = Sampler(reading(written(tmp_path), "train", together=True), 8, 1, seed=0)
    assert sorted(int(sampler.at(step).tokens[0, 0]) for step in range(3)) == [1, 9, 11]
