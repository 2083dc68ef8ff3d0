"""Forms in which a matrix with zeros can be stored and multiplied with what torch has, and how long each takes.

Every form multiplies a matrix W [O, I] with columns X [I, N] (N tokens) and must give what the dense matrix with its zeros
gives. Which weights may be zero decides which forms fit: any (CSR), square blocks (BSR), columns shared by groups of rows
(gathered and multiplied group by group), whole columns (a smaller dense matrix), two of four (2:4, on a GPU alone).

Shapes: O = outputs, I = inputs, N = tokens, G = groups of rows, K = columns a group keeps.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from tasks.formats.pattern import NM, Block, Channel, Group, Pattern

Multiply = Callable[[torch.Tensor], torch.Tensor]
FEWEST = 3  # measurements that are taken whatever they cost


@dataclass(frozen=True)
class Form:
    """A matrix as it is stored: ``multiply`` takes X, ``bytes`` is what it takes."""

    multiply: Multiply
    bytes: int


def dense(masked_OI: torch.Tensor) -> Form:
    """All weights, zeros too."""
    return Form(lambda x_IN: masked_OI @ x_IN, _bytes(masked_OI))


def csr(masked_OI: torch.Tensor) -> Form:
    """Values and column numbers, row by row; numbers of 32 bits, which the kernels take."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is in beta
        wide = masked_OI.to_sparse_csr()
        parts = wide.crow_indices().int(), wide.col_indices().int(), wide.values()
        sparse = torch.sparse_csr_tensor(*parts, wide.shape)
    return Form(lambda x_IN: sparse @ x_IN, _bytes(*parts))


def bsr(masked_OI: torch.Tensor, size: int) -> Form:
    """Square blocks that are not all zeros, row by row."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wide = masked_OI.to_sparse_bsr((size, size))
        parts = wide.crow_indices().int(), wide.col_indices().int(), wide.values()
        sparse = torch.sparse_bsr_tensor(*parts, wide.shape)
    return Form(lambda x_IN: sparse @ x_IN, _bytes(*parts))


def gathered(masked_OI: torch.Tensor, rows: int) -> Form:
    """For every group of rows the columns it keeps, gathered from X before the groups are multiplied as one batch. Groups
    that keep one column fewer carry one of zeros."""
    groups_GRI = masked_OI.unflatten(0, (-1, rows))
    alive_GI = (groups_GRI != 0).any(1)
    width = max(1, int(alive_GI.sum(1).max()))
    columns_GK = alive_GI.byte().argsort(dim=1, descending=True, stable=True)[:, :width]
    values_GRK = groups_GRI.gather(2, columns_GK[:, None].expand(-1, rows, -1)).contiguous()
    flat = columns_GK.flatten()

    def multiply(x_IN: torch.Tensor) -> torch.Tensor:
        x_GKN = x_IN.index_select(0, flat).view(*columns_GK.shape, -1)
        return torch.bmm(values_GRK, x_GKN).flatten(0, 1)

    return Form(multiply, _bytes(values_GRK, columns_GK.int()))


def sliced(masked_OI: torch.Tensor) -> Form:
    """The columns that live, as a smaller matrix; whoever made X made no others. What structured pruning gives."""
    alive_I = (masked_OI != 0).any(0)
    kept_OK = masked_OI[:, alive_I].contiguous()
    cut: dict[int, torch.Tensor] = {}  # made once per X: a model has only them

    def multiply(x_IN: torch.Tensor) -> torch.Tensor:
        if id(x_IN) not in cut:
            cut.clear()
            cut[id(x_IN)] = x_IN[alive_I].contiguous()
        return kept_OK @ cut[id(x_IN)]

    return Form(multiply, _bytes(kept_OK))


def two_of_four(masked_OI: torch.Tensor) -> Form:
    """What tensor cores of NVIDIA GPUs (compute capability 8.0 and later) take; refused elsewhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is a prototype
        sparse = torch.sparse.to_sparse_semi_structured(masked_OI)
    return Form(lambda x_IN: sparse @ x_IN, masked_OI.numel() // 2 * masked_OI.element_size() + masked_OI.numel() // 8)


def form_for(pattern: Pattern) -> tuple[str, Callable[[torch.Tensor], Form]]:
    """The form that a pattern allows, by its name."""
    if isinstance(pattern, Block):
        return f"bsr{pattern.size}", lambda masked_OI: bsr(masked_OI, pattern.size)
    if isinstance(pattern, Group):
        return f"gather{pattern.rows}", lambda masked_OI: gathered(masked_OI, pattern.rows)
    if isinstance(pattern, Channel):
        return "sliced", sliced
    if isinstance(pattern, NM) and (pattern.n, pattern.m) == (2, 4) and torch.cuda.is_available():
        return "semi_structured", two_of_four
    return "csr", csr


def timed(runs: Mapping[str, Callable[[], object]], repeats: int, seconds: float, device: str) -> dict[str, list[float]]:
    """The times each of ``runs`` took, in seconds: one after the other, ``repeats`` times over or until ``seconds`` each have
    passed, so that what else the machine does hits all alike. One round before warms up."""

    def now() -> float:
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        return time.perf_counter()

    found: dict[str, list[float]] = {name: [] for name in runs}
    begun, budget = now(), seconds * len(runs)
    for number in range(repeats + 1):
        for name, run in runs.items():
            start = now()
            run()
            found[name].append(now() - start)
        if number >= FEWEST and now() - begun > budget:
            break
    return {name: times[1:] for name, times in found.items()}


def kernel_of(run: Callable[[], object], device: str) -> str | None:
    """The GPU kernel that takes most of the time, by its own name; None on a CPU, whose libraries do not tell."""
    if not device.startswith("cuda"):
        return None
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        run()
        torch.cuda.synchronize(device)
    events = [event for event in profiled.key_averages() if event.device_type == torch.autograd.DeviceType.CUDA]
    return max(events, key=lambda event: event.self_device_time_total).key if events else None


def best_and_median(times: list[float]) -> tuple[float, float]:
    return min(times), statistics.median(times)


def _bytes(*tensors: torch.Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
