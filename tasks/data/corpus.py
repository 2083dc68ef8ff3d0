"""Where text comes from: a corpus is a stream of named documents with a fingerprint of its content.

The fingerprint enters the key of the prepare stage, so the same recipe over changed text is another computation. Every
reading error names the file and, where there is one, the line.
"""

from __future__ import annotations

import hashlib
import json
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from tasks.data.files import expand, file_digest, filesystem_of, read, total_bytes

SUFFIXES = (".txt", ".jsonl", ".parquet")
VALIDATE_BYTES = 256 << 20      # corpora up to this size are read whole before anything starts


class Document(NamedTuple):
    name: str
    text: str


class Corpus(BaseModel):
    """Root of the corpora below."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at_hand: ClassVar[bool] = True      # can be read before a run, without asking the hub

    def documents(self) -> Iterator[Document]:
        raise NotImplementedError

    def fingerprint(self) -> str:
        """sha256 over names and content. Raises ValueError when the corpus cannot be read."""
        raise NotImplementedError


class Stdlib(Corpus):
    """The source text of this Python's standard library, tests and vendored packages left out.

    ``only`` and ``without`` name packages and modules of it (``asyncio``, ``ast``): the ones to read, or to leave out.
    """

    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    def files(self) -> list[Path]:
        root = Path(sysconfig.get_paths()["stdlib"])
        skipped = {"site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__", "_vendor", "ensurepip"}
        found = sorted(path for path in root.rglob("*.py") if not skipped & set(path.relative_to(root).parts))
        tops = {path: path.relative_to(root).parts[0].removesuffix(".py") for path in found}
        if unknown := {*self.only, *self.without} - set(tops.values()):
            raise ValueError(f"corpus stdlib: no package or module {min(unknown)!r} in this Python's standard library")
        return [path for path in found if (not self.only or tops[path] in self.only) and tops[path] not in self.without]

    def documents(self) -> Iterator[Document]:
        root = Path(sysconfig.get_paths()["stdlib"])
        for path in self.files():
            yield Document(path.relative_to(root).as_posix(), _decode(path.read_bytes(), str(path)))

    def fingerprint(self) -> str:
        return _digest((document.name, document.text.encode()) for document in self.documents())


class Files(Corpus):
    """Text files: .txt (one document a file), .jsonl and .parquet (one document a row), local or on S3.

    ``paths`` are paths or globs; ``field`` is the column that holds the text of a row.
    """

    paths: tuple[str, ...] = Field(min_length=1)
    field: str = "text"

    def files(self) -> list[str]:
        found = [path for pattern in self.paths for path in expand(pattern)]
        for path in found:
            if not path.endswith(SUFFIXES):
                raise ValueError(f"corpus file {path}: unknown kind; choose one of {', '.join(SUFFIXES)}")
        return sorted(set(found))

    def documents(self) -> Iterator[Document]:
        for path in self.files():
            yield from _read_documents(path, self.field)

    def fingerprint(self) -> str:
        files = self.files()
        contents = {path: read(path) for path in files} if total_bytes(files) <= VALIDATE_BYTES else None
        if contents is None:
            return _digest((path, file_digest(path)) for path in files)
        for path, content in contents.items():
            for _ in _parse(path, content, self.field):
                pass
        return _digest(contents.items())


class Hub(Corpus):
    """A dataset of the Hugging Face hub, streamed. ``revision`` pins the content, so it is part of the fingerprint."""

    dataset: str
    subset: str | None = None
    split: str = "train"
    field: str = "text"
    revision: str
    documents_at_most: int = Field(gt=0)

    at_hand: ClassVar[bool] = False

    def documents(self) -> Iterator[Document]:
        from datasets import load_dataset

        rows = load_dataset(self.dataset, self.subset, split=self.split, revision=self.revision, streaming=True)
        for index, row in enumerate(rows.take(self.documents_at_most)):
            if self.field not in row:
                raise ValueError(f"corpus {self.dataset}: no field {self.field!r}; choose one of {', '.join(row)}")
            yield Document(f"{self.dataset}/{index}", row[self.field])

    def fingerprint(self) -> str:
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


CORPORA: dict[str, type[Corpus]] = {"stdlib": Stdlib, "files": Files, "hub": Hub}


def build_corpus(spec: Any) -> Corpus:
    """A corpus from ``name`` or ``{name: {field: value}}``."""
    if isinstance(spec, Corpus):
        return spec
    fields = {spec: {}} if isinstance(spec, str) else spec
    if not (isinstance(fields, dict) and len(fields) == 1 and next(iter(fields)) in CORPORA):
        raise ValueError(f"no corpus {spec!r}; choose one of {', '.join(CORPORA)}")
    ((name, values),) = fields.items()
    return CORPORA[name].model_validate(values or {})


def _dump(corpus: Corpus) -> dict[str, Any]:
    name = next(name for name, kind in CORPORA.items() if type(corpus) is kind)
    return {name: corpus.model_dump(mode="json")}


AnyCorpus = Annotated[Corpus, BeforeValidator(build_corpus), PlainSerializer(_dump)]
Split = Literal["train", "calibration", "heldout"]


def split_of(index: int, heldout: float, calibration: float) -> Split:
    """Deal documents to splits evenly along the corpus: the shares hold for every prefix of it."""
    def falls(number: int, share: float, shift: float) -> bool:
        return int((number + 1) * share + shift) > int(number * share + shift)

    if falls(index, heldout, 0.5):
        return "heldout"
    rest = index - int(index * heldout + 0.5)      # dealt among what is not held out, or shares that meet would shrink
    return "calibration" if falls(rest, calibration / (1 - heldout), 0.0) else "train"


def _decode(content: bytes, path: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"corpus file {path}: not UTF-8 (byte {error.start})") from None


def _digest(parts: Iterable[tuple[str, bytes]]) -> str:
    total = hashlib.sha256()
    for name, content in parts:
        total.update(hashlib.sha256(name.encode()).digest() + hashlib.sha256(content).digest())
    return total.hexdigest()


def _read_documents(path: str, field: str) -> Iterator[Document]:
    if path.endswith(".parquet"):
        yield from _parse_parquet(path, field)
    else:
        yield from _parse(path, read(path), field)


def _parse(path: str, content: bytes, field: str) -> Iterator[Document]:
    if path.endswith(".parquet"):
        yield from _parse_parquet(path, field)
        return
    if path.endswith(".txt"):
        yield Document(path, _decode(content, path))
        return
    for number, line in enumerate(_decode(content, path).split("\n"), 1):     # JSON strings may hold other line breaks
        if line.strip():
            yield Document(f"{path}:{number}", _row_text(path, number, line, field))


def _row_text(path: str, number: int, line: str, field: str) -> str:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"corpus file {path}, line {number}: malformed JSON ({error.msg})") from None
    if not isinstance(row, dict) or not isinstance(row.get(field), str):
        fields = ", ".join(row) if isinstance(row, dict) else "none: the line is no JSON object"
        raise ValueError(f"corpus file {path}, line {number}: no text field {field!r}; it has {fields}")
    return row[field]


def _parse_parquet(path: str, field: str) -> Iterator[Document]:
    import pyarrow as arrow
    from pyarrow import parquet

    filesystem, inner = filesystem_of(path)
    try:
        table = parquet.ParquetFile(filesystem.open_input_file(inner))
    except arrow.ArrowInvalid as error:
        raise ValueError(f"corpus file {path}: not a Parquet file ({error})") from None
    if field not in table.schema_arrow.names:
        raise ValueError(f"corpus file {path}: no field {field!r}; choose one of {', '.join(table.schema_arrow.names)}")
    row = 0
    for batch in table.iter_batches(columns=[field]):
        for text in batch.column(0).to_pylist():
            yield Document(f"{path}:{row}", text or "")
            row += 1
