"""The loops of ``settling.cpp`` behind ctypes: a call holds no lock of Python's."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch

from tasks.calibrate.solvers.compiled import library

if TYPE_CHECKING:
    from tasks.calibrate.solvers.rounding import Rounding

_REAL = {torch.float32: "float", torch.float64: "double"}


class _Grid(ctypes.Structure):
    """Its twin in ``settling.cpp``, of the same fields."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("scale", "zero", "group")),
        ("groups", ctypes.c_int64),
        *((name, ctypes.c_double) for name in ("lowest", "highest")),
        *((name, ctypes.c_int32) for name in ("code_bits", "code_least", "bits", "least")),
    )


def settle(
    work_OI: torch.Tensor,
    errors_OI: torch.Tensor,
    keep_OI: torch.Tensor,
    upper_II: torch.Tensor,
    saliency_I: torch.Tensor,
    first: int,
    last: int,
    end: int,
    width: int,
    pruned: int,
    rounding: Rounding | None,
) -> None:
    """Columns of a known mask; with ``width``, groups that choose theirs."""
    grid = _Grid()
    if rounding:
        places = [given.data_ptr() for given in (rounding.scale_OG, rounding.zero_OG, rounding.group_I)]
        ends = (rounding.lowest, rounding.highest)
        grid = _Grid(*places, rounding.scale_OG.shape[1], *ends, *rounding.coded, *rounding.kept)
    addresses = [ctypes.c_void_p(given.data_ptr()) for given in (work_OI, errors_OI, keep_OI, upper_II, saliency_I)]
    function = getattr(library(), f"settle_{_REAL[work_OI.dtype]}")
    function(*addresses, ctypes.byref(grid), *map(ctypes.c_int64, (*work_OI.shape, first, last, end, width, pruned)))
