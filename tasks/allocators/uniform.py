"""Uniform: every matrix gets the overall sparsity."""

from __future__ import annotations

from typing import ClassVar

from tasks.models.allocation import Allocator, Scan


class Uniform(Allocator):
    """No hyper-parameters."""

    paper: ClassVar[str] = "the same sparsity for every matrix"

    def allocate(self, scan: Scan, overall: float) -> dict[str, float]:
        return dict.fromkeys(scan.shapes, overall)
