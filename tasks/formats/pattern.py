"""Sparsity patterns: which weights may live together.

Methods score, patterns select, so that 50 % means the same 50 % everywhere, to the last weight: a pattern prunes
``floor(sparsity * count)`` of a matrix's weights, or of the units it takes whole. Where rows compete within themselves
they share that number out and differ by one at most; where a matrix is solved a few columns at a time it is carried
across the column groups.

Shapes: O = output rows, I = input columns, G = the columns at hand. Masks are boolean, True = keep.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

import torch

from tasks.formats.selection import keep_highest, keep_highest_evenly, keep_highest_overall, quota

Scope = Literal["row", "layer"]


@dataclass(frozen=True)
class Pattern:
    """What a mask promises.

    ``kind`` is its name without numbers. ``width_multiple`` is the number that must divide the input width.
    ``dead_score`` is what a weight that is already dead scores: where weights are ranked one by one it goes before any
    live one, where scores are summed it adds none.
    """

    kind = ""
    dead_score = -math.inf

    @property
    def width_multiple(self) -> int:
        return 1

    def check(self, sparsity: float, width: int, rows: int | None = None) -> None:
        """Raise ValueError when the pattern cannot hold at this sparsity on a matrix of ``rows`` x ``width``."""
        if not 0 <= sparsity < 1:
            raise ValueError(f"sparsity must be in [0, 1), got {sparsity}")
        if width % self.width_multiple:
            raise ValueError(f"pattern {self} needs an input width divisible by {self.width_multiple}, got {width}")

    def units(self, rows: int, width: int) -> int:
        """How many pieces that live or die as one a matrix of ``rows`` x ``width`` has."""
        return rows * width

    def keep(self, score_OG: torch.Tensor, sparsity: float, first_column: int = 0) -> torch.Tensor:
        """Select the weights to keep among columns ``first_column ... first_column + G`` of a matrix."""
        raise NotImplementedError

    def holds(self, keep_OI: torch.Tensor, sparsity: float) -> bool:
        """Whether the mask of a whole matrix keeps this pattern at (at least) this sparsity."""
        raise NotImplementedError


@dataclass(frozen=True)
class Unstructured(Pattern):
    """Any weight may go. ``scope`` says what is ranked together: each output row, or the whole matrix."""

    kind = "unstructured"
    scope: Scope = "layer"

    def keep(self, score_OG: torch.Tensor, sparsity: float, first_column: int = 0) -> torch.Tensor:
        rows, columns = score_OG.shape
        before, after = (quota(rows * column, sparsity) for column in (first_column, first_column + columns))
        if self.scope == "row":
            return keep_highest_evenly(score_OG, after, before)
        return keep_highest_overall(score_OG, after - before)

    def holds(self, keep_OI: torch.Tensor, sparsity: float) -> bool:
        dead_O, pruned = (~keep_OI).sum(-1), quota(keep_OI.numel(), sparsity)
        fewest = pruned // len(keep_OI) if self.scope == "row" else 0
        return int(dead_O.sum()) >= pruned and int(dead_O.min()) >= fewest

    def __str__(self) -> str:
        return "unstructured" if self.scope == "layer" else "unstructured:row"


@dataclass(frozen=True)
class NM(Pattern):
    """Keep N of every M consecutive input columns."""

    kind = "N:M"
    n: int = 2
    m: int = 4

    def __post_init__(self) -> None:
        if not 0 < self.n < self.m:
            raise ValueError(f"N:M keeps N of M weights, so 0 < N < M is needed, got {self}")

    @property
    def width_multiple(self) -> int:
        return self.m

    @property
    def sparsity(self) -> float:
        return 1 - self.n / self.m

    def check(self, sparsity: float, width: int, rows: int | None = None) -> None:
        super().check(sparsity, width, rows)
        if abs(sparsity - self.sparsity) > 1e-6:
            raise ValueError(f"pattern {self} means sparsity {self.sparsity:g}, which contradicts {sparsity:g}")

    def keep(self, score_OG: torch.Tensor, sparsity: float, first_column: int = 0) -> torch.Tensor:
        assert first_column % self.m == 0 and score_OG.shape[1] % self.m == 0, "column groups must align with N:M"
        return keep_highest(score_OG.reshape(-1, self.m), self.m - self.n).reshape(score_OG.shape)

    def holds(self, keep_OI: torch.Tensor, sparsity: float) -> bool:
        return bool((keep_OI.reshape(-1, self.m).sum(-1) <= self.n).all())

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


@dataclass(frozen=True)
class Block(Pattern):
    """Square blocks of ``size`` x ``size`` weights live or die together; blocks are ranked over the matrix."""

    kind = "block"
    size: int = 16
    dead_score = 0.0

    @property
    def width_multiple(self) -> int:
        return self.size

    def check(self, sparsity: float, width: int, rows: int | None = None) -> None:
        super().check(sparsity, width, rows)
        if rows is not None and rows % self.size:
            raise ValueError(f"pattern {self} needs an output width divisible by {self.size}, got {rows}")

    def units(self, rows: int, width: int) -> int:
        return (rows // self.size) * (width // self.size)

    def _tiles(self, matrix_OI: torch.Tensor) -> torch.Tensor:
        rows, columns = matrix_OI.shape
        if rows % self.size or columns % self.size:
            raise ValueError(f"pattern {self} needs both sides divisible by {self.size}, got {rows} x {columns}")
        return matrix_OI.reshape(rows // self.size, self.size, columns // self.size, self.size)

    def keep(self, score_OG: torch.Tensor, sparsity: float, first_column: int = 0) -> torch.Tensor:
        tile_scores = self._tiles(score_OG).double().sum((1, 3))
        kept = Unstructured("layer").keep(tile_scores, sparsity, first_column // self.size)
        return kept.repeat_interleave(self.size, 0).repeat_interleave(self.size, 1)

    def holds(self, keep_OI: torch.Tensor, sparsity: float) -> bool:
        tiles = self._tiles(keep_OI)
        first = tiles[:, :1, :, :1]
        return bool((tiles == first).all()) and Unstructured("layer").holds(first.squeeze(3).squeeze(1), sparsity)

    def __str__(self) -> str:
        return f"block:{self.size}"


@dataclass(frozen=True)
class Channel(Pattern):
    """Whole input columns live or die together."""

    kind = "channel"
    dead_score = 0.0

    def units(self, rows: int, width: int) -> int:
        return width

    def keep(self, score_OG: torch.Tensor, sparsity: float, first_column: int = 0) -> torch.Tensor:
        kept = Unstructured("layer").keep(score_OG.double().sum(0, keepdim=True), sparsity, first_column)
        return kept.expand_as(score_OG).clone()

    def holds(self, keep_OI: torch.Tensor, sparsity: float) -> bool:
        return bool((keep_OI == keep_OI[:1]).all()) and Unstructured("layer").holds(keep_OI[:1], sparsity)

    def __str__(self) -> str:
        return "channel"


@dataclass(frozen=True)
class Neuron(Pattern):
    """Whole output rows live or die together. No quota can be carried over column groups: all columns decide at once."""

    kind = "neuron"
    dead_score = 0.0

    def units(self, rows: int, width: int) -> int:
        return rows

    def keep(self, score_OG: torch.Tensor, sparsity: float, first_column: int = 0) -> torch.Tensor:
        assert first_column == 0, "rows are decided once, over all columns"
        kept = Unstructured("layer").keep(score_OG.double().sum(1)[None], sparsity)
        return kept[0, :, None].expand_as(score_OG).clone()

    def holds(self, keep_OI: torch.Tensor, sparsity: float) -> bool:
        return bool((keep_OI == keep_OI[:, :1]).all()) and Unstructured("layer").holds(keep_OI[:, :1], sparsity)

    def __str__(self) -> str:
        return "neuron"


@dataclass(frozen=True)
class Group(Pattern):
    """Every ``rows`` consecutive output rows share the columns they keep; groups of rows differ by one column at most."""

    kind = "group"
    dead_score = 0.0
    rows: int = 4

    def check(self, sparsity: float, width: int, rows: int | None = None) -> None:
        super().check(sparsity, width, rows)
        if rows is not None and rows % self.rows:
            raise ValueError(f"pattern {self} needs an output width divisible by {self.rows}, got {rows}")

    def units(self, rows: int, width: int) -> int:
        return rows // self.rows * width

    def keep(self, score_OG: torch.Tensor, sparsity: float, first_column: int = 0) -> torch.Tensor:
        group_scores = score_OG.double().unflatten(0, (-1, self.rows)).sum(1)
        return Unstructured("row").keep(group_scores, sparsity, first_column).repeat_interleave(self.rows, 0)

    def holds(self, keep_OI: torch.Tensor, sparsity: float) -> bool:
        grouped = keep_OI.unflatten(0, (-1, self.rows))
        return bool((grouped == grouped[:, :1]).all()) and Unstructured("row").holds(grouped[:, 0], sparsity)

    def __str__(self) -> str:
        return f"group:{self.rows}"


CHOICES = "unstructured, unstructured:row, N:M (like 2:4), block:SIZE, group:ROWS, channel, neuron"
_PLAIN = {"unstructured:row": Unstructured("row"), "channel": Channel(), "neuron": Neuron()}


def parse_pattern(text: str, scope: str = "layer") -> Pattern:
    """'unstructured', '2:4', 'block:16', ... ``scope`` is the method's comparison group if unstructured; a ``global``
    one ranks within a matrix too, once the shares of the matrices are known."""
    if text == "unstructured":
        return Unstructured("row" if scope == "row" else "layer")
    if text in _PLAIN:
        return _PLAIN[text]
    if match := re.fullmatch(r"(block|group):([1-9][0-9]*)", text):
        return (Block if match[1] == "block" else Group)(int(match[2]))
    if match := re.fullmatch(r"(0|[1-9][0-9]*):(0|[1-9][0-9]*)", text):
        return NM(int(match[1]), int(match[2]))
    raise ValueError(f"no pattern {text!r}; choose one of {CHOICES}")
