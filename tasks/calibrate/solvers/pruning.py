"""Compiled inner loops of a pruning sweep, for CPU and GPU.

:func:`tasks.calibrate.solvers.sweep.sweep` takes any projection, a column at a time in Python. In pruning, rows are
independent of each other, so whole blocks of columns run in one call: SparseGPT's time in a walk on two cores fell to two
thirds (2:4: to a third), and on an H100, for a block of a 1.1B Llama, from 2.9 s to 0.8 (2:4: from 4.3 to 0.4).

Shapes: O = output rows, I = input columns. All matrices are contiguous; those of weights share a dtype.
"""

from __future__ import annotations

import torch


def prune_columns(
    work_OI: torch.Tensor,
    errors_OI: torch.Tensor,
    keep_OI: torch.Tensor,
    upper_II: torch.Tensor,
    first: int,
    last: int,
    end: int,
) -> None:
    """Zero what ``keep_OI`` does not keep of the columns from ``first`` to ``last``, one after the other, and compensate
    for it in the columns up to ``end``. Writes to ``work_OI`` and the errors to ``errors_OI``."""
    given = (work_OI, errors_OI, keep_OI, upper_II)
    if _on_cpu(*given):
        from tasks.calibrate.solvers import pruning_cpu

        return pruning_cpu.prune_columns(*given, first, last, end)
    from tasks.calibrate.solvers import pruning_gpu

    return pruning_gpu.prune(*given, upper_II, first, last, end)


def prune_groups(
    work_OI: torch.Tensor,
    errors_OI: torch.Tensor,
    keep_OI: torch.Tensor,
    upper_II: torch.Tensor,
    saliency_I: torch.Tensor,
    width: int,
    pruned: int,
    start: int,
    end: int,
) -> None:
    """:func:`prune_columns` of the groups of ``width`` columns from ``start`` to ``end``, where each group first drops
    its ``pruned`` weights of the lowest W^2 * saliency, ties the lower column first; what ``keep_OI`` has dropped before
    ranks below all. Writes the choice to ``keep_OI`` too."""
    given = (work_OI, errors_OI, keep_OI, upper_II, saliency_I)
    if _on_cpu(*given):
        from tasks.calibrate.solvers import pruning_cpu

        return pruning_cpu.prune_groups(*given, width, pruned, start, end)
    from tasks.calibrate.solvers import pruning_gpu

    return pruning_gpu.prune(*given, start, end, end, width, pruned)


def _on_cpu(*tensors: torch.Tensor) -> bool:
    first = tensors[0]
    for tensor in tensors:
        assert tensor.is_contiguous() and tensor.device == first.device and tensor.dtype in (first.dtype, torch.bool)
    return first.device.type == "cpu"
