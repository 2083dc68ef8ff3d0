"""Work beside a walk: while a GPU computes, the next block is read and the last one written by threads of the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch


class Background:
    """One thread. Without a GPU there is none: it would take the cores of what it runs beside."""

    def __init__(self, device: str) -> None:
        self._thread = None if device == "cpu" else ThreadPoolExecutor(1)

    def __bool__(self) -> bool:
        return self._thread is not None

    def give(self, work: Callable[[], Any]) -> Callable[[], Any]:
        """Begin it; what is returned waits for its result, and raises what it raised."""
        if self._thread is None:
            result = work()
            return lambda: result
        return self._thread.submit(work).result

    def fetch(self, tensors: Mapping[str, torch.Tensor]) -> Callable[[], dict[str, torch.Tensor]]:
        """Begin to copy tensors as they are now to the host, beside what the GPU computes from now on; what is returned waits
        for them."""
        if self._thread is None:
            return lambda: {name: tensor.cpu() for name, tensor in tensors.items()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        there = {name: torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for name, tensor in tensors.items()}
        with torch.cuda.stream(stream):
            for name, tensor in tensors.items():
                there[name].copy_(tensor, non_blocking=True)
                tensor.record_stream(stream)

        def fetched() -> dict[str, torch.Tensor]:
            stream.synchronize()
            return there

        return fetched
