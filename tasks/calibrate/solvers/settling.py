"""Compiled inner loops of a column sweep, for CPU and GPU: what a mask drops becomes zero, what a grid has no place for is
rounded, and the columns ahead make it good.

Rows are independent of each other, so whole blocks of columns run in one call. Of column by column in torch, SparseGPT's time
in a walk on two cores fell to two thirds (2:4: to a third), and on an H100, for a block of a 1.1B Llama, from 2.9 s to 0.8
(2:4: from 4.3 to 0.4).

Shapes: O = output rows, I = input columns. All matrices are contiguous; those of weights share a dtype.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from tasks.calibrate.solvers.rounding import Rounding


def settle_columns(
    work_OI: torch.Tensor,
    errors_OI: torch.Tensor,
    keep_OI: torch.Tensor,
    upper_II: torch.Tensor,
    first: int,
    last: int,
    end: int,
    rounding: Rounding | None = None,
) -> None:
    """Settle the columns from ``first`` to ``last``, one after the other: zero what ``keep_OI`` does not keep, round the rest,
    and compensate for both in the columns up to ``end``. Writes to ``work_OI`` and the errors to ``errors_OI``."""
    given = (work_OI, errors_OI, keep_OI, upper_II, upper_II)
    _loops(*given)(*given, first, last, end, 0, 0, rounding)


def settle_groups(
    work_OI: torch.Tensor,
    errors_OI: torch.Tensor,
    keep_OI: torch.Tensor,
    upper_II: torch.Tensor,
    saliency_I: torch.Tensor,
    width: int,
    pruned: int,
    start: int,
    end: int,
    rounding: Rounding | None = None,
) -> None:
    """:func:`settle_columns` of the groups of ``width`` columns from ``start`` to ``end``, where each group first drops
    its ``pruned`` weights of the lowest W^2 * saliency, ties the lower column first; what ``keep_OI`` has dropped before
    ranks below all. Writes the choice to ``keep_OI`` too."""
    given = (work_OI, errors_OI, keep_OI, upper_II, saliency_I)
    _loops(*given)(*given, start, end, end, width, pruned, rounding)


def _loops(*tensors: torch.Tensor):
    """Those of the device that the matrices are on."""
    first = tensors[0]
    for tensor in tensors:
        assert tensor.is_contiguous() and tensor.device == first.device and tensor.dtype in (first.dtype, torch.bool)
    if first.device.type == "cpu":
        from tasks.calibrate.solvers import settling_cpu

        return settling_cpu.settle
    from tasks.calibrate.solvers import settling_gpu

    return settling_gpu.settle
