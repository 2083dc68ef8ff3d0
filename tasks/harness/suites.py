"""Files of questions that evaluators with prompts of their own read: short answers, with or without a text to draw them from,
exams by subject, and stories with their summaries.

Files are read as they are published where their form is plain enough: FreebaseQA's JSON, TriviaQA's rows on the hub, MMLU's
folders of CSV, stories of CNN/Daily Mail.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from tasks.data.digests import Digests
from tasks.data.documents import decode, read_rows
from tasks.data.files import expand, file_digest, unpacked
from tasks.data.place import Place
from tasks.harness.forms import Row
from tasks.methods import short

HIGHLIGHT = "@highlight"  # stands before each sentence of a story's summary
LETTERS = "ABCD"


class Suite(BaseModel):
    """A path."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, json_schema_extra=short({"type": "string"})
    )

    path: Place
    """Where it lies, local or on S3."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, spec: Any) -> Any:
        return {"path": spec} if isinstance(spec, str) else spec

    @property
    def files(self) -> list[str]:
        return expand(self.path, "file of questions")

    def fingerprint(self, digests: Digests | None = None) -> str:
        """sha256 of the files, which are looked through. Raises ValueError at the first thing that is not as it must be."""
        self.rows()
        digests = digests or Digests()
        return hashlib.sha256(b"".join(file_digest(path, digests) for path in self.files)).hexdigest()

    def describe(self) -> str:
        return self.path

    def rows(self) -> list[Row]:
        raise NotImplementedError


class Questions(Suite):
    """A file of questions: JSON lines of ``question`` (or ``context``, the whole of what is asked), ``answer``, ``aliases`` and
    perhaps ``evidence``; FreebaseQA's JSON; or TriviaQA's rows."""

    def rows(self) -> list[Row]:
        """Each with ``ask``, ``accepted`` and ``evidence``, which may be empty."""
        (path,) = self.files
        rows = list(_freebase(path) if path.endswith(".json") else _lines(path))
        if not rows:
            raise ValueError(f"file of questions {path}: there is no question in it")
        return rows

    def with_evidence(self) -> list[Row]:
        rows = self.rows()
        if bare := next((number for number, row in enumerate(rows, 1) if not row["evidence"]), None):
            raise ValueError(f"file of questions {self.path}: question {bare} has no evidence to answer from")
        return rows


class OpenBook(Questions):
    """The same, each with a text to draw the answer from: ``evidence``, or TriviaQA's pages."""

    def fingerprint(self, digests: Digests | None = None) -> str:
        self.with_evidence()
        return super().fingerprint(digests)


class Exam(Suite):
    """A folder as MMLU's, ``test/SUBJECT_test.csv`` and ``dev/SUBJECT_dev.csv``: rows of question, four choices, letter."""

    @property
    def files(self) -> list[str]:
        return [path for split in ("dev", "test") for path in expand(f"{self.path}/{split}/*.csv", "exam")]

    def rows(self) -> list[Row]:
        """Questions with ``subject``, and the ``examples`` to show before them."""
        splits: dict[str, dict[str, list[Row]]] = {"dev": {}, "test": {}}
        for path in self.files:
            split = Path(path).parent.name
            splits[split][Path(path).stem.removesuffix(f"_{split}")] = list(_exam_rows(path))
        if missing := splits["test"].keys() - splits["dev"].keys():
            raise ValueError(f"exam {self.path}: there is no dev/{min(missing)}_dev.csv with examples for test/{min(missing)}")
        return [
            {**row, "subject": subject.replace("_", " "), "examples": splits["dev"][subject]}
            for subject, rows in splits["test"].items()
            for row in rows
        ]


class Stories(Suite):
    """A pattern of ``.story`` files, text with ``@highlight`` before each sentence of its summary; or JSON lines of
    ``document`` and ``summary``."""

    def rows(self) -> list[Row]:
        rows = [row for path in self.files for row in (_summaries(path) if ".jsonl" in path else [_story(path)])]
        if not rows:
            raise ValueError(f"stories {self.path}: there is none in it")
        return rows


def _lines(path: str) -> Iterator[Row]:
    for number, row in read_rows(path, "file of questions"):
        where = f"file of questions {path}, line {number}"
        ask = f"Question: {row['question']}\nAnswer:" if "question" in row else row.get("context")
        answer, evidence = row.get("answer"), row.get("evidence", _pages(row))
        told = answer if isinstance(answer, dict) else {"value": answer, "aliases": row.get("aliases", [])}
        accepted = [told.get("value"), *(told.get("aliases") or [])]
        for key, value in (("question or context", ask), ("answer", accepted[0]), ("evidence", evidence)):
            if not isinstance(value, str):
                raise ValueError(f"{where}: {key} is no text, got {value!r:.60}")
        if not all(isinstance(alias, str) for alias in accepted):
            raise ValueError(f"{where}: aliases are texts, got {accepted[1:]!r:.60}")
        yield {"ask": ask, "accepted": list(dict.fromkeys(accepted)), "evidence": evidence}


def _pages(row: Row) -> str:
    """TriviaQA's first page of the encyclopedia and first result of the search."""
    pages = (row.get("entity_pages") or {}).get("wiki_context"), (row.get("search_results") or {}).get("search_context")
    return "\n".join(found[0] for found in pages if found)


def _freebase(path: str) -> Iterator[Row]:
    try:
        questions = json.loads(_read(path))["Questions"]
        for question in questions:
            names = [name for parse in question["Parses"] for answer in parse["Answers"] for name in answer["AnswersName"]]
            ask = f"Question: {question['RawQuestion']}\nAnswer:"
            yield {"ask": ask, "accepted": list(dict.fromkeys(names)), "evidence": ""}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"file of questions {path}: not as FreebaseQA's are ({type(error).__name__} {error})") from None


def _exam_rows(path: str) -> Iterator[Row]:
    for number, cells in enumerate(csv.reader(io.StringIO(_read(path))), 1):
        if len(cells) != 6 or cells[5] not in LETTERS or len(cells[5]) != 1:
            raise ValueError(f"exam {path}, row {number}: a question, four choices and A, B, C or D are needed")
        yield {"question": cells[0], "choices": cells[1:5], "letter": cells[5]}


def _summaries(path: str) -> Iterator[Row]:
    for number, row in read_rows(path, "stories"):
        if not all(isinstance(row.get(key), str) and row[key].strip() for key in ("document", "summary")):
            raise ValueError(f"stories {path}, line {number}: document and summary are needed, as texts")
        yield {"document": row["document"], "summary": row["summary"]}


def _story(path: str) -> Row:
    text, *highlights = (part.strip() for part in _read(path).split(HIGHLIGHT))
    if not text or not any(highlights):
        raise ValueError(f"stories {path}: a text and {HIGHLIGHT} before each sentence of its summary are needed")
    return {"document": text, "summary": "\n".join(filter(None, highlights))}


def _read(path: str) -> str:
    with unpacked(path) as content:
        return decode(content.read(), path)
