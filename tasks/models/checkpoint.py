"""A user's checkpoint: where it lies, what it holds, and how it comes to be on this machine.

It is read without torch, so that a wrong path or a damaged file is said before anything starts.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from tasks.data.digests import Digests
from tasks.data.place import Commit, Place
from tasks.methods import short
from tasks.models.files.gguf import check_gguf, convert_gguf
from tasks.models.files.intake import check_config, check_unquantized, check_weights
from tasks.models.files.layout import MASKS, TEMPLATES


class Checkpoint(BaseModel):
    """A checkpoint in Hugging Face layout: a local directory, an s3:// prefix, or a hub id with its revision. Or a GGUF
    file, which is made one."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, json_schema_extra=short({"type": "string"})
    )

    path: Place | None = None
    """A local directory or an ``s3://`` prefix, in Hugging Face layout."""
    hub: str | None = None
    """Id of a model of the Hugging Face hub."""
    revision: Commit | None = None
    """Commit of 40 hexadecimal digits of ``hub``."""
    gguf: Place | None = None
    """A local file of llama.cpp's format; its weights are dequantized to bfloat16."""

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, spec: Any) -> Any:
        return {"path": spec} if isinstance(spec, str) else spec

    @model_validator(mode="after")
    def _one_place(self) -> Checkpoint:
        if [self.path, self.hub, self.gguf].count(None) != 2:
            raise ValueError("a checkpoint names one of path (local directory or s3://), hub (with revision), gguf (a file)")
        if self.hub and not self.revision:
            raise ValueError("a hub checkpoint needs a revision (a commit), so that the same recipe means the same model")
        return self

    @property
    def local(self) -> Path | None:
        """The directory, where the checkpoint is one."""
        return Path(self.path) if self.path and not self.path.startswith("s3://") else None

    def describe(self) -> str:
        """What an error calls it."""
        return f"{self.hub} at {self.revision}" if self.hub else self.gguf or self.path

    def inspect(self, quantized: bool = False) -> None:
        """Raise ValueError at what plain reading of configs and of files' headers shows to be wrong; ``quantized`` weights
        are allowed where they are only computed with."""
        if self.gguf:
            check_gguf(Path(self.gguf))
        elif self.local:
            check_config(self.local)
            (check_weights if quantized else check_unquantized)(self.local)

    def fingerprint(self, digests: Digests | None = None) -> str:
        """sha256 over the files' names and content; for the hub, over id and revision; for S3, names, sizes and times."""
        total, digests = hashlib.sha256(), digests or Digests()
        if self.local and not self.local.is_dir():
            raise ValueError(f"no model directory {self.path}; give a local directory, s3:// or a hub id with a revision")
        if self.hub:
            total.update(f"{self.hub}@{self.revision}".encode())
        elif self.gguf:
            check_gguf(Path(self.gguf))
            total.update(digests.of(Path(self.gguf)))
        elif self.path.startswith("s3://"):
            from pyarrow import fs

            filesystem, inner = fs.FileSystem.from_uri(self.path)
            for info in sorted(filesystem.get_file_info(fs.FileSelector(inner)), key=lambda info: info.path):
                total.update(f"{info.path}:{info.size}:{info.mtime_ns}".encode())
        else:
            content = (*self.local.iterdir(), *self.local.glob(f"{TEMPLATES}/*"), self.local / MASKS)
            for file in sorted(path for path in content if path.is_file()):
                total.update(file.name.encode() + digests.of(file))
        return total.hexdigest()

    def config(self) -> dict[str, Any]:
        """The model's config.json where it lies on this machine; empty elsewhere. Raises ValueError if it is no model."""
        return check_config(self.local) if self.local else {}

    def fetch(self, scratch: Path) -> Path:
        """A local directory that holds the checkpoint's files."""
        from tasks.models.files.checkpoint import download

        if self.local:
            return self.local
        if self.hub:
            return download(self.hub, self.revision)
        directory = scratch / f"source-{self.fingerprint()[:12]}"
        if not directory.exists():  # else it was fetched before, in this attempt or one that died
            (convert_gguf(Path(self.gguf), directory) if self.gguf else self._copy(directory))
        return directory

    def _copy(self, directory: Path) -> None:
        """From S3; the directory appears when it is whole."""
        from pyarrow import fs

        half = directory.with_suffix(".half")
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir(parents=True)
        fs.copy_files(self.path, str(half))
        half.rename(directory)
