"""Where a model comes from when no earlier stage made it: an architecture to initialise, or a user's checkpoint.

Both are read without torch, so that a wrong path, an unknown model type or a width that a pattern does not divide is
said before anything starts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator

from tasks.data.digests import Digests
from tasks.methods import of
from tasks.models.build.transform import Transform
from tasks.models.checkpoint import Checkpoint
from tasks.models.files import known
from tasks.models.files.intake import check_type
from tasks.models.sizes import check_sizes

if TYPE_CHECKING:
    from transformers import PretrainedConfig

WIDTHS = ("hidden_size", "intermediate_size", "ffn_dim", "n_inner", "moe_intermediate_size")


class Architecture(BaseModel):
    """A transformers causal language model to initialise at random: a model type and overrides of its config."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    model_type: str
    """Model type of transformers (llama, gpt2, ...); every other field overrides its config's."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the weights are stored in."""

    @property
    def overrides(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    @property
    def plain(self) -> dict[str, Any]:
        """The config as far as it is plain to read: defaults and overrides under the type's own field names."""
        aliases = known.aliases(self.model_type)
        given = {aliases.get(name, name): value for name, value in self.overrides.items()}
        return {**known.config_defaults(self.model_type), **given}

    def check(self, vocabulary: int | None = None) -> None:
        """Raise ValueError at what is wrong without asking transformers: its type, names of fields, sizes."""
        check_type(self.model_type)
        names = known.config_names(self.model_type)
        for name in self.overrides:
            if names is not None and name not in names:
                fields = ", ".join(sorted(known.config_defaults(self.model_type))[:60])
                raise ValueError(f"model type {self.model_type} has no config field {name!r}; choose one of {fields}")
        try:
            check_sizes(self.model_type, self.overrides)
        except ValueError as error:
            raise ValueError(f"model type {self.model_type}: {error}") from None
        given = self.overrides.get("vocab_size")
        if vocabulary is not None and isinstance(given, int) and given < vocabulary:
            raise ValueError(f"the tokenizer has {vocabulary} tokens, more than the model's vocab_size {given}")

    def config(self, vocabulary: int | None = None) -> PretrainedConfig:
        """The transformers config. ``vocabulary`` is the tokenizer's size, used where the recipe names none."""
        from transformers import AutoConfig

        self.check(vocabulary)
        fields = dict(self.overrides)
        if vocabulary is not None:
            fields.setdefault("vocab_size", vocabulary)
        try:
            return AutoConfig.for_model(self.model_type, dtype=self.dtype, **fields)
        except Exception as error:  # transformers' config checks raise types of their own
            raise ValueError(f"model type {self.model_type}: {' '.join(str(error).split())}") from None


class ModelSource(BaseModel):
    """``{architecture: {...}}``, with a ``transform`` of it if wanted, or ``{checkpoint: PATH}``."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    architecture: Architecture | None = None
    """A causal language model of transformers, initialised at random."""
    transform: Annotated[Transform | None, of("transforms", optional=True)] = None
    """Makes the architecture larger, so that sparse it costs what it costs dense."""
    checkpoint: Checkpoint | None = None
    """An existing model: a directory, ``s3://...`` or a hub id with its revision."""

    @model_validator(mode="after")
    def _one_kind(self) -> ModelSource:
        if (self.architecture is None) == (self.checkpoint is None):
            raise ValueError("a model names either architecture or checkpoint")
        if self.transform and self.checkpoint:
            raise ValueError("a transform needs an architecture: the layers it makes are initialised, not read")
        return self

    def describe(self) -> str:
        return self.checkpoint.describe() if self.checkpoint else f"a new {self.architecture.model_type}"

    def fingerprint(self, digests: Digests | None = None) -> str | None:
        return self.checkpoint.fingerprint(digests) if self.checkpoint else None

    def inspect(self, quantized: bool = False) -> None:
        """Raise ValueError at what plain reading of configs and of files' headers shows to be wrong; ``quantized`` weights
        are allowed where they are only computed with."""
        if self.architecture:
            self.architecture.check()
        else:
            self.checkpoint.inspect(quantized)

    def initial_config(self, vocabulary: int | None = None) -> PretrainedConfig:
        """The config of the model to initialise, after its transform."""
        config = self.architecture.config(vocabulary)
        return self.transform.resize(config) if self.transform else config

    def iso_sparsity(self, vocabulary: int | None, length: int) -> float | None:
        """The sparsity that makes the transformed model cost what its architecture costs dense; None without transform."""
        from tasks.models.accounting import iso_sparsity

        if self.transform is None:
            return None
        if vocabulary is None and "vocab_size" not in self.architecture.overrides:
            raise ValueError("a transform needs the size of the vocabulary before anything runs; set vocab_size")
        return iso_sparsity(self.architecture.config(vocabulary), self.transform, length)

    def config(self) -> dict[str, Any]:
        """The model's config as far as it is plain to read on this machine."""
        return self.architecture.plain if self.architecture else self.checkpoint.config()

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
        if self.transform:  # its ranks stand in no field
            return self._built_widths()
        return {aliases.get(name, name): config[name] for name in (*WIDTHS, *aliases) if isinstance(config.get(name), int)}

    def _built_widths(self) -> dict[str, int]:
        from tasks.models.build.building import on_meta
        from tasks.models.find.linears import find_linears

        return {name: linear.shape[-1] for name, linear in find_linears(on_meta(self.initial_config())).items()}


def _has_weights(source: ModelSource | None) -> ModelSource | None:
    if source and source.architecture:
        raise ValueError("an architecture has no weights; name a checkpoint, or an earlier stage in from")
    return source


Stored = Annotated[ModelSource, AfterValidator(_has_weights)]  # a model that is only computed with
