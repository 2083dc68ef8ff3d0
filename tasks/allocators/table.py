"""Table: an allocation by hand, or that of another allocator after it was edited.

A key is a regular expression; the first that matches somewhere in a linear's name gives its sparsity. What an allocator
wrote into ``report/allocation.yaml`` can be given here, one key per linear.
"""

from __future__ import annotations

import re
from typing import ClassVar

from pydantic import Field, field_validator

from tasks.models.allocation import Allocator, Scan


class Table(Allocator):
    """Its sparsities are taken as they are: the model's is what they come to."""

    paper: ClassVar[str] = "an explicit table"

    sparsities: dict[str, float] = Field(default_factory=dict)
    """Sparsity by regular expression; the first that matches in a matrix's name counts, and without a match the model's."""

    @field_validator("sparsities")
    @classmethod
    def _sane(cls, sparsities: dict[str, float]) -> dict[str, float]:
        for key, sparsity in sparsities.items():
            if not 0 <= sparsity < 1:
                raise ValueError(f"the sparsity of {key!r} must be in [0, 1), got {sparsity:g}")
            try:
                re.compile(key)
            except re.error as error:
                raise ValueError(f"{key!r} is no regular expression: {error}") from None
        return sparsities

    def allocate(self, scan: Scan, sparsity: float) -> dict[str, float]:
        used, found = set(), {}
        for name in scan.shapes:
            key = next((key for key in self.sparsities if re.search(key, name)), None)
            used.add(key)
            found[name] = sparsity if key is None else self.sparsities[key]
        if idle := [key for key in self.sparsities if key not in used]:
            first = next(iter(found))
            raise ValueError(f"table.sparsities: {idle[0]!r} matches no linear first; linears are named like {first}")
        return found
