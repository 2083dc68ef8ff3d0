"""A file lock between the processes of one machine."""

from __future__ import annotations

import fcntl
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

SILENCE = 3.0  # seconds a wait may take before it is told


@contextmanager
def locked(file: Path, what: str = "", shared: bool = False) -> Iterator[None]:
    """Hold the lock of ``file``, which is created if missing; the kernel releases it when its holder dies. Any number may hold
    it ``shared``, while nobody holds it alone.

    A wait that lasts is told on stderr, with ``what`` is waited for: a silent one looks like a hang.
    """
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with file.open("w") as held:
        begun, told = time.time(), False
        while not _take(held, fcntl.LOCK_SH if shared else fcntl.LOCK_EX):
            if what and not told and time.time() - begun > SILENCE:
                since = time.strftime("%H:%M:%S", time.localtime(begun))
                print(f"winnow: waiting for {what}, since {since}", file=sys.stderr, flush=True)
                told = True
            time.sleep(0.05 if time.time() - begun < SILENCE else 0.2)
        yield


@contextmanager
def locked_now(file: Path) -> Iterator[bool]:
    """The lock if nobody holds it, and whether that was so."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with file.open("w") as held:
        yield _take(held)


def _take(held: IO[str], kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(held, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
