"""CFSP (arXiv 2409.13199): take whole channels out of the feed-forward networks, coarse budget first, then fine scores.

The coarse part is the allocator of that name: blocks that turn their hidden states less keep fewer channels. The fine
part ranks a block's channels by what of its matrices' weight is theirs, times how strongly they fire. The public code
divides the weights by the sum over the axis it then averages over, so they cancel and only the firing counts
(``activation``); dividing over the channels instead lets them matter (``weights``).

Shapes: D = hidden features, F = channels; weights are [O, I].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field

from tasks.calibrate.method import BlockView
from tasks.calibrate.structured import Structured, Units
from tasks.formats.seeding import generator_for

if TYPE_CHECKING:
    from tasks.calibrate.observe import InputStatistic
    from tasks.formats.pattern import Pattern
    from tasks.models.find.linears import Linear
    from tasks.models.find.structure import FeedForward


class Cfsp(Structured):
    paper: ClassVar[str] = "CFSP (arXiv 2409.13199)"

    criterion: Literal["weights", "activation", "magnitude", "random"] = "weights"
    """What ranks the channels; ``magnitude`` and ``random`` are what the others have to beat."""
    multiple: int = Field(1, ge=1)
    """Kept widths are multiples of this."""
    shrink: bool = True
    """Make the matrices smaller; otherwise channels are masked and shapes stay."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of ``criterion: random``; the stage's unless given."""

    @property
    def allocator(self) -> str:
        return "cfsp"

    def choices(self, pattern: Pattern, widths: Mapping[str, int], heads: int | None) -> dict[str, int]:
        return {f"channels of {name}": width for name, width in widths.items() if name != "hidden_size"}

    def admit(self, linears: Mapping[str, Linear], allocation: Mapping[str, float], pattern: Pattern) -> None:
        from tasks.models.find.structure import by_block, feed_forward

        self.suit(pattern)
        for index, block in by_block(linears).items():
            if feed_forward(block) is None:
                raise ValueError(
                    f"unsupported: cfsp needs one feed-forward network of single matrices, without a norm over "
                    f"its channels; block {index} has none"
                )

    def observer(self, linear: Linear) -> InputStatistic | None:
        from tasks.calibrate.observe import InputNorms

        return InputNorms(linear.shape[-1])

    def units(self, view: BlockView) -> Iterator[Units]:
        from tasks.models.find.structure import feed_forward

        network = feed_forward(view.linears)
        assert network is not None, "admitted"
        yield Units(self._score(view, network), network.down, network.ups, multiple=self.multiple)

    def _score(self, view: BlockView, network: FeedForward) -> torch.Tensor:
        """float [F]."""
        down_DF, norm_F = view.matrices[network.down].float().abs(), view.statistics[network.down].norm_I
        ups_FD = [view.matrices[name].float().abs() for name in network.ups]
        if self.criterion == "random":
            generator = generator_for(self.seed, network.down)
            return torch.rand(network.width, generator=generator).to(down_DF.device)
        if self.criterion == "magnitude":
            return down_DF.sum(0) + sum(up_FD.sum(1) for up_FD in ups_FD)
        if self.criterion == "activation":
            return norm_F
        shares_DF = [_share(down_DF * norm_F), *(_share(up_FD.T) for up_FD in ups_FD)]
        return sum(share_DF.mean(0) for share_DF in shares_DF) * norm_F


def _share(weight_DF: torch.Tensor) -> torch.Tensor:
    """Each channel's part of what a hidden feature gives to or gets from all channels."""
    return weight_DF / weight_DF.sum(1, keepdim=True).clamp(min=1e-30)
