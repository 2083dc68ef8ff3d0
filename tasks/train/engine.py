"""What the training loop asks of an engine, and the plain torch reference that every other engine must equal.

A *shard* is a contiguous piece of a parameter that one rank answers for: the flat float32 master values, the optimizer
moments and the low-precision copy the forward pass reads. Checkpoints are written and read in shards, so a run can go
on under another engine or another number of ranks.

Dead weights stay dead because they never receive a gradient: ``hold`` zeroes them once (values and moments), and every
step multiplies the gradient by the mask *before* its norm is taken. Zero gradient, zero moments and a zero value make
an AdamW update of exactly zero, so one product per step keeps the master, both moments and every copy masked, with no
communication, and the clipping norm is that of the sparse model rather than of a dense one that does not exist.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's
NONE: Mapping[str, torch.Tensor] = {}


@dataclass
class Shard:
    """Elements ``start ... start + numel`` of a flattened parameter. Tensors are flat views that may be written to."""

    start: int
    numel: int
    master: torch.Tensor
    moments: dict[str, torch.Tensor]
    copies: tuple[torch.Tensor, ...] = ()


class Answer(Protocol):
    """The outputs of a model on a batch."""

    @property
    def logits(self) -> torch.Tensor:
        """[B, T, V]"""

    @property
    def hidden_states(self) -> Sequence[torch.Tensor]:
        """What entered the first block and left each, [B, T, D]; only where they were asked for."""

    @property
    def attentions(self) -> Sequence[torch.Tensor]:
        """What each head of each block looks at, [B, H, T, T]; likewise."""


class Engine(Protocol):
    module: nn.Module
    device: torch.device
    rank: int
    ranks: int
    sharded: bool  # parameters are whole only while the module that owns them runs

    def forward(self, *args: object, **kwargs: object) -> Answer: ...

    def backward(self, loss: torch.Tensor) -> None:
        """Accumulate the gradients of one micro-batch (loss already divided by their number)."""

    def step(self, learning_rate: float) -> float:
        """Mask the gradients, clip, update and drop them; gives their norm before clipping, inf and nan as they are.

        When the norm is not finite nothing is updated: weights, moments and step count stay as they were.
        """

    def read(self, name: str) -> torch.Tensor:
        """The full float32 weight, equal on every rank, in memory of its own. A collective."""

    def write(self, name: str, weight: torch.Tensor) -> None:
        """Set the full weight, given equal on every rank; its moments stay."""

    def grad(self, name: str) -> torch.Tensor:
        """The full dense gradient, averaged over ranks; only between the last backward and step. A collective."""

    def hold(self, name: str, keep: torch.Tensor) -> None:
        """From now on weights whose ``keep`` (bool, in the parameter's shape) is False are dead, moments included.

        A frozen parameter takes no step: its dead weights are zeroed once, and stay. A collective there.
        """

    def release(self, name: str) -> None:
        """Stop holding a mask: dead weights are zero, with zero moments, and may grow again."""

    def freeze(self, names: Iterable[str]) -> None:
        """From now on these parameters, and no others, stand still: no gradient, decay or change of their moments.

        What never trains is frozen before the engine exists, by ``requires_grad_(False)``, and has no moments at all.
        """

    def focus(self, name: str, keep: torch.Tensor | None) -> None:
        """From now on only gradients where ``keep`` is True count, for the norm too; None is all of them again."""

    def restart(self, name: str, grown: torch.Tensor, moments: Mapping[str, torch.Tensor] = NONE) -> None:
        """Weights where ``grown`` is True start at zero, with zero moments or those that are given of all weights."""

    def shards(self) -> Iterator[tuple[str, Shard]]:
        """This rank's shards; those of all ranks together cover every trainable parameter exactly once."""

    def load(self, values: Mapping[str, Mapping[str, torch.Tensor]], step: int) -> None:
        """Set every trainable parameter from full flat tensors {name: {"master": ..., moment: ...}}, and the step.

        A moment that is not given starts at zero. Masks are released and nothing is frozen: hooks say it again on start.
        """


def moments_of(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """What an optimizer remembers of each parameter, in the parameter's shape and from zero on; one that is no AdamW says it
    in ``moments``. An update from a zero value, gradient and moments must be zero, or masks would not hold."""
    return getattr(optimizer, "moments", MOMENTS)


def adamw(
    module: nn.Module, betas: tuple[float, float] = (0.9, 0.95), epsilon: float = 1e-8, weight_decay: float = 0.1
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters, decaying matrices only; each step brings its own learning rate.

    Fused: on CPU too it is about nine times faster than the default.
    """
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trainable if parameter.ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trainable if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], 0.0, betas, epsilon, fused=True)


class TorchEngine:
    """One process, plain torch. Under ``bf16`` the weights stay float32 and the forward pass runs in autocast."""

    rank, ranks, sharded = 0, 1, False

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        gradient_clipping: float = 0.0,
        device: str | torch.device = "cpu",
        precision: str = "fp32",
    ) -> None:
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"no precision {precision!r}; choose fp32 or bf16")
        self.device = torch.device(device)
        self.module = module.to(self.device)
        self._optimizer, self._clipping, self._precision = optimizer, gradient_clipping, precision
        self._parameters = dict(module.named_parameters())
        self._trained = {name: parameter for name, parameter in self._parameters.items() if parameter.requires_grad}
        self._held: dict[str, torch.Tensor] = {}
        self._focused: dict[str, torch.Tensor] = {}
        for parameter in self._trained.values():
            zeros = {moment: torch.zeros_like(parameter) for moment in moments_of(optimizer)}
            optimizer.state[parameter] = {"step": torch.zeros((), device=self.device), **zeros}

    def forward(self, *args: object, **kwargs: object) -> Answer:
        bf16 = torch.autocast(self.device.type, torch.bfloat16) if self._precision == "bf16" else nullcontext()
        with bf16:
            return self.module(*args, **kwargs)

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    @torch.no_grad()
    def step(self, learning_rate: float) -> float:
        for name, keep in (*self._held.items(), *self._focused.items()):
            if (gradient := self._parameters[name].grad) is not None:
                gradient.mul_(keep)
        frozen = [parameter for parameter in self._trained.values() if not parameter.requires_grad]
        for parameter in frozen:
            parameter.grad = None
        gradients = [parameter.grad for parameter in self._trained.values() if parameter.grad is not None]
        norm = float(nn.utils.get_total_norm(gradients))
        if math.isfinite(norm):
            if 0 < self._clipping < norm:
                torch._foreach_mul_(gradients, self._clipping / (norm + 1e-6))
            for group in self._optimizer.param_groups:
                group["lr"] = learning_rate
            self._optimizer.step()
            for parameter in frozen:  # the step count is the model's
                self._optimizer.state[parameter]["step"] += 1
        self._optimizer.zero_grad()
        return norm

    def read(self, name: str) -> torch.Tensor:
        return self._parameters[name].detach().to(torch.float32, copy=True)

    @torch.no_grad()
    def write(self, name: str, weight: torch.Tensor) -> None:
        self._parameters[name].copy_(weight)

    def grad(self, name: str) -> torch.Tensor:
        parameter = self._parameters[name]
        if parameter.grad is None or not parameter.requires_grad:
            return torch.zeros_like(parameter)
        return parameter.grad.clone()

    def hold(self, name: str, keep: torch.Tensor) -> None:
        keep = keep.to(self.device, torch.bool)
        if name in self._trained:
            self._held[name] = keep.to(torch.uint8)  # a byte per weight; its product is 3 times faster than bool's
        self.restart(name, ~keep)

    def release(self, name: str) -> None:
        self._held.pop(name, None)

    def freeze(self, names: Iterable[str]) -> None:
        frozen = set(names)
        for name, parameter in self._trained.items():
            parameter.requires_grad_(name not in frozen)

    def focus(self, name: str, keep: torch.Tensor | None) -> None:
        self._focused.pop(name, None)
        if keep is not None:
            self._focused[name] = keep.to(self.device, torch.uint8)

    @torch.no_grad()
    def restart(self, name: str, grown: torch.Tensor, moments: Mapping[str, torch.Tensor] = NONE) -> None:
        parameter, grown = self._parameters[name], grown.to(self.device, torch.bool)
        for values in (parameter, *self._moments(name).values()):
            values.masked_fill_(grown, 0)
        for moment, values in moments.items():
            self._moments(name)[moment][grown] = values.to(self.device)[grown]

    def shards(self) -> Iterator[tuple[str, Shard]]:
        for name, parameter in self._trained.items():
            moments = {moment: values.view(-1) for moment, values in self._moments(name).items()}
            yield name, Shard(0, parameter.numel(), parameter.detach().view(-1), moments)

    @torch.no_grad()
    def load(self, values: Mapping[str, Mapping[str, torch.Tensor]], step: int) -> None:
        for name, shard in self.shards():
            full = values[name]
            shard.master.copy_(full["master"])
            for moment, tensor in shard.moments.items():
                tensor.copy_(full[moment]) if moment in full else tensor.zero_()
            self._optimizer.state[self._parameters[name]]["step"].fill_(step)
        self._held.clear()
        self.freeze(())

    def _moments(self, name: str) -> dict[str, torch.Tensor]:
        """None of what never trains."""
        state = self._optimizer.state[self._trained[name]] if name in self._trained else {}
        return {moment: state[moment] for moment in moments_of(self._optimizer) if state}
