"""Layers that take turns to learn, those more often that matter more, as probes find out while training goes on (IST).

A layer has a score: how little harm it did to count for less. Before each step so many layers are drawn, of low scores
rather, and the branches of all others stand still. Now and then probes see how the loss fares while what is added in some
layers, of high scores rather, counts for a share of itself; layers whose probe did better than the others' rise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp
from typing import Any

import torch

from tasks.data.batch import Batch
from tasks.data.tokens import Sampler
from tasks.formats.seeding import generator_for
from tasks.models.find.linears import Linear
from tasks.train.branch import by_block, place
from tasks.train.hook import Hook, Run
from tasks.train.objective import Loss

ATTEMPTS = 20  # draws of layers for probes: of few layers there are fewer sets than probes


@dataclass(frozen=True)
class Turns:
    """``active`` of the layers learn in a step. Every ``interval`` steps ``rollouts`` probes of as many ``sequences`` each
    have ``suppressed`` of the layers count for ``factor`` of themselves; ``rate`` times what it tells is added to scores."""

    active: float
    suppressed: float
    factor: float
    interval: int
    rollouts: int
    rate: float
    sequences: int


class TakingTurns(Hook):
    """``scores`` z, one a layer, high where it can be done without."""

    def __init__(self, linears: Mapping[str, Linear], branches: str, turns: Turns, seed: int) -> None:
        self.linears, self.branches, self.turns, self.seed = linears, branches, turns, seed
        self.scores = torch.zeros(0, dtype=torch.float64)

    def sampler(self, sampler: Sampler) -> Sampler:
        self.data = sampler
        return sampler

    def objective(self, objective: Loss) -> Loss:
        self.loss = objective
        return objective

    def on_start(self, run: Run) -> None:
        module = run.engine.module
        places = [[place(self.linears[name], self.branches) for name in names] for names in by_block(module, self.linears)]
        self.layers = [[module.get_submodule(path) for path in paths] for paths in places]
        self.parameters = [
            [f"{path}.{part}" for path in paths for part, _ in module.get_submodule(path).named_parameters()]
            for paths in places
        ]
        if not len(self.scores):
            self.scores = torch.zeros(len(places), dtype=torch.float64)
        self._take_turns(run)

    def after_step(self, run: Run) -> None:
        if run.step == run.steps:
            return
        if run.step % self.turns.interval == 0:
            self._probe(run)
        self._take_turns(run)

    def number(self, share: float) -> int:
        return max(1, int(share * len(self.layers)))

    def drawn(self, weights: torch.Tensor, share: float, *names: object) -> list[int]:
        """So many layers without replacement, by weight."""
        generator = generator_for(self.seed, "layers", *names)
        return sorted(torch.multinomial(weights, self.number(share), generator=generator).tolist())

    def _take_turns(self, run: Run) -> None:
        self.active = self.drawn(torch.sigmoid(-self.scores), self.turns.active, run.step)
        still = [name for index, names in enumerate(self.parameters) if index not in self.active for name in names]
        run.engine.freeze(still)

    def _probe(self, run: Run) -> None:
        batch, chosen = self._batch(run), []
        for attempt in range(ATTEMPTS):
            layers = self.drawn(torch.sigmoid(self.scores), self.turns.suppressed, run.step, "probe", attempt)
            chosen += [layers] if layers not in chosen else []
            if len(chosen) == self.turns.rollouts:
                break
        rewards = [exp(-self._loss_without(run, layers, batch)) for layers in chosen]
        self.learn(chosen, rewards)

    def learn(self, chosen: list[list[int]], rewards: list[float]) -> None:
        """Scores rise by how much better than the mean a probe was, for the layers that it suppressed."""
        mean, slopes = sum(rewards) / len(rewards), torch.sigmoid(self.scores) * torch.sigmoid(-self.scores)
        for layers, reward in zip(chosen, rewards, strict=True):
            for layer in layers:
                self.scores[layer] += self.turns.rate * (reward - mean) * slopes[layer]

    def _batch(self, run: Run) -> Batch:
        """This rank's part of the first sequences of the batch to come, as many as any other's."""
        engine, whole = run.engine, self.data.at(run.step)
        own = max(1, min(self.turns.sequences, len(whole)) // engine.ranks)
        return whole[engine.rank * own : (engine.rank + 1) * own].to(engine.device)

    @torch.no_grad()
    def _loss_without(self, run: Run, layers: list[int], batch: Batch) -> float:
        """The mean loss over the probe's tokens while these layers count for less. A collective."""
        engine, branches = run.engine, [branch for layer in layers for branch in self.layers[layer]]
        total = torch.zeros(2, dtype=torch.float64, device=engine.device)
        training = engine.module.training
        engine.module.eval()
        for branch in branches:
            branch.share = self.turns.factor
        try:
            for piece in batch.split(self._rows(run)):
                loss, _ = self.loss(engine, piece)
                total += torch.stack([loss.double() * piece.predicted, torch.full_like(total[0], piece.predicted)])
        finally:
            for branch in branches:
                branch.share = 1.0
            engine.module.train(training)
        if engine.ranks > 1:
            torch.distributed.all_reduce(total)
        return float(total[0] / total[1].clamp_min(1))

    def _rows(self, run: Run) -> int:
        """Sequences of a forward pass, as the step has them."""
        return -(-self.data.batch // run.engine.ranks // run.pieces)

    def state_dict(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        return {}, {"scores": self.scores}

    def load_state_dict(self, values: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        self.scores = tensors["scores"]
