"""Heads: take whole attention heads, those that add least to the hidden states (after arXiv 1905.10650).

What a head adds is its columns of the output projection times what it attends to; its energy over the calibration data,
features taken one by one, ranks the heads of a block. A head's queries go with it, and keys and values that several
heads share go with the last of those. Masks only: the shapes stay.

Shapes: D = hidden features, H = heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar

from tasks.calibrate.method import BlockView
from tasks.calibrate.structured import Structured, Units

if TYPE_CHECKING:
    from tasks.calibrate.observe import InputStatistic
    from tasks.formats.pattern import Pattern
    from tasks.models.find.linears import Linear


class Heads(Structured):
    """No hyper-parameters. The sparsity is the share of heads in each block; feed-forward networks stay dense."""

    paper: ClassVar[str] = "Are Sixteen Heads Really Better than One? (arXiv 1905.10650)"

    def choices(self, pattern: Pattern, widths: Mapping[str, int], heads: int | None) -> dict[str, int]:
        return {"heads": heads} if heads else {}

    def admit(self, linears: Mapping[str, Linear], allocation: Mapping[str, float], pattern: Pattern) -> None:
        self.suit(pattern)

    def observer(self, linear: Linear) -> InputStatistic | None:
        from tasks.calibrate.observe import InputNorms

        return InputNorms(linear.shape[-1])

    def units(self, view: BlockView) -> Iterator[Units]:
        from tasks.models.find.structure import attention

        found = attention(view.linears, view.module, view.prefix)
        if found is None:
            raise ValueError(
                f"unsupported: the heads of block {view.index} are not found: it has no attention of queries, "
                "keys, values and output, or one with a norm over all heads"
            )
        weight_DI, norm_I = view.matrices[found.output].float(), view.statistics[found.output].norm_I
        energy_H = (weight_DI * norm_I).square().sum(0).view(found.heads, found.head_width).sum(1)
        yield Units(energy_H, found.output, tuple(found.rows), found.head_width)
