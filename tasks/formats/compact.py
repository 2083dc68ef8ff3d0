"""Sparse tensors in few bytes: which entries live, and those that live. ``tasks/formats/read_sparse.py`` has the format.

Which entries live costs one bit each, or less where a pattern allows few arrangements: of the 16 that four entries have, 2:4
allows 6, so 24 groups fit into 64 bits where a mask takes 96. The smaller of the two is taken, and where neither is smaller
than the tensor itself, the tensor stays as it is. A mask that is given is what lives, zeros in it included, so it comes back
with the weights and is not stored a second time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from tasks.formats import read_sparse

GROUPS = (4, 8, 16)
MOST_PATTERNS = 255  # with all that eight entries have, a bit per entry is as short


@dataclass(frozen=True)
class Words:
    """How codes lie in a tensor of words: ``columns`` codes of ``bits`` bits to a row, and the code that stands for zero: one,
    or one for each row and group, by the name of the packed tensor that has them and itself."""

    bits: int
    columns: int
    fill: int | str
    zeros: torch.Tensor | None = None


@dataclass(frozen=True)
class Coded:
    """A tensor of the format: what its file's metadata say of it, and what is stored. ``exact`` is whether what lives is the
    mask that was given, to the bit."""

    entry: dict[str, Any]
    index: torch.Tensor
    values: torch.Tensor
    exact: bool

    @property
    def bytes(self) -> int:
        return self.index.nbytes + self.values.nbytes


def encode(
    plain: torch.Tensor, keep: torch.Tensor | None = None, words: Words | None = None, transposed: bool = False
) -> Coded | None:
    """A tensor in fewer bytes, or None where it stays as it is. ``keep`` is its mask, in the same view as its rows (those of
    the transpose where ``transposed``); ``words`` says how codes are packed in it."""
    if plain.dim() < 2 or not plain.numel():
        return None
    rows = plain.mT.contiguous() if transposed else plain
    entries = _codes(rows, words) if words else _raw(rows)
    live = (entries != (read_sparse.filled(vars(words), len(entries), words.zeros) if words else 0)).flatten()
    exact = keep is not None and keep.numel() == live.numel() and not bool((live & ~keep.flatten()).any())
    live = keep.flatten() if keep is not None and exact else live
    if int(live.sum()) * (words.bits if words else 8 * plain.dtype.itemsize) >= 8 * plain.nbytes:
        return None
    entry: dict[str, Any] = {"shape": list(plain.shape)} | ({"transposed": True} if transposed else {})
    values = entries.flatten()[live]
    if words is None:
        values = values.view(plain.dtype)
    else:
        entry |= {"bits": words.bits, "columns": words.columns, "fill": words.fill, "dtype": str(plain.dtype).split(".")[1]}
        values = read_sparse.pack(values[None], words.bits)[0]
    found, index = _index(live, entries.shape[-1])
    coded = Coded(entry | found, index, values, exact)
    return coded if coded.bytes < plain.nbytes and _same(coded, plain, words) else None


def _index(live: torch.Tensor, width: int) -> tuple[dict[str, Any], torch.Tensor]:
    """Which entries live, in the fewest bytes, and what the entry says of it."""
    best: tuple[dict[str, Any], torch.Tensor] = ({}, read_sparse.pack(live.to(torch.uint8)[None], 1)[0])
    for group in (size for size in GROUPS if width % size == 0):
        bits = (live.view(-1, group) * torch.tensor([1 << bit for bit in range(group)], dtype=torch.int32)).sum(1)
        patterns = bits.bincount(minlength=1 << group).nonzero()[:, 0]
        if len(patterns) > MOST_PATTERNS:
            continue
        numbers = torch.empty(1 << group, dtype=torch.int64).index_copy_(0, patterns, torch.arange(len(patterns)))[bits]
        base, digits = max(2, len(patterns)), 1
        while base ** (digits + 1) < 1 << 63:
            digits += 1
        numbers = torch.nn.functional.pad(numbers, (0, -len(numbers) % digits)).view(-1, digits)
        ranks = (numbers * torch.tensor([len(patterns) ** digit for digit in range(digits)])).sum(1)
        said: dict[str, Any] = {"group": group, "patterns": patterns.tolist(), "digits": digits}
        if ranks.nbytes + len(str(said)) < best[1].nbytes + len(str(best[0])):
            best = said, ranks
    return best


def _codes(packed: torch.Tensor, words: Words) -> torch.Tensor:
    """uint8 [rows, columns]: the codes in a tensor of words."""
    rows = packed.contiguous().view(torch.uint8).flatten(0, -2)
    padded = rows.shape[1] * 8 // words.bits  # codes of a row, if words held nothing else
    whole = rows.shape[1] * 8 == padded * words.bits
    parts = [rows.flatten()] if whole else list(rows)
    codes = [read_sparse.unpack(part, words.bits, len(part) * 8 // words.bits) for part in parts]
    return torch.cat(codes).view(len(rows), padded)[:, : words.columns]


def _raw(tensor: torch.Tensor) -> torch.Tensor:
    """The same bits as integers, so that only what is all zeros counts as dead: -0.0 is not."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.contiguous().view(kinds[tensor.dtype.itemsize])


def _same(coded: Coded, plain: torch.Tensor, words: Words | None) -> bool:
    """Whether reading gives the tensor back to the bit: padding that is not zero would be lost."""
    again = read_sparse.decode(coded.entry, coded.index, coded.values, words.zeros if words else None)
    return again.dtype == plain.dtype and torch.equal(_raw(again), _raw(plain))
