"""Solve the matrices of a block in parallel: on a CPU as many at once as there are threads.

A column sweep is thousands of small steps, which more threads per step do not speed up and more sweeps side by side do.
Each problem runs on one thread whatever their number, so the machine's size changes no bit of a solution. Matrices that
share a statistic share its factor, so they run after one another on one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from tasks.refusal import refused

Solved = TypeVar("Solved")


def side_by_side(
    solve_one: Callable[[str], Solved], matrices: Mapping[str, torch.Tensor], statistics: Mapping[str, object]
) -> dict[str, Solved]:
    """``solve_one`` of every name, in the order of ``matrices``."""

    def named(name: str) -> Solved:
        try:
            return solve_one(name)
        except ValueError as error:
            if not refused(error):
                raise
            raise ValueError(f"{error} ({name})") from None

    threads = torch.get_num_threads()
    on_cpu = all(matrix.device.type == "cpu" for matrix in matrices.values())
    if not on_cpu:
        return {name: named(name) for name in matrices}
    sharers: dict[int, list[str]] = {}  # one statistic's matrices after one another, on one thread
    for name in matrices:
        sharers.setdefault(id(statistics.get(name, name)), []).append(name)
    jobs = sorted(sharers.values(), key=lambda names: -sum(matrices[name].numel() for name in names))

    def solve_some(names: list[str]) -> dict[str, Solved]:
        torch.set_num_threads(1)  # of this thread only
        with torch.no_grad():
            return {name: named(name) for name in names}

    try:
        with ThreadPoolExecutor(threads) as pool:
            solved = {name: edit for some in pool.map(solve_some, jobs) for name, edit in some.items()}
    finally:
        torch.set_num_threads(threads)
    return {name: solved[name] for name in matrices}
