"""The column sweep in plain torch, a column at a time under any projection: what the compiled loops are compared with."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tasks.calibrate.solvers.sweep import sweep_blocks


def sweep(
    weight_OI: torch.Tensor,
    upper_II: torch.Tensor,
    project: Callable[[int, torch.Tensor], torch.Tensor],
    block: int = 128,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Settle every column; returns the settled weights and the errors E, both [O, I].

    ``project(column, ahead_OG)`` gives the settled values of ``column``. ``ahead_OG`` holds the weights as compensated
    so far, from that column to the end of its block: the first column is the one to settle.
    """

    def settle(work_OI: torch.Tensor, errors_OI: torch.Tensor, start: int, end: int) -> None:
        block_GO = work_OI[:, start:end].T.contiguous()  # a column of weights lies in one piece: several times faster
        errors_GO = torch.zeros_like(block_GO)
        for column in range(start, end):
            ahead_GO = block_GO[column - start :]
            settled_O = project(column, ahead_GO.T)
            torch.div(ahead_GO[0] - settled_O, upper_II[column, column], out=errors_GO[column - start])
            ahead_GO.addr_(upper_II[column, column:end], errors_GO[column - start], alpha=-1)
            block_GO[column - start] = settled_O
        work_OI[:, start:end], errors_OI[:, start:end] = block_GO.T, errors_GO.T

    return sweep_blocks(weight_OI, upper_II, settle, block)
