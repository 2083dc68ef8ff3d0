"""Paths and hub revisions of a recipe, resolved once, so that they mean the same wherever a stage runs.

What a person writes may be relative to the directory the command is run in, or begin with ``~``. A stage runs elsewhere:
in a Ray job, whose directory is the checkout, perhaps as another user. So a path is made absolute once, where the recipe
is read, and remembers how it was written: that is what enters the key, which then does not tell where on a machine a
folder lies. It may begin with a variable of the environment: ``$DATA/texts/*.txt``. What lies there enters it too, by
fingerprint, and is compared again by the stage that reads it. On the hub only a commit stays what it is.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, PlainSerializer, SerializationInfo, ValidationInfo

AS_WRITTEN = {"paths": "as written"}  # the context of a dump for the key


class _Placed(str):
    """An absolute path; ``stated`` is how it was written."""

    stated: str


def reading(folder: Path | None) -> dict[str, Any]:
    """The context to validate a recipe in: where its relative paths begin; None where it has no such directory."""
    return {"folder": folder}


def _settle(stated: str, info: ValidationInfo) -> str:
    """The same place as an absolute path; addresses of other kinds (s3://...) stay as they are."""
    if not stated.strip():
        raise ValueError("a path is needed, got an empty one")
    if "://" in stated or isinstance(stated, _Placed):
        return stated
    expanded = os.path.expanduser(_without_variable(stated))
    if "://" in expanded:
        return expanded
    if not os.path.isabs(expanded):
        expanded = os.path.join(_folder(stated, info), expanded)
    placed = _Placed(Path(expanded))
    placed.stated = stated
    return placed


def _without_variable(stated: str) -> str:
    """With the value of the environment's variable that it begins with, if it does."""
    if not (found := re.match(r"\$(\w+)(?=/|$)", stated)):
        return stated
    if not (value := os.environ.get(found[1])):
        raise ValueError(f"{stated} begins with a variable that is not set; set {found[1]} to the folder that is meant")
    return value + stated[found.end() :]


def _folder(stated: str, info: ValidationInfo) -> Path:
    folder = (info.context or {}).get("folder", Path.cwd())
    if folder is None:
        raise ValueError(
            f"{stated} is relative, and a recipe that comes as text or through a server has no directory for it "
            "to begin in; write the absolute path"
        )
    return folder


def _pinned(revision: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise ValueError(f"a commit of 40 hexadecimal digits is needed, got {revision!r}: branches and tags move")
    return revision


def _write(path: str, info: SerializationInfo) -> str:
    written = (info.context or {}).get("paths") == AS_WRITTEN["paths"]
    return path.stated if written and isinstance(path, _Placed) else str(path)


Place = Annotated[str, AfterValidator(_settle), PlainSerializer(_write, return_type=str)]
Pattern = Place  # or a glob: folders that exist under the very name written count first (tasks.data.files)
Commit = Annotated[str, AfterValidator(_pinned)]
