"""Rearranged: groups of rows share the columns they keep, and a feed-forward network's channels are put in such an order
that they lose little by it.

Sharing columns is what makes sparse products fast on plain hardware and what costs accuracy. The channels of a
feed-forward network have no order of their own: rows of the widening matrices and columns of the narrowing one move
together and the function stays what it was. So alike rows are brought together first, then ``initial`` prunes. (The
idea of permuting channels for a pattern is that of arXiv 2106.03517 (channel permutations for N:M sparsity).)

Shapes: O = output features, I = input features.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import torch

from tasks.calibrate.method import BlockView, Edit
from tasks.calibrate.refiner import Refiner

if TYPE_CHECKING:
    from tasks.calibrate.observe import InputStatistic
    from tasks.models.find.linears import Linear
    from tasks.models.find.structure import FeedForward


class Rearranged(Refiner):
    paper: ClassVar[str] = "channel permutations (after arXiv 2106.03517) for row groups"
    patterns: ClassVar[tuple[str, ...]] = ("group",)
    takes_masks: ClassVar[bool] = False

    def observer(self, linear: Linear) -> InputStatistic | None:
        return self.initial.observer(linear)

    def solve(self, view: BlockView) -> dict[str, Edit]:
        from tasks.models.find.structure import feed_forward

        if view.keep:
            raise ValueError(f"rearranged moves weights, and {next(iter(view.keep))} has a mask already; prune with it first")
        network = feed_forward(view.linears)
        if network is None:
            raise ValueError(
                f"unsupported: rearranged needs one feed-forward network of single matrices, block {view.index} has none"
            )
        order_O = self._order(view, network)
        matrices = {name: view.matrices[name][order_O] for name in network.ups}
        matrices[network.down] = view.matrices[network.down][:, order_O]
        statistics = dict(view.statistics)
        if network.down in statistics:
            statistics[network.down] = statistics[network.down].reordered(order_O)
        edits = self.initial.solve(replace(view, matrices={**view.matrices, **matrices}, statistics=statistics))
        return edits | self._biases(view, network, order_O)

    def _order(self, view: BlockView, network: FeedForward) -> torch.Tensor:
        from tasks.calibrate.solvers.grouping import group_rows
        from tasks.formats.pattern import Group

        assert isinstance(view.pattern, Group), "its only pattern"
        scores = []
        for name in network.ups:
            statistic = view.statistics.get(name)
            scores.append(view.matrices[name].float().abs() * (1 if statistic is None else statistic.norm_I))
        return group_rows(scores, view.pattern.rows, view.allocation[network.down])

    @staticmethod
    def _biases(view: BlockView, network: FeedForward, order_O: torch.Tensor) -> dict[str, Edit]:
        biases = [f"{name.rpartition('.')[0]}.bias" for name in network.ups]
        parameters = {view.prefix + name: parameter.data for name, parameter in view.module.named_parameters()}
        return {name: Edit(parameters[name][order_O]) for name in biases if name in parameters}
