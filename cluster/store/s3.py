"""The same store in S3: immutable objects first, then one conditional PUT that makes them an artifact.

S3 has no rename, so visibility hangs on `record.json` alone: it is written last, with `If-None-Match: *`, and the
first such PUT wins (412 = somebody published, 409 = two requests met, ask again). Racing publishers may hold different
bytes, so every file lies under its own sha256: a record can only ever point at the bytes it was made of, and a retried
upload skips what already arrived. A trainer needs Get, Put, List and AbortMultipartUpload, never Delete: a damaged
artifact is withdrawn by writing over its record (if nobody has touched it meanwhile), and the next one may write over
that. Only what people ask for deletes: `discard`, `unpin` and `leftovers`, which also lists uploads and their parts
(ListBucketMultipartUploads, ListMultipartUploadParts).

    s3://<bucket>/<prefix>/<stage>/<label>-<key12>/{record.json, <sha256 of a file>/<name of the file>}
"""

import os
import re
import shutil
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

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
from cluster.store.bucket import READERS, Bucket
from cluster.store.files import RECORD_NAME, compare, file_sizes, install, sha256_of, temporary_beside
from cluster.store.local import LocalStore, Store
from cluster.store.owners import SILENT_SECONDS
from cluster.store.quarantine import FOLDER, place_for, warn

URL = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])((?:/[A-Za-z0-9_=-][A-Za-z0-9_=.-]*)*)/?")
CONTENT_ADDRESSED = re.compile(r"[0-9a-f]{64}/.+")
WITHDRAWN = b"withdrawn\n"  # in place of the record of what was damaged; no record is as short


