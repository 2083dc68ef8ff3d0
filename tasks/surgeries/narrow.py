"""Narrow: a feed-forward width of its own for every block, where transformers' configs know one for all.

Shapes: D = hidden features, F = channels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, PositiveInt

from tasks.models.build.surgery import Surgery

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class Narrow(Surgery):
    paper: ClassVar[str] = "CFSP (arXiv 2409.13199)"
    undone: ClassVar[str] = (
        "Its feed-forward networks are narrower than their config says: channels of zeros fill them up here, so sizes and "
        "speeds below\nare those of Winnow's own artifact."
    )
    unpacked: ClassVar[str] = (
        "its feed-forward networks have different widths, and no other program loads such a model; prune with "
        "cfsp: {shrink: false} before quantizing"
    )

    widths: tuple[PositiveInt, ...] = Field(min_length=1)
    """Channels of each block, in order; a model that has its weights keeps the first ones."""

    def apply(self, model: PreTrainedModel) -> None:
        import torch
        from torch import nn

        from tasks.models.find.linears import find_linears
        from tasks.models.find.structure import feed_forwards

        linears = find_linears(model)
        networks = feed_forwards(linears)
        if len(networks) != len(self.widths):
            raise ValueError(f"narrow gives {len(self.widths)} widths for {len(networks)} blocks")
        for index, (network, width) in enumerate(zip(networks, self.widths, strict=True)):
            if width > network.width:
                raise ValueError(f"narrow gives block {index} {width} channels, and it has {network.width}")
            for name in (*network.ups, network.down):
                linear, module, axis = linears[name], model.get_submodule(name.rpartition(".")[0]), int(name == network.down)
                stored = linear.stored(linear.matrix(module.weight.data).narrow(axis, 0, width))
                module.weight = nn.Parameter(stored.clone(memory_format=torch.contiguous_format))
                if axis == 0 and module.bias is not None:
                    module.bias = nn.Parameter(module.bias.data[:width].clone())
                side = {("Linear", 0): "out_features", ("Linear", 1): "in_features", ("Conv1D", 0): "nf", ("Conv1D", 1): "nx"}
                setattr(module, side[type(module).__name__, axis], width)

    def undo(
        self, model: PreTrainedModel, before: PreTrainedModel, read: Callable[[str], Tensor]
    ) -> dict[str, Callable[[Tensor], Tensor | None]]:
        """Fill up with channels of zeros, which masks count as dead."""
        from tasks.models.find.linears import find_linears
        from tasks.models.find.structure import channel_axes, feed_forwards

        linears = find_linears(model)
        pairs = zip(feed_forwards(linears), feed_forwards(find_linears(before)), strict=True)
        return {
            name: partial(_fill, axis=axis, count=whole.width - narrowed.width)
            for narrowed, whole in pairs
            for name, axis in channel_axes(narrowed, linears).items()
        }


def _fill(values: Tensor, axis: int, count: int) -> Tensor:
    import torch

    shape = list(values.shape)
    shape[axis] = count
    return torch.cat([values, values.new_zeros(shape)], axis)
