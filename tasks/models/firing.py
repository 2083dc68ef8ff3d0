"""Which neurons of the feed-forward networks fire: how much each adds, what is lost without the weakest, and the model
without them.

A network gives y = sum_f a_f w_f: what its last matrix reads, a (of a gated network activation(gate x) * up x, of a plain one
activation(up x)), times that matrix's columns. So a neuron adds a vector of length n_f = |a_f| |w_f|, whatever the
activation function. The tail below a threshold t makes the error CETT(t) = |sum of those with n_f <= t| / |y|, a mean over
tokens (Sparsing Law, arXiv 2411.02335).

Shapes: N = tokens, F = neurons, D = features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from tasks.models.files.quantized import StoredWeights
from tasks.models.find.linears import find_linears
from tasks.models.find.structure import feed_forwards

GRID = 1 << 16  # thresholds that are tried, evenly spaced
HIGHEST = 0.99  # quantile of what neurons add, at which they end
SAMPLED = 1 << 20  # values that the quantile is taken of
NEVER = 2.0  # an error that no tail has


class Scale(NamedTuple):
    """Of a network on some tokens: the ends of the grid of thresholds, and the length of each token's output."""

    low: float
    high: float
    whole_N: torch.Tensor


class Tail:
    """What is lost of one network's outputs without the neurons that add least. ``activations_NF`` is what its last matrix
    reads, ``columns_DF`` that matrix."""

    def __init__(
        self,
        activations_NF: torch.Tensor,
        columns_DF: torch.Tensor,
        known: dict[int, float] | None = None,
        scale: Scale | None = None,
    ) -> None:
        self.activations_NF, self.columns_DF = activations_NF.float(), columns_DF.float()
        self.added_NF = self.activations_NF.abs() * self.columns_DF.norm(dim=0)
        self.known = {-1: 0.0, GRID: NEVER} if known is None else known
        self.scale = scale or self._scale()

    def _scale(self) -> Scale:
        sample = self.added_NF.flatten()
        sample = sample[:: max(1, sample.numel() // SAMPLED)]
        whole_N = (self.activations_NF @ self.columns_DF.T).norm(dim=-1)
        return Scale(float(self.added_NF.min()), float(sample.quantile(HIGHEST)), whole_N)

    def error(self, threshold: float) -> float:
        """CETT. A token whose output is nothing loses nothing."""
        lost_N = ((self.activations_NF * (self.added_NF <= threshold)) @ self.columns_DF.T).norm(dim=-1)
        return float(torch.where(self.scale.whole_N > 0, lost_N / self.scale.whole_N, 0.0).mean())

    def threshold(self, error: float) -> float:
        """The largest one on the grid that makes at most this error; 0, below which nothing lies, where none does."""
        place = last_within(lambda place: self.error(self._at(place)), error, self.known)
        return self._at(place) if place >= 0 else 0.0

    def _at(self, place: int) -> float:
        return self.scale.low + (self.scale.high - self.scale.low) * place / (GRID - 1)


class Firing:
    """The feed-forward networks of a loaded model, whose stored weights are in ``directory``."""

    def __init__(self, model: nn.Module, directory: Path, device: str) -> None:
        self.model, self.device, self.weights = model, device, StoredWeights(directory)
        linears = find_linears(self.weights.skeleton)
        self.downs = [linears[network.down] for network in feed_forwards(linears)]
        self.lengths = [self.columns(block).norm(dim=0) for block in range(len(self.downs))]
        self._activations: list[torch.Tensor] = []
        self._known: list[dict[int, float]] = []
        self._scales: list[Scale | None] = []

    def columns(self, block: int) -> torch.Tensor:
        """float32 [D, F]: the last matrix of a block's network."""
        down = self.downs[block]
        return down.matrix(self.weights.read(down.name)).to(self.device, torch.float32)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """What the last matrices read inside is kept, in memory beside the model; :meth:`thresholds` are for it."""
        pieces: list[list[torch.Tensor]] = [[] for _ in self.downs]

        def keep(block: int, given: torch.Tensor) -> None:
            pieces[block].append(given.flatten(0, -2).cpu())

        with self._hooked(keep):
            yield
        self._activations = [torch.cat(parts) for parts in pieces]
        self._known = [{-1: 0.0, GRID: NEVER} for _ in self.downs]
        self._scales = [None for _ in self.downs]

    def thresholds(self, error: float) -> list[float]:
        """The threshold of each network that makes at most this error on what was recorded."""
        found = []
        for block, activations_NF in enumerate(self._activations):
            given = activations_NF.to(self.device), self.columns(block)
            tail = Tail(*given, self._known[block], self._scales[block])
            self._scales[block] = tail.scale
            found.append(tail.threshold(error))
        return found

    @contextmanager
    def silenced(self, thresholds: Sequence[float]) -> Iterator[list[list[int]]]:
        """The model with every neuron that adds less than its network's threshold left out. Yields, per block, how many
        neurons of tokens there were and how many were left: one that adds nothing is none of them."""
        counts = [[0, 0] for _ in self.downs]

        def silence(block: int, given: torch.Tensor) -> torch.Tensor:
            added = given.float().abs() * self.lengths[block]
            strong = added >= thresholds[block]
            counts[block][0] += added.numel()
            counts[block][1] += int((strong & (added > 0)).sum())
            return given * strong

        with self._hooked(silence):
            yield counts

    @contextmanager
    def _hooked(self, see: Callable[[int, torch.Tensor], torch.Tensor | None]) -> Iterator[None]:
        """``see`` is given what a block's last matrix is about to read, and may give another in its place."""

        def hook(block: int) -> Callable[..., Any]:
            return lambda module, given: see(block, given[0])

        with ExitStack() as hooks:
            for block, down in enumerate(self.downs):
                module = self.model.get_submodule(down.name.rpartition(".")[0])
                hooks.enter_context(module.register_forward_pre_hook(hook(block)))
            yield


def last_within(value: Callable[[int], float], goal: float, known: dict[int, float]) -> int:
    """The largest place whose ``value`` is at most ``goal``, where values rise. ``known`` has a place on either side of the
    goal, and is given what is computed, so that a second search begins with what the first has found.

    Interpolates between the nearest places known; the side that did not move twice counts half (Illinois), and where even
    so little was gained, the middle is taken. Every place given back was computed: its value is within the goal.
    """
    low = max(place for place, at in known.items() if at <= goal)
    high = min(place for place, at in known.items() if at > goal)
    below, above, moved, widths = goal - known[low], known[high] - goal, 0, [high - low]
    while high - low > 1:
        place = low + round((high - low) * below / (below + above))
        if len(widths) > 3 and 2 * widths[-1] > widths[-4]:
            place = (low + high) // 2
        place = min(max(place, low + 1), high - 1)
        known[place] = value(place)
        if known[place] <= goal:
            low, below, above = place, goal - known[place], above / 2 if moved < 0 else known[high] - goal
            moved = -1
        else:
            high, above, below = place, known[place] - goal, below / 2 if moved > 0 else goal - known[low]
            moved = 1
        widths.append(high - low)
    return low
