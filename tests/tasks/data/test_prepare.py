"""Preparing loses nothing: the splits decode to the documents, each in exactly one split."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cluster.ray.events import Note
from flows.recipe import parse_recipe
from tasks.context import Context, Execution
from tasks.data.corpora import build_corpus
from tasks.data.corpus import split_of
from tasks.data.tokenizer import load_tokenizer
from tasks.data.tokens import Tokens, calibration_batches, heldout_documents
from tasks.prepare import Prepare, unigram_perplexity
from tasks.prune import Prune
from tests.tasks import data_zoo, models_zoo
from tests.tasks.workshop import Workshop


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
    assert {split: Tokens(directory, split).total for split in found} == {split: metrics[f"{split}_tokens"] for split in found}


def test_the_unigram_bar_is_the_add_one_smoothed_one():
    train, heldout = np.array([3, 1, 0]), np.array([1, 0, 1])  # p = 4/7, 2/7, 1/7
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


def roles(tmp_path, **left_out):
    """A data directory made of three texts that share no letter, and the notes of its making."""
    texts = {"train": "abcdefg", "calibration": "hijklmn", "heldout": "opqrstu"}
    for split, letters in texts.items():
        for number in range(30):
            words = " ".join(letters[(number + at) % 7] * (1 + at % 3) for at in range(40 + number))
            (tmp_path / split).mkdir(exist_ok=True)
            (tmp_path / split / f"{number:02d}.txt").write_text(words)
    corpus = {split: f"{tmp_path}/{split}/*.txt" for split in texts} | left_out
    stage = Prepare.model_validate({"corpus": corpus, "tokenizer": {"train": 300}})
    assert Prepare.model_validate(stage.model_dump(mode="json", exclude_none=True)) == stage
    stage.fingerprints()
    notes, output = [], tmp_path / "data"
    output.mkdir()
    stage.run(Context({}, output, tmp_path / "scratch", Execution(), report=lambda event: notes.append(event)))
    return output, [event.text for event in notes if isinstance(event, Note)], texts


def letters_of(text) -> set[str]:
    return set(text) - set(" \n")


def test_calibration_and_evaluation_see_their_text_and_the_vocabulary_only_the_training_text(tmp_path):
    directory, notes, texts = roles(tmp_path)
    tokenizer = load_tokenizer(directory / "tokenizer")
    seen = np.concatenate([batch.tokens for batch in calibration_batches(directory, 8, 16, 4, seed=0)])
    assert letters_of(tokenizer.decode(seen.flatten(), skip_special_tokens=True)) == set(texts["calibration"])
    for split, letters in texts.items():
        assert [letters_of(text) <= set(letters) for text in documents(directory, split)] == [True] * 30
    assert all(letters_of(document["text"]) <= set(texts["heldout"]) for document in heldout_documents(directory))
    merged = {token for token in tokenizer.get_vocab() if len(token) > 1 and token.strip("Ġ").isalpha()}
    assert merged and letters_of("".join(merged)) - {"Ġ"} <= set(texts["train"]) and notes == []


def test_a_role_left_out_is_a_share_of_the_training_text_and_that_is_said(tmp_path):
    directory, notes, texts = roles(tmp_path, calibration=None)
    assert len(documents(directory, "heldout")) == 30
    counts = {split: len(documents(directory, split)) for split in ("train", "calibration")}
    assert counts == {"train": 29, "calibration": 1}
    assert letters_of(documents(directory, "calibration")[0]) <= set(texts["train"])
    assert notes == ["corpus names no calibration text: it is 5.0% of the training documents"]


def test_held_out_documents_that_were_trained_on_are_noted(tmp_path):
    _, notes, _ = roles(tmp_path, heldout=f"{tmp_path}/train/0*.txt")
    (note,) = notes
    assert note.startswith("10 of 10 held-out documents stand in the train text too, word for word")


def test_the_key_of_texts_by_role_follows_each_and_no_other_corpus_changes(tmp_path):
    roles(tmp_path)
    names = {split: f"{tmp_path}/{split}/*.txt" for split in ("train", "calibration", "heldout")}
    first = build_corpus(names).fingerprint()
    (tmp_path / "calibration" / "00.txt").write_text("another")
    assert build_corpus(names).fingerprint() != first
    assert build_corpus(names["train"]) == build_corpus({"files": {"paths": [names["train"]]}})


def test_a_text_with_too_few_documents_is_named_by_its_role(tmp_path):
    for name, count in (("few", 3), ("none", 0)):
        (tmp_path / name).mkdir()
        for number in range(20):
            (tmp_path / name / f"{number}.txt").write_text("text" if number < count else " ")

    def complaint(**corpus) -> str:
        with pytest.raises(ValueError) as raised:
            Prepare.model_validate({"corpus": corpus, "tokenizer": {"train": 300}}).fingerprints()
        return str(raised.value)

    few, none = f"{tmp_path}/few/*.txt", f"{tmp_path}/none/*.txt"
    advice = "a .txt file is one document unless files' separator divides it"
    assert complaint(train=few, heldout=few) == (
        f"corpus.train is too small: 3 documents with text, two splits need 20; {advice}"
    )
    assert complaint(train=few, heldout=few, calibration=none) == (
        f"corpus.calibration is too small: 0 documents with text, it needs 1; {advice}"
    )


def test_a_recipe_with_three_texts_prunes_with_its_calibration_text_and_is_judged_on_the_held_out_one(tmp_path, monkeypatch):
    roles(tmp_path)
    corpus = {split: f"{tmp_path}/{split}/*.txt" for split in ("train", "calibration", "heldout")}
    model = {"checkpoint": str(models_zoo.save("llama", tmp_path / "zoo", vocab_size=300))}
    prune = {"method": "wanda", "sparsity": 0.5, "sequences": 8, "length": 16}
    stages = [{"prepare": {"corpus": corpus, "tokenizer": {"train": 300}}}, {"prune": prune}]
    recipe = parse_recipe({"name": "texts", "model": model, "evaluate": {"perplexity": {"length": 16}}, "stages": stages}, "")
    shop, made, seen = Workshop(tmp_path), {}, []
    monkeypatch.setattr(Prune, "batches", lambda *given, batches=Prune.batches: seen.append(batches(*given)) or seen[-1])
    for node in recipe.nodes:
        parents = {role: made[id] for role, id in node.parents.items()}
        made[node.id] = shop.make(node.name, node.stage.model_dump(mode="json", exclude_none=True), **parents)
    tokenizer = load_tokenizer(shop.path(made["prepare"]) / "tokenizer")
    text = tokenizer.decode(np.concatenate(seen[0]).flatten(), skip_special_tokens=True)
    assert letters_of(text) == set("hijklmn") and made["prune.perplexity"].metrics["perplexity"] > 0
