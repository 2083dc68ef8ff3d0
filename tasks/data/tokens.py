"""Packed token shards: what the prepare stage writes and every other stage reads.

A data directory holds, per split (train, calibration, heldout), flat ``<split>-00000.npy`` files of token ids with an
end-of-text id after every document, and ``documents.jsonl`` with the held-out texts. Which sequence is seen at which
step is a pure function of (seed, step): ranks take slices of the same global batch.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from tasks.data.batch import Batch

SHARD_TOKENS = 1 << 26
MARKS = "marks-"  # what the files begin with that say, of each token of a shard of tasks:
COUNTED, STARTS = 1, 2  # a model learns to say it; a document begins with it
TASKS = "tasks.json"  # names of the tasks of a sequence of corpora, in order


class TokenWriter:
    """Appends documents of one split to packed shards."""

    def __init__(self, directory: Path, split: str, vocabulary: int) -> None:
        self.directory, self.split = directory, split
        self.dtype = np.uint16 if vocabulary <= 1 << 16 else np.uint32
        self.pending: list[np.ndarray] = []
        self.marks: list[np.ndarray] = []
        self.waiting = self.shards = self.total = self.documents = 0
        self.counts = np.zeros(vocabulary, np.int64)

    def add(self, tokens: list[int], counted: list[bool] | None = None) -> None:
        """A document; of a task ``counted`` says which tokens a model learns. A split is all tasks or all plain text."""
        piece = np.asarray(tokens, self.dtype)
        self.pending.append(piece)
        if counted is not None:
            marks = np.asarray(counted, np.uint8) * np.uint8(COUNTED)
            marks[0] |= STARTS
            self.marks.append(marks)
        self.waiting += len(piece)
        self.total += len(piece)
        self.documents += 1
        self.counts += np.bincount(piece, minlength=len(self.counts))
        if self.waiting >= SHARD_TOKENS:
            self.flush()

    def flush(self) -> None:
        if self.pending:
            name = f"{self.split}-{self.shards:05d}.npy"
            np.save(self.directory / name, np.concatenate(self.pending))
            if self.marks:
                np.save(self.directory / f"{MARKS}{name}", np.concatenate(self.marks))
            self.pending, self.marks, self.waiting, self.shards = [], [], 0, self.shards + 1


class Packed:
    """Token ids in shards; sequences are cut inside a shard, its tail dropped."""

    shards: list[np.ndarray]

    @property
    def total(self) -> int:
        return sum(len(shard) for shard in self.shards)

    def sequences(self, length: int) -> int:
        """How many non-overlapping sequences of ``length`` the split holds."""
        return sum(len(shard) // length for shard in self.shards)

    def sequence(self, index: int, length: int) -> np.ndarray:
        """int64 [length]: the index-th non-overlapping sequence."""
        for shard in self.shards:
            here = len(shard) // length
            if index < here:
                return shard[index * length : (index + 1) * length].astype(np.int64)
            index -= here
        raise IndexError(index)

    def batch(self, indices: Iterable[int], length: int) -> Batch:
        """These sequences, every token of which counts."""
        import torch

        from tasks.data.batch import Batch

        return Batch(torch.from_numpy(np.stack([self.sequence(int(index), length) for index in indices])))


@dataclass(frozen=True)
class Tokens(Packed):
    """All tokens of one split, memory-mapped."""

    directory: Path
    split: str

    @cached_property
    def shards(self) -> list[np.ndarray]:
        return [np.load(file, mmap_mode="r") for file in self._files]

    @cached_property
    def marks(self) -> list[np.ndarray | None]:
        """Of each shard of tasks; None of one of plain text."""
        files = [file.with_name(f"{MARKS}{file.name}") for file in self._files]
        return [np.load(file, mmap_mode="r") if file.exists() else None for file in files]

    @property
    def _files(self) -> list[Path]:
        return sorted(self.directory.glob(f"{self.split}-*.npy"))


class Readable(Protocol):
    """Text as sequences of any length: packed, or rows of whole documents (tasks/data/rows.py)."""

    def sequences(self, length: int) -> int: ...

    def batch(self, indices: Iterable[int], length: int) -> Batch: ...


class Split(Readable, Protocol):
    """One that was prepared, of so many tokens in all."""

    @property
    def split(self) -> str: ...

    @property
    def total(self) -> int: ...


@dataclass(frozen=True)
class Sampler:
    """Global batches of ``batch`` sequences of ``length`` tokens; step -> sequence numbers, without repetition in an epoch."""

    tokens: Split
    length: int
    batch: int
    seed: int
    _orders: dict[int, np.ndarray] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.tokens.sequences(self.length) < 1:
            raise ValueError(
                f"corpus is too small: split {self.tokens.split} has {self.tokens.total} tokens, "
                f"less than one sequence of {self.length}"
            )

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            self._orders.clear()
            count = self.tokens.sequences(self.length)
            self._orders[epoch] = np.random.default_rng([self.seed, epoch]).permutation(count)
        return self._orders[epoch]

    def numbers(self, step: int) -> list[int]:
        """The sequence numbers of the global batch of one step."""
        count = self.tokens.sequences(self.length)
        positions = range(step * self.batch, (step + 1) * self.batch)
        return [int(self._order(position // count)[position % count]) for position in positions]

    def at(self, step: int, rank: int = 0, ranks: int = 1) -> Batch:
        """This rank's slice of the global batch: ``batch`` / ranks sequences."""
        local = self.batch // ranks
        return self.tokens.batch(self.numbers(step)[rank * local : (rank + 1) * local], self.length)


