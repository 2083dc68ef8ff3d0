"""Weights that come to an engine: whole and in float32, or, under ZeRO-3, in pieces to a model that never had any.

A hollow model is cut up parameter by parameter before DeepSpeed sees it, so that no rank holds more than one of them whole,
and nothing but zeros. Then each rank takes its own pieces of what the weights are. Rank 0 sends nothing: every rank draws or
reads for itself, and all come to the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch
import torch.distributed as dist
from torch import nn

from cluster.deepspeed.zero import cutter

if TYPE_CHECKING:
    from tasks.train.birth import Piece, Weights
    from tasks.train.engine import Shard


class Cut(Protocol):
    """What an engine tells of itself here."""

    module: nn.Module
    device: torch.device
    rank: int
    sharded: bool
    _parameters: dict[str, nn.Parameter]
    _shapes: dict[str, torch.Size]
    _shards: dict[str, Shard]
    _exact: Exact

    def _whole(self, name: str) -> torch.Tensor | None: ...

    def load(self, values: Mapping[str, Mapping[str, torch.Tensor]], step: int) -> None: ...


class Exact:
    """In float32, what never trains and bfloat16 has not the bits for: whole, or under ZeRO-3 each rank's piece of it."""

    def __init__(self, engine: Cut) -> None:
        self._engine = engine
        self._pieces: dict[str, torch.Tensor] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._pieces

    def span(self, name: str) -> slice:
        """The elements that this rank answers for."""
        numel = self._engine._shapes[name].numel()
        if not self._engine.sharded:
            return slice(0, numel)
        size = self._engine._parameters[name].ds_tensor.ds_numel
        return slice(min(numel, self._engine.rank * size), min(numel, (self._engine.rank + 1) * size))

    def keep(self, name: str, piece: torch.Tensor) -> None:
        """Where some rank's piece needs it. A collective under ZeRO-3."""
        needed = torch.tensor(float(not torch.equal(piece, piece.bfloat16().float())), device=self._engine.device)
        if self._engine.sharded:
            dist.all_reduce(needed)
        if needed:
            self._pieces[name] = piece.to("cpu", torch.float32, copy=True)

    def read(self, name: str) -> torch.Tensor:
        """All of it. A collective under ZeRO-3."""
        shape = self._engine._shapes[name]
        whole = torch.zeros(shape.numel(), device=self._engine.device)
        whole[self.span(name)] = self._pieces[name].to(whole.device)
        if self._engine.sharded:
            dist.all_reduce(whole.view(torch.int32))  # bits, of which one rank has any
        return whole.view(shape)

    def write(self, name: str, whole: torch.Tensor) -> None:
        self._pieces[name] = whole.flatten()[self.span(name)].to("cpu", torch.float32, copy=True)

    def zero(self, name: str, where: torch.Tensor) -> None:
        if name in self._pieces:
            self._pieces[name].masked_fill_(where.flatten()[self.span(name)].cpu(), 0)


def cut(module: nn.Module, settings: dict, precision: str) -> dict[str, torch.Tensor]:
    """Cut a hollow model among the ranks, its buffers on the device. Gives the float32 values of parameters that have memory of
    their own, which a regime has added."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    init, own = cutter(settings, dtype), {}
    for name, parameter in module.named_parameters():
        if parameter.is_contiguous():
            own[name] = parameter.detach().float().flatten().clone()
        parameter.data = torch.zeros(parameter.shape, dtype=dtype, device=init.local_device)
        init._convert_to_deepspeed_param(parameter)
        parameter.partition()
    for buffer in module.buffers():
        buffer.data = buffer.data.to(init.local_device)
    return own


@torch.no_grad()
def fill(engine: Cut, weights: Weights, own: dict[str, torch.Tensor]) -> None:
    """Give a model that was :func:`cut` its weights, each rank its pieces."""
    for name, flat in own.items():
        _take(engine, name, partial(_part, flat))
    # One number without memory of its own looks like one that has it: what comes of it counts.
    missing = engine._parameters.keys() - {name for name, flat in own.items() if len(flat) > 1}
    buffers = dict(engine.module.named_buffers())
    for name, piece in weights:
        if name in buffers:
            buffers[name].copy_(piece(0, buffers[name].numel()).view_as(buffers[name]))
        elif name in missing:
            _take(engine, name, piece)
            missing.discard(name)
    assert missing <= own.keys(), f"no weights came for {sorted(missing - own.keys())[0]}"


def _part(flat: torch.Tensor, start: int, count: int) -> torch.Tensor:
    return flat[start : start + count]


def _take(engine: Cut, name: str, piece: Piece) -> None:
    parameter, shape = engine._parameters[name], engine._shapes[name]
    if name in engine._shards:
        shard = engine._shards[name]
        values, places = piece(shard.start, shard.numel), (shard.master, *shard.copies)
    else:
        span = engine._exact.span(name)
        values = piece(span.start, span.stop - span.start)
        places = (parameter.ds_tensor.view(-1)[: len(values)],)
        if parameter.dtype != torch.float32:
            engine._exact.keep(name, values)
    for place in places:
        place.copy_(values)
    if (whole := engine._whole(name)) is not None:  # DeepSpeed keeps small ones whole
        whole.copy_(piece(0, shape.numel()))


@torch.no_grad()
def unrounded(engine: Cut, originals: dict[str, torch.Tensor]) -> None:
    """Put the float32 values in the masters, which DeepSpeed made of rounded ones. What never trains has none: its own are
    kept aside, so that what no step changed is read as it came."""
    for name, values in originals.items():
        if name in engine._shards:
            dist.broadcast(values := values.to(engine.device), 0)
            originals[name] = values.flatten()
        else:
            engine._exact.keep(name, values.flatten()[engine._exact.span(name)])
    engine.load({name: {"master": originals[name]} for name in engine._shards}, step=0)
