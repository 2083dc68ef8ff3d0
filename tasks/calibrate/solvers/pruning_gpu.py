"""The inner loops of a pruning sweep as one GPU kernel: :mod:`tasks.calibrate.solvers.pruning` says what they do.

A program takes a few rows through all columns of a block, which stay in registers until the last is done.

Shapes: O = output rows, I = input columns.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

ROWS = 16  # of one program


def prune(
    work_OI: torch.Tensor,
    errors_OI: torch.Tensor,
    keep_OI: torch.Tensor,
    upper_II: torch.Tensor,
    saliency_I: torch.Tensor,
    first: int,
    last: int,
    end: int,
    width: int = 0,
    pruned: int = 0,
) -> None:
    """Columns of a known mask; with ``width``, groups that choose theirs."""
    rows, columns = work_OI.shape
    with torch.cuda.device(work_OI.device):
        _prune[(triton.cdiv(rows, ROWS),)](
            work_OI,
            errors_OI,
            keep_OI,
            upper_II,
            saliency_I,
            rows,
            columns,
            pruned,
            first,
            last,
            end,
            WIDTH=width,
            ROWS=ROWS,
            SPAN=triton.next_power_of_2(end - first),
        )


@triton.jit
def _prune(
    work,
    errors,
    keep,
    upper,
    saliency,
    rows,
    columns,
    pruned,
    first,
    last,
    end,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    SPAN: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = first + tl.arange(0, SPAN)
    place = row.to(tl.int64)[:, None] * columns + column[None, :]
    exists = (row < rows)[:, None] & (column < end)[None, :]
    weight = tl.load(work + place, mask=exists, other=0.0)
    live = tl.load(keep + place, mask=exists, other=1) != 0
    error = tl.zeros_like(weight)
    if WIDTH:
        saliency_ahead = tl.load(saliency + column, mask=column < end, other=0.0)[None, :]
    for settled in range(first, last):
        if WIDTH:  # noqa: SIM102  known when this is compiled
            if (settled - first) % WIDTH == 0:
                score = tl.where(live, weight * weight * saliency_ahead, -1.0)
                below = tl.zeros([ROWS, SPAN], tl.int32)
                for other in range(settled, settled + WIDTH):
                    theirs = tl.sum(tl.where((column == other)[None, :], score, 0.0), 1)[:, None]
                    below += ((theirs < score) | ((theirs == score) & (other < column)[None, :])).to(tl.int32)
                group = ((column >= settled) & (column < settled + WIDTH))[None, :]
                live = live & ((below >= pruned) | (group == 0))
        here = (column == settled)[None, :]
        goes = here & (live == 0)
        ahead = tl.load(upper + settled.to(tl.int64) * columns + column, mask=(column >= settled) & (column < end), other=0.0)
        lost = tl.sum(tl.where(goes, weight, 0.0), 1) / tl.sum(tl.where(column == settled, ahead, 0.0), 0)
        weight = tl.where(goes, 0.0, weight - lost[:, None] * ahead[None, :])
        error = tl.where(goes, lost[:, None], error)
    settled_here = exists & (column < last)[None, :]
    tl.store(work + place, weight, mask=exists)
    tl.store(errors + place, error, mask=settled_here)
    if WIDTH:
        tl.store(keep + place, live, mask=settled_here)
