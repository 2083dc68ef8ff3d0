"""Exchange pruned for kept weights, row by row, so that a row's expected output error shrinks: DSnoT's inner loop.

All rows go through their cycles together. Candidates are ranked once, each is offered once, and a row that stops stays
stopped, so no weight is moved twice.

Shapes: O = output features, I = input features, C = cycles, M = the weights of an N:M group.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass
class Exchange:
    """``free_OI``: pruned weights that may come back. ``contribution_OI``: what a weight adds to its row's output on average.
    ``gain_OI`` ranks the weights that may come back, ``score_OI`` those that may go. ``group`` above 1 exchanges within groups
    of as many columns."""

    kept_OI: torch.Tensor
    free_OI: torch.Tensor
    contribution_OI: torch.Tensor
    gain_OI: torch.Tensor
    score_OI: torch.Tensor
    group: int
    same_sign: bool
    error_O: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.error_O = self.contribution_OI.masked_fill(self.kept_OI, 0).double().sum(1)
        self._moved_OI = torch.zeros_like(self.kept_OI)

    def run(self, cycles: int, threshold: float) -> int:
        """Make up to ``cycles`` exchanges in each row; returns how many were made in all."""
        sides = (self.contribution_OI > 0, self.contribution_OI < 0)
        back = [_Queue(self.gain_OI.abs(), self.free_OI & side_OI, cycles, largest=True) for side_OI in sides]
        away = [_Queue(self.score_OI, self.kept_OI & side_OI, cycles, largest=False) for side_OI in reversed(sides)]
        started_O, active_O = self.error_O.clone(), torch.ones_like(self.error_O, dtype=torch.bool)
        made = 0
        for _ in range(cycles):
            active_O &= self.error_O.abs() > threshold
            if not bool(active_O.any()):
                break
            positive_O = self.error_O > 0
            coming_O, there_O = _take(back, positive_O, active_O)
            leaving_O, also_O = self._victim(coming_O) if self.group > 1 else _take(away, positive_O, active_O)
            error_O = self.error_O + _at(self.contribution_OI, leaving_O) - _at(self.contribution_OI, coming_O)
            active_O &= there_O
            swap_O = active_O & also_O
            if self.same_sign:
                swap_O &= error_O.sign() == started_O.sign()
            if self.group > 1:
                swap_O &= error_O.abs() < self.error_O.abs()  # the victim's sign is what it is: pass this pair over
            else:
                active_O &= swap_O
            made += self._swap(swap_O, coming_O, leaving_O)
            self.error_O = torch.where(swap_O, error_O, self.error_O)
        return made

    def _victim(self, coming_O: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The least kept weight of the group a weight comes back to; moved ones stay."""
        first_O = coming_O // self.group * self.group
        columns_OM = first_O[:, None] + torch.arange(self.group, device=coming_O.device)
        open_OM = self.kept_OI.gather(1, columns_OM) & ~self._moved_OI.gather(1, columns_OM)
        score_OM = self.score_OI.gather(1, columns_OM).masked_fill(~open_OM, torch.inf)
        return first_O + score_OM.argmin(1), open_OM.any(1)

    def _swap(self, swap_O: torch.Tensor, coming_O: torch.Tensor, leaving_O: torch.Tensor) -> int:
        rows_S = swap_O.nonzero()[:, 0]
        for columns_O, alive in ((coming_O, True), (leaving_O, False)):
            self.kept_OI[rows_S, columns_O[rows_S]] = alive
            self._moved_OI[rows_S, columns_O[rows_S]] = True
        return len(rows_S)


class _Queue:
    """The best candidates of each row, best first, with a place in the queue for each row."""

    def __init__(self, score_OI: torch.Tensor, open_OI: torch.Tensor, length: int, largest: bool) -> None:
        score_OI = score_OI.masked_fill(~open_OI, -torch.inf if largest else torch.inf)
        values_OC, self.columns_OC = score_OI.topk(min(length, score_OI.shape[1]), dim=1, largest=largest)
        self.there_OC = values_OC.isfinite()
        self.place_O = torch.zeros(len(score_OI), dtype=torch.long, device=score_OI.device)

    def heads(self) -> tuple[torch.Tensor, torch.Tensor]:
        place_O = self.place_O.clamp(max=self.columns_OC.shape[1] - 1)
        return _at(self.columns_OC, place_O), _at(self.there_OC, place_O) & (place_O == self.place_O)


def _take(queues: list[_Queue], first_O: torch.Tensor, active_O: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The next of the first queue where ``first_O``, else of the second: its column, and whether there is one."""
    (one_O, has_one_O), (other_O, has_other_O) = (queue.heads() for queue in queues)
    queues[0].place_O += first_O & active_O
    queues[1].place_O += ~first_O & active_O
    return torch.where(first_O, one_O, other_O), torch.where(first_O, has_one_O, has_other_O)


def _at(values_OI: torch.Tensor, columns_O: torch.Tensor) -> torch.Tensor:
    return values_OI.gather(1, columns_O[:, None])[:, 0]
