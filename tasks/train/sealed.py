"""Directories with a manifest: the hash of each file, and a hash of the manifest itself.

safetensors does not notice a flipped bit, so every file is hashed before it is used. Writes are fsynced before they are
reported done.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from cluster.store import durable

MANIFEST = "manifest.json"


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    size = sum(tensor.nbytes for tensor in tensors.values())
    try:
        save_file(tensors, path, metadata)
        durable.sync(path)
    except (OSError, SafetensorError) as error:
        raise OSError(f"cannot write {path} ({size} bytes): {error}") from error


def hashes(directory: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    return {name: {"bytes": (directory / name).stat().st_size, "sha256": _sha256(directory / name)} for name in names}


def seal(directory: Path, facts: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the manifest: ``facts`` and the :func:`hashes` of every file."""
    durable.write(directory / MANIFEST, _sealed({**facts, "files": dict(files)}))


def manifest(directory: Path) -> dict[str, Any]:
    return json.loads((directory / MANIFEST).read_bytes())


def broken(directory: Path) -> str | None:
    """Why the directory is not what was sealed, or None."""
    try:
        content = (directory / MANIFEST).read_bytes()
        facts = json.loads(content)
        if content != _sealed({name: fact for name, fact in facts.items() if name != "seal"}):
            return f"{MANIFEST} was changed"
        for name, promised in facts["files"].items():
            size = (directory / name).stat().st_size
            if size != promised["bytes"]:
                return f"{name} has {size} bytes instead of {promised['bytes']}"
            if _sha256(directory / name) != promised["sha256"]:
                return f"{name} has another sha256"
    except (OSError, ValueError, AttributeError) as error:  # no manifest, no file, no JSON, no JSON object
        return f"{type(error).__name__}: {error}"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sealed(facts: dict[str, Any]) -> bytes:
    """Canonical JSON that carries its own hash, so that any changed byte of it shows."""
    seal = hashlib.sha256(_canonical(facts)).hexdigest()
    return _canonical({**facts, "seal": seal})


def _canonical(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
