"""Where artifacts live: directories that appear whole or not at all, and whose bytes are checked on every read.

A run is a chain of immutable directories, so the store has one hard promise: of any number of publishers of one
artifact exactly one wins, the others are handed the winner's record, and a half-written artifact is never visible.
Locally that is one `rename` of a finished sibling directory; in S3 (`cluster/store/s3.py`) one conditional PUT of the
record, after the files it names. No file is ever unpickled, and nothing outside an artifact's directory is touched.
What is found damaged later is kept aside and made again (`cluster/store/quarantine.py`).

    <root>/<stage>/<label>-<key12>/{files..., record.json}
"""

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Protocol

from cluster.store.artifacts import (
    ADDRESS,
    LARGEST_RECORD,
    Artifact,
    CorruptArtifact,
    Record,
    address_of,
    raise_if_corrupt,
    read_record,
)
from cluster.store.files import RECORD_NAME, copy, file_sizes, install, problems, sha256_of, temporary_beside
from cluster.store.marks import Marks
from cluster.store.owners import reap, size_of, temporaries
from cluster.store.quarantine import FOLDER, Healing, place_for, warn

SETTLED_NANOSECONDS = 2_000_000_000
NO_RECORD = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EIO)  # something lies there, but no record


class Store(Healing, Marks, Protocol):
    """The contract. `find` and `records` come for free with `addresses` and `record`."""

    url: str

    def addresses(self, stage: str | None = None) -> list[str]:
        """Addresses of everything published, damaged or not, sorted."""

    def record(self, what: Artifact | str) -> Record | None:
        """The record of an artifact (or of a full address) if it is published, one small read. CorruptArtifact where
        something lies there that has no sound record."""

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

    def discard(self, address: str) -> None:
        """Remove an artifact for good, damaged or not."""

    def aside(self) -> list[str]:
        """Where everything lies that was found damaged and kept aside."""

    def forget(self, place: str, remove: bool = False) -> int:
        """Bytes of one of those, removed if so wished."""

    def leftovers(self, remove: bool = False) -> dict[str, int]:
        """Bytes of what dead publishers left, by place; removed if so wished. Nothing of a living one."""

    def tidy(self) -> None:
        """Remove such leftovers from this machine's disks: what every run may do, and does."""

    def records(self, stage: str | None = None) -> Iterator[Record]:
        return filter(None, map(self.sound, self.addresses(stage)))

    def find(self, prefix: str, stages: Collection[str] = ()) -> Record:
        """The one artifact whose address or key starts with `prefix`. What ``stages`` made is meant before all else, and
        offered alone."""
        return self.require(self.locate(prefix, stages))

    def locate(self, prefix: str, stages: Collection[str] = ()) -> str:
        """Its address alone, for what may be damaged: there the twelve digits of the address are all that is known of
        the key."""
        everything = self.addresses()
        meant = [name for name in everything if not stages or name.partition("/")[0] in stages]
        matches = begun(meant, prefix) or begun(everything, prefix)
        if len(matches) == 1:
            record = self.done(matches[0])
            if record is None or record.address.startswith(prefix) or record.key.startswith(prefix):
                return matches[0]
        if len(matches) > 1:
            raise ValueError(f"{prefix!r} is ambiguous in {self.url}; choose one of {_some(matches)}")
        none = f"nothing in it was made by {', '.join(stages)}" if everything else "it is empty"
        choices = f"choose one of {_some(meant)}" if meant else none
        raise ValueError(f"no artifact {prefix!r} in {self.url}; {choices}")

    def require(self, what: Artifact | Record | str) -> Record:
        """The record, or a ValueError where there is none."""
        record = what if isinstance(what, Record) else self.record(what)
        if record is None:
            raise ValueError(f"{address_of(what)} is not published in {self.url}")
        return record


