"""A sparse delta over frozen weights: so many single weights of a model change, and which they are is decided again and again.

A branch holds the changed weights' places and what is added there; nothing else has gradients or moments. For some steps of
each period it also listens to the gradient of the whole weight, which passes by on its way back: the places with the largest
are candidates, whose gradients are gathered until the choice. All ranks and micro-batches count, so that no profile changes
what is chosen (the authors take candidates from one rank's first micro-batch); for one step of a period that is a dense
gradient of the matrices. A place that comes in starts at zero with the means of what was gathered as its moments, and one that
goes gives its weight back as it came.

Shapes: K = places, N = weights of a parameter as it is stored, flattened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from tasks.formats.mask import Mask, Masks
from tasks.formats.seeding import generator_for
from tasks.formats.selection import keep_highest_overall, quota
from tasks.models.find.linears import Linear
from tasks.train.adapters.seeded import SEEDS
from tasks.train.branch import Tuned, place
from tasks.train.hook import Run
from tasks.train.masking import Masking


class Delta(Tuned):
    """Adds ``values`` to the weights at ``places``. While ``candidates`` are there it gathers their gradients, and while it
    ``listens`` without, those of all weights."""

    parts, empty = ("values",), ("values",)

    def __init__(self, places_K: torch.Tensor) -> None:
        super().__init__()
        self.values = torch.nn.Parameter(torch.zeros(len(places_K)))
        self.register_buffer("places", places_K.int(), persistent=False)
        self.listens = False
        self.candidates: torch.Tensor | None = None
        self.heard: torch.Tensor | None = None

    def forward(self, stored: torch.Tensor) -> torch.Tensor:
        return _Scattered.apply(stored, self.values, self.places, self.hear if self.listens else None)

    def onto(self, stored: torch.Tensor, *parts: torch.Tensor) -> torch.Tensor:
        (values_K,) = parts
        return scattered(stored, values_K, self.places)

    def hear(self, gradient_N: torch.Tensor) -> None:
        told = gradient_N.float() if self.candidates is None else gradient_N[self.candidates].float()
        self.heard = told.clone() if self.heard is None else self.heard.add_(told)

    def told(self, weights: int) -> torch.Tensor:
        """What was heard in a step, of so many ``weights`` or of the candidates; nothing where no token came by."""
        count = weights if self.candidates is None else len(self.candidates)
        heard, self.heard = self.heard, None
        return torch.zeros(count, device=self.places.device) if heard is None else heard


def scattered(stored: torch.Tensor, values_K: torch.Tensor, places_K: torch.Tensor) -> torch.Tensor:
    return stored.flatten().index_add(0, places_K.long(), values_K.to(stored.dtype)).view(stored.shape)


class _Scattered(torch.autograd.Function):
    """:func:`scattered`; what flows back to the whole weight is told to ``hear``."""

    @staticmethod
    def forward(ctx: Any, stored, values_K, places_K, hear: Callable[[torch.Tensor], None] | None) -> torch.Tensor:
        ctx.hear, ctx.dtype = hear, values_K.dtype
        ctx.save_for_backward(places_K)
        return scattered(stored, values_K, places_K)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor):
        (places_K,) = ctx.saved_tensors
        gradient_N = gradient.flatten()
        if ctx.hear:
            ctx.hear(gradient_N)
        return None, gradient_N[places_K.long()].to(ctx.dtype), None, None


def live_weights(linears: Mapping[str, Linear], masks: Masks) -> dict[str, int]:
    """How many weights of each matrix live."""
    return {name: masks[name].live if name in masks else torch.Size(linear.shape).numel() for name, linear in linears.items()}


def shared_out(live: Mapping[str, int], budget: int) -> dict[str, int]:
    """How many places each matrix has: its share of the weights that live, rounded down."""
    places = {name: budget * count // sum(live.values()) for name, count in live.items()}
    if not any(places.values()):
        raise ValueError(
            f"spiel: {budget} places shared out over {len(live)} matrices leave none for any; choose a larger budget or density"
        )
    if budget > sum(live.values()):
        raise ValueError(f"spiel.budget {budget} is more than the {sum(live.values())} weights that live; choose fewer")
    return places


def draw_places(linear: Linear, mask: Mask | None, count: int, seed: int) -> torch.Tensor:
    """So many of a matrix's live weights, every set as likely as any other."""
    lot_N = torch.rand(torch.Size(linear.shape).numel(), generator=generator_for(seed, linear.name, "places"))
    if mask is not None:
        lot_N.masked_fill_(~linear.stored(mask.keep).flatten(), -1.0)
    return highest(lot_N, count)


def highest(score_N: torch.Tensor, count: int) -> torch.Tensor:
    """The places of the highest scores, in order of place."""
    return keep_highest_overall(score_N, len(score_N) - count).nonzero()[:, 0]


