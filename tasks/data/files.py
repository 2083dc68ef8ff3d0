"""Files of a corpus, local or on S3, through one filesystem interface."""

from __future__ import annotations

import fnmatch
import glob
import hashlib
from pathlib import Path
from typing import Any

from tasks.data.digests import Digests


def filesystem_of(path: str) -> tuple[Any, str]:
    """(filesystem, path inside it) for a local path or an s3:// URI."""
    from pyarrow import fs

    if path.startswith("s3://"):
        return fs.FileSystem.from_uri(path)
    return fs.LocalFileSystem(), path


def expand(pattern: str) -> list[str]:
    """The files a path or glob names, sorted; ValueError when there are none."""
    if not pattern.startswith("s3://"):
        found = sorted(path for path in glob.glob(pattern, recursive=True) if Path(path).is_file())
    else:
        from pyarrow import fs

        filesystem, inner = filesystem_of(pattern.split("*")[0].rpartition("/")[0] + "/")
        listing = filesystem.get_file_info(fs.FileSelector(inner.rstrip("/"), recursive=True, allow_not_found=True))
        names = ["s3://" + info.path for info in listing if info.type == fs.FileType.File]
        found = sorted(fnmatch.filter(names, pattern))
    if not found:
        raise ValueError(f"corpus file {pattern}: does not exist")
    return found


def total_bytes(files: list[str]) -> int:
    return sum(filesystem.get_file_info(inner).size for filesystem, inner in map(filesystem_of, files))


def read(path: str) -> bytes:
    filesystem, inner = filesystem_of(path)
    with filesystem.open_input_stream(inner, compression=None) as stream:
        return stream.read()


def file_digest(path: str, digests: Digests) -> bytes:
    if not path.startswith("s3://"):
        return digests.of(Path(path))
    filesystem, inner = filesystem_of(path)
    total = hashlib.sha256()
    with filesystem.open_input_stream(inner, compression=None) as stream:
        while chunk := stream.read(1 << 24):
            total.update(chunk)
    return total.digest()
