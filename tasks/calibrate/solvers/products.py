"""X^T X of a batch of inputs, and tr(C X^T X C^T) of changes C: symmetric, so that little over half of the products will do.

Of factors of 16 bits the products are exact in float32, and a device has units for them.

Shapes: T = tokens, I = input features, R = those of a strip, O = output features.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch


def strips(width: int) -> Iterator[tuple[int, int]]:
    """The first row of each strip of a symmetric matrix, and that after its last; a strip begins at the diagonal."""
    size = max(128, -(-width // 8))
    return ((first, min(first + size, width)) for first in range(0, width, size))


def products(input_TI: torch.Tensor, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """The strips of X^T X [R, columns from the first of their rows on], one by one, in ``dtype``."""
    bounds = strips(input_TI.shape[1])
    if input_TI.is_cuda and input_TI.itemsize == 2 and dtype == torch.float32:
        for first, last in bounds:  # tensor cores
            yield torch.mm(input_TI[:, first:last].T, input_TI[:, first:], out_dtype=dtype)
        return
    narrow = input_TI.dtype == torch.bfloat16 and input_TI.device.type == "cpu" and dtype == torch.float32
    input_TI = input_TI.to(dtype)
    for first, last in bounds:
        with _as_bfloat16() if narrow else nullcontext():
            strip_RI = torch.mm(input_TI[:, first:last].T, input_TI[:, first:])
        yield strip_RI


@contextmanager
def _as_bfloat16() -> Iterator[None]:
    """Meanwhile float32 matrices that hold bfloat16 values are multiplied by a CPU's units for those, where it has them: in
    less than half the time. The switch is the whole process's, so no other thread may multiply meanwhile."""
    switch = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # its module is made as torch starts
    before, switch.fp32_precision = switch.fp32_precision, "bf16"
    try:
        yield
    finally:
        switch.fp32_precision = before


def doubled(symmetric_II: torch.Tensor) -> torch.Tensor:
    """Its upper triangle, what is off the diagonal twice: it makes the same sum of squares."""
    upper_II = torch.triu(symmetric_II, 1).mul_(2)
    upper_II.diagonal().copy_(symmetric_II.diagonal())
    return upper_II


def sum_of_squares(change_OI: torch.Tensor, doubled_II: torch.Tensor) -> float:
    """tr(C M C^T) of changes C and the symmetric M whose :func:`doubled` it is: little over half of the products of C M."""
    total = 0.0
    for first, last in strips(len(doubled_II)):
        seen_OR = change_OI[:, first:] @ doubled_II[first:last, first:].T
        total += float((seen_OR * change_OI[:, first:last]).sum())
    return total
