"""Documents out of files: text, JSON lines and Parquet. Every error names the file and, where there is one, the row.

A mark of byte order at the start of a file is no text, and line ends of Windows become plain ones where they end lines:
in a text file. What a row of JSON or Parquet says is taken as it stands.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from lzma import LZMAError
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

from tasks.data.files import PACKED, filesystem_of, unpacked

KINDS = (".txt", ".jsonl", ".parquet")
POINTER = b"version https://git-lfs.github.com/spec/"
MARK = "\ufeff"
OTHERS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
Nulls = Literal["refuse", "skip"]


Turn = tuple[str, str]  # who says what


class Document(NamedTuple):
    """``turns`` are those of a task, of which a model learns what it is to say itself; of plain text there are none. They are
    written out by ``template``, the tokenizer's where it is None."""

    name: str
    text: str
    turns: tuple[Turn, ...] = ()
    template: str | None = None


def kind_of(path: str) -> str:
    """The kind of a file by its name, packed or not; ValueError where it is none."""
    name = Path(path)
    kind = (name.with_suffix("") if name.suffix in PACKED else name).suffix
    if kind not in KINDS or (kind == ".parquet" and name.suffix in PACKED):
        raise ValueError(
            f"corpus file {path}: unknown kind; choose one of {', '.join(KINDS)} "
            f"(text and JSON lines also with {', '.join(PACKED)})"
        )
    return kind


def decode(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"corpus file {where}: not UTF-8 (byte {error.start}){_likely(content)}") from None


def _likely(content: bytes) -> str:
    return next((f"; it looks like {name}" for start, name in OTHERS.items() if content.startswith(start)), "")


def digest(parts: Iterable[tuple[str, bytes]]) -> str:
    total = hashlib.sha256()
    for name, content in parts:
        total.update(hashlib.sha256(name.encode()).digest() + hashlib.sha256(content).digest())
    return total.hexdigest()


def read_documents(path: str, field: str, nulls: Nulls = "refuse", separator: str | None = None) -> Iterator[Document]:
    return parse(path, None, field, nulls, separator)


def parse(
    path: str, content: bytes | None, field: str, nulls: Nulls = "refuse", separator: str | None = None
) -> Iterator[Document]:
    """The documents of a file, whose ``content`` may have been read already. A ``separator`` divides text files."""
    kind = kind_of(path)
    if kind == ".parquet":
        yield from _parse_parquet(path, field, nulls)
    elif kind == ".txt":
        lines = _lines(f"corpus file {path}", unpacked(path, content))
        text = decode(b"".join(lines), path).removeprefix(MARK).replace("\r\n", "\n")
        yield from (Document(path, text),) if separator is None else _divided(path, text, separator)
    else:
        for number, row in read_rows(path, "corpus file", content):
            if (text := _text(f"{path}, line {number}", row, field, nulls)) is not None:
                yield Document(f"{path}:{number}", text)


def _divided(path: str, text: str, separator: str) -> Iterator[Document]:
    for number, piece in enumerate(text.split(separator), 1):
        if piece.strip():
            yield Document(f"{path}:{number}", piece)


