"""Tasks in files of JSON lines, in the plain forms public suites use, as tasks of lm-eval.

Which form a file has, its first line says by its keys; every line must have that form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tasks.data.digests import Digests
from tasks.data.documents import read_rows
from tasks.data.files import expand, file_digest
from tasks.data.place import Place
from tasks.harness.answers import exact_match, f1
from tasks.methods import short

Row = dict[str, Any]
UNTIL, NEW_TOKENS = "\n", 32  # where a generated answer ends


@dataclass(frozen=True)
class Form:
    """What a line holds, and how lm-eval asks it. What is generated, ``judge`` scores: what was said to a line, and only
    that, by metric."""

    keys: dict[str, type]
    config: Row
    metrics: tuple[str, ...]
    judge: Callable[[Row, str], dict[str, float]] | None = None


# Columns are named plainly: of a template that comes to digits alone lm-eval makes a number.


def _mean(*metrics: str) -> list[Row]:
    return [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in metrics]


def generated(
    keys: dict[str, type],
    metrics: tuple[str, ...],
    judge: Callable[[Row, str], dict[str, float]],
    target: str = "",
    tokens: int = NEW_TOKENS,
    until: tuple[str, ...] = (UNTIL,),
) -> Form:
    """A form whose answers are generated, greedily, after ``context``."""
    config = {
        "output_type": "generate_until",
        "doc_to_text": "context",
        "doc_to_target": target,
        "generation_kwargs": {"until": list(until), "max_gen_toks": tokens, "do_sample": False},
        "metric_list": _mean(*metrics),
    }
    return Form(keys, config, metrics, judge)


def _answered(row: Row, said: str) -> dict[str, float]:
    accepted = [row["answer"], *row["aliases"]]
    return {"exact_match": float(exact_match(said, accepted)), "f1": f1(said, accepted)}


CHOICE = Form(
    {"query": str, "choices": list, "gold": int},
    {
        "output_type": "multiple_choice",
        "doc_to_text": "query",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": _mean("acc", "acc_norm"),
    },
    ("acc", "acc_norm"),
)
SCHEMA = Form(  # which of two contexts makes what follows more likely
    {"context_options": list, "continuation": str, "gold": int},
    {
        "output_type": "multiple_choice",
        "doc_to_text": "gold",
        "doc_to_choice": "context_options",
        "doc_to_target": "continuation",
        "metric_list": _mean("acc"),
    },
    ("acc",),
)
CONTINUATION = Form(
    {"context": str, "continuation": str},
    {
        "output_type": "loglikelihood",
        "doc_to_text": "context",
        "doc_to_target": "continuation",
        "metric_list": _mean("acc"),
    },
    ("acc",),
)
ANSWER = generated({"context": str, "answer": str, "aliases": list}, ("exact_match", "f1"), _answered, target="answer")
NAMES = {str: "text", list: "list", int: "number"}
FORMS = (CHOICE, SCHEMA, CONTINUATION, ANSWER)


class TaskFile(BaseModel):
    """A path, or ``{path: PATH, ...}``."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, json_schema_extra=short({"type": "string"})
    )

    path: Place
    """File of JSON lines, local or ``s3://...``, packed or not."""
    delimiter: str = " "
    """What stands between a question and its answer; before a continuation only where neither side has a space there."""
    shots: int = Field(0, ge=0)
    """Examples with their answers before each question, drawn from the same file."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, spec: Any) -> Any:
        return {"path": spec} if isinstance(spec, str) else spec

    def fingerprint(self, digests: Digests | None = None) -> str:
        """sha256 of the file, whose lines are looked through. Raises ValueError at the first that has not the file's form."""
        self.rows()
        return file_digest(self.path, digests or Digests()).hex()

    def describe(self) -> str:
        return self.path

    def rows(self) -> tuple[Form, list[Row]]:
        """The form of the file, and its lines. Raises ValueError at the first line that has another."""
        (path,) = expand(self.path, "task file")
        rows: list[Row] = []
        form: Form | None = None
        for number, row in read_rows(path, "task file"):
            where = f"task file {path}, line {number}"
            form = form or _form_of(where, row)
            _check(where, form, row)
            rows.append({key: row[key] for key in form.keys})
        if form is None:
            raise ValueError(f"task file {path}: there is no question in it")
        if self.shots and self.shots >= (different := len({repr(row) for row in rows})):
            raise ValueError(f"task file {path}: shots {self.shots} is too many for {different} different questions")
        return form, rows


def _form_of(where: str, row: Row) -> Form:
    found = next((form for form in FORMS if form.keys.keys() <= row.keys()), None)
    if found is None:
        forms = "; ".join(", ".join(form.keys) for form in FORMS)
        raise ValueError(f"{where}: keys {', '.join(row) or 'none'} are of no form known; it needs those of one of: {forms}")
    return found


def _check(where: str, form: Form, row: Row) -> None:
    for key, kind in form.keys.items():
        if not isinstance(row.get(key), kind) or isinstance(row[key], bool):
            raise ValueError(f"{where}: {key} is no {NAMES[kind]}, got {row.get(key)!r:.60}")
        if kind is str and not row[key].strip():
            raise ValueError(f"{where}: {key} is empty")
    options = row.get("choices", row.get("context_options"))
    if options is not None and "gold" in form.keys:
        if len(options) < 2 or not all(isinstance(option, str) and option.strip() for option in options):
            raise ValueError(f"{where}: two or more texts to choose from are needed, got {options!r:.60}")
        if not 0 <= row["gold"] < len(options):
            raise ValueError(f"{where}: gold {row['gold']} is none of its {len(options)} choices, which count from 0")
    if form is ANSWER and not all(isinstance(alias, str) for alias in row["aliases"]):
        raise ValueError(f"{where}: aliases are texts, got {row['aliases']!r:.60}")
