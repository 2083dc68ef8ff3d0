"""Solving shared out: workers that ran their own sequences through a block solve some of its matrices too.

Only of methods whose matrices are solved each for itself, and long enough for it to pay (:attr:`BlockMethod.apart`). A worker
has the dense block already; what travels are the summed statistics of its matrices, and back their edits. Where that would take
longer than a GPU takes to solve them, through a host and Ray's object store (0.5 to 0.8 GiB/s on two cores, for a 7B block a
GiB), they stay. Who solves a matrix changes no bit of it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from tasks.calibrate.method import BlockMethod, BlockView, Edit
from tasks.calibrate.observe import InputStatistic
from tasks.formats.pattern import Pattern
from tasks.workers import Worker


@dataclass(frozen=True)
class Share:
    """What a worker has to know of the matrices it solves: ``allocation`` is by matrix."""

    statistics: dict[str, InputStatistic]
    allocation: dict[str, float]
    pattern: Pattern


def solve(method: BlockMethod, view: BlockView, workers: Sequence[Worker]) -> dict[str, Edit]:
    """The edits of ``method``, by the workers and this process where they may share the work."""
    on_host = all(matrix.device.type == "cpu" for matrix in view.matrices.values())
    if not workers or not method.apart or not (on_host or all(worker.near for worker in workers)):
        return method.solve(view)
    own, *others = deal_matrices(view.matrices, view.statistics, 1 + len(workers))
    pending = [
        worker.call("solve", view.index, share_of(view, names)) for worker, names in zip(workers, others, strict=True) if names
    ]
    edits = method.solve(part_of(view, own))
    for answer in pending:
        edits |= answer.result()
    return {name: edits.pop(name) for name in view.matrices if name in edits} | edits


def share_of(view: BlockView, names: Collection[str]) -> Share:
    part = part_of(view, names)
    return Share(part.statistics, part.allocation, part.pattern)


def part_of(view: BlockView, names: Collection[str]) -> BlockView:
    """The block as if these were its only matrices."""
    return replace(
        view,
        linears={name: linear for name, linear in view.linears.items() if any(matrix in names for matrix in linear.matrices)},
        matrices=_only(view.matrices, names),
        keep=_only(view.keep, names),
        statistics=_only(view.statistics, names),
        allocation=_only(view.allocation, names),
    )


def _only(values: Mapping, names: Collection[str]) -> dict:
    return {name: value for name, value in values.items() if name in names}


def deal_matrices(
    matrices: Mapping[str, torch.Tensor], statistics: Mapping[str, InputStatistic], workers: int
) -> list[list[str]]:
    """The names of the matrices that each worker solves, none where there are more workers than matrices: the longest first,
    each to who is done first then."""
    loads, dealt = [0.0] * workers, [[] for _ in range(workers)]
    factored: list[set[int]] = [set() for _ in range(workers)]

    def sweep(name: str) -> float:
        rows, columns = matrices[name].shape
        return float(rows) * columns**2

    def factor(name: str, worker: int) -> float:
        """Of a curvature that the worker has not factored yet for another of its matrices."""
        known = id(statistics.get(name)) in factored[worker]
        return 0.0 if known else float(matrices[name].shape[1]) ** 3

    for name in sorted(matrices, key=sweep, reverse=True):
        done = [loads[worker] + sweep(name) + factor(name, worker) for worker in range(workers)]
        worker = done.index(min(done))
        loads[worker] = done[worker]
        dealt[worker].append(name)
        factored[worker].add(id(statistics.get(name)))
    return dealt
