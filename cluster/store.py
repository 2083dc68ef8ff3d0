"""Where artifacts live: directories that appear whole or not at all, and whose bytes are checked on every read.

A run is a chain of immutable directories, so the store has one hard promise: of any number of publishers of one
artifact exactly one wins, the others are handed the winner's record, and a half-written artifact is never visible.
Locally that is one `rename` of a finished sibling directory; in S3 (`cluster/s3.py`) one conditional PUT of the
record, after the files it names. No file is ever unpickled, and nothing outside an artifact's directory is touched.

    <root>/<stage>/<label>-<key12>/{files..., record.json}
"""

import errno
import hashlib
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

from cluster.artifacts import (
    ADDRESS,
    RECORD_NAME,
    Artifact,
    Record,
    address_of,
    check_file_name,
    compare,
    raise_if_corrupt,
    read_record,
)

CHUNK = 1 << 20
SETTLED_NANOSECONDS = 2_000_000_000


class Store(Protocol):
    """The contract. `find` and `records` come for free with `addresses` and `record`."""

    url: str

    def addresses(self, stage: str | None = None) -> list[str]:
        """Addresses of everything published, sorted."""

    def record(self, what: Artifact | str) -> Record | None:
        """The record of an artifact (or of a full address) if it is published: the done check, one small read."""

    def fetch(self, what: Artifact | Record | str) -> Path:
        """A local directory whose every byte was checked against the record; read it, never write to it."""

    def publish(
        self,
        artifact: Artifact,
        directory: Path,
        metrics: dict,
        seconds: float,
        parent_addresses: dict,
        environment: dict,
    ) -> Record:
        """Publish a directory (it is copied and left alone). A loser of a race is handed the winner's record."""

    def verify(self, record: Record) -> list[str]:
        """Everything wrong with a published artifact, one line each; rereads every byte."""

    def writable(self) -> None:
        """ValueError of one line unless publishing will work; asked before the first hour of compute."""

    def records(self, stage: str | None = None) -> Iterator[Record]:
        return (record for address in self.addresses(stage) if (record := self.record(address)))

    def find(self, prefix: str) -> Record:
        """The one artifact whose address or key starts with `prefix`."""
        everything = self.addresses()
        matches = [name for name in everything if name.startswith(prefix) or name[-12:].startswith(prefix[:12])]
        record = self.record(matches[0]) if len(matches) == 1 else None
        if record and (record.address.startswith(prefix) or record.key.startswith(prefix)):
            return record
        if len(matches) > 1:
            raise ValueError(f"{prefix!r} is ambiguous in {self.url}; choose one of {_some(matches)}")
        choices = f"choose one of {_some(everything)}" if everything else "it is empty"
        raise ValueError(f"no artifact {prefix!r} in {self.url}; {choices}")

    def require(self, what: Artifact | Record | str) -> Record:
        """The record, or a ValueError where there is none."""
        record = what if isinstance(what, Record) else self.record(what)
        if record is None:
            raise ValueError(f"{address_of(what)} is not published in {self.url}")
        return record


def open_store(url: str, cache: Path, **s3_options) -> Store:
    """`s3://bucket/prefix` or a local path; `cache` keeps what is fetched from S3 (a local store needs none)."""
    if url.startswith("s3://"):
        from cluster.s3 import S3Store  # boto3 costs half a second: only those who use S3 pay it

        return S3Store(url, cache, **s3_options)
    if "://" in url:
        raise ValueError(f"no store for {url.split('://')[0]!r} URLs; choose one of s3://bucket/prefix, a local path")
    return LocalStore(Path(url).expanduser())


