"""Who is at work on a folder, so that what the dead left can be told from what the living write.

A process that writes a folder holds the lock of a file beside it; the kernel lets go when the process dies, however it
does. Locks are believed where owner and judge are of one kernel. Of another machine's folder (a shared disk that may not
share its locks), and of one without such a file, silence is the proof: nothing in it was written for a day.

    .../<name>        the folder
    .../<name>.lock   beside it: the kernels of those that held it, a line each
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

KERNEL = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
SILENT_SECONDS = 24 * 3600.0
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # what file systems without locks say
TEMPORARY = re.compile(r"(\..+\.[0-9a-f]{32})(\.lock)?")  # of files.temporary_beside


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Be known as one who works on ``folder`` (there already or not), beside others who are. Where the file system has no
    locks nobody can be told dead, so only silence is believed there."""
    lock = lock_of(folder)
    lock.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _hold(lock, fcntl.LOCK_SH)
    try:
        yield
    finally:
        if not os.path.lexists(folder):
            with suppress(OSError):  # others are still at work on it: the last one tidies up
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                lock.unlink(missing_ok=True)
        os.close(descriptor)


def lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def reap(folder: Path, remove: bool) -> int | None:
    """The bytes of a folder that no living process owns, removed if so wished; None of one that may have an owner."""
    lock, descriptor = lock_of(folder), None
    try:
        if lock.exists():
            descriptor = _hold(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        local = descriptor is not None and set(lock.read_text().split()) == {KERNEL}
        if not local and _silence(folder, lock) < SILENT_SECONDS:
            return None
        size = size_of(folder)
        if remove:
            if os.path.lexists(folder):
                shutil.rmtree(folder)
            lock.unlink(missing_ok=True)
        return size
    except (BlockingIOError, PermissionError, FileNotFoundError):  # owned, somebody else's, or gone meanwhile
        return None
    finally:
        if descriptor is not None:
            os.close(descriptor)


def temporaries(root: Path) -> list[Path]:
    """The folders below a store's root that a publisher makes, or made, to give them their name later."""
    found = ((path, TEMPORARY.fullmatch(path.name)) for path in root.glob("*/.*"))
    return sorted({path.with_name(match.group(1)) for path, match in found if match})


def size_of(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _hold(lock: Path, how: int) -> int:
    """A descriptor that holds the lock of the file that now has this name: another may have been removed meanwhile."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, how)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                os.close(descriptor)
                raise
            os.ftruncate(descriptor, 0)  # it names no kernel, so nobody believes in it
            return descriptor
        with suppress(FileNotFoundError):
            if os.fstat(descriptor).st_ino == lock.stat().st_ino:
                if how == fcntl.LOCK_SH and KERNEL not in lock.read_text().split():
                    os.write(descriptor, f"{KERNEL}\n".encode())
                return descriptor
        os.close(descriptor)


def _silence(folder: Path, lock: Path) -> float:
    """Seconds since anything in a folder, or its lock, was written."""
    times = [path.lstat().st_mtime for path in (folder, lock, *folder.rglob("*")) if os.path.lexists(path)]
    return time.time() - max(times, default=0.0)
