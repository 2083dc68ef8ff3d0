"""Whose walk this is: a walk that was interrupted goes on only with the model, the data and the settings it began with.

The digests stand in a file beside the finished blocks. Content is hashed, not names and times, since a model fetched
again is the same model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from tasks.methods import Method, dump

NAME = "identity.json"


def identity(
    model: Path, batches: Iterable[torch.Tensor], method: Method, levels: Mapping[str, float], settings: object
) -> dict[str, str]:
    """What decides a walk's result, as digests by what they are of."""
    weights, data = hashlib.sha256(), hashlib.sha256()
    for file in sorted(path for path in Path(model).iterdir() if path.suffix in (".safetensors", ".json")):
        with file.open("rb") as content:
            weights.update(file.name.encode() + hashlib.file_digest(content, "sha256").digest())
    for tokens_BT in batches:
        data.update(f"{list(tokens_BT.shape)}".encode() + tokens_BT.contiguous().numpy().tobytes())
    config = hashlib.sha256(json.dumps([_settings(method), dict(levels), str(settings)], sort_keys=True).encode())
    return {"model": weights.hexdigest(), "data": data.hexdigest(), "config": config.hexdigest()}


def claim(folder: Path, mine: dict[str, str]) -> None:
    """Write down whose walk ``folder`` holds, or raise ValueError when it is another's."""
    from tasks.models.shards import write_durably

    path = folder / NAME
    if not path.exists():
        write_durably(json.dumps(mine).encode(), path)
        return
    theirs: dict[str, Any] = json.loads(path.read_text())
    if changed := [what for what in mine if theirs.get(what) != mine[what]]:
        raise ValueError(f"the walk in {folder} was begun with another {' and another '.join(changed)}; "
                         "remove that folder to begin anew")  # fmt: skip


def _settings(method: Method) -> dict[str, Any]:
    return dump(method) if "." in type(method).__module__ else {type(method).__name__: {}}