class Reselection(Masking):
    """Every ``every`` steps, after gathering gradients for the first ``listens`` of them, a share of the places is exchanged:
    ``share`` of the step. The masks the model came with are held, and places lie inside."""

    def __init__(
        self, linears: Mapping[str, Linear], masks: Masks, every: int, listens: int, share: Callable[[int], float], name: str
    ) -> None:
        super().__init__(linears, masks)
        self.every, self.listens, self.share, self.name = every, listens, share, name
        self.places: dict[str, torch.Tensor] = {}
        self.candidates: dict[str, torch.Tensor] = {}
        self.sums: dict[str, torch.Tensor] = {}
        self.squares: dict[str, torch.Tensor] = {}

    def on_start(self, run: Run) -> None:
        super().on_start(run)
        inside = {name: place(linear, self.name) for name, linear in self.linears.items()}
        modules = dict(run.engine.module.named_modules())
        self.branches = {name: modules[path] for name, path in inside.items() if path in modules}
        for name, branch in self.branches.items():
            if name in self.places:
                branch.places.copy_(self.places[name])
        for gathered in (self.candidates, self.sums, self.squares):
            gathered |= {name: values.to(run.engine.device) for name, values in gathered.items()}
        self._listen(run)

    def _listen(self, run: Run) -> None:
        """Whether the step to come is gathered from: only where a choice follows."""
        position = run.step % self.every
        listens = position < self.listens and run.step - position + self.listens <= run.steps
        for name, branch in self.branches.items():
            branch.listens = listens
            branch.candidates = self.candidates[name] if listens and position else None

    def after_backward(self, run: Run) -> None:
        for name, branch in self.branches.items():
            if branch.listens:
                heard = averaged(run, branch.told(torch.Size(self.linears[name].shape).numel()))
                if branch.candidates is None:
                    score = heard.abs()
                    if name in self.masks:
                        score.masked_fill_(~self._alive(name, score.device), -1.0)
                    self.candidates[name] = highest(score, len(branch.places))
                    heard = heard[self.candidates[name]]
                    self.sums[name], self.squares[name] = torch.zeros_like(heard), torch.zeros_like(heard)
                self.sums[name] += heard
                self.squares[name] += heard.square()

    def after_step(self, run: Run) -> None:
        if run.step % self.every == self.listens % self.every and run.step >= self.listens:
            for name in self.branches:
                self._choose(run, name)
            self.candidates, self.sums, self.squares = {}, {}, {}
        self._listen(run)

    def _alive(self, name: str, device: torch.device) -> torch.Tensor:
        return self.linears[name].stored(self.masks[name].on(device)).flatten()

    def _choose(self, run: Run, name: str) -> None:
        inside, places_K = f"{place(self.linears[name], self.name)}.values", self.branches[name].places
        order_K = run.engine.read(inside).abs().argsort(stable=True)
        count = quota(len(places_K), self.share(run.step))
        leaving, entering = exchanged(places_K, order_K, self.candidates[name], self.sums[name].abs(), count)
        places_K[leaving] = self.candidates[name][entering].int()
        self.places[name] = places_K.cpu().clone()
        new_K = torch.zeros(len(places_K), dtype=torch.bool, device=places_K.device)
        new_K[leaving] = True
        seeds = {seed: torch.zeros(len(places_K), device=places_K.device) for seed in SEEDS}
        for seed, gathered in zip(SEEDS, (self.sums[name], self.squares[name]), strict=False):
            seeds[seed][leaving] = gathered[entering] / self.listens
        seeds["age"][leaving] = self.listens
        run.engine.restart(inside, new_K, seeds)

    def state_dict(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        values, tensors = super().state_dict()
        kinds = {"places": self.places, "candidates": self.candidates, "sums": self.sums, "squares": self.squares}
        return values, tensors | {f"{kind}/{name}": each.cpu() for kind, own in kinds.items() for name, each in own.items()}

    def load_state_dict(self, values: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        super().load_state_dict(values, tensors)
        for kind in ("places", "candidates", "sums", "squares"):
            found = {name: tensors[f"{kind}/{name}"] for name in self.linears if f"{kind}/{name}" in tensors}
            setattr(self, kind, found)


def exchanged(
    places_K: torch.Tensor, order_K: torch.Tensor, candidates: torch.Tensor, strength: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(entries that give up their place, candidates that take one, by number): no more than ``count``, the first in ``order``,
    go, and the strongest candidates that are not staying come. A place that would go and come stays what it is."""
    going, staying = order_K[:count], order_K[count:]
    free = (~torch.isin(candidates, places_K[staying])).nonzero()[:, 0]
    coming = free[strength[free].argsort(descending=True, stable=True)[:count]]
    entering = coming[~torch.isin(candidates[coming], places_K[going])]
    leaving = going[~torch.isin(places_K[going], candidates[coming])][: len(entering)]
    return leaving, entering


def averaged(run: Run, gradient: torch.Tensor) -> torch.Tensor:
    """Over ranks; a collective."""
    if run.engine.ranks > 1:
        torch.distributed.all_reduce(gradient)
        gradient /= run.engine.ranks
    return gradient
