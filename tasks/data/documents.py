"""Documents out of files: text, JSON lines and Parquet. Every error names the file and, where there is one, the line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tasks.data.files import filesystem_of, read


class Document(NamedTuple):
    name: str
    text: str


def decode(content: bytes, path: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"corpus file {path}: not UTF-8 (byte {error.start})") from None


def digest(parts: Iterable[tuple[str, bytes]]) -> str:
    total = hashlib.sha256()
    for name, content in parts:
        total.update(hashlib.sha256(name.encode()).digest() + hashlib.sha256(content).digest())
    return total.hexdigest()


def read_documents(path: str, field: str) -> Iterator[Document]:
    if path.endswith(".parquet"):
        yield from _parse_parquet(path, field)
    else:
        yield from parse(path, read(path), field)


def parse(path: str, content: bytes, field: str) -> Iterator[Document]:
    if path.endswith(".parquet"):
        yield from _parse_parquet(path, field)
        return
    if path.endswith(".txt"):
        yield Document(path, decode(content, path))
        return
    for number, line in enumerate(decode(content, path).split("\n"), 1):     # JSON strings may hold other line breaks
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
