"""Where a model comes from when no earlier stage made it: an architecture to initialise, or a user's checkpoint.

Both are read without torch, so that a wrong path, an unknown model type or a width that a pattern does not divide is
said before anything starts.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from tasks.methods import of

if TYPE_CHECKING:
    from transformers import PretrainedConfig

WIDTHS = ("hidden_size", "intermediate_size", "ffn_dim", "n_inner", "moe_intermediate_size")


class Architecture(BaseModel):
    """A transformers causal language model to initialise at random: a model type and overrides of its config."""

    model_config = ConfigDict(frozen=True, extra="allow")

    model_type: str
    dtype: Literal["float32", "bfloat16"] = "float32"

    @property
    def overrides(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    def config(self, vocabulary: int | None = None) -> PretrainedConfig:
        """The transformers config. ``vocabulary`` is the tokenizer's size, used where the recipe names none."""
        from transformers import AutoConfig
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        if self.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            near = [name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name[:3] == self.model_type[:3]]
            raise ValueError(
                f"no causal language model type {self.model_type!r}; choose one of "
                f"{', '.join(near or ['llama', 'gpt2', 'opt', 'qwen3', 'gemma', 'mixtral'])} or another of transformers"
            )
        known = AutoConfig.for_model(self.model_type)
        for name in self.overrides:
            if not hasattr(known, name):
                fields = ", ".join(sorted(known.to_dict())[:60])
                raise ValueError(f"model type {self.model_type} has no config field {name!r}; choose one of {fields}")
        fields = dict(self.overrides)
        if vocabulary is not None:
            fields.setdefault("vocab_size", vocabulary)
            if fields["vocab_size"] < vocabulary:
                raise ValueError(
                    f"the tokenizer has {vocabulary} tokens, more than the model's vocab_size {fields['vocab_size']}"
                )
        try:
            return AutoConfig.for_model(self.model_type, dtype=self.dtype, **fields)
        except Exception as error:      # transformers' config checks raise types of their own
            raise ValueError(f"model type {self.model_type}: {' '.join(str(error).split())}") from None


class Checkpoint(BaseModel):
    """A checkpoint in Hugging Face layout: a local directory, an s3:// prefix, or a hub id with its revision."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str | None = None
    hub: str | None = None
    revision: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, spec: Any) -> Any:
        return {"path": spec} if isinstance(spec, str) else spec

    @model_validator(mode="after")
    def _one_place(self) -> Checkpoint:
        if (self.path is None) == (self.hub is None):
            raise ValueError("a checkpoint names either path (local directory or s3://) or hub (with revision)")
        if self.hub and not self.revision:
            raise ValueError("a hub checkpoint needs a revision (a commit), so that the same recipe means the same model")
        return self

    @property
    def local(self) -> Path | None:
        """The directory, where the checkpoint is one."""
        return Path(self.path).expanduser() if self.path and not self.path.startswith("s3://") else None

    def fingerprint(self) -> str:
        """sha256 over the files' names and content; for the hub, over id and revision; for S3, names, sizes and times."""
        total = hashlib.sha256()
        if self.local and not self.local.is_dir():
            raise ValueError(f"no model directory {self.path}; give a local directory, s3:// or a hub id with a revision")
        if self.hub:
            total.update(f"{self.hub}@{self.revision}".encode())
        elif self.path.startswith("s3://"):
            from pyarrow import fs

            filesystem, inner = fs.FileSystem.from_uri(self.path)
            for info in sorted(filesystem.get_file_info(fs.FileSelector(inner)), key=lambda info: info.path):
                total.update(f"{info.path}:{info.size}:{info.mtime_ns}".encode())
        else:
            for file in sorted(path for path in self.local.iterdir() if path.is_file()):
                with file.open("rb") as content:
                    total.update(file.name.encode() + hashlib.file_digest(content, "sha256").digest())
        return total.hexdigest()

    def config(self) -> dict[str, Any]:
        """The model's config.json where it lies on this machine; empty elsewhere. Raises ValueError if it is no model."""
        from tasks.models.checkpoint import validate

        if not self.local:
            return {}
        validate(self.local)
        return json.loads((self.local / "config.json").read_text())

    def fetch(self, scratch: Path) -> Path:
        """A local directory that holds the checkpoint's files."""
        from tasks.models.checkpoint import download

        if self.local:
            return self.local
        if self.hub:
            return download(self.hub, self.revision)
        from pyarrow import fs

        directory = scratch / f"source-{hashlib.sha256(self.path.encode()).hexdigest()[:12]}"    # model and teacher differ
        directory.mkdir(parents=True, exist_ok=True)
        fs.copy_files(self.path, str(directory))
        return directory


class ModelSource(BaseModel):
    """``{architecture: {...}}``, with a ``transform`` of it if wanted, or ``{checkpoint: PATH}``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: Architecture | None = None
    transform: of("transforms") | None = None
    checkpoint: Checkpoint | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> ModelSource:
        if (self.architecture is None) == (self.checkpoint is None):
            raise ValueError("a model names either architecture or checkpoint")
        if self.transform and self.checkpoint:
            raise ValueError("a transform needs an architecture: the layers it makes are initialised, not read")
        return self

    def fingerprint(self) -> str | None:
        return self.checkpoint.fingerprint() if self.checkpoint else None

    def initial_config(self, vocabulary: int | None = None) -> PretrainedConfig:
        """The config of the model to initialise, after its transform."""
        config = self.architecture.config(vocabulary)
        return self.transform.resize(config) if self.transform else config

    def iso_sparsity(self, vocabulary: int | None, length: int) -> float | None:
        """The sparsity that makes the transformed model cost what its architecture costs dense; None without transform."""
        from tasks.models.transform import iso_sparsity

        if self.transform is None:
            return None
        if vocabulary is None and "vocab_size" not in self.architecture.overrides:
            raise ValueError("a transform needs the size of the vocabulary before anything runs; set vocab_size")
        return iso_sparsity(self.architecture.config(vocabulary), self.transform, length)

    def config(self) -> dict[str, Any]:
        """The model's config as far as this machine knows it."""
        return self.initial_config().to_dict() if self.architecture else self.checkpoint.config()

    def positions(self) -> int | None:
        """The longest sequence the model's positions allow, as far as the config tells."""
        config = self.config()
        return config.get("max_position_embeddings") or config.get("n_positions")

    def heads(self) -> int | None:
        """Attention heads of a block, as far as the config tells."""
        config = self.config()
        return config.get("num_attention_heads") or config.get("n_head")

    def widths(self) -> dict[str, int]:
        """The input widths of the prunable matrices as far as the config tells them by name; for early checks."""
        config, aliases = self.config(), {"n_embd": "hidden_size"}
        if self.transform:      # its ranks stand in no field
            return self._built_widths()
        return {
            aliases.get(name, name): config[name]
            for name in (*WIDTHS, *aliases)
            if isinstance(config.get(name), int)
        }

    def _built_widths(self) -> dict[str, int]:
        from tasks.models.accounting import on_meta
        from tasks.models.linears import find_linears

        return {name: linear.shape[-1] for name, linear in find_linears(on_meta(self.initial_config())).items()}
