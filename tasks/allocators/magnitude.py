"""Magnitude: each matrix loses as many weights as it has among the smallest of the whole model.

With magnitude pruning inside the matrices this is the global ranking of essential sparsity (arXiv 2306.03805), without
holding all weights at once: non-negative floats are ordered like their bits, so the threshold is found to the last bit
by counting twice, first the upper halves of the bits, then the lower halves of those that tie.
"""

from __future__ import annotations

from functools import reduce
from typing import ClassVar

import torch

from tasks.models.allocation import MOST, Allocator, Scan

_HALF = 16


class Magnitude(Allocator):
    """No hyper-parameters."""

    paper: ClassVar[str] = "essential sparsity (arXiv 2306.03805), global one-shot magnitude"

    def allocate(self, scan: Scan, sparsity: float) -> dict[str, float]:
        from tasks.formats.selection import quota

        left, upper = quota(sum(map(scan.size, scan.shapes)), sparsity), self._count(scan, None)
        most = {name: quota(scan.size(name), MOST) for name in scan.shapes}
        found, ranked = {}, list(scan.shapes)
        while ranked:  # what a matrix may not lose goes to the others, in a ranking without it
            dead = self._smallest(scan, {name: upper[name] for name in ranked}, left)
            ranked, full = [name for name in ranked if dead[name] <= most[name]], len(ranked)
            found |= {name: min(count, most[name]) for name, count in dead.items()}
            if len(ranked) == full:
                break
            left -= sum(most[name] for name in dead if name not in ranked)
        # The hair above the count outlasts the product with the size, which is rounded.
        return {name: (found[name] + 1e-7) / scan.size(name) if found[name] else 0.0 for name in scan.shapes}

    def _smallest(self, scan: Scan, upper: dict[str, torch.Tensor], left: int) -> dict[str, int]:
        """How many of the ``left`` smallest weights of some linears, counted by ``upper`` halves, are in each of them."""
        top, below = _reach(reduce(torch.add, upper.values()), left)
        lower = self._count(scan, top)
        bottom, under = _reach(reduce(torch.add, (lower[name] for name in upper)), left - below)
        ties, found = left - below - under, {}
        for name in upper:
            tied = min(ties, int(lower[name][bottom]))
            ties -= tied
            found[name] = int(upper[name][:top].sum() + lower[name][:bottom].sum()) + tied
        return found

    @staticmethod
    def _count(scan: Scan, top: int | None) -> dict[str, torch.Tensor]:
        """How many weights have each upper half, or with ``top`` as that half, each lower half; by linear."""
        counts = {name: torch.zeros(1 << _HALF, dtype=torch.int64) for name in scan.shapes}
        for view in scan.blocks():
            for name, linear in view.linears.items():
                for matrix in linear.matrices:
                    bits = view.matrices[matrix].float().abs().flatten().view(torch.int32).cpu()
                    part = bits >> _HALF if top is None else (bits[bits >> _HALF == top] & ((1 << _HALF) - 1))
                    counts[name] += torch.bincount(part, minlength=1 << _HALF)
        return counts


def _reach(counts: torch.Tensor, wanted: int) -> tuple[int, int]:
    """The bin in which the ``wanted``-th smallest lies, and how many lie in the bins below it."""
    running = counts.cumsum(0)
    place = min(int((running < wanted).sum()), len(counts) - 1)
    return place, int(running[place] - counts[place])
