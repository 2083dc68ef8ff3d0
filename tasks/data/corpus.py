"""A corpus: a stream of named documents with a fingerprint of their content, dealt to splits.

The fingerprint enters the key of the prepare stage, so the same recipe over changed text is another computation. Every
reading error names the file and, where there is one, the line.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from tasks.data.digests import Digests
from tasks.data.documents import Document, Nulls, decode, digest, kind_of, parse, read_documents, text_of
from tasks.data.files import expand, file_digest, read, total_bytes
from tasks.data.place import Commit, Pattern

VALIDATE_BYTES = 256 << 20  # corpora up to this size are read whole before anything starts


Split = Literal["train", "calibration", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "calibration", "heldout")


def split_of(index: int, heldout: float, calibration: float) -> Split:
    """Deal documents to splits evenly along the corpus: the shares hold for every prefix of it."""

    def falls(number: int, share: float, shift: float) -> bool:
        return int((number + 1) * share + shift) > int(number * share + shift)

    if falls(index, heldout, 0.5):
        return "heldout"
    rest = index - int(index * heldout + 0.5)  # dealt among what is not held out, or shares that meet would shrink
    return "calibration" if falls(rest, calibration / (1 - heldout), 0.0) else "train"


class Corpus(BaseModel):
    """Root of all corpora."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    at_hand: ClassVar[bool] = True  # can be read before a run, without asking the hub

    def documents(self) -> Iterator[Document]:
        raise NotImplementedError

    def parts(self) -> dict[str, Corpus]:
        """The corpora of a sequence of tasks by name; any other corpus is one part without a name."""
        return {"": self}

    def texts(self) -> dict[Split, Corpus]:
        """The corpora that the splits are made of: a split without one of its own is a share of the training text."""
        return {"train": self}

    def deal(self, heldout: float, calibration: float, wanted: tuple[Split, ...] = SPLITS) -> Iterator[tuple[Split, Document]]:
        """The documents of the wanted splits. The shares are of the training text, for the splits that have no other."""
        texts = self.texts()
        shares = [0.0 if split in texts else share for split, share in (("heldout", heldout), ("calibration", calibration))]
        for index, document in enumerate(texts["train"].documents()):
            if (split := split_of(index, *shares)) in wanted:
                yield split, document
        for split in wanted:
            if split != "train" and split in texts:
                yield from ((split, document) for document in texts[split].documents())

    def fingerprint(self, digests: Digests | None = None) -> str:
        """sha256 over names and content. Raises ValueError when the corpus cannot be read."""
        raise NotImplementedError

    def describe(self) -> str:
        """What an error calls it."""
        return type(self).__name__.lower()

    def advice(self) -> str:
        """How it comes to have more documents, where there is a way that is not plain."""
        return ""


class Stdlib(Corpus):
    """The source text of this Python's standard library, tests and vendored packages left out.

    ``only`` and ``without`` name packages and modules of it (``asyncio``, ``ast``): the ones to read, or to leave out.
    """

    only: tuple[str, ...] = ()
    """Packages and modules to read, by name; all of them unless given."""
    without: tuple[str, ...] = ()
    """Packages and modules to leave out."""

    def files(self) -> list[Path]:
        root = Path(sysconfig.get_paths()["stdlib"])
        skipped = {"site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__", "_vendor", "ensurepip"}
        inside = [top for top in root.iterdir() if top.name not in skipped]  # of what is installed there nothing is listed
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
    """Text files: .txt (one document a file, or what stands between separators), .jsonl and .parquet (one document a row),
    local or on S3; text and JSON lines may be packed (.gz, .zst, .bz2, .xz).

    A document is named by its path below the folder that all files share, so that the same files in another place are the
    same corpus.
    """

    paths: tuple[Pattern, ...] = Field(min_length=1)
    """Paths or globs of files, local or ``s3://...``."""
    field: str = "text"
    """Column or key that holds the text of a row."""
    nulls: Nulls = "refuse"
    """What is done with rows without text: an error, or left out."""
    separator: str | None = Field(None, min_length=1, exclude_if=lambda value: value is None)
    """What stands between the documents of a .txt file, as "\\n\\n" for paragraphs; a file is one document unless given."""

    def files(self) -> list[str]:
        found = [path for pattern in self.paths for path in expand(pattern)]
        for path in found:
            if kind_of(path) != ".txt" and self.separator:
                raise ValueError(f"corpus file {path}: separator divides .txt files; here each row is a document")
        return sorted(set(found))

    def documents(self) -> Iterator[Document]:
        files = self.files()
        root = shared_folder(files)
        for path in files:
            for document in read_documents(path, self.field, self.nulls, self.separator):
                yield document._replace(name=document.name.removeprefix(root))

    def fingerprint(self, digests: Digests | None = None) -> str:
        files = self.files()
        root = shared_folder(files)
        contents = {path: read(path) for path in files} if total_bytes(files) <= VALIDATE_BYTES else None
        if contents is None:
            for path in files:  # the schema or the first row of each; the rest when it is read
                next(read_documents(path, self.field, self.nulls), None)
            return digest((path.removeprefix(root), file_digest(path, digests or Digests())) for path in files)
        for path, content in contents.items():
            for _ in parse(path, content, self.field, self.nulls):
                pass
        return digest((path.removeprefix(root), content) for path, content in contents.items())

    def describe(self) -> str:
        return f"files {', '.join(self.paths)}"

    def advice(self) -> str:
        texts = any(kind_of(path) == ".txt" for path in self.files())
        return "a .txt file is one document unless files' separator divides it" if texts and not self.separator else ""


def shared_folder(files: list[str]) -> str:
    """What the names of documents leave out."""
    shared = os.path.commonprefix(files)
    return shared[: shared.rfind("/") + 1]


class Hub(Corpus):
    """A dataset of the Hugging Face hub, streamed. ``revision`` pins the content, so it is part of the fingerprint."""

    dataset: str
    """Id of the dataset."""
    subset: str | None = None
    """Name of its configuration, where it has several."""
    split: str = "train"
    """Its split."""
    field: str = "text"
    """Column that holds the text."""
    nulls: Nulls = "refuse"
    """What is done with rows without text: an error, or left out."""
    revision: Commit
    """Commit of 40 hexadecimal digits; branches move."""
    documents_at_most: int = Field(gt=0)
    """How many rows are read."""

    at_hand: ClassVar[bool] = False

    def documents(self) -> Iterator[Document]:
        from datasets import load_dataset

        try:
            rows = load_dataset(self.dataset, self.subset, split=self.split, revision=self.revision, streaming=True)
        except ValueError as error:  # no such subset or split
            raise ValueError(f"corpus {self.dataset}: {' '.join(str(error).split())}") from None
        for index, row in enumerate(rows.take(self.documents_at_most)):
            if self.field not in row:
                raise ValueError(f"corpus {self.dataset}: no field {self.field!r}; choose one of {', '.join(row)}")
            text = text_of(row[self.field], f"corpus {self.dataset}, row {index}", self.field, self.nulls)
            if text is not None:
                yield Document(f"{self.dataset}/{index}", text)

    def fingerprint(self, digests: Digests | None = None) -> str:
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()
