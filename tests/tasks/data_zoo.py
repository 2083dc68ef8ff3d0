"""Tiny data: text files a tokenizer learns in a blink, and token shards whose sequences can be counted by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tasks.data.batch import IGNORED, Batch
from tasks.data.tokens import Tokens, TokenWriter
from tests.tasks.models_zoo import VOCABULARY

NOUNS = ("wheat", "chaff", "basket", "river", "stone", "mill", "barn", "farmer")
VERBS = ("falls into", "is carried to", "rests beside", "was weighed at", "blows over")


def text(number: int, lines: int = 24) -> str:
    """A document of distinct, predictable lines, long enough for multiple choice."""
    rows = [
        f"The {NOUNS[(number + row) % 8]} {VERBS[(number * row) % 5]} the {NOUNS[(3 * row) % 8]} number {number * 31 + row}."
        for row in range(lines)
    ]
    return "\n".join(rows) + "\n"


def write_texts(directory: Path, count: int = 40) -> str:
    """``count`` documents as .txt files; the glob that finds them."""
    directory.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (directory / f"{number:03d}.txt").write_text(text(number))
    return str(directory / "*.txt")


def write_tokens(directory: Path, split: str, *shards: list[int] | np.ndarray) -> Tokens:
    """A split of the given shards."""
    directory.mkdir(parents=True, exist_ok=True)
    writer = TokenWriter(directory, split, VOCABULARY)
    for shard in shards:
        writer.add(shard)
        writer.flush()
    return Tokens(directory, split)


def write_tokenizer(directory: Path, holes: int = 0) -> Path:
    """One of 300 tokens; with ``holes`` its end-of-text id, 0 otherwise, lies that far behind the last of the others."""
    from tasks.data.tokenizer import END_OF_TEXT, train_tokenizer

    train_tokenizer((text(number) for number in range(8)), 300).save_pretrained(directory)
    if holes:
        content = json.loads((directory / "tokenizer.json").read_text())
        content["model"]["vocab"][END_OF_TEXT] = content["added_tokens"][0]["id"] = 299 + holes
        (directory / "tokenizer.json").write_text(json.dumps(content))
    return directory


def completions(monkeypatch, prompt: int) -> None:
    """From now on the first ``prompt`` tokens of every sequence that is read are a prompt: no model predicts them."""
    read = Tokens.batch

    def labelled(tokens: Tokens, indices, length: int) -> Batch:
        batch = read(tokens, indices, length)
        labels = batch.tokens.clone()
        labels[:, :prompt] = IGNORED
        return Batch(batch.tokens, labels)

    monkeypatch.setattr(Tokens, "batch", labelled)


def periodic(count: int, period: int = 7) -> np.ndarray:
    """Tokens that a model can learn to foretell: 0, 1, ..., period - 1, over and over."""
    return np.arange(count) % period


def write_heldout(directory: Path, texts: list[str]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps({"name": str(number), "text": content}) for number, content in enumerate(texts)]
    (directory / "heldout.jsonl").write_text("".join(f"{row}\n" for row in rows))


def write_sequence(directory: Path, length: int, tasks: tuple[str, ...] = ("first", "second")) -> Path:
    """A prepared sequence of tasks that contradict each other: the same tokens upwards, then downwards, and so on."""
    for number, task in enumerate(tasks):
        for split, count in (("train", 40), ("heldout", 8)):
            tokens = periodic(length * count)
            write_tokens(directory, f"{split}-{task}", tokens[::-1].copy() if number % 2 else tokens)
    (directory / "tasks.json").write_text(json.dumps(list(tasks)))
    return directory
