"""The identity of a walk: an interrupted one resumes only with the model, the data and the settings it began with.

The digests stand in a file beside the finished blocks. Content is hashed, not names and times, since a model fetched
again is the same model. So is the code of the method: who mends it wants no blocks that the broken one solved.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from tasks.methods import Method, dump
from tasks.models.files.layout import MASKS

NAME = "identity.json"
CODE = "code"


def identity(
    model: Path, batches: Iterable[torch.Tensor], method: Method, allocation: Mapping[str, float], settings: object
) -> dict[str, str]:
    """What decides a walk's result, as digests by what they are of."""
    weights, data = hashlib.sha256(), hashlib.sha256()
    content = [*Path(model).iterdir(), *Path(model, MASKS).parent.glob("*")]
    for file in sorted(path for path in content if path.suffix in (".safetensors", ".json")):
        with file.open("rb") as opened:
            weights.update(file.name.encode() + hashlib.file_digest(opened, "sha256").digest())
    for tokens_BT in batches:
        data.update(f"{list(tokens_BT.shape)}".encode() + tokens_BT.contiguous().numpy().tobytes())
    config = hashlib.sha256(json.dumps([_settings(method), dict(allocation), str(settings)], sort_keys=True).encode())
    return {"model": weights.hexdigest(), "data": data.hexdigest(), "config": config.hexdigest(), CODE: _code(method)}


def take_over(folder: Path, mine: dict[str, str]) -> None:
    """Write down whose walk ``folder`` holds, or raise ValueError when it is another's. Where that cannot be read any more,
    or the method's code is another, the walk begins anew."""
    from tasks.models.stream.kept import keep, kept

    path = folder / NAME
    theirs: dict[str, Any] | None = kept(path)
    changed = [what for what in mine if theirs is not None and theirs.get(what) != mine[what]]
    if theirs is None or changed == [CODE]:
        if path.exists():
            shutil.rmtree(folder)
            folder.mkdir()
        keep(mine, path)
        return
    if changed := [what for what in changed if what != CODE]:
        raise ValueError(
            f"the walk in {folder} was begun with another {' and another '.join(changed)}; remove that folder to begin anew"
        )


def _code(method: Method) -> str:
    """Of the files that the method's class, its bases and the methods in its fields are written in."""
    methods = [method, *(value for _, value in method if isinstance(value, Method))]
    modules = {base.__module__ for each in methods for base in type(each).__mro__ if base.__module__.startswith("tasks.")}
    files = sorted(str(sys.modules[name].__file__) for name in modules)
    return hashlib.sha256(b"".join(hashlib.sha256(Path(file).read_bytes()).digest() for file in files)).hexdigest()


def _settings(method: Method) -> dict[str, Any]:
    return dump(method) if "." in type(method).__module__ else {type(method).__name__: {}}
