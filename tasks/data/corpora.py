"""Corpora made of corpora, and how a recipe writes any of them.

Text has roles: a model is trained on one, calibrated on another when it is pruned or quantized, and judged on a third. A
recipe names a corpus for each, or for the training text alone: then the other two are splits of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema, field_validator, model_validator

from tasks.data.completions import Chats, Completions
from tasks.data.corpus import SPLITS, Corpus, Files, Hub, Split, Stdlib
from tasks.data.digests import Digests
from tasks.data.documents import Document, digest
from tasks.methods import named, short, validate

AnyCorpus = Annotated[
    Corpus,
    BeforeValidator(lambda spec, info: build_corpus(spec, info.context)),
    PlainSerializer(lambda corpus, info: dump_corpus(corpus, info.context)),
    WithJsonSchema(named("corpora")),
]


def _by_name(schema: dict[str, Any]) -> None:
    """A recipe leaves the name of the one field out."""
    short(dict(schema["properties"]["tasks"]))(schema)


class Sequence(Corpus):
    """Corpora to be learned one after the other, by name: ``sequence: {first: ..., second: ...}``."""

    model_config = ConfigDict(json_schema_extra=_by_name)

    tasks: dict[str, AnyCorpus] = Field(min_length=2)
    """The corpora by name, in the order they are learned."""

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, spec: Any) -> Any:
        return spec if isinstance(spec, dict) and spec.keys() == {"tasks"} else {"tasks": spec}

    @field_validator("tasks")
    @classmethod
    def _names(cls, tasks: dict[str, Corpus]) -> dict[str, Corpus]:
        for name, corpus in tasks.items():
            if not re.fullmatch(r"[a-z0-9_]+", name):
                raise ValueError(f"task {name!r} is no name; use lower-case letters, digits and _")
            if isinstance(corpus, Sequence):
                raise ValueError(f"task {name}: a sequence inside a sequence")
        return tasks

    @property
    def at_hand(self) -> bool:
        return all(corpus.at_hand for corpus in self.tasks.values())

    def parts(self) -> dict[str, Corpus]:
        return dict(self.tasks)

    def documents(self) -> Iterator[Document]:
        for corpus in self.tasks.values():
            yield from corpus.documents()

    def fingerprint(self, digests: Digests | None = None) -> str:
        return digest((name, corpus.fingerprint(digests).encode()) for name, corpus in self.tasks.items())


class Roles(Corpus):
    """Texts by role: ``{train: CORPUS, calibration: CORPUS, heldout: CORPUS}``."""

    train: AnyCorpus
    """The text to train on; the tokenizer's vocabulary is learned from it too."""
    calibration: AnyCorpus | None = None
    """The text that pruning and quantization calibrate on; a split of the training text unless given."""
    heldout: AnyCorpus | None = None
    """The text that models are judged on; a split of the training text unless given."""

    @field_validator("train", "calibration", "heldout")
    @classmethod
    def _plain(cls, corpus: Corpus | None) -> Corpus | None:
        if isinstance(corpus, Sequence | Roles):
            raise ValueError("one text is needed; a sequence has roles inside: {sequence: {NAME: {train: ..., heldout: ...}}}")
        return corpus

    @property
    def at_hand(self) -> bool:
        return all(corpus.at_hand for corpus in self.texts().values())

    def texts(self) -> dict[Split, Corpus]:
        return {split: corpus for split in SPLITS if (corpus := getattr(self, split))}

    def documents(self) -> Iterator[Document]:
        for corpus in self.texts().values():
            yield from corpus.documents()

    def fingerprint(self, digests: Digests | None = None) -> str:
        return digest((split, corpus.fingerprint(digests).encode()) for split, corpus in self.texts().items())

    def describe(self) -> str:
        return ", ".join(f"{split}: {corpus.describe()}" for split, corpus in self.texts().items())


CORPORA: dict[str, type[Corpus]] = {
    "stdlib": Stdlib,
    "files": Files,
    "hub": Hub,
    "completions": Completions,
    "chats": Chats,
    "sequence": Sequence,
}


def build_corpus(spec: Any, context: Any = None) -> Corpus:
    """A corpus from ``name`` or ``{name: {field: value}}``, from a path, or from ``{role: corpus}``."""
    if isinstance(spec, Corpus):
        return spec
    if isinstance(spec, dict) and spec.keys() & set(SPLITS):
        if odd := spec.keys() - set(SPLITS):
            raise ValueError(f"no role {min(map(str, odd))!r}; choose some of {', '.join(SPLITS)}")
        return Roles.model_validate(spec, context=context)
    if isinstance(spec, str) and spec not in CORPORA and ("/" in spec or "." in spec):
        spec = {"files": {"paths": [spec]}}
    fields = {spec: {}} if isinstance(spec, str) else spec
    if not (isinstance(fields, dict) and len(fields) == 1 and next(iter(fields)) in CORPORA):
        raise ValueError(
            f"no corpus {spec!r}; choose one of {', '.join(CORPORA)}, a path, or "
            "{train: CORPUS, calibration: CORPUS, heldout: CORPUS}"
        )
    ((name, values),) = fields.items()
    try:
        return validate(CORPORA[name], values, name, context)
    except ValueError as error:  # of a sequence a recipe leaves the name of the one field out
        raise ValueError(str(error).replace("sequence.tasks", "sequence", 1)) from None


def dump_corpus(corpus: Corpus, context: Any = None) -> dict[str, Any]:
    if isinstance(corpus, Roles):
        return {split: dump_corpus(part, context) for split, part in corpus.texts().items()}
    name = next(name for name, kind in CORPORA.items() if type(corpus) is kind)
    return {name: corpus.model_dump(mode="json", context=context)}
