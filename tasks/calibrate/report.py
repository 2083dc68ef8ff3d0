"""The report of a walk: a row per block, and totals."""

from __future__ import annotations

from dataclasses import dataclass, field

NOTABLE = 0.001  # a sparsity that differs by less from the one asked for counts as that one


@dataclass(frozen=True)
class BlockReport:
    """``error``: squared change of the block's output over the output's squares; None without data.

    ``peak_bytes`` of memory were the most this process had held, see :mod:`tasks.models.memory`. ``unseen``: matrices that no
    token reached, solved as if all inputs were alike. ``notes``: what a method had to say of a matrix, such as the
    damping it needed. Of the ``weights`` in ``matrices`` that a sparsity was asked of, ``asked`` were to go and ``given`` are
    dead.
    """

    index: int
    depth: int
    sparsity: dict[str, float]
    error: float | None
    seconds: float
    peak_bytes: int
    unseen: list[str] = field(default_factory=list)
    notes: dict[str, dict[str, float]] = field(default_factory=dict)
    matrices: int = 0
    weights: int = 0
    asked: float = 0.0
    given: int = 0


@dataclass
class WalkReport:
    blocks: list[BlockReport] = field(default_factory=list)

    @property
    def sparsity(self) -> dict[str, float]:
        return {name: value for block in self.blocks for name, value in block.sparsity.items()}

    @property
    def unseen(self) -> list[str]:
        return [name for block in self.blocks for name in block.unseen]

    def total(self, name: str) -> float:
        """A count of the blocks, over all of them."""
        return sum(getattr(block, name) for block in self.blocks)

    def remarks(self, unreached: str) -> list[str]:
        """What people have to be told: matrices that were solved blindly, ``unreached`` says how, and a sparsity that is not
        the one asked for."""
        found, weights = [], self.total("weights")
        if self.unseen:
            found.append(
                f"{len(self.unseen)} of {self.total('matrices')} matrices got no calibration token and were "
                f"{unreached}; more sequences reach more of them"
            )
        # A weight a matrix is rounding; more than that is that whole units (heads, channels) do not add up to it.
        if abs(self.total("asked") - self.total("given")) > max(self.total("matrices"), NOTABLE * weights):
            asked, given = (self.total(name) / weights for name in ("asked", "given"))
            found.append(f"{asked:.2%} of {weights:,} weights were to go, and {given:.2%} are dead")
        return found

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
