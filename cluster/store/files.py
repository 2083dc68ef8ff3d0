"""Directories of files for both stores: list, hash, copy, compare with a record, publish atomically.

Publishing is atomic because it is one `rename` of a finished directory; damage is found because every byte is hashed and
compared with the record.
"""

import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from cluster.store.durable import sync
from cluster.store.owners import owned

RECORD_NAME = "record.json"
CHUNK = 1 << 20


def check_file_name(name: str) -> None:
    """A record names files below its own directory, and nothing else: never a way out of it, never itself."""
    parts = name.split("/") if type(name) is str else []
    plain = bool(parts) and name.isprintable() and "\\" not in name and len(name.encode()) <= 512
    if not plain or any(part in ("", ".", "..") or len(part.encode()) > 255 for part in parts):
        raise ValueError(f"file name {name!r:.120} is not a plain relative path")
    if name == RECORD_NAME:
        raise ValueError(f"file name {RECORD_NAME!r} is reserved for the record itself")


def file_sizes(directory: Path) -> dict[str, int]:
    """Names and sizes of the files to publish; a link or a device is refused: its bytes are not the artifact's."""
    found: dict[str, int] = {}
    for name, size in sorted(_scan(directory)):
        check_file_name(name)
        if size is None:
            raise ValueError(f"{Path(directory) / name} is not a plain file; links and devices are not published")
        found[name] = size
    return found


def problems(directory: Path, files: dict[str, dict], sha256: Callable[[Path], str]) -> list[str]:
    """What is wrong with a local copy of `files`. Another process may move it aside meanwhile: what is gone is missing."""
    try:
        present = dict(_scan(directory))
    except (FileNotFoundError, NotADirectoryError):
        present = {}
    present.pop(RECORD_NAME, None)
    found = [compare(name, files[name], present.pop(name, None), partial(sha256, directory / name)) for name in files]
    return [line for line in found if line] + [f"{name}: not in the record" for name in sorted(present)]


def compare(name: str, expected: dict, size: int | None, sha256: Callable[[], str]) -> str | None:
    """One file against its record entry, cheapest question first; None when it is as recorded."""
    missing = f"{name}: missing, or not a plain file"
    if size is None:
        return missing
    if size != expected["bytes"]:
        return f"{name}: expected {expected['bytes']} bytes, found {size}"
    try:
        found = sha256()
    except FileNotFoundError:
        return missing
    except OSError as error:
        if error.errno != errno.EIO:  # how a disk, or a file system with checksums, says that bytes are lost
            raise
        return f"{name}: cannot be read ({error.strerror})"
    return None if found == expected["sha256"] else f"{name}: expected sha256 {expected['sha256']}, found {found}"


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def temporary_beside(final: Path, size: int) -> Iterator[Path]:
    """A directory on the file system of `final` with room for `size` bytes; what is left in it is removed."""
    final.parent.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(final.parent).free) < size:
        raise OSError(errno.ENOSPC, f"disk full: {size} bytes needed, {free} free", str(final))
    temporary = final.parent / f".{final.name}.{uuid.uuid4().hex}"
    with owned(temporary):
        temporary.mkdir()
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def install(temporary: Path, final: Path, record: str) -> bool:
    """Make a finished directory visible under its name; False when something lies there already."""
    (temporary / RECORD_NAME).write_text(record, encoding="utf-8")
    sync(temporary / RECORD_NAME)
    for folder, _, _ in os.walk(temporary):
        sync(Path(folder))
    try:
        # The whole promise: rename is atomic, and fails on a directory that holds anything.
        os.rename(temporary, final)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        return False
    sync(final.parent)
    return True


def _scan(directory: str | Path, prefix: str = "") -> Iterator[tuple[str, int | None]]:
    """Name and size of everything below that is not a directory, links not followed; no size if not a plain file."""
    for entry in os.scandir(directory):
        if entry.is_dir(follow_symlinks=False):
            yield from _scan(entry.path, f"{prefix}{entry.name}/")
        else:
            plain = entry.is_file(follow_symlinks=False)
            yield prefix + entry.name, entry.stat(follow_symlinks=False).st_size if plain else None


def copy(source: Path, target: Path) -> dict:
    """Copy and hash in one pass: the hash is of the bytes that were written, whatever happens to the source."""
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with open(os.open(source, os.O_RDONLY | os.O_NOFOLLOW), "rb") as reader, target.open("xb") as writer:
        while chunk := reader.read(CHUNK):
            digest.update(chunk)
            size += writer.write(chunk)
    sync(target)
    return {"sha256": digest.hexdigest(), "bytes": size}
