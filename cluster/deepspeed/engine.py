"""DeepSpeed ZeRO 0-3 behind the same small interface as one plain process: read, grad, hold, restart, load, step.

Masking happens on the gradient. From ``hold`` on dead weights have zero value and zero moments, and before every update
this rank multiplies its own piece of the reduced gradient by its piece of the mask. AdamW then moves dead weights by
exactly zero, and the copies that DeepSpeed gathers afterwards are masked too although no mask was sent. (A mask set
once through DeepSpeed's own calls is gone after the next step.)

Norm and clipping are done here as well, over the masked gradient, because DeepSpeed's differ by stage: at stage 0 a NaN
poisons the weights, elsewhere the step is silently skipped and the norm reported as inf or -1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn

from cluster.deepspeed.born import Exact, cut, fill, unrounded
from cluster.deepspeed.gradients import mask, norms
from cluster.deepspeed.rank import join
from cluster.deepspeed.zero import LAYOUTS, compiled_in, configuration, initialize, quiet
from tasks.train.engine import NONE, Shard, moments_of

if TYPE_CHECKING:
    from tasks.train.birth import Weights


class DeepSpeedEngine:
    """``optimizer`` is a torch optimizer over ``module``; ``accumulation`` is the number of micro-batches per step. ``weights``
    are those of a hollow module, for stage 3.

    Joins the process group that exists, else the one torchrun's variables describe, else makes one of a single rank.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        gradient_clipping: float = 0.0,
        device: str | torch.device = "cpu",
        precision: str = "fp32",
        zero_stage: int = 1,
        accumulation: int = 1,
        weights: Weights | None = None,
        offload: bool = False,
    ) -> None:
        settings = configuration(zero_stage, precision, accumulation, device, bool(compiled_in(module)), offload)
        join(device)
        self.module, self.rank, self.ranks = module, dist.get_rank(), dist.get_world_size()
        self._optimizer, self._clipping, self._stage = optimizer, gradient_clipping, zero_stage
        self.sharded, self._offload = zero_stage == 3, offload
        self._accumulation, self._micro_batches = accumulation, 0
        self._parameters = dict(module.named_parameters())
        self._shapes = {name: parameter.shape for name, parameter in self._parameters.items()}
        # DeepSpeed would round the weights to bfloat16 and make the float32 masters from that
        rounded = precision == "bf16" and weights is None
        originals = {name: p.detach() for name, p in self._parameters.items()} if rounded else {}
        own = cut(module, settings, precision) if weights is not None else {}
        self._engine = initialize(module, optimizer, settings)
        self.device = torch.device(self._engine.device)
        self._layout = LAYOUTS[zero_stage](self._engine.optimizer, optimizer, self.rank)
        for values in self._layout.updated:  # AdamW makes its state in the first step: too late for a mask or a load
            zeros = {moment: torch.zeros_like(values, requires_grad=False) for moment in moments_of(optimizer)}
            optimizer.state[values] = {"step": torch.zeros((), device=values.device), **zeros}
        trainable = {name: parameter for name, parameter in self._parameters.items() if parameter.requires_grad}
        self._shards: dict[str, Shard] = {name: self._layout.shard(value) for name, value in trainable.items()}
        self._held: dict[str, torch.Tensor] = {}
        self._focused: dict[str, torch.Tensor] = {}
        self._still: set[str] = set()
        self._exact = Exact(self)
        if weights is not None:
            fill(self, weights, own)
        elif originals:
            unrounded(self, originals)

    def forward(self, *args, **kwargs):
        return self._engine(*args, **kwargs)

    def backward(self, loss: torch.Tensor) -> None:
        self._micro_batches += 1
        self._engine.set_gradient_accumulation_boundary(self._micro_batches == self._accumulation)
        self._engine.backward(loss, scale_wrt_gas=False)

    @torch.no_grad()
    def step(self, learning_rate: float) -> float:
        assert self._micro_batches == self._accumulation, "a step needs every micro-batch it was promised"
        self._micro_batches = 0
        gradients = []
        for name, shard in self._shards.items():
            gradient = self._layout.gradient(self._parameters[name], shard)
            if gradient is not None and shard.numel:
                for masks in (self._held, self._focused):
                    mask(gradient, masks[name]) if name in masks else None
                gradients.append(gradient.zero_() if name in self._still else gradient)
        norm = self._norm(gradients)
        if math.isfinite(norm):
            if 0 < self._clipping < norm:
                torch._foreach_mul_(gradients, self._clipping / (norm + 1e-6))
            for group in self._optimizer.param_groups:
                group["lr"] = learning_rate
            with self._standing_still():
                self._engine.step()
        else:
            self._discard(gradients)
        self._layout.forget() if self._offload else None
        return norm

    def read(self, name: str) -> torch.Tensor:
        if name in self._shards:
            return self._gathered(name, self._shards[name].master)
        if name in self._exact:
            return self._exact.read(name)
        with self._frozen(name) as whole:
            return whole.to(torch.float32, copy=True)

    @torch.no_grad()
    def write(self, name: str, weight: torch.Tensor) -> None:
        if name not in self._shards:
            with self._frozen(name) as whole:
                whole.copy_(weight)
                if whole.dtype != weight.dtype:
                    self._exact.write(name, weight)
            return
        shard, flat = self._shards[name], weight.to(self.device).flatten()
        for tensor in (shard.master, *shard.copies):
            tensor.copy_(flat[shard.start : shard.start + shard.numel])
        if (whole := self._whole(name)) is not None:
            whole.copy_(flat)

    def grad(self, name: str) -> torch.Tensor:
        if name not in self._shards or name in self._still:
            return torch.zeros(self._shapes[name], device=self.device)
        return self._gathered(name, self._layout.gradient(self._parameters[name], self._shards[name]))

    def hold(self, name: str, keep: torch.Tensor) -> None:
        keep = keep.to(self.device, torch.bool)
        if name in self._shards:
            self._held[name] = self._piece(name, keep)
        self.restart(name, ~keep)

    def release(self, name: str) -> None:
        self._held.pop(name, None)

    def freeze(self, names: Iterable[str]) -> None:
        self._still = set(names) & self._shards.keys()

    @contextmanager
    def _standing_still(self) -> Iterator[None]:
        """Undo what the optimizer does to frozen parameters, before DeepSpeed copies it on: they lie in one tensor with
        others, and without a gradient would still decay and go on by their moments."""
        shards = [self._shards[name] for name in self._still]
        pieces = [piece for shard in shards for piece in (shard.master, *shard.moments.values())]
        before = [piece.clone() for piece in pieces]
        undo = self._optimizer.register_step_post_hook(lambda *_: torch._foreach_copy_(pieces, before) if pieces else None)
        try:
            yield
        finally:
            undo.remove()

    def focus(self, name: str, keep: torch.Tensor | None) -> None:
        self._focused.pop(name, None)
        if keep is not None and name in self._shards:
            self._focused[name] = self._piece(name, keep.to(self.device))

    def _piece(self, name: str, keep: torch.Tensor) -> torch.Tensor:
        """A byte per weight of this rank's piece, where its master is; its product is 3 times faster than bool's."""
        shard = self._shards[name]
        return keep.flatten()[shard.start : shard.start + shard.numel].to(shard.master.device, torch.uint8)

    @torch.no_grad()
    def restart(self, name: str, grown: torch.Tensor, moments: Mapping[str, torch.Tensor] = NONE) -> None:
        grown = grown.to(self.device, torch.bool)
        if name not in self._shards:
            with self._frozen(name) as whole:
                whole.masked_fill_(grown, 0)
            self._exact.zero(name, grown)
            return
        shard, grown = self._shards[name], grown.flatten()
        own = slice(shard.start, shard.start + shard.numel)
        for values in (shard.master, *shard.moments.values(), *shard.copies):
            values.masked_fill_(grown[own].to(values.device), 0)
        for moment, values in moments.items():
            kept, born = shard.moments[moment], grown[own].to(shard.master.device)
            kept[born] = values.to(kept.device).flatten()[own][born]
        if (whole := self._whole(name)) is not None:
            whole.masked_fill_(grown, 0)

    def shards(self) -> Iterator[tuple[str, Shard]]:
        for index, (name, shard) in enumerate(self._shards.items()):
            if shard.numel and (self._stage > 0 or index % self.ranks == self.rank):  # at stage 0 every rank has all
                yield name, shard

    @torch.no_grad()
    def load(self, values: Mapping[str, Mapping[str, torch.Tensor]], step: int) -> None:
        for name, shard in self._shards.items():
            full, piece = values[name], slice(shard.start, shard.start + shard.numel)
            self.write(name, full["master"])
            for moment, tensor in shard.moments.items():
                tensor.copy_(full[moment][piece]) if moment in full else tensor.zero_()
        for state in self._optimizer.state.values():
            state["step"].fill_(step)
        self._held.clear()
        self._still.clear()

    @contextmanager
    def _frozen(self, name: str) -> Iterator[torch.Tensor]:
        """A parameter that takes no step, whole; where ZeRO-3 holds it in pieces, rank 0's changes are cut up again."""
        import deepspeed

        with deepspeed.zero.GatheredParameters([self._parameters[name]], modifier_rank=0, enabled=self._stage == 3):
            yield self._parameters[name].detach()

    def _whole(self, name: str) -> torch.Tensor | None:
        """The full parameter as the forward pass of this rank reads it; None while ZeRO-3 holds it in pieces."""
        values = self._parameters[name].detach().view(-1)
        return values if values.numel() == self._shapes[name].numel() else None

    def _gathered(self, name: str, piece: torch.Tensor | None) -> torch.Tensor:
        """All ranks' pieces of a parameter as one float32 tensor."""
        shard, shape = self._shards[name], self._shapes[name]
        full = torch.zeros(shape.numel(), device=self.device)
        if piece is not None:
            full[shard.start : shard.start + shard.numel] = piece
        if self._stage > 0 and self.ranks > 1:
            dist.all_reduce(full.view(torch.int32))  # bits, of which one rank has any: a sum would lose the sign of zero
        return full.view(shape)

    def _norm(self, gradients: list[torch.Tensor]) -> float:
        square = torch.zeros((), device=self.device)
        if gradients:
            square += norms(gradients).square().sum().to(self.device)
        if self._stage > 0 and self.ranks > 1:
            dist.all_reduce(square)
        return math.sqrt(float(square)) if float(square) >= 0 else math.nan

    def _discard(self, gradients: list[torch.Tensor]) -> None:
        """Let DeepSpeed throw the step away and reset its bookkeeping, which it does when it meets a NaN itself."""
        if self._engine.optimizer is self._optimizer:  # stage 0 in float32: torch's own optimizer, which would obey
            return self._engine.zero_grad()
        for gradient in gradients[:1]:
            gradient[0] = math.nan
        self._engine.optimizer.check_grad_overflow = True
        with quiet():
            self._engine.step()
        self._engine.optimizer.check_grad_overflow = False
