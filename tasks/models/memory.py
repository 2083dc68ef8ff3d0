"""Peak memory of a stage, whatever ran in its process before it.

The kernel keeps one peak per process, which with several stages in a process is that of the largest so far. Where the
counter can be reset it is; elsewhere memory is sampled every few milliseconds. On a GPU it is the allocator's own count.
"""

from __future__ import annotations

import ctypes
import threading
from contextlib import suppress
from pathlib import Path

PROCESS = Path("/proc/self")
EVERY = 0.02  # seconds between two looks


class Peak:
    """From ``with`` to its end; :attr:`bytes` is there afterwards."""

    def __init__(self, device: str) -> None:
        self.device, self.bytes = device, 0
        self._ended = threading.Event()
        self._sampler: threading.Thread | None = None

    def __enter__(self) -> Peak:
        give_back()
        if self.device.startswith("cuda"):
            import torch

            torch.cuda.reset_peak_memory_stats(self.device)
        elif not _begin_anew():
            self._sampler = threading.Thread(target=self._watch, daemon=True)
            self._sampler.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        if self._sampler:
            self._sampler.join()
        else:
            self.bytes = peak_bytes(self.device)

    def _watch(self) -> None:
        while True:
            self.bytes = max(self.bytes, _status("VmRSS"))
            if self._ended.wait(EVERY):
                return


def peak_bytes(device: str) -> int:
    """The most this process has held since a :class:`Peak` began, or, where that may not reset it, ever."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM")


def give_back() -> None:
    """Return what the heap holds free to the kernel."""
    with suppress(OSError, AttributeError):  # glibc alone keeps it, and alone can be told
        ctypes.CDLL(None).malloc_trim(0)


def _begin_anew() -> bool:
    """Whether the kernel forgot its mark: it may not be there (gVisor), or not be ours to set."""
    try:
        (PROCESS / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status(field: str) -> int:
    """A field of the process's status, in bytes."""
    lines = (PROCESS / "status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
