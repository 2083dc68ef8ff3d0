"""Files and directories that only this user can read."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path


def write_private(path: Path, content: str | bytes) -> None:
    """Replace `path` at once by a file that only this user can read."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
    partial.replace(path)


def private_directory(path: Path) -> Path:
    """A directory in the shared /tmp that is ours: someone else's, or a link, would let them in."""
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise RuntimeError(f"{path} exists and is not a directory of this user; remove it")
    path.chmod(0o700)
    return path
