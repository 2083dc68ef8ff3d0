"""Durable writes: a file is there whole or not at all, whatever crashes, and on the disk when the call returns.

A rename is atomic, but a crash may keep it and lose the bytes; so first fsync, then rename, then fsync of the folder. It
knows nothing of clusters and is the one module of this folder that all of ``tasks`` may import.
"""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """fsync a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def put(draft: Path, path: Path) -> None:
    """Give a finished file its name, on the same file system."""
    sync(draft)
    draft.replace(path)
    sync(path.parent)


def write(path: Path, content: bytes) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_bytes(content)
        put(draft, path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise OSError(error.errno, f"cannot write {len(content)} bytes: {error.strerror}", str(path)) from error