class LocalStore(Store):
    """Artifacts on a POSIX file system, shared or not. Dot directories are publishers', at work or dead."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root).absolute()
        self.url = str(self.root)
        self._verified: dict[tuple, str] = {}

    def addresses(self, stage: str | None = None) -> list[str]:
        names = (path.relative_to(self.root).as_posix() for path in self.root.glob(f"{stage or '*'}/*"))
        return sorted(name for name in names if ADDRESS.fullmatch(name))

    def record(self, what: Artifact | str) -> Record | None:
        place = self.root / address_of(what)
        if not os.path.lexists(place):  # asked first: what appears a moment later appears whole
            return None
        try:
            with (place / RECORD_NAME).open("rb") as file:
                content = file.read(LARGEST_RECORD + 1)
        except OSError as error:
            if error.errno not in NO_RECORD:
                raise
            if not os.path.lexists(place):  # moved away just now
                return None
            problem = "missing" if error.errno == errno.ENOENT else error.strerror
            raise CorruptArtifact(f"{place / RECORD_NAME}: {problem}", address_of(what)) from error
        return read_record(content, what, str(place / RECORD_NAME))

    def fetch(self, what: Artifact | Record | str) -> Path:
        record = self.require(what)
        raise_if_corrupt(record, self.url, problems(self.root / record.address, record.files, self._sha256))
        return self.root / record.address

    def publish(
        self, artifact: Artifact, directory: Path, metrics: dict, seconds: float, parent_addresses: dict, environment: dict
    ) -> Record:
        if winner := self.done(artifact):
            return winner
        sizes = file_sizes(directory)
        final = self.root / artifact.address
        with temporary_beside(final, sum(sizes.values())) as temporary:
            files = {name: copy(Path(directory) / name, temporary / name) for name in sizes}
            record = Record.of(artifact, files, metrics, seconds, parent_addresses, environment)
            while not install(temporary, final, record.to_json()):
                if winner := self.done(artifact):
                    return winner
                if line := self.quarantine(artifact):
                    warn(line)
        return record

    def verify(self, record: Record) -> list[str]:
        return problems(self.root / record.address, record.files, sha256_of)

    def writable(self) -> None:
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            tempfile.TemporaryFile(dir=self.root).close()
        except OSError as error:
            raise ValueError(f"the store {self.root} is not writable: {error.strerror}") from error

    def discard(self, address: str) -> None:
        if place := self._set_aside(address_of(address), []):  # at once, so that nobody finds half of it
            shutil.rmtree(place) if os.path.isdir(place) and not os.path.islink(place) else os.unlink(place)

    def aside(self) -> list[str]:
        places = (path for path in self.root.glob(f"{FOLDER}/*/*") if path.suffix != ".txt")
        return sorted(map(str, places))

    def forget(self, place: str, remove: bool = False) -> int:
        path = Path(place)
        size = size_of(path) if path.is_dir() else path.lstat().st_size
        if remove:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            path.with_name(f"{path.name}.txt").unlink(missing_ok=True)
        return size

    def marks(self, kind: str) -> list[str]:
        found = (self.root / kind).rglob("*")
        return sorted(path.relative_to(self.root / kind).as_posix() for path in found if path.is_file())

    def mark(self, kind: str, name: str) -> None:
        place = self.root / kind / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()

    def unmark(self, kind: str, name: str) -> None:
        (self.root / kind / name).unlink(missing_ok=True)

    def leftovers(self, remove: bool = False) -> dict[str, int]:
        found = ((str(folder), reap(folder, remove)) for folder in temporaries(self.root))
        return {place: size for place, size in found if size is not None}

    def tidy(self) -> None:
        self.leftovers(remove=True)

    def _set_aside(self, address: str, found: list[str]) -> str:
        place = self.root / place_for(address)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(self.root / address, place)
        except FileNotFoundError:  # another process was first
            return ""
        if found:
            place.with_name(f"{place.name}.txt").write_text("\n".join(found) + "\n", encoding="utf-8")
        return str(place)

    def _sha256(self, path: Path) -> str:
        """Hash a file once per process, as long as nothing about it changes (1 s per GB, and stages fetch often)."""
        seen = path.stat()
        identity = (str(path), seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino)
        found = self._verified.get(identity) or sha256_of(path)
        # File times tick in milliseconds: a file written just now can change again and look the same.
        if time.time_ns() - seen.st_ctime_ns > SETTLED_NANOSECONDS:
            self._verified[identity] = found
        return found


def begun(names: list[str], prefix: str) -> list[str]:
    """Those whose address, or what it has of the key, begins so; none where nothing is said, as by an empty variable."""
    return [name for name in names if prefix and (name.startswith(prefix) or name[-12:].startswith(prefix[:12]))]


def _some(names: list[str], separator: str = ", ", most: int = 8) -> str:
    return separator.join(names[:most]) + (f"{separator}..." if len(names) > most else "")
