"""SM3 over the places of a sparse delta: what a row and a column of a matrix remember stands for the moments of each weight.

Each step a place counts nu = min(row, column) + gradient^2, its update is gradient / sqrt(nu), and row and column remember the
largest nu of the places in them, or what they remember already. What they remember outlives the places, so the product of a
row's and a column's tells where else in the matrix gradients are large.

Shapes: K = places, N = weights of a parameter as it is stored, flattened; a stack of E matrices has rows and columns of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import prod
from typing import Any

import torch

from tasks.formats.mask import Masks
from tasks.formats.selection import quota
from tasks.models.find.linears import Linear
from tasks.train.adapters.delta import exchanged, highest
from tasks.train.branch import place
from tasks.train.hook import Run
from tasks.train.masking import Masking

EPSILON = 1e-30  # below any squared gradient: a place that never had one does not move


class Divided(torch.optim.Optimizer):
    """Divides each gradient by the root of its ``divisor``, which somebody else sets, after decoupled weight decay."""

    moments = ("divisor",)

    def __init__(self, parameters: Iterable[torch.nn.Parameter], weight_decay: float) -> None:
        super().__init__(parameters, {"lr": 0.0, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for values in group["params"]:
                if values.grad is not None:
                    self.state[values]["step"] += 1
                    root = (self.state[values]["divisor"] + EPSILON).sqrt_()
                    values.mul_(1 - group["lr"] * group["weight_decay"]).addcdiv_(values.grad, root, value=-group["lr"])


class Cover:
    """What the rows and the columns of a matrix, or of each of a stack, remember."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        *stack, self.rows, self.columns = shape
        self.stack = prod(stack)
        self.row, self.column = torch.zeros(self.stack * self.rows), torch.zeros(self.stack * self.columns)

    def to(self, device: torch.device) -> None:
        self.row, self.column = self.row.to(device), self.column.to(device)

    def count(self, places_K: torch.Tensor, gradient_K: torch.Tensor) -> torch.Tensor:
        """nu of each place, which its row and its column remember."""
        places_K = places_K.long()
        row_K = places_K // self.columns
        column_K = row_K // self.rows * self.columns + places_K % self.columns
        nu_K = torch.minimum(self.row[row_K], self.column[column_K]) + gradient_K.square()
        self.row.scatter_reduce_(0, row_K, nu_K, "amax")
        self.column.scatter_reduce_(0, column_K, nu_K, "amax")
        return nu_K

    def product(self) -> torch.Tensor:
        """Of what the row and the column of each weight remember, [N]."""
        rows, columns = self.row.view(self.stack, self.rows, 1), self.column.view(self.stack, 1, self.columns)
        return (rows * columns).flatten()


class Accumulation(Masking):
    """Tells the engine what each gradient is divided by; every ``every`` steps a share of the places is exchanged, ``share`` of
    the step. The masks the model came with are held, and places lie inside."""

    def __init__(
        self, linears: Mapping[str, Linear], masks: Masks, every: int, share: Callable[[int], float], name: str
    ) -> None:
        super().__init__(linears, masks)
        self.every, self.share, self.name = every, share, name
        shapes = {name: linear.stored(torch.empty(linear.shape, device="meta")).shape for name, linear in linears.items()}
        self.covers = {name: Cover(tuple(shape)) for name, shape in shapes.items()}
        self.places: dict[str, torch.Tensor] = {}

    def on_start(self, run: Run) -> None:
        super().on_start(run)
        inside = {name: place(linear, self.name) for name, linear in self.linears.items()}
        modules = dict(run.engine.module.named_modules())
        self.branches = {name: modules[path] for name, path in inside.items() if path in modules}
        self.values = {name: f"{inside[name]}.values" for name in self.branches}
        self.covers = {name: self.covers[name] for name in self.branches}
        for name, branch in self.branches.items():
            self.covers[name].to(run.engine.device)
            if name in self.places:
                branch.places.copy_(self.places[name])

    def after_backward(self, run: Run) -> None:
        divisors = {
            self.values[name]: cover.count(self.branches[name].places, run.engine.grad(self.values[name]).float())
            for name, cover in self.covers.items()
        }
        for values, shard in run.engine.shards():
            if values in divisors:
                shard.moments["divisor"].copy_(divisors[values][shard.start : shard.start + shard.numel])

    def after_step(self, run: Run) -> None:
        if run.step % self.every == 0:
            for name in self.branches:
                self._choose(run, name)

    def _choose(self, run: Run, name: str) -> None:
        places_K, score_N = self.branches[name].places, self.covers[name].product()
        score_N[places_K.long()] = -1.0
        if name in self.masks:
            score_N.masked_fill_(~self.linears[name].stored(self.masks[name].on(score_N.device)).flatten(), -1.0)
        order_K = run.engine.read(self.values[name]).abs().argsort(stable=True)
        count = min(quota(len(places_K), self.share(run.step)), int((score_N >= 0).sum()))
        candidates = highest(score_N, count)
        leaving, entering = exchanged(places_K, order_K, candidates, score_N[candidates], count)
        places_K[leaving] = candidates[entering].int()
        self.places[name] = places_K.cpu().clone()
        new_K = torch.zeros(len(places_K), dtype=torch.bool, device=places_K.device)
        new_K[leaving] = True
        run.engine.restart(self.values[name], new_K)

    def state_dict(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        values, tensors = super().state_dict()
        for name, cover in self.covers.items():
            tensors |= {f"row/{name}": cover.row.cpu(), f"column/{name}": cover.column.cpu()}
        return values, tensors | {f"places/{name}": places for name, places in self.places.items()}

    def load_state_dict(self, values: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        super().load_state_dict(values, tensors)
        for name in self.linears:
            if f"row/{name}" in tensors:
                self.covers[name].row, self.covers[name].column = tensors[f"row/{name}"], tensors[f"column/{name}"]
        self.places = {name: tensors[f"places/{name}"] for name in self.linears if f"places/{name}" in tensors}
