"""The sha256 of files, each read once: kept by path and by what the system says of the file (size, times, inode).

Twelve branches on one checkpoint, the plan and the job that follows it all ask for the same files. A file that changed
has another size, time or inode; one that was written just now may change again without, so it is not kept.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

DIGESTS = "digests"  # the folder of a home where they are kept
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)  # a home that is looked at, and whose files are read once a process
SETTLED = 2 * 10**9  # ns: a file system's clock may tick as slowly as this
WORTH_KEEPING = 1 << 20  # bytes: smaller files are read as fast as what is kept of them

Stamp = list[int]


class Source(Protocol):
    """Outside content that a field points at."""

    def fingerprint(self, digests: Digests | None = None) -> str | None:
        """Digest of the content; None where there is none. Raises ValueError where it cannot be read."""

    def describe(self) -> str:
        """What an error calls it."""


class Digests:
    """``folder`` outlives the process and may be shared by several; without one they are kept in memory only."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._known: dict[Path, tuple[Stamp, bytes]] = {}

    def of(self, path: Path) -> bytes:
        """The sha256 of a file. Raises ValueError where it changes while it is read."""
        path = path.absolute()
        stamp, digest = self._known.get(path, (None, b""))
        if stamp == _stamp(path):
            return digest
        with self._alone(path):
            if (digest := self._kept(path)) is None:
                digest = self._read(path)
        return digest

    def _read(self, path: Path) -> bytes:
        stamp, begun = _stamp(path), time.time_ns()
        with path.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").digest()
        if _stamp(path) != stamp:
            raise ValueError(f"{path} changed while it was read; wait until it is written, and run again")
        if begun - max(stamp[1], stamp[2]) > SETTLED:
            self._known[path] = (stamp, digest)
            self._keep(path, stamp, digest)
        return digest

    def _kept(self, path: Path) -> bytes | None:
        """What another process, or an earlier run, found for the file as it is now."""
        try:
            entry = json.loads(self._entry(path).read_text()) if self.folder else {}
        except (FileNotFoundError, json.JSONDecodeError):  # not kept yet
            return None
        stamp = _stamp(path)
        if entry.get("path") != str(path) or entry.get("stamp") != stamp:
            return None
        self._known[path] = (stamp, bytes.fromhex(entry["sha256"]))
        return self._known[path][1]

    def _keep(self, path: Path, stamp: Stamp, digest: bytes) -> None:
        if self.folder and stamp[0] >= WORTH_KEEPING and os.access(self.folder, os.W_OK, effective_ids=True):
            half = self._entry(path).with_suffix(f".{os.getpid()}.half")
            half.write_text(json.dumps({"path": str(path), "stamp": stamp, "sha256": digest.hex()}))
            half.replace(self._entry(path))

    @contextmanager
    def _alone(self, path: Path) -> Iterator[None]:
        """Of several processes that want one large file, one reads it and the others wait for what it finds."""
        if not self.folder or path.stat().st_size < WORTH_KEEPING:
            yield
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            if error.errno not in READ_ONLY:
                raise
        if not os.access(self.folder, os.W_OK, effective_ids=True):
            yield
            return
        with self._entry(path).with_suffix(".lock").open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            yield

    def _entry(self, path: Path) -> Path:
        return self.folder / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"


def _stamp(path: Path) -> Stamp:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev]
