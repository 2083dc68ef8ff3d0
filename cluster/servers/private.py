"""Files and directories that only this user can read."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from cluster.store import durable


def write_private(path: Path, content: str | bytes) -> None:
    """Replace `path` at once by a file that only this user can read. It is on the disk then: after a power failure an empty
    one would pass for a login without a password."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        durable.put(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(error.errno, f"cannot be written: {error.strerror}", str(path)) from error


def private_directory(path: Path) -> Path:
    """A directory in the shared /tmp that is ours: someone else's, or a link, would let them in."""
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise RuntimeError(f"{path} exists and is not a directory of this user; remove it")
    path.chmod(0o700)
    return path
