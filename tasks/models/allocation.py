"""How a model's sparsity is allocated to its matrices.

An allocator sees every prunable matrix and answers with a sparsity for each, such that the model as a whole has the
sparsity that was asked for. Its answer, an allocation, is a sparsity by name that people can read, edit and give back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from tasks.methods import Method
from tasks.models.find.structure import block_index

if TYPE_CHECKING:
    from tasks.calibrate.method import BlockView
    from tasks.calibrate.observe import InputStatistic
    from tasks.models.find.linears import Linear

    Observe = Callable[[Linear], InputStatistic | None]

MOST = 0.99  # no matrix is emptied, however unimportant it looks


@dataclass(frozen=True)
class Scan:
    """What an allocator may look at. ``shapes`` are [out, in], or [experts, out, in] for a fused stack, by name.

    ``look`` opens the dense blocks one after another (see :mod:`tasks.calibrate.scan`); nothing is read before an
    allocator asks.
    """

    shapes: Mapping[str, tuple[int, ...]]
    look: Callable[[Observe], Iterator[BlockView]] | None = None

    def size(self, name: str) -> int:
        """Weights of one linear."""
        return prod(self.shapes[name])

    def blocks(self, observer: Observe = lambda linear: None) -> Iterator[BlockView]:
        """The dense blocks as a method sees them, with what ``observer`` makes of each linear's inputs."""
        if self.look is None:
            raise ValueError("this allocator reads the model, and there is none")
        return self.look(observer)


class Allocator(Method):
    """Root of the allocators."""

    def allocate(self, scan: Scan, sparsity: float) -> dict[str, float]:
        """A sparsity in [0, 1) for every linear; their mean over all weights is ``sparsity``."""
        raise NotImplementedError


def spread_out(scan: Scan, sparsity: float, offsets: Mapping[int, float], lowest: float = 0.0) -> dict[str, float]:
    """``sparsity`` plus each block's offset, as it is for all its linears.

    The mean offset over all weights is taken off first. Where a sparsity would leave [``lowest``, 0.99] all offsets
    shrink by one factor, so that the total stays exact and the order of the blocks too.
    """
    sizes = dict.fromkeys(offsets, 0)
    for name in scan.shapes:
        sizes[block_index(name)] += scan.size(name)
    mean = sum(offsets[block] * sizes[block] for block in offsets) / sum(sizes.values())
    centred = {block: offset - mean for block, offset in offsets.items()}
    rooms = [(MOST if offset > 0 else lowest) - sparsity for offset in centred.values()]
    fits = [room / offset for offset, room in zip(centred.values(), rooms, strict=True) if offset]
    factor = max(0.0, min([1.0, *fits]))
    return {name: sparsity + factor * centred[block_index(name)] for name in scan.shapes}
