"""Small JSON values that a stage keeps in scratch for a resumed attempt, each with its digest; and digests of files.

A flipped bit must not change a result: what does not match its digest counts as missing, and is computed again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cluster.store import durable


def keep(value: Any, path: Path) -> None:
    """Write a value as JSON beside its digest: all of it or nothing, even after a crash."""
    durable.write(path, json.dumps({"value": value, "sha256": _digest(value)}).encode())


def kept(path: Path) -> Any:
    """The value that was kept; None where there is none, or not every bit of it."""
    try:
        found = json.loads(path.read_bytes())
        return found["value"] if found["sha256"] == _digest(found["value"]) else None
    except (FileNotFoundError, ValueError, LookupError, TypeError):  # no file, no JSON, no JSON object
        return None


def hashes(paths: Iterable[Path]) -> dict[str, str]:
    """sha256 of those of the files that are there, by name."""
    found = {}
    for path in paths:
        if path.exists():
            with path.open("rb") as file:
                found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
