"""Uniform: every matrix gets the model's sparsity."""

from __future__ import annotations

from typing import ClassVar

from tasks.models.allocation import Allocator, Scan


class Uniform(Allocator):
    """No hyper-parameters."""

    paper: ClassVar[str] = "the same sparsity for every matrix"

    def allocate(self, scan: Scan, sparsity: float) -> dict[str, float]:
        return dict.fromkeys(scan.shapes, sparsity)
