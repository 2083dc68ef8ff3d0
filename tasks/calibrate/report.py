"""What a walk tells of itself: a row per block, and the whole in scalars."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class BlockReport:
    """``error``: squared change of the block's output over the output's squares; None without data.

    ``peak_bytes`` of memory were the most this process ever held; on a GPU, the device's. ``unseen``: matrices that no
    token reached, solved as if all inputs were alike. ``notes``: what a method had to say of a matrix, such as the
    damping it needed.
    """

    index: int
    depth: int
    sparsity: dict[str, float]
    error: float | None
    seconds: float
    peak_bytes: int
    unseen: list[str] = field(default_factory=list)
    notes: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass
class WalkReport:
    blocks: list[BlockReport] = field(default_factory=list)

    @property
    def sparsity(self) -> dict[str, float]:
        return {name: value for block in self.blocks for name, value in block.sparsity.items()}

    @property
    def unseen(self) -> list[str]:
        return [name for block in self.blocks for name in block.unseen]

    @property
    def metrics(self) -> dict[str, float]:
        """The walk in scalars."""
        errors = [block.error for block in self.blocks if block.error is not None]
        return {
            "walk/seconds": sum(block.seconds for block in self.blocks),
            "walk/peak_bytes": float(max((block.peak_bytes for block in self.blocks), default=0)),
            "walk/unseen": float(len(self.unseen)),
            **({"walk/mean_error": sum(errors) / len(errors)} if errors else {}),
        }
