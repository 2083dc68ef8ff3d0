"""``pruning.cpp``, which the installation compiles, behind ctypes: a call holds no lock of Python's."""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.util import find_spec

import torch

_REAL = {torch.float32: "float", torch.float64: "double"}


def prune_columns(*given: torch.Tensor | int) -> None:
    _call("prune_columns", given)


def prune_groups(*given: torch.Tensor | int) -> None:
    _call("prune_groups", given)


def _call(name: str, given: tuple) -> None:
    tensors = [value for value in given if isinstance(value, torch.Tensor)]
    numbers = given[len(tensors) :]
    work_OI = tensors[0]
    addresses = [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
    function = getattr(_library(), f"{name}_{_REAL[work_OI.dtype]}")
    function(*addresses, *map(ctypes.c_int64, (*work_OI.shape, *numbers)))


@cache
def _library() -> ctypes.CDLL:
    found = find_spec("tasks.calibrate.solvers._pruning")
    if found is None or found.origin is None:
        raise RuntimeError("tasks/calibrate/solvers/pruning.cpp is not compiled: run make install")
    return ctypes.CDLL(found.origin)
