"""Files of a corpus, local or on S3, packed or not, through one filesystem interface."""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import io
import lzma
import os
import re
from pathlib import Path
from typing import Any, BinaryIO

from tasks.data.digests import Digests

PACKED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".xz": "xz"}
WILD = "*?["


def filesystem_of(path: str) -> tuple[Any, str]:
    """(filesystem, path inside it) for a local path or an s3:// URI."""
    from pyarrow import ArrowInvalid, fs

    if not path.startswith("s3://"):
        return fs.LocalFileSystem(), path
    try:
        return fs.FileSystem.from_uri(path)
    except ArrowInvalid as error:
        raise ValueError(f"corpus file {path}: no S3 address ({error}); write s3://BUCKET/KEY") from None


def expand(pattern: str, called: str = "corpus file") -> list[str]:
    """The files a path or glob names, sorted; ValueError when there are none. A file or folder that has a wildcard in its
    name counts first. ``called`` is what an error calls them."""
    if not pattern.startswith("s3://"):
        if os.path.lexists(pattern):
            return [_regular(pattern, called)]
        found = sorted(path for path in glob.glob(_escaped(pattern), recursive=True) if Path(path).is_file())
    elif not re.fullmatch(r"s3://[^/]+/.+", pattern):
        raise ValueError(f"{called} {pattern}: no S3 address; write s3://BUCKET/KEY")
    else:
        names, root = _listing(pattern)
        found = [pattern] if pattern in names else sorted(fnmatch.filter(names, glob.escape(root) + pattern[len(root) :]))
    if not found:
        raise ValueError(f"{called} {pattern}: does not exist")
    for path in found:
        if re.search("[\ud800-\udfff]", path):  # how Python spells bytes of a name that are no text
            raise ValueError(f"{called} {path!a}: its name is no valid UTF-8; rename it")
    return found


def _regular(path: str, called: str) -> str:
    if os.path.isdir(path):
        raise ValueError(f"{called} {path}: is a folder; write which of its files, like {path.rstrip('/')}/**/*.jsonl")
    if not os.path.isfile(path):
        raise ValueError(
            f"{called} {path}: is no regular file"
            if os.path.exists(path)
            else f"{called} {path}: is a link to {os.readlink(path)}, which does not exist"
        )
    return path


def _escaped(pattern: str) -> str:
    """The glob in which the folders that exist under the very name written stand for themselves."""
    literal, rest = "", pattern
    while "/" in rest:
        part, _, after = rest.partition("/")
        if not os.path.isdir(f"{literal}{part}/"):
            break
        literal, rest = f"{literal}{part}/", after
    return glob.escape(literal) + rest


def _listing(pattern: str) -> tuple[list[str], str]:
    """The objects of a bucket that a pattern may mean, and the folder that all of them are in."""
    from pyarrow import fs

    names: list[str] = []
    for wild in ("*", WILD):  # [ and ? are more often meant as they stand
        root = pattern[: min((pattern.find(sign) for sign in wild if sign in pattern), default=len(pattern))]
        root = root[: root.rfind("/") + 1]
        filesystem, inner = filesystem_of(root)
        listing = filesystem.get_file_info(fs.FileSelector(inner.rstrip("/"), recursive=True, allow_not_found=True))
        names = ["s3://" + info.path for info in listing if info.type == fs.FileType.File]
        if names:
            break
    return names, root


def total_bytes(files: list[str]) -> int:
    return sum(filesystem.get_file_info(inner).size for filesystem, inner in map(filesystem_of, files))


def read(path: str) -> bytes:
    filesystem, inner = filesystem_of(path)
    with filesystem.open_input_stream(inner, compression=None) as stream:
        return stream.read()


def unpacked(path: str, content: bytes | None = None) -> BinaryIO:
    """What a file holds, ``content`` if it was read already: decompressed as its name says, piece by piece."""
    import pyarrow as arrow

    packing = PACKED.get(Path(path).suffix)
    if content is None and path.startswith("s3://"):
        content = read(path)  # a broken connection is not a damaged file
    if packing is None:
        return Path(path).open("rb") if content is None else io.BytesIO(content)
    if packing == "xz":
        return lzma.open(path if content is None else io.BytesIO(content))
    raw = arrow.OSFile(path) if content is None else arrow.BufferReader(content)
    return io.BufferedReader(arrow.CompressedInputStream(raw, packing), 1 << 20)


def file_digest(path: str, digests: Digests) -> bytes:
    if not path.startswith("s3://"):
        return digests.of(Path(path))
    filesystem, inner = filesystem_of(path)
    total = hashlib.sha256()
    with filesystem.open_input_stream(inner, compression=None) as stream:
        while chunk := stream.read(1 << 24):
            total.update(chunk)
    return total.digest()
