"""X^T X of a batch of inputs. Of factors of 16 bits the products are exact in float32, and a device has units for them.

Shapes: T = tokens, I = input features, R = some of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch


def products(input_TI: torch.Tensor, bounds: Iterator[tuple[int, int]], dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """The strips of X^T X [R, columns from the first of their rows on] between ``bounds``, one by one, in ``dtype``."""
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
    switch = torch.backends.mkldnn.matmul
    before, switch.fp32_precision = switch.fp32_precision, "bf16"
    try:
        yield
    finally:
        switch.fp32_precision = before
