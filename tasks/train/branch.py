"""Branches: parameters of their own that live inside a linear, beside the weight they serve.

The weight keeps its name, its place and its mask, so whatever finds, holds and writes it goes on as before; the branch's
parameters are ``<linear>.<branch>.<name>`` and are no prunable matrices (``tasks.models.find.linears``). While the linear runs
it computes with what the branch makes of its weight, and at the end that is what is written back.

Shapes: O = output features, I = input features, R = rank; a stack of experts has one of each per expert.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import nn

from tasks.formats.mask import Mask
from tasks.formats.seeding import generator_for
from tasks.models.find.linears import Branch, Linear, decoder_blocks
from tasks.models.find.structure import block_index
from tasks.train.effective import substitute
from tasks.train.engine import Engine


class Tuned(Branch):
    """Root of the branches that change a weight. ``parts`` are the parameters that :meth:`onto` takes, in its order; with those
    in ``empty`` at zero the weight is as it was. What is added counts for ``share`` of itself: 1, but where it is probed."""

    parts: tuple[str, ...]
    empty: tuple[str, ...]
    share = 1.0

    def forward(self, stored: torch.Tensor) -> torch.Tensor:
        return self.onto(stored, *(self.get_parameter(part) for part in self.parts))

    def onto(self, stored: torch.Tensor, *parts: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class LowRank(Tuned):
    """Adds ``scale`` * up @ down to the weight, inside its mask. It starts at nothing: ``up`` is zero."""

    parts: tuple[str, ...] = ("up", "down")
    empty: tuple[str, ...] = ("up",)

    def __init__(self, linear: Linear, rank: int, scale: float, seed: int, mask: Mask | None) -> None:
        super().__init__()
        *experts, outputs, inputs = linear.shape
        draw = generator_for(seed, linear.name, "down")
        down_RI = (2 * torch.rand(*experts, rank, inputs, generator=draw) - 1) / inputs**0.5
        self.linear, self.scale = linear, scale
        self.down, self.up = nn.Parameter(down_RI), nn.Parameter(torch.zeros(*experts, outputs, rank))
        self.register_buffer("keep", None if mask is None else linear.stored(mask.keep), persistent=False)

    def onto(self, stored: torch.Tensor, *parts: torch.Tensor) -> torch.Tensor:
        up_OR, down_RI = parts
        added = self.linear.stored(self.share * self.scale * up_OR @ down_RI)
        return stored + (added if self.keep is None else added * self.keep)


def place(linear: Linear, branch: str) -> str:
    """The name of a linear's branch: a child of the module that owns its weight."""
    path, _, key = linear.name.rpartition(".")
    return f"{path}.{branch}" if key == "weight" else f"{path}.{branch}_{key}"


def by_block(model: nn.Module, linears: Mapping[str, Linear]) -> list[list[str]]:
    """The names of the linears of each decoder block, in order."""
    prefix, blocks = decoder_blocks(model)
    starts = [f"{prefix}.{index}." for index in range(len(blocks))]
    return [[name for name in linears if name.startswith(start)] for start in starts]


def depth(linears: Collection[Linear]) -> int:
    """How many decoder blocks have some of these."""
    return len({block_index(linear.name) for linear in linears})


def attach(model: nn.Module, name: str, branches: Mapping[str, Branch], linears: Mapping[str, Linear]) -> None:
    """Put a branch inside each of these linears, which from now on compute with what it makes of their weight."""
    for linear, branch in branches.items():
        path, _, child = place(linears[linear], name).rpartition(".")
        model.get_submodule(path).add_module(child, branch)
    around = {linear: linears[linear] for linear in branches}
    substitute(model, around, lambda stored: {linear: branches[linear](weight) for linear, weight in stored.items()})


def merge(engine: Engine, name: str, linears: Mapping[str, Linear]) -> None:
    """Write into each weight what its branch, where it has one, makes of it, and empty the branch: the model computes what it
    did. A collective."""
    modules = dict(engine.module.named_modules())
    for linear in linears.values():
        if (branch := modules.get(inside := place(linear, name))) is None:
            continue
        parts = [engine.read(f"{inside}.{part}") for part in branch.parts]
        engine.write(linear.name, branch.onto(engine.read(linear.name), *parts))
        for part in branch.empty:
            engine.write(f"{inside}.{part}", torch.zeros_like(parts[branch.parts.index(part)]))
