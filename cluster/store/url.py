"""The store that a URL names: a place on a POSIX file system, or one in S3."""

from pathlib import Path
from typing import Any

from cluster.store.local import LocalStore, Store


def open_store(url: str, cache: Path, **s3_options: Any) -> Store:
    """`s3://bucket/prefix` or a local path; `cache` keeps what is fetched from S3 (a local store needs none)."""
    if url.startswith("s3://"):
        from cluster.store.s3 import S3Store  # boto3 costs half a second: only those who use S3 pay it

        return S3Store(url, cache, **s3_options)
    if "://" in url:
        raise ValueError(f"no store for {url.split('://')[0]!r} URLs; choose one of s3://bucket/prefix, a local path")
    return LocalStore(Path(url).expanduser())