def read_rows(path: str, called: str, content: bytes | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of a file of JSON lines, packed or not; ``called`` is what an error calls the file."""
    start = 0
    for number, line in enumerate(_lines(f"{called} {path}", unpacked(path, content)), 1):
        if line.strip():
            yield number, _row(f"{called} {path}, line {number}", line, start)
        start += len(line)


def _lines(where: str, stream: BinaryIO) -> Iterator[bytes]:
    """Lines end with a line feed alone: JSON strings and texts may hold what else breaks lines."""
    with stream:
        try:
            first = stream.readline()
            if first.startswith(POINTER):
                raise ValueError(f"{where}: is a git-lfs pointer, not the file itself; fetch it with git lfs pull")
            yield first
            yield from stream
        except (OSError, EOFError, LZMAError) as error:
            raise ValueError(f"{where}: damaged or not packed as its name says ({error})") from None


def _row(where: str, line: bytes, start: int) -> dict[str, Any]:
    try:
        text = line.decode("utf-8")
        text = text if start else text.removeprefix(MARK)
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 (byte {start + error.start} of the file){_likely(line)}") from None
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:  # no JSON; numbers without end; brackets without end
        raise ValueError(f"{where}: malformed JSON ({getattr(error, 'msg', error)})") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where}: a JSON object is needed in each line, got {row!r:.60}")
    return row


def _text(where: str, row: dict[str, Any], field: str, nulls: Nulls) -> str | None:
    if field not in row:
        raise ValueError(f"corpus file {where}: no text field {field!r}; it has {', '.join(row) or 'none'}")
    return text_of(row[field], f"corpus file {where}", field, nulls)


def text_of(value: Any, where: str, field: str, nulls: Nulls) -> str | None:
    """The text of a row's field; None where it is to be skipped."""
    if value is None:
        if nulls == "refuse":
            raise ValueError(f"{where}: field {field!r} is null; nulls: skip leaves out such rows")
        return None
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{where}: field {field!r} is not UTF-8 (byte {error.start} of it)") from None
    if not isinstance(value, str):
        raise ValueError(f"{where}: no text field {field!r}; it is {value!r:.60}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: field {field!r} has half of a character (\\u{ord(value[error.start]):x})") from None
    return value


def _parse_parquet(path: str, field: str, nulls: Nulls) -> Iterator[Document]:
    from pyarrow import parquet

    filesystem, inner = filesystem_of(path)
    with filesystem.open_input_file(inner) as file:
        if file.read(len(POINTER)) == POINTER:
            raise ValueError(f"corpus file {path}: is a git-lfs pointer, not the file itself; fetch it with git lfs pull")
        file.seek(0)
        table = _readable(path, lambda: parquet.ParquetFile(file))
        _check_column(path, table.schema_arrow, field)
        row = 0
        for group in range(table.num_row_groups):  # one by one, so that a damaged one is told by its first row
            batches = table.iter_batches(row_groups=[group], columns=[field])
            while (batch := _readable(f"{path}, from row {row} on", partial(next, batches, None))) is not None:
                for value in _readable(f"{path}, from row {row} on", batch.column(0).to_pylist):
                    if (text := text_of(value, f"corpus file {path}, row {row}", field, nulls)) is not None:
                        yield Document(f"{path}:{row}", text)
                    row += 1


def _readable(where: str, read: Callable[[], Any]) -> Any:
    from pyarrow import ArrowException

    try:
        return read()
    except (ArrowException, OSError, ValueError) as error:
        if isinstance(error, OSError) and where.startswith("s3://"):  # a connection may break and come back
            raise
        what = " ".join(str(error).split())
        raise ValueError(f"corpus file {where}: not a Parquet file, or a damaged one ({what})") from None


def _check_column(path: str, schema: Any, field: str) -> None:
    """A column of text, however it is stored."""
    if field not in schema.names:
        raise ValueError(f"corpus file {path}: no field {field!r}; choose one of {', '.join(schema.names)}")
    if not _holds_text(schema.field(field).type):
        columns = [name for name in schema.names if _holds_text(schema.field(name).type)]
        raise ValueError(
            f"corpus file {path}: field {field!r} is {schema.field(field).type}, no text; "
            f"choose one of {', '.join(columns) or 'another file, this one has none'}"
        )


def _holds_text(kind: Any) -> bool:
    from pyarrow import types

    kind = getattr(kind, "storage_type", kind)  # a column of JSON is text with a name
    kind = kind.value_type if types.is_dictionary(kind) else kind
    texts = (
        types.is_string,
        types.is_large_string,
        types.is_string_view,
        types.is_binary,
        types.is_large_binary,
        types.is_binary_view,
    )
    return any(is_text(kind) for is_text in texts)