Progress = Callable[[int, int, str], None]


def heldout_windows(directory: Path, length: int, tokens: int, batch: int, progress: Progress) -> Iterator[Batch]:
    """The held-out split's first windows of ``length`` tokens, ``batch`` at a time, at most ``tokens`` tokens in all."""
    yield from windows(Tokens(directory, "heldout"), "the held-out split", length, length, tokens, batch, progress)


def windows(
    text: Readable, name: str, length: int, stride: int, tokens: int | None, batch: int, progress: Progress
) -> Iterator[Batch]:
    """Windows of ``length`` tokens that begin ``stride`` tokens apart, ``batch`` at a time; at most ``tokens`` tokens in all,
    those that are predicted where windows overlap.

    Where windows overlap, a token is predicted once, with as much before it as the window has. The tail of a shard that
    fills no window is left out. ``name`` is what an error calls the text.
    """
    if stride != length and not isinstance(text, Packed):
        raise ValueError(f"{name} is of tasks, which are judged one by one; leave stride out")
    starts = _starts(text, length, stride, tokens) if stride != length and isinstance(text, Packed) else []
    count = len(starts) or min(text.sequences(length), sys.maxsize if tokens is None else tokens // length)
    if count == 0:
        raise ValueError(f"corpus is too small: {name} has less than one window of {length} tokens")
    for start in range(0, count, batch):
        numbers = range(start, min(start + batch, count))
        chosen = starts[numbers.start : numbers.stop]
        overlapping = chosen and isinstance(text, Packed)
        yield _overlapping(text, chosen, length, stride) if overlapping else text.batch(numbers, length)
        progress(start + len(numbers), count, "windows")


def _starts(text: Packed, length: int, stride: int, tokens: int | None) -> list[tuple[int, int]]:
    """(shard, place in it) of every window, as far as no more than ``tokens`` are predicted: all but the first of a shard's
    first window, and ``stride`` of each that follows."""
    starts = [
        (number, start) for number, shard in enumerate(text.shards) for start in range(0, len(shard) - length + 1, stride)
    ]
    predicted = np.cumsum([stride if start else length - 1 for _, start in starts])
    return starts if tokens is None else starts[: int(np.searchsorted(predicted, tokens, side="right"))]


def _overlapping(text: Packed, starts: list[tuple[int, int]], length: int, stride: int) -> Batch:
    import torch

    from tasks.data.batch import IGNORED, Batch

    rows = np.stack([text.shards[shard][start : start + length].astype(np.int64) for shard, start in starts])
    labels = rows.copy()
    for row, (_, start) in zip(labels, starts, strict=True):
        row[: length - stride if start else 0] = IGNORED
    return Batch(torch.from_numpy(rows), torch.from_numpy(labels))


def heldout_documents(directory: Path) -> Iterator[dict[str, str]]:
    """{"name", "text"} of every held-out document."""
    with (directory / "heldout.jsonl").open() as lines:
        for line in lines:
            yield json.loads(line)


def calibration_batches(directory: Path, sequences: int, length: int, batch: int, seed: int) -> Iterator[Batch]:
    """``sequences`` calibration sequences, drawn without repetition, ``batch`` at a time."""
    tokens = Tokens(directory, "calibration")
    available = tokens.sequences(length)
    if available < sequences:
        raise ValueError(
            f"corpus is too small: calibration wants {sequences} sequences of {length} tokens, its split holds {available}"
        )
    chosen = np.random.default_rng([seed, 1]).permutation(available)[:sequences]
    for start in range(0, sequences, batch):
        yield tokens.batch(chosen[start : start + batch], length)
