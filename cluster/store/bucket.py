"""Objects below one prefix of a bucket: the few requests a store is made of, their conditions, and what their errors mean.

Two conditional PUTs carry everything that needs one winner: `If-None-Match: *` makes an object that is not there yet,
`If-Match` replaces one that nobody has touched since it was read. Whoever calls handles OSError, like for any other disk,
and never learns what botocore is.
"""

import hashlib
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from cluster.store.files import CHUNK, sha256_of

CONFLICT_ATTEMPTS = 8
READERS = 16


class Bucket:
    """Keys are relative to the prefix everywhere."""

    def __init__(self, name: str, prefix: str, url: str, endpoint_url: str | None, checksums: str | None) -> None:
        self.name, self.prefix, self.url = name, prefix, url
        # Not boto3.client(): its default session is shared, and stages open their stores from several threads.
        settings = client_settings(endpoint_url, checksums)
        self.client = boto3.session.Session().client("s3", endpoint_url=endpoint_url, config=settings)

    def read(self, key: str, most: int) -> tuple[bytes, str] | None:
        """The first `most` bytes of an object and the tag of its version; None where there is none."""
        with self._plain_errors():
            try:
                found = self.client.get_object(**self._at(key))
            except self.client.exceptions.NoSuchKey:
                return None
            return found["Body"].read(most), found["ETag"]

    def put(self, key: str, content: bytes, **condition: str) -> bool:
        """Write an object if the condition holds; False when it does not. 409 is two requests that met: asked again."""
        for attempt in range(CONFLICT_ATTEMPTS):
            with self._plain_errors():
                try:
                    self.client.put_object(**self._at(key), Body=content, **condition)
                    return True
                except ClientError as error:
                    if _status(error) == 412 or (_code(error) == "NoSuchKey" and "IfMatch" in condition):
                        return False
                    if _status(error) != 409:
                        raise
            time.sleep(random.uniform(0, 0.05 * 2**attempt))
        raise ConnectionError(f"{self.url}: {CONFLICT_ATTEMPTS} conflicting writes of {key} in a row")

    def size(self, key: str) -> int | None:
        with self._plain_errors():
            try:
                return self.client.head_object(**self._at(key))["ContentLength"]
            except ClientError as error:
                if _status(error) != 404:
                    raise
                return None

    def ages(self, start: str) -> dict[str, tuple[int, float]]:
        """(bytes, seconds since it was written) of every object whose key begins with `start`, by key."""
        with self._plain_errors():
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=self.prefix + start)
            found = [item for page in pages for item in page.get("Contents", ())]
        return {item["Key"].removeprefix(self.prefix): (item["Size"], _age(item["LastModified"])) for item in found}

    def uploads(self, start: str) -> dict[tuple[str, str], tuple[int, float]]:
        """The same of every upload in parts that was begun and not ended, by (key, id); each part is a sign of life."""
        with self._plain_errors():
            pages = self.client.get_paginator("list_multipart_uploads").paginate(Bucket=self.name, Prefix=self.prefix + start)
            begun = [upload for page in pages for upload in page.get("Uploads", ())]
            found = {}
            for upload in begun:
                which = {"Key": upload["Key"], "UploadId": upload["UploadId"]}
                listed = self.client.get_paginator("list_parts").paginate(Bucket=self.name, **which)
                parts = [part for page in listed for part in page.get("Parts", ())]
                newest = max([upload["Initiated"], *(part["LastModified"] for part in parts)])
                size = sum(part["Size"] for part in parts)
                found[upload["Key"].removeprefix(self.prefix), upload["UploadId"]] = (size, _age(newest))
            return found

    def abort(self, key: str, upload: str) -> None:
        with self._plain_errors():
            self.client.abort_multipart_upload(**self._at(key), UploadId=upload)

    def upload(self, path: Path, key: str) -> None:
        with self._plain_errors():
            self.client.upload_file(str(path), self.name, self.prefix + key)

    def download(self, key: str, path: Path) -> str:
        """The sha256 of what arrived."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._plain_errors():
            self.client.download_file(self.name, self.prefix + key, str(path))
        return sha256_of(path)

    def sha256(self, key: str) -> str:
        digest = hashlib.sha256()
        with self._plain_errors():
            for chunk in self.client.get_object(**self._at(key))["Body"].iter_chunks(CHUNK):
                digest.update(chunk)
        return digest.hexdigest()

    def sizes(self, start: str, most: int | None = None) -> dict[str, int]:
        """Bytes of every object whose key begins with `start`, by key."""
        with self._plain_errors():
            pages = self.client.get_paginator("list_objects_v2").paginate(
                Bucket=self.name, Prefix=self.prefix + start, PaginationConfig={"MaxItems": most}
            )
            found = (item for page in pages for item in page.get("Contents", ()))
            return {item["Key"].removeprefix(self.prefix): item["Size"] for item in found}

    def delete(self, key: str) -> None:
        with self._plain_errors():
            self.client.delete_object(**self._at(key))

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self.name, "Key": self.prefix + key}

    @contextmanager
    def _plain_errors(self) -> Iterator[None]:
        try:
            yield
        except (BotoCoreError, Boto3Error, ClientError) as error:
            raise explain(error, self.url) from error


def client_settings(endpoint_url: str | None, checksums: str | None) -> Config:
    """Bounded patience, and checksums `when_required` for servers that know no CRC32."""
    named = endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return Config(
        connect_timeout=5,
        read_timeout=30,
        retries={"mode": "standard", "max_attempts": 5},
        max_pool_connections=2 * READERS,
        request_checksum_calculation=checksums,
        # bucket.minio:9000 does not resolve inside a compose network; AWS itself wants the bucket in the host name.
        s3={"addressing_style": "path" if named else "auto"},
    )


def explain(error: Exception, where: str) -> OSError:
    """The built-in exception, with one line, for what went wrong between here and the bucket."""
    cause = error if isinstance(error, ClientError) else error.__context__
    code = _code(cause) if isinstance(cause, ClientError) else ""
    if code == "NoSuchBucket":
        return FileNotFoundError(f"{where}: the bucket does not exist")
    if isinstance(error, NoCredentialsError) or (isinstance(cause, ClientError) and _status(cause) in (401, 403)):
        return PermissionError(f"{where}: access denied ({code or 'no credentials'})")
    return ConnectionError(f"{where}: {' '.join(str(error).split())}")


def _age(moment: datetime) -> float:
    return time.time() - moment.timestamp()


def _status(error: ClientError) -> int:
    return error.response["ResponseMetadata"]["HTTPStatusCode"]


def _code(error: ClientError) -> str:
    return error.response["Error"].get("Code", "")
