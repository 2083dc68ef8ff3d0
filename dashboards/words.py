"""How two models differ, in the words of a recipe: ``prune.sparsity: 0.5 → 0.6``, ``prune.method: wanda → sparsegpt``."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

from dashboards.book import Book, Stage

OWN_NAMES = ("method", "corpus", "tokenizer", "objective", "allocator")  # fields whose first key names what is chosen
UNTOLD = ("fingerprints.",)  # follow from the rest
EVALUATE = "evaluate."


class Difference(NamedTuple):
    """``field`` in the words of ``--set``; None where a side does not have it."""

    field: str
    left: str | None
    right: str | None

    def __str__(self) -> str:
        if self.left is None:
            return f"+ {self.field}{f': {self.right}' if self.right else ''}"
        if self.right is None:
            return f"− {self.field}{f': {self.left}' if self.left else ''}"
        return f"{self.field}: {self.left} → {self.right}"


def fields(stage: Stage) -> dict[str, str]:
    """A stage's fields as a recipe says them: ``method: wanda`` and, below it, ``method.wanda.scope: layer``."""
    told: dict[str, str] = {}
    for name, value in stage.params.items():
        if name.startswith((*UNTOLD, EVALUATE)):
            continue
        parts = name.split(".")
        for place, part in enumerate(parts[:-1]):
            if part in OWN_NAMES:
                told[".".join(parts[: place + 1])] = parts[place + 1]
        if not (parts[-2:-1] and parts[-2] in OWN_NAMES and value == "{}"):
            told[name] = value
    return told


def names(line: Sequence[Stage]) -> list[str]:
    """Of each stage of a line its kind, numbered where there are several."""
    kinds = [stage.kind for stage in line]
    return [kind if kinds.count(kind) == 1 else f"{kind}[{kinds[:place].count(kind)}]" for place, kind in enumerate(kinds)]


def differences(book: Book, left: Stage, right: Stage) -> list[Difference]:
    """From the left model to the right one, stage by stage; empty where their recipes say the same."""
    return book.once("differences", left.run, right.run, made=lambda: _differences(_full(book, left), _full(book, right)))


class _Said(NamedTuple):
    """A stage of a line: what a recipe calls it, its kind, address and method, and its fields."""

    name: str
    kind: str
    address: str
    method: str
    fields: frozenset[tuple[str, str]]


def _full(book: Book, stage: Stage) -> list[_Said]:
    """The line with the text that its first stage saw."""
    return book.once("full", stage.run, made=lambda: _whole(book, book.line(stage)))


def _whole(book: Book, line: list[Stage]) -> list[_Said]:
    data = [book.by_address[address] for address in line[0].parents.values() if address in book.by_address]
    every = [one for one in data if not one.makes_a_model][:1] + line
    return [_said(book, name, one) for name, one in zip(names(every), every, strict=True)]


def _said(book: Book, name: str, stage: Stage) -> _Said:
    known = book.once("fields", stage.run, made=lambda: frozenset(fields(stage).items()))
    return _Said(name, stage.kind, stage.address, stage.method, known)


def _differences(left: list[_Said], right: list[_Said]) -> list[Difference]:
    kinds = [[one.kind for one in line] for line in (left, right)]
    found: list[Difference] = []
    whole = [("equal", 0, len(left), 0, len(right))]
    steps = whole if kinds[0] == kinds[1] else SequenceMatcher(a=kinds[0], b=kinds[1], autojunk=False).get_opcodes()
    for what, first, last, begin, end in steps:
        if what == "equal":
            for one, other in zip(left[first:last], right[begin:end], strict=True):
                found += _of_stage(other.name, one.fields, other.fields) if one.address != other.address else []
        else:
            found += [Difference(one.name, one.method, None) for one in left[first:last]]
            found += [Difference(one.name, None, one.method) for one in right[begin:end]]
    return found


def _of_stage(name: str, one: frozenset[tuple[str, str]], other: frozenset[tuple[str, str]]) -> list[Difference]:
    """Fields of one stage. Where another method was chosen, what is below it goes without saying."""
    left, right = dict(one - other), dict(other - one)
    changed = sorted({*left, *right})
    chosen = [field for field in changed if field.rpartition(".")[2] in OWN_NAMES]
    told = [field for field in changed if not any(field.startswith(f"{one}.") for one in chosen)]
    return [Difference(f"{name}.{field}", left.get(field), right.get(field)) for field in told]


def describe(found: Sequence[Difference], most: int = 6) -> str:
    """The differences as lines of a hover."""
    lines = [str(one) for one in found[:most]]
    return "\n".join([*lines, *([f"and {len(found) - most} more"] if len(found) > most else [])]) or "the same recipe"
