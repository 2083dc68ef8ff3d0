"""Essential sparsity (arXiv 2306.03805): the most a model can lose in one shot before its quality begins to fall.

The paper's rule: going up a grid, the last sparsity whose drop is within 1 %, and the first beyond it ends the search.
Its scores are of tasks after finetuning; here the score is perplexity on the calibration text, right after pruning, so
the value is a lower bound of what recovery makes of it. It depends on grid and tolerance, which stand beside it.
"""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.data.batch import Batch
    from tasks.methods import Method

GRID = tuple(step / 20 for step in range(1, 20))
TOLERANCE = 0.01
LOSSES = "losses"  # the folder in scratch of what a search has measured


def search(loss_at: Callable[[float], float], grid: Iterable[float] = GRID) -> tuple[float, dict[str, Any]]:
    """The essential sparsity, 0 where already the first of the grid costs too much, and the curve up to it."""
    losses = {0.0: loss_at(0.0)}
    if not math.isfinite(losses[0.0]):
        raise ValueError(f"the loss of the model on its calibration text is {losses[0.0]}: there is no drop to look for")
    found = 0.0
    for sparsity in grid:
        losses[sparsity] = loss_at(sparsity)
        if not losses[sparsity] - losses[0.0] <= math.log1p(TOLERANCE):  # a loss that is not a number is no less of a drop
            break
        found = sparsity
    perplexities = [[sparsity, _perplexity(loss)] for sparsity, loss in losses.items()]
    return found, {"essential_sparsity": found, "tolerance": TOLERANCE, "perplexity": perplexities}


def _perplexity(loss: float) -> float | None:
    """None, as JSON has it, where it is no number or beyond all."""
    return math.exp(loss) if loss < math.log(sys.float_info.max) else None


def folder_of(sparsity: float) -> str:
    """Name of the folder in scratch of what belongs to the walk to one sparsity."""
    return f"walk-{sparsity:g}"


@dataclass
class Trials:
    """The losses of one model at the sparsities of a search, each kept in ``scratch`` once it is measured, so that an attempt
    after a crash goes on from there. ``prune`` writes the model at a sparsity into a directory, and keeps what it works with
    in ``scratch / folder_of(sparsity)``."""

    model: Path
    batches: Sequence[Batch]
    scratch: Path
    device: str
    prune: Callable[[float, Path], Any]
    tried: list[float] = field(default_factory=list)

    def search(self, method: Method, settings: str) -> tuple[float, dict[str, Any]]:
        """The essential sparsity under a method, and the curve. What was measured under other settings is refused."""
        from tasks.calibrate.ledger import identity, take_over

        losses = self.scratch / LOSSES
        losses.mkdir(parents=True, exist_ok=True)
        take_over(losses, identity(self.model, [batch.tokens for batch in self.batches], method, {}, settings))
        return search(self.loss)

    def loss(self, sparsity: float) -> float:
        """Next-token loss on the calibration text at one sparsity; of the dense model at 0. Of the models tried before, the
        last stays on the disk: it is the one looked for if this is too much."""
        from tasks.models.stream.kept import keep, kept

        kept_at = self.scratch / LOSSES / f"{sparsity:g}.json"
        if (found := kept(kept_at)) is None:
            directory = self.model
            if sparsity:
                directory = self.scratch / folder_of(sparsity) / "tried"
                self.prune(sparsity, directory)
            found = mean_loss(directory, self.batches, self.device)
            keep(found, kept_at)
        for earlier in self.tried[:-1]:
            shutil.rmtree(self.scratch / folder_of(earlier), ignore_errors=True)
        self.tried.append(sparsity)
        return found


def mean_loss(directory: Path, batches: Sequence[Batch], device: str) -> float:
    """Mean next-token cross-entropy of a model over what it is to predict of the batches."""
    from tasks.models.files.checkpoint import load_model
    from tasks.models.scoring import summed_loss

    model = load_model(directory, device=device)
    total = sum(summed_loss(model, batch.to(device)) for batch in batches)
    return total / sum(batch.predicted for batch in batches)