class LocalStore(Store):
    """Artifacts on a POSIX file system, shared or not. Dot directories are the leftovers of dead publishers."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root).absolute()
        self.url = str(self.root)
        self._verified: dict[tuple, str] = {}

    def addresses(self, stage: str | None = None) -> list[str]:
        paths = self.root.glob(f"{stage or '*'}/*/{RECORD_NAME}")
        names = (path.parent.relative_to(self.root).as_posix() for path in paths)
        return sorted(name for name in names if ADDRESS.fullmatch(name))

    def record(self, what: Artifact | str) -> Record | None:
        path = self.root / address_of(what) / RECORD_NAME
        try:
            with path.open("rb") as file:
                return read_record(file, what, str(path))
        except FileNotFoundError:
            return None

    def fetch(self, what: Artifact | Record | str) -> Path:
        record = self.require(what)
        raise_if_corrupt(record, self.url, problems(self.root / record.address, record.files, self._sha256))
        return self.root / record.address

    def publish(self, artifact, directory, metrics, seconds, parent_addresses, environment) -> Record:
        if winner := self.record(artifact):
            return winner
        sizes = file_sizes(directory)
        final = self.root / artifact.address
        with temporary_beside(final, sum(sizes.values())) as temporary:
            files = {name: _copy(Path(directory) / name, temporary / name) for name in sizes}
            record = Record.of(artifact, files, metrics, seconds, parent_addresses, environment)
            won = install(temporary, final, record)
        return record if won else self.require(artifact)

    def verify(self, record: Record) -> list[str]:
        return problems(self.root / record.address, record.files, sha256_of)

    def writable(self) -> None:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.root).close()
        except OSError as error:
            raise ValueError(f"the store {self.root} is not writable: {error.strerror}") from error

    def _sha256(self, path: Path) -> str:
        """Hash a file once per process, as long as nothing about it changes (1 s per GB, and stages fetch often)."""
        seen = path.stat()
        identity = (str(path), seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino)
        found = self._verified.get(identity) or sha256_of(path)
        # File times tick in milliseconds: a file written just now can change again and look the same.
        if time.time_ns() - seen.st_ctime_ns > SETTLED_NANOSECONDS:
            self._verified[identity] = found
        return found


def file_sizes(directory: Path) -> dict[str, int]:
    """Names and sizes of the files to publish; a link or a device is refused: its bytes are not the artifact's."""
    found = dict(sorted(_scan(directory)))
    for name, size in found.items():
        check_file_name(name)
        if size is None:
            raise ValueError(f"{Path(directory) / name} is not a plain file; links and devices are not published")
    return found


def problems(directory: Path, files: dict[str, dict], sha256: Callable[[Path], str]) -> list[str]:
    """What is wrong with a local copy of `files`."""
    present = dict(_scan(directory)) if directory.is_dir() else {}
    present.pop(RECORD_NAME, None)
    found = [compare(name, files[name], present.pop(name, None), partial(sha256, directory / name)) for name in files]
    return [line for line in found if line] + [f"{name}: not in the record" for name in sorted(present)]


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
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def install(temporary: Path, final: Path, record: Record) -> bool:
    """Make a finished directory visible under its name; False when another publisher was first."""
    (temporary / RECORD_NAME).write_text(record.to_json(), encoding="utf-8")
    _sync(temporary / RECORD_NAME)
    for folder, _, _ in os.walk(temporary):
        _sync(Path(folder))
    try:
        # The whole promise: rename is atomic, and fails on a directory that holds anything.
        os.rename(temporary, final)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if not (final / RECORD_NAME).exists():
            raise ValueError(f"{final} exists but holds no {RECORD_NAME}; move it away") from error
        return False
    _sync(final.parent)
    return True


def _scan(directory: Path, prefix: str = "") -> Iterator[tuple[str, int | None]]:
    """Name and size of everything below that is not a directory, links not followed; no size if not a plain file."""
    for entry in os.scandir(directory):
        if entry.is_dir(follow_symlinks=False):
            yield from _scan(entry.path, f"{prefix}{entry.name}/")
        else:
            plain = entry.is_file(follow_symlinks=False)
            yield prefix + entry.name, entry.stat(follow_symlinks=False).st_size if plain else None


def _copy(source: Path, target: Path) -> dict:
    """Copy and hash in one pass: the hash is of the bytes that were written, whatever happens to the source."""
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with open(os.open(source, os.O_RDONLY | os.O_NOFOLLOW), "rb") as reader, target.open("xb") as writer:
        while chunk := reader.read(CHUNK):
            digest.update(chunk)
            size += writer.write(chunk)
    _sync(target)
    return {"sha256": digest.hexdigest(), "bytes": size}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _some(names: list[str], separator: str = ", ", most: int = 8) -> str:
    return separator.join(names[:most]) + (f"{separator}..." if len(names) > most else "")
