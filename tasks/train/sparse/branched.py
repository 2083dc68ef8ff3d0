"""N:M with a branch beside each matrix (SLoRB): what the mask takes, a small dense matrix gives back in part, and trains on."""

from __future__ import annotations

from tasks.formats.mask import unpack
from tasks.models.build.sums import group_means, place_of
from tasks.train.hook import Run
from tasks.train.sparse.semi_structured import Refreshed


class Branched(Refreshed):
    """Branches begin, with the first masks, as the means of what these take of each group of inputs."""

    def begin_with(self, group: int) -> Branched:
        self.group = group
        return self

    def on_start(self, run: Run) -> None:
        begun = bool(self.chosen)
        super().on_start(run)
        for name, linear in self.treated.items() if not begun else ():
            weight = self.weight(run, name)
            dead = ~unpack(self.chosen[name].to(weight.device), linear.shape)
            run.engine.write(place_of(linear), group_means(weight * dead, self.group))
