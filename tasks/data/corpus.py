"""Where text comes from: a corpus is a stream of named documents with a fingerprint of its content.

The fingerprint enters the key of the prepare stage, so the same recipe over changed text is another computation. Every
reading error names the file and, where there is one, the line.
"""

from __future__ import annotations

import hashlib
import os
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, field_validator, model_validator

from tasks.data.digests import Digests
from tasks.data.documents import Document, Nulls, decode, digest, kind_of, parse, read_documents, text_of
from tasks.data.files import expand, file_digest, read, total_bytes
from tasks.data.place import Commit, Pattern

VALIDATE_BYTES = 256 << 20      # corpora up to this size are read whole before anything starts


class Corpus(BaseModel):
    """Root of the corpora below."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at_hand: ClassVar[bool] = True      # can be read before a run, without asking the hub

    def documents(self) -> Iterator[Document]:
        raise NotImplementedError

    def parts(self) -> dict[str, Corpus]:
        """The corpora of a sequence of tasks by name; any other corpus is one part without a name."""
        return {"": self}

    def fingerprint(self, digests: Digests | None = None) -> str:
        """sha256 over names and content. Raises ValueError when the corpus cannot be read."""
        raise NotImplementedError

    def describe(self) -> str:
        """What an error calls it."""
        return type(self).__name__.lower()


class Stdlib(Corpus):
    """The source text of this Python's standard library, tests and vendored packages left out.

    ``only`` and ``without`` name packages and modules of it (``asyncio``, ``ast``): the ones to read, or to leave out.
    """

    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    def files(self) -> list[Path]:
        root = Path(sysconfig.get_paths()["stdlib"])
        skipped = {"site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__", "_vendor", "ensurepip"}
        inside = [top for top in root.iterdir() if top.name not in skipped]     # of what is installed there nothing is listed
        listed = [path for top in inside for path in (top.rglob("*.py") if top.is_dir() else [top]) if path.suffix == ".py"]
        found = sorted(path for path in listed if not skipped & set(path.relative_to(root).parts))
        tops = {path: path.relative_to(root).parts[0].removesuffix(".py") for path in found}
        if unknown := {*self.only, *self.without} - set(tops.values()):
            raise ValueError(f"corpus stdlib: no package or module {min(unknown)!r} in this Python's standard library")
        return [path for path in found if (not self.only or tops[path] in self.only) and tops[path] not in self.without]

    def documents(self) -> Iterator[Document]:
        root = Path(sysconfig.get_paths()["stdlib"])
        for path in self.files():
            yield Document(path.relative_to(root).as_posix(), decode(path.read_bytes(), str(path)))

    def fingerprint(self, digests: Digests | None = None) -> str:
        return digest((document.name, document.text.encode()) for document in self.documents())


class Files(Corpus):
    """Text files: .txt (one document a file), .jsonl and .parquet (one document a row), local or on S3; text and JSON lines
    may be packed (.gz, .zst, .bz2, .xz).

    ``paths`` are paths or globs; ``field`` is the column that holds the text of a row. Rows without text are an error, or
    with ``nulls: skip`` left out. A document is named by its path below the folder that all files share, so that the same
    files in another place are the same corpus.
    """

    paths: tuple[Pattern, ...] = Field(min_length=1)
    field: str = "text"
    nulls: Nulls = "refuse"

    def files(self) -> list[str]:
        found = [path for pattern in self.paths for path in expand(pattern)]
        for path in found:
            kind_of(path)
        return sorted(set(found))

    def documents(self) -> Iterator[Document]:
        files = self.files()
        root = _shared_folder(files)
        for path in files:
            for document in read_documents(path, self.field, self.nulls):
                yield document._replace(name=document.name.removeprefix(root))

    def fingerprint(self, digests: Digests | None = None) -> str:
        files = self.files()
        root = _shared_folder(files)
        contents = {path: read(path) for path in files} if total_bytes(files) <= VALIDATE_BYTES else None
        if contents is None:
            for path in files:      # the schema or the first row of each; the rest when it is read
                next(read_documents(path, self.field, self.nulls), None)
            return digest((path.removeprefix(root), file_digest(path, digests or Digests())) for path in files)
        for path, content in contents.items():
            for _ in parse(path, content, self.field, self.nulls):
                pass
        return digest((path.removeprefix(root), content) for path, content in contents.items())

    def describe(self) -> str:
        return f"files {', '.join(self.paths)}"


def _shared_folder(files: list[str]) -> str:
    shared = os.path.commonprefix(files)
    return shared[: shared.rfind("/") + 1]


class Hub(Corpus):
    """A dataset of the Hugging Face hub, streamed. ``revision`` pins the content, so it is part of the fingerprint."""

    dataset: str
    subset: str | None = None
    split: str = "train"
    field: str = "text"
    nulls: Nulls = "refuse"
    revision: Commit
    documents_at_most: int = Field(gt=0)

    at_hand: ClassVar[bool] = False

    def documents(self) -> Iterator[Document]:
        from datasets import load_dataset

        try:
            rows = load_dataset(self.dataset, self.subset, split=self.split, revision=self.revision, streaming=True)
        except ValueError as error:     # no such subset or split
            raise ValueError(f"corpus {self.dataset}: {' '.join(str(error).split())}") from None
        for index, row in enumerate(rows.take(self.documents_at_most)):
            if self.field not in row:
                raise ValueError(f"corpus {self.dataset}: no field {self.field!r}; choose one of {', '.join(row)}")
            text = text_of(row[self.field], f"corpus {self.dataset}, row {index}", self.field, self.nulls)
            if text is not None:
                yield Document(f"{self.dataset}/{index}", text)

    def fingerprint(self, digests: Digests | None = None) -> str:
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


AnyCorpus = Annotated[
    Corpus,
    BeforeValidator(lambda spec, info: build_corpus(spec, info.context)),
    PlainSerializer(lambda corpus, info: dump_corpus(corpus, info.context)),
]


class Sequence(Corpus):
    """Corpora to be learned one after the other, by name: ``sequence: {first: ..., second: ...}``."""

    tasks: dict[str, AnyCorpus] = Field(min_length=2)

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


CORPORA: dict[str, type[Corpus]] = {"stdlib": Stdlib, "files": Files, "hub": Hub, "sequence": Sequence}


def build_corpus(spec: Any, context: Any = None) -> Corpus:
    """A corpus from ``name`` or ``{name: {field: value}}``."""
    if isinstance(spec, Corpus):
        return spec
    fields = {spec: {}} if isinstance(spec, str) else spec
    if not (isinstance(fields, dict) and len(fields) == 1 and next(iter(fields)) in CORPORA):
        raise ValueError(f"no corpus {spec!r}; choose one of {', '.join(CORPORA)}")
    ((name, values),) = fields.items()
    return CORPORA[name].model_validate(values or {}, context=context)


def dump_corpus(corpus: Corpus, context: Any = None) -> dict[str, Any]:
    name = next(name for name, kind in CORPORA.items() if type(corpus) is kind)
    return {name: corpus.model_dump(mode="json", context=context)}


Split = Literal["train", "calibration", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "calibration", "heldout")


def split_of(index: int, heldout: float, calibration: float) -> Split:
    """Deal documents to splits evenly along the corpus: the shares hold for every prefix of it."""
    def falls(number: int, share: float, shift: float) -> bool:
        return int((number + 1) * share + shift) > int(number * share + shift)

    if falls(index, heldout, 0.5):
        return "heldout"
    rest = index - int(index * heldout + 0.5)      # dealt among what is not held out, or shares that meet would shrink
    return "calibration" if falls(rest, calibration / (1 - heldout), 0.0) else "train"
