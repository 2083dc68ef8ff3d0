"""Which matrices of a block belong together: a feed-forward network's and an attention's, told by their shapes.

Found as linears are, by structure and not by name. A feed-forward network is two or three matrices of one module of
which the last undoes the widening of the others; an attention is a module with heads whose last matrix reads them.
Where a norm joins its channels, or its heads, none can be taken for itself, and it counts as not found.

Shapes: D = hidden features, F = channels of a feed-forward network, H = heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from tasks.models.find.linears import Linear


@dataclass(frozen=True)
class FeedForward:
    """Channel f is row f of every matrix in ``ups`` [F, D] and column f of ``down`` [D, F]."""

    ups: tuple[str, ...]
    down: str
    width: int


@dataclass(frozen=True)
class Attention:
    """Head h is ``head_width`` columns of ``output`` and as many rows of each matrix in ``rows``, whose heads (the keys'
    and values' may be fewer) are given beside their names."""

    output: str
    rows: dict[str, int]
    heads: int
    head_width: int


def block_index(name: str) -> int:
    """The block a parameter is in: the first number in its name."""
    return next(int(part) for part in name.split(".") if part.isdecimal())


def by_block(linears: Mapping[str, Linear]) -> dict[int, dict[str, Linear]]:
    """The linears of each block."""
    blocks: dict[int, dict[str, Linear]] = {}
    for name, linear in linears.items():
        blocks.setdefault(block_index(name), {})[name] = linear
    return blocks


def feed_forward(linears: Mapping[str, Linear]) -> FeedForward | None:
    """The one feed-forward network of a block; None where it has none, several, fused experts, or a norm over channels."""
    found = []
    for group in _siblings(linears):
        *ups, down = group.values()
        fits = all(len(linear.shape) == 2 and linear.shape == down.shape[::-1] for linear in ups)
        if len(group) in (2, 3) and fits and down.shape[-1] not in down.vectors:
            found.append(FeedForward(tuple(linear.name for linear in ups), down.name, down.shape[1]))
    whole = all(len(linear.shape) == 2 for linear in linears.values())
    return found[0] if len(found) == 1 and whole else None


def feed_forwards(linears: Mapping[str, Linear]) -> list[FeedForward]:
    """Those of all blocks, in order; refused where one has none."""
    found = [feed_forward(block) for _, block in sorted(by_block(linears).items())]
    if None in found:
        raise ValueError(f"unsupported: block {found.index(None)} has not one feed-forward network of single matrices")
    return found


def channel_axes(network: FeedForward, linears: Mapping[str, Linear]) -> dict[str, int]:
    """The axis the channels are on in each stored tensor of a network, biases included."""
    axes = {name: int(name == network.down) ^ linears[name].transposed for name in (*network.ups, network.down)}
    return axes | {f"{name.rpartition('.')[0]}.bias": 0 for name in network.ups}


def attention(linears: Mapping[str, Linear], block: nn.Module, prefix: str) -> Attention | None:
    """The attention of a block: queries, keys and values, in one matrix or three, and an output, with no norm over several
    heads; None where it has another. ``prefix`` is what the names of the block's parameters begin with."""
    for path, module in block.named_modules():
        width = getattr(module, "head_dim", None)
        own = {name: linear for name, linear in linears.items() if name.startswith(f"{prefix}{path}.")}
        plain = len(own) in (2, 4) and all(len(linear.shape) == 2 for linear in own.values())
        if not (path and isinstance(width, int) and plain):
            continue
        *inner, output = own.values()
        heads = output.shape[1] // width
        # Fused queries, keys and values are left alone: how their rows are laid out differs between architectures.
        rows = {linear.name: linear.shape[0] // width for linear in inner if linear.shape[0] <= output.shape[1]}
        whole = all(linear.shape[0] % width == 0 for linear in inner) and output.shape[1] == heads * width
        joined = any(size > width and size != heads for size in output.vectors)  # a number a head joins none
        if whole and not joined and all(count and heads % count == 0 for count in rows.values()):
            return Attention(output.name, rows, heads, width)
    return None


def _siblings(linears: Mapping[str, Linear]) -> Iterator[dict[str, Linear]]:
    """The matrices of modules that lie in one module."""
    groups: dict[str, dict[str, Linear]] = {}
    for name, linear in linears.items():
        groups.setdefault(".".join(name.split(".")[:-2]), {})[name] = linear
    yield from groups.values()
