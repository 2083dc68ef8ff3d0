"""The column sweep that SparseGPT (arXiv 2301.00774) and GPTQ (arXiv 2210.17323) share.

Columns are settled one by one, from left to right or by descending curvature (act-order). Each time, the columns still to
come are updated to compensate for what settling changed, so that the layer's output error is least. With U the upper
factor of the damped inverse Hessian, H^-1 = U^T U, two identities hold exactly and are the tests: W - Q = E U, and the loss
sum(E^2) / 2 equals tr(D H D^T) / 2 for D = W - Q.

Shapes: O = output rows, I = input columns, G = the columns of one block that are not settled yet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from tasks.calibrate.solvers.finite import all_finite

LADDER = 10.0  # each rung damps this many times more than the one before
MOST_DAMPING = 10.0
LEAF = 128  # triangles of fewer rows are inverted at once


@dataclass(frozen=True)
class Factor:
    """``upper_II``: U with H^-1 = U^T U. ``damping``: the share of the mean diagonal that was added to H to get it.
    ``order_I``: the columns of the matrix in the order of U's, which a sweep takes them in; None as they stand."""

    upper_II: torch.Tensor
    damping: float
    order_I: torch.Tensor | None = None

    def arrange(self, matrix_OI: torch.Tensor) -> torch.Tensor:
        """The columns of a matrix in the order of the sweep."""
        return matrix_OI if self.order_I is None else matrix_OI[:, self.order_I]

    def restore(self, matrix_OI: torch.Tensor) -> torch.Tensor:
        """The columns back in their places."""
        return matrix_OI if self.order_I is None else torch.empty_like(matrix_OI).index_copy_(1, self.order_I, matrix_OI)


def factor(hessian_II: torch.Tensor, percent_damp: float = 0.01) -> Factor:
    """Damp, invert and factor a Hessian; when that fails damp ten times more, and say so in the result."""
    damping = percent_damp
    while damping <= MOST_DAMPING:
        upper_II = _inverse_factor(hessian_II, damping)
        if upper_II is not None:
            return Factor(upper_II, damping)
        damping = damping * LADDER if damping else 1e-4
    raise ValueError(f"the Hessian cannot be factored even with damping {MOST_DAMPING:g}; use more calibration data")


def damped(hessian_II: torch.Tensor, damping: float) -> torch.Tensor:
    """H with this share of its mean diagonal added to the diagonal.

    An input that was always zero gets a unit curvature of its own first: it takes no part in any compensation.
    """
    hessian_II = hessian_II.clone()
    diagonal_I = hessian_II.diagonal()
    mean = float(diagonal_I.mean()) or 1.0
    diagonal_I.masked_fill_(diagonal_I == 0, mean).add_(damping * mean)
    return hessian_II


def _inverse_factor(hessian_II: torch.Tensor, damping: float) -> torch.Tensor | None:
    """U with M^-1 = U^T U for the damped Hessian M, or None. Read backwards, M = A A^T with A upper triangular, and
    U = A^-1: one Cholesky."""
    lower_II, failed = torch.linalg.cholesky_ex(damped(hessian_II, damping).flip(0, 1))
    if failed or not all_finite(lower_II):
        return None
    upper_II = lower_II.flip(0, 1).contiguous()
    del lower_II
    _invert(upper_II)
    return upper_II if all_finite(upper_II) else None


def _invert(upper_II: torch.Tensor) -> None:
    """Invert an upper triangular matrix in place, by halves: a third of the work of solving for the identity.

    The inverse of [[A, B], [0, C]] is [[A^-1, -A^-1 B C^-1], [0, C^-1]].
    """
    if len(upper_II) < LEAF:
        identity_II = torch.eye(len(upper_II), dtype=upper_II.dtype, device=upper_II.device)
        upper_II.copy_(torch.linalg.solve_triangular(upper_II, identity_II, upper=True))
        return
    half = len(upper_II) // 2
    _invert(upper_II[:half, :half])
    _invert(upper_II[half:, half:])
    upper_II[:half, half:] = -(upper_II[:half, :half] @ upper_II[:half, half:] @ upper_II[half:, half:])


def sweep_blocks(
    weight_OI: torch.Tensor,
    upper_II: torch.Tensor,
    settle: Callable[[torch.Tensor, torch.Tensor, int, int], None],
    block: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``settle(work_OI, errors_OI, start, end)`` settles one block of columns in place and writes their errors; what that
    costs is made good in all later blocks at once."""
    work_OI = weight_OI.to(upper_II.dtype, copy=True, memory_format=torch.contiguous_format)
    errors_OI = torch.zeros_like(work_OI)
    for start in range(0, work_OI.shape[1], block):
        end = min(start + block, work_OI.shape[1])
        settle(work_OI, errors_OI, start, end)
        work_OI[:, end:].addmm_(errors_OI[:, start:end], upper_II[start:end, end:], alpha=-1)
    return work_OI, errors_OI
