"""The same store in S3: immutable objects first, then one conditional PUT that makes them an artifact.

S3 has no rename, so visibility hangs on `record.json` alone: it is written last, with `If-None-Match: *`, and the
first such PUT wins (412 = somebody published, 409 = two requests met, ask again). Racing publishers may hold different
bytes, so every file lies under its own sha256: a record can only ever point at the bytes it was made of, and a retried
upload skips what already arrived. A trainer needs Get, Put, List and AbortMultipartUpload, never Delete.

    s3://<bucket>/<prefix>/<stage>/<label>-<key12>/{record.json, <sha256 of a file>/<name of the file>}
"""

import hashlib
import os
import random
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from cluster.artifacts import (
    ADDRESS,
    RECORD_NAME,
    Artifact,
    CorruptArtifact,
    Record,
    address_of,
    compare,
    raise_if_corrupt,
    read_record,
)
from cluster.store import CHUNK, LocalStore, Store, file_sizes, install, sha256_of, temporary_beside

URL = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])((?:/[A-Za-z0-9_=-][A-Za-z0-9_=.-]*)*)/?")
CONTENT_ADDRESSED = re.compile(r"[0-9a-f]{64}/.+")
CONFLICT_ATTEMPTS = 8
READERS = 16


class S3Store(Store):
    """Artifacts under `s3://bucket/prefix`; `cache` holds verified local copies and may be shared or deleted."""

    def __init__(
        self, url: str, cache: Path, endpoint_url: str | None = None, request_checksum_calculation: str | None = None
    ) -> None:
        match = URL.fullmatch(url)
        if not match:
            raise ValueError("an S3 store is named s3://bucket/prefix, with letters, digits and . _ - = in the prefix")
        self._bucket, path = match.groups()
        self._prefix = path.lstrip("/") + "/" if path else ""
        self.url = f"s3://{self._bucket}{path}"
        self._cache = LocalStore(Path(cache) / self._bucket / self._prefix)
        # Not boto3.client(): its default session is shared, and stages open their stores from several threads.
        settings = client_settings(endpoint_url, request_checksum_calculation)
        self._client = boto3.session.Session().client("s3", endpoint_url=endpoint_url, config=settings)

    def addresses(self, stage: str | None = None) -> list[str]:
        keys = self._keys(f"{stage}/" if stage else "")
        found = (key.removesuffix(f"/{RECORD_NAME}") for key in keys if key.endswith(f"/{RECORD_NAME}"))
        return sorted(address for address in found if ADDRESS.fullmatch(address))

    def records(self, stage: str | None = None) -> Iterator[Record]:
        with ThreadPoolExecutor(READERS) as pool:
            yield from filter(None, pool.map(self.record, self.addresses(stage)))

    def record(self, what: Artifact | str) -> Record | None:
        key = f"{address_of(what)}/{RECORD_NAME}"
        with self._plain_errors():
            try:
                body = self._client.get_object(**self._at(key))["Body"]
            except self._client.exceptions.NoSuchKey:
                return None
            return read_record(body, what, f"{self.url}/{key}")

    def fetch(self, what: Artifact | Record | str) -> Path:
        record = self.require(what)
        directory = self._cache.root / record.address
        if directory.exists():
            try:
                return self._cache.fetch(record)
            except CorruptArtifact:
                # The bucket holds the truth; a bad copy of it is thrown away and fetched again.
                _discard(directory)
        with temporary_beside(directory, sum(entry["bytes"] for entry in record.files.values())) as temporary:
            for name, expected in record.files.items():
                key = _object_key(record, name)
                found = compare(name, expected, self._size(key), partial(self._download, key, temporary / name))
                raise_if_corrupt(record, self.url, [found] if found else [])
            first = install(temporary, directory, record)
        return directory if first else self._cache.fetch(record)

    def publish(self, artifact, directory, metrics, seconds, parent_addresses, environment) -> Record:
        if winner := self.record(artifact):
            return winner
        sizes, directory = file_sizes(directory), Path(directory)
        files = {name: {"sha256": sha256_of(directory / name), "bytes": size} for name, size in sizes.items()}
        record = Record.of(artifact, files, metrics, seconds, parent_addresses, environment)
        for name, size in sizes.items():
            key = _object_key(record, name)
            if self._size(key) != size:
                with self._plain_errors():
                    self._client.upload_file(str(directory / name), self._bucket, self._prefix + key)
        won = self._create(f"{record.address}/{RECORD_NAME}", record.to_json().encode())
        return record if won else self.require(artifact)

    def verify(self, record: Record) -> list[str]:
        found = []
        for name, expected in record.files.items():
            key = _object_key(record, name)
            found.append(compare(name, expected, self._size(key), partial(self._sha256, key)))
        names = [key.removeprefix(f"{record.address}/") for key in self._keys(f"{record.address}/")]
        # What a losing publisher uploaded stays under its own hash: no record names it, so nobody reads it.
        extra = [name for name in names if name != RECORD_NAME and not CONTENT_ADDRESSED.fullmatch(name)]
        return [line for line in found if line] + [f"{name}: not in the record" for name in extra]

    def writable(self) -> None:
        try:
            self._keys(".writable", most=1)
            # The second PUT must be refused. A server that ignores the condition would let every publisher win.
            if self._create(".writable", b"") and self._create(".writable", b""):
                raise ValueError(f"the store {self.url} ignores If-None-Match, so two publishers could both win")
        except OSError as error:
            raise ValueError(f"the store is not writable: {error}") from error

    def _create(self, key: str, content: bytes) -> bool:
        """Write an object unless it exists; False when it does."""
        for attempt in range(CONFLICT_ATTEMPTS):
            with self._plain_errors():
                try:
                    self._client.put_object(**self._at(key), Body=content, IfNoneMatch="*")
                    return True
                except ClientError as error:
                    status = _status(error)
                    if status == 412:
                        return False
                    if status != 409:
                        raise
            time.sleep(random.uniform(0, 0.05 * 2**attempt))
        raise ConnectionError(f"{self.url}: {CONFLICT_ATTEMPTS} conflicting writes of {key} in a row")

    def _size(self, key: str) -> int | None:
        with self._plain_errors():
            try:
                return self._client.head_object(**self._at(key))["ContentLength"]
            except ClientError as error:
                if _status(error) != 404:
                    raise
                return None

    def _download(self, key: str, path: Path) -> str:
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._plain_errors():
            self._client.download_file(self._bucket, self._prefix + key, str(path))
        return sha256_of(path)

    def _sha256(self, key: str) -> str:
        digest = hashlib.sha256()
        with self._plain_errors():
            for chunk in self._client.get_object(**self._at(key))["Body"].iter_chunks(CHUNK):
                digest.update(chunk)
        return digest.hexdigest()

    def _keys(self, start: str, most: int | None = None) -> list[str]:
        with self._plain_errors():
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix + start, PaginationConfig={"MaxItems": most}
            )
            return [item["Key"].removeprefix(self._prefix) for page in pages for item in page.get("Contents", ())]

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + key}

    @contextmanager
    def _plain_errors(self) -> Iterator[None]:
        """Callers handle OSError, like for any other disk, and never learn what botocore is."""
        try:
            yield
        except (BotoCoreError, Boto3Error, ClientError) as error:
            raise explain(error, self.url) from error


