"""A file lock between the processes of one machine."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(file: Path, shared: bool = False) -> Iterator[None]:
    """Hold the lock of ``file``, which is created if missing; the kernel releases it when its holder dies. Any number may hold
    it ``shared``, while nobody holds it alone."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with file.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
