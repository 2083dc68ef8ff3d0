"""Pruning by an importance that is learned in few parameters while the weights are frozen (PST).

The weight changes by a low-rank product, and so does its importance: magnitude, plus a low-rank product, plus a number per row
and one per column. What lives is chosen by it. The mask lets the gradient through to the importance as if it were the mask, so
that a weight counts for more where the loss would have it.

Shapes: O = output features, I = input features, R = rank; a stack of experts has one of each per expert.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from tasks.formats.mask import Mask, Masks, pack, unpack
from tasks.formats.pattern import Unstructured
from tasks.formats.seeding import generator_for
from tasks.formats.selection import keep_highest, quota
from tasks.models.find.linears import Linear
from tasks.train.branch import Tuned, place
from tasks.train.hook import Run
from tasks.train.masking import Masking

IMPORTANCE = ("left", "right", "rows", "columns")


class Important(Tuned):
    """The weight plus up @ down, and zero outside ``keep``. Both products and the rows and columns start at nothing, so that
    importance begins as magnitude."""

    parts, empty = ("up", "down"), ("down",)

    def __init__(
        self, linear: Linear, ranks: tuple[int, int], scales: tuple[float, float, float], seed: int, mask: Mask | None
    ):
        super().__init__()
        *experts, outputs, inputs = linear.shape
        self.linear, (self.scale, self.product, self.structure) = linear, scales
        draws = {part: generator_for(seed, linear.name, part) for part in ("up", "left")}
        self.up = nn.Parameter(torch.randn(*experts, outputs, ranks[0], generator=draws["up"]))
        self.down = nn.Parameter(torch.zeros(*experts, ranks[0], inputs))
        self.left = nn.Parameter(torch.randn(*experts, outputs, ranks[1], generator=draws["left"]))
        self.right = nn.Parameter(torch.zeros(*experts, ranks[1], inputs))
        self.rows = nn.Parameter(torch.zeros(*experts, outputs, 1))
        self.columns = nn.Parameter(torch.zeros(*experts, 1, inputs))
        alive = torch.ones(linear.shape, dtype=torch.bool) if mask is None else mask.keep
        self.register_buffer("alive", linear.stored(alive), persistent=False)
        self.register_buffer("keep", linear.stored(alive.clone()), persistent=False)

    def forward(self, stored: torch.Tensor) -> torch.Tensor:
        learned = self.learned(self.left, self.right, self.rows, self.columns)
        return _Masked.apply(self.changed(stored, self.up, self.down), self.linear.stored(learned), self.keep)

    def onto(self, stored: torch.Tensor, *parts: torch.Tensor) -> torch.Tensor:
        return self.changed(stored, *parts) * self.keep

    def changed(self, stored: torch.Tensor, up_OR: torch.Tensor, down_RI: torch.Tensor) -> torch.Tensor:
        return stored + self.linear.stored(self.share * self.scale * up_OR @ down_RI) * self.alive

    def learned(self, left_OR, right_RI, rows_O1, columns_1I) -> torch.Tensor:
        """What importance has besides magnitude."""
        return self.product * left_OR @ right_RI + self.structure * (rows_O1 + columns_1I)


class _Masked(torch.autograd.Function):
    """The weight where ``keep``. The mask's gradient goes on to the importance."""

    @staticmethod
    def forward(ctx: Any, weight, importance, keep) -> torch.Tensor:
        ctx.save_for_backward(weight, keep)
        return torch.where(keep, weight, 0.0)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor):
        weight, keep = ctx.saved_tensors
        return gradient * keep, gradient * weight, None


class ByImportance(Masking):
    """Chooses masks every ``refresh`` steps by :class:`Important`, at the ``sparsity`` of the step, inside the model's own, for
    the last time at step ``rest``; after the last step they are made fast."""

    def __init__(
        self, linears: Mapping[str, Linear], masks: Masks, sparsity: Callable[[int], float], refresh: int, rest: int, name: str
    ) -> None:
        super().__init__(linears, masks)
        self.sparsity, self.refresh, self.rest, self.name = sparsity, refresh, rest, name
        self.chosen: dict[str, torch.Tensor] = {}

    def on_start(self, run: Run) -> None:
        super().on_start(run)
        self.branches = {
            name: run.engine.module.get_submodule(place(linear, self.name)) for name, linear in self.linears.items()
        }
        if not self.chosen:
            self._choose(run)
        for name, branch in self.branches.items():
            branch.keep.copy_(self._stored(name))

    def after_step(self, run: Run) -> None:
        if run.step == self.rest or (run.step < self.rest and run.step % self.refresh == 0):
            self._choose(run)
        if run.step == run.steps:
            for name, keep in ((name, unpack(bits, self.linears[name].shape)) for name, bits in self.chosen.items()):
                if name not in self.masks or not torch.equal(keep, self.masks[name].keep):
                    self.assign(run, {name: keep}, Unstructured())

    def _stored(self, name: str) -> torch.Tensor:
        return self.linears[name].stored(unpack(self.chosen[name], self.linears[name].shape))

    def _choose(self, run: Run) -> None:
        for name, branch in self.branches.items():
            self.chosen[name] = pack(self._keep(run, name, branch)).cpu()
            branch.keep.copy_(self._stored(name))

    @torch.no_grad()
    def _keep(self, run: Run, name: str, branch: Important) -> torch.Tensor:
        linear = self.linears[name]
        alive = linear.matrix(branch.alive)
        if not (sparsity := self.sparsity(run.step)):
            return alive
        inside = place(linear, self.name)
        up, down, *learned = (run.engine.read(f"{inside}.{part}") for part in (*branch.parts, *IMPORTANCE))
        magnitude = linear.matrix(branch.changed(run.engine.read(name), up, down)).abs()
        score = (magnitude + branch.learned(*learned)).masked_fill(~alive, -torch.inf)
        flat = score.reshape(-1, score.shape[-2:].numel())
        return keep_highest(flat, quota(flat.shape[1], sparsity)).view(linear.shape) & alive

    def density(self) -> float:
        live = sum(Mask(bits, self.linears[name].shape, "unstructured", 0).live for name, bits in self.chosen.items())
        return live / sum(torch.Size(linear.shape).numel() for linear in self.linears.values())

    def state_dict(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        values, tensors = super().state_dict()
        return values, tensors | {f"chosen/{name}": bits for name, bits in self.chosen.items()}

    def load_state_dict(self, values: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        super().load_state_dict(values, tensors)
        self.chosen = {name: tensors[f"chosen/{name}"] for name in self.linears}
