"""Rows of whole documents: how tasks are read, where plain text is cut wherever a sequence ends.

A document that is longer than a row is cut at its end, and left out where nothing that counts remains. Several share a row
where the model can keep them apart (``together``), each in the open row that it fills best; else each has one of its own, and
padding after it, which no token before it sees. Shards of plain text among them, other tasks of a sequence, are cut as ever.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tasks.data.tokens import COUNTED, MARKS, STARTS, Tokens

if TYPE_CHECKING:
    from tasks.data.batch import Batch

OPEN = 64  # rows that documents may still be put in
Piece = tuple[int, int, int]  # shard, from, to


@dataclass(frozen=True)
class Rows:
    """The documents of one split in rows of any length; which are in which row depends on the length alone."""

    tokens: Tokens
    together: bool
    _layouts: dict[int, list[list[Piece]]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def split(self) -> str:
        return self.tokens.split

    @property
    def total(self) -> int:
        return self.tokens.total

    def sequences(self, length: int) -> int:
        return len(self.layout(length))

    def layout(self, length: int) -> list[list[Piece]]:
        if length not in self._layouts:
            pieces = [piece for shard in range(len(self.tokens.shards)) for piece in self._pieces(shard, length)]
            if not pieces:
                raise ValueError(f"no document of split {self.split} has anything to learn in its first {length} tokens")
            self._layouts[length] = _filled(pieces, length) if self.together else [[piece] for piece in pieces]
        return self._layouts[length]

    def _pieces(self, shard: int, length: int) -> list[Piece]:
        size, marks = len(self.tokens.shards[shard]), self.tokens.marks[shard]
        if marks is None:
            return [(shard, start, start + length) for start in range(0, size - length + 1, length)]
        starts = np.flatnonzero(marks & STARTS)
        ends = np.minimum(np.append(starts[1:], size), starts + length)
        counted = np.append(0, np.cumsum(marks & COUNTED > 0))
        learned = counted[ends] > counted[starts + 1]  # the first token of a document is not predicted
        return [(shard, int(start), int(end)) for start, end in zip(starts[learned], ends[learned], strict=True)]

    def batch(self, indices: Iterable[int], length: int) -> Batch:
        import torch

        from tasks.data.batch import IGNORED, Batch

        chosen = [self.layout(length)[int(index)] for index in indices]
        tokens, documents = (np.zeros((len(chosen), length), np.int64) for _ in range(2))
        labels = np.full_like(tokens, IGNORED)
        for row, pieces in enumerate(chosen):
            place = 0
            for number, (shard, start, end) in enumerate(pieces, 1):
                here, marks = slice(place, place + end - start), self.tokens.marks[shard]
                tokens[row, here] = self.tokens.shards[shard][start:end]
                counts = np.ones(end - start, bool) if marks is None else marks[start:end] & COUNTED > 0
                labels[row, here] = np.where(counts, tokens[row, here], IGNORED)
                labels[row, place], documents[row, here] = IGNORED, number
                place += end - start
        return Batch(*map(torch.from_numpy, (tokens, labels, documents)))


def reading(directory: Path, split: str, together: bool) -> Tokens | Rows:
    """A split as a model is to read it: rows of whole documents where some are tasks, else sequences of plain text."""
    return Rows(Tokens(directory, split), together) if tasks_in(directory, split) else Tokens(directory, split)


def tasks_in(directory: Path, split: str) -> bool:
    return any(directory.glob(f"{MARKS}{split}-*.npy"))


def _filled(pieces: list[Piece], length: int) -> list[list[Piece]]:
    """Each piece in the open row that it leaves least room in."""
    rows: list[list[Piece]] = []
    room: dict[int, int] = {}  # of the open rows, by number
    for piece in pieces:
        size = piece[2] - piece[1]
        fits = [row for row, left in room.items() if left >= size]
        if fits:
            row = min(fits, key=lambda row: room[row])
        else:
            row = len(rows)
            rows.append([])
            room[row] = length
        rows[row].append(piece)
        room[row] -= size
        if not room[row]:
            del room[row]
        elif len(room) > OPEN:
            del room[min(room, key=lambda row: room[row])]
    return rows