class S3Store(Store):
    """Artifacts under `s3://bucket/prefix`; `cache` holds verified local copies and may be shared or deleted."""

    def __init__(
        self, url: str, cache: Path, endpoint_url: str | None = None, request_checksum_calculation: str | None = None
    ) -> None:
        match = URL.fullmatch(url)
        if not match:
            raise ValueError("an S3 store is named s3://bucket/prefix, with letters, digits and . _ - = in the prefix")
        name, path = match.groups()
        prefix = path.lstrip("/") + "/" if path else ""
        self.url = f"s3://{name}{path}"
        self._cache = LocalStore(Path(cache) / name / prefix)
        self.bucket = Bucket(name, prefix, self.url, endpoint_url, request_checksum_calculation)

    def addresses(self, stage: str | None = None) -> list[str]:
        sizes = self.bucket.sizes(f"{stage}/" if stage else "")
        keys = (key for key, size in sizes.items() if key.endswith(f"/{RECORD_NAME}") and size != len(WITHDRAWN))
        return sorted(filter(ADDRESS.fullmatch, (key.removesuffix(f"/{RECORD_NAME}") for key in keys)))

    def records(self, stage: str | None = None) -> Iterator[Record]:
        with ThreadPoolExecutor(READERS) as pool:
            yield from filter(None, pool.map(self.sound, self.addresses(stage)))

    def record(self, what: Artifact | str) -> Record | None:
        key = _record_key(address_of(what))
        content, _ = self.bucket.read(key, LARGEST_RECORD + 1) or (WITHDRAWN, "")
        return None if content == WITHDRAWN else read_record(content, what, f"{self.url}/{key}")

    def fetch(self, what: Artifact | Record | str) -> Path:
        record = self.require(what)
        directory = self._cache.root / record.address
        if directory.exists():
            try:
                return self._cache.fetch(record)
            except CorruptArtifact:
                # The bucket holds the truth; a bad copy of it is thrown away and fetched again.
                _remove(directory)
        with temporary_beside(directory, sum(entry["bytes"] for entry in record.files.values())) as temporary:
            for name, expected in record.files.items():
                key = _object_key(record, name)
                download = partial(self.bucket.download, key, temporary / name)
                found = compare(name, expected, self.bucket.size(key), download)
                raise_if_corrupt(record, self.url, [found] if found else [])
            first = install(temporary, directory, record.to_json())
        return directory if first else self._cache.fetch(record)

    def publish(
        self, artifact: Artifact, directory: Path, metrics: dict, seconds: float, parent_addresses: dict, environment: dict
    ) -> Record:
        if winner := self.done(artifact):
            return winner
        sizes, directory = file_sizes(directory), Path(directory)
        files = {name: {"sha256": sha256_of(directory / name), "bytes": size} for name, size in sizes.items()}
        record = Record.of(artifact, files, metrics, seconds, parent_addresses, environment)
        there = self.bucket.ages(f"{record.address}/")
        for name, expected in files.items():
            key = _object_key(record, name)
            # Read and not only measured: it may be what is left of a damaged artifact. What is old is a dead publisher's.
            old = there.get(key, (0, 0.0))[1] > SILENT_SECONDS / 2
            if old or compare(name, expected, self.bucket.size(key), partial(self.bucket.sha256, key)):
                self.bucket.upload(directory / name, key)
        while not self._create(_record_key(record.address), record.to_json().encode()):
            if winner := self.done(artifact):
                return winner
            if line := self.quarantine(artifact):
                warn(line)
        return record

    def verify(self, record: Record) -> list[str]:
        found = []
        for name, expected in record.files.items():
            key = _object_key(record, name)
            found.append(compare(name, expected, self.bucket.size(key), partial(self.bucket.sha256, key)))
        names = [key.removeprefix(f"{record.address}/") for key in self.bucket.sizes(f"{record.address}/")]
        # What a losing publisher uploaded stays under its own hash: no record names it, so nobody reads it.
        extra = [name for name in names if name != RECORD_NAME and not CONTENT_ADDRESSED.fullmatch(name)]
        return [line for line in found if line] + [f"{name}: not in the record" for name in extra]

    def writable(self) -> None:
        try:
            self.bucket.sizes(".writable", most=1)
            # The second PUT must be refused. A server that ignores the condition would let every publisher win.
            if self._create(".writable", b"") and self._create(".writable", b""):
                raise ValueError(f"the store {self.url} ignores If-None-Match, so two publishers could both win")
        except OSError as error:
            raise ValueError(f"the store is not writable: {error}") from error

    def discard(self, address: str) -> None:
        record = _record_key(address_of(address))
        try:
            self.bucket.delete(record)  # first: without it there is no artifact
            for key in self.bucket.sizes(f"{address}/"):
                self.bucket.delete(key)
        except PermissionError as error:
            raise PermissionError(f"{error}; to discard takes the permission s3:DeleteObject") from error
        _remove(self._cache.root / address)

    def aside(self) -> list[str]:
        places = (key.removesuffix(f"/{RECORD_NAME}") for key in self.bucket.sizes(f"{FOLDER}/"))
        return sorted(f"{self.url}/{place}" for place in places if not place.endswith(".txt"))

    def forget(self, place: str, remove: bool = False) -> int:
        """Its record and what was found wrong; the files it named lie among the leftovers."""
        sizes = self.bucket.sizes(place.removeprefix(f"{self.url}/"))
        for key in sizes if remove else ():
            self.bucket.delete(key)
        return sum(sizes.values())

    def marks(self, kind: str) -> list[str]:
        return sorted(key.removeprefix(f"{kind}/") for key in self.bucket.sizes(f"{kind}/"))

    def mark(self, kind: str, name: str) -> None:
        self.bucket.put(f"{kind}/{name}", b"")

    def unmark(self, kind: str, name: str) -> None:
        self.bucket.delete(f"{kind}/{name}")

    def leftovers(self, remove: bool = False) -> dict[str, int]:
        """Parts and objects that no record names, where nothing was written for a day: no publisher is as slow."""
        written: dict[str, dict[tuple[str, str], tuple[int, float]]] = {}
        parts = self.bucket.uploads("")
        for (key, upload), facts in {**{(key, ""): facts for key, facts in self.bucket.ages("").items()}, **parts}.items():
            if ADDRESS.fullmatch(address := "/".join(key.split("/")[:2])):
                written.setdefault(address, {})[key, upload] = facts
        found = self._cache.leftovers(remove)
        for address, things in written.items():
            record = self.done(address)
            files = [_object_key(record, name) for name in record.files] if record else []
            named = {_record_key(address), *files}
            extra = {(key, upload): size for (key, upload), (size, _) in things.items() if upload or key not in named}
            if extra and min(age for _, age in things.values()) > SILENT_SECONDS:
                found[f"{self.url}/{address}"] = sum(extra.values())
                for key, upload in extra if remove else ():
                    self.bucket.abort(key, upload) if upload else self.bucket.delete(key)
        return found

    def tidy(self) -> None:
        self._cache.tidy()

    def _set_aside(self, address: str, found: list[str]) -> str:
        """The record goes aside; the files lie under their own hashes, where one that is damaged is written over."""
        key, place = _record_key(address), place_for(address)
        content, tag = self.bucket.read(key, LARGEST_RECORD) or (WITHDRAWN, "")
        if content == WITHDRAWN:  # another process was first
            return ""
        self.bucket.put(f"{place}/{RECORD_NAME}", content)
        self.bucket.put(f"{place}.txt", "\n".join(found).encode() + b"\n")
        return f"{self.url}/{place}" if self.bucket.put(key, WITHDRAWN, IfMatch=tag) else ""

    def _create(self, key: str, content: bytes) -> bool:
        """Write an object unless it exists and was not withdrawn; False when it does."""
        if self.bucket.put(key, content, IfNoneMatch="*"):
            return True
        there, tag = self.bucket.read(key, len(WITHDRAWN) + 1) or (b"", "")
        return there == WITHDRAWN and self.bucket.put(key, content, IfMatch=tag)


def _record_key(address: str) -> str:
    return f"{address}/{RECORD_NAME}"


def _object_key(record: Record, name: str) -> str:
    return f"{record.address}/{record.files[name]['sha256']}/{name}"


def _remove(directory: Path) -> None:
    aside = directory.parent / f".{directory.name}.{uuid.uuid4().hex}"
    with suppress(FileNotFoundError):  # another reader of this cache was first
        os.rename(directory, aside)
    shutil.rmtree(aside, ignore_errors=True)
