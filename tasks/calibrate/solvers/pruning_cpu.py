"""The loops of ``pruning.cpp`` behind ctypes: a call holds no lock of Python's."""

from __future__ import annotations

import ctypes

import torch

from tasks.calibrate.solvers.compiled import library

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
    function = getattr(library(), f"{name}_{_REAL[work_OI.dtype]}")
    function(*addresses, *map(ctypes.c_int64, (*work_OI.shape, *numbers)))
