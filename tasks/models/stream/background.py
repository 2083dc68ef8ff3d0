"""Work beside a walk: while a GPU computes, the next block is read and the last one written by threads of the host."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any


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