def client_settings(endpoint_url: str | None, request_checksum_calculation: str | None) -> Config:
    """Bounded patience, and `request_checksum_calculation="when_required"` for servers that know no CRC32."""
    named = endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return Config(
        connect_timeout=5,
        read_timeout=30,
        retries={"mode": "standard", "max_attempts": 5},
        max_pool_connections=2 * READERS,
        request_checksum_calculation=request_checksum_calculation,
        # bucket.minio:9000 does not resolve inside a compose network; AWS itself wants the bucket in the host name.
        s3={"addressing_style": "path" if named else "auto"},
    )


def explain(error: Exception, where: str) -> OSError:
    """The built-in exception, with one line, for what went wrong between here and the bucket."""
    cause = error if isinstance(error, ClientError) else error.__context__
    code = cause.response["Error"].get("Code", "") if isinstance(cause, ClientError) else ""
    if code == "NoSuchBucket":
        return FileNotFoundError(f"{where}: the bucket does not exist")
    if isinstance(error, NoCredentialsError) or (isinstance(cause, ClientError) and _status(cause) in (401, 403)):
        return PermissionError(f"{where}: access denied ({code or 'no credentials'})")
    return ConnectionError(f"{where}: {' '.join(str(error).split())}")


def _status(error: ClientError) -> int:
    return error.response["ResponseMetadata"]["HTTPStatusCode"]


def _object_key(record: Record, name: str) -> str:
    return f"{record.address}/{record.files[name]['sha256']}/{name}"


def _discard(directory: Path) -> None:
    aside = directory.parent / f".{directory.name}.{uuid.uuid4().hex}"
    with suppress(FileNotFoundError):  # another reader of this cache was first
        os.rename(directory, aside)
    shutil.rmtree(aside, ignore_errors=True)
