"""How two models differ, in the words of a recipe: ``prune.sparsity: 0.5 → 0.6``, ``prune.method: wanda → sparsegpt``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from functools import lru_cache
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
    return list(_differences(_full_line(book, left), _full_line(book, right)))


def _full_line(book: Book, stage: Stage) -> tuple[tuple[str, str, str, frozenset[tuple[str, str]]], ...]:
    """The line with the text that its first stage saw: name, kind, method and fields of each."""
    line = book.line(stage)
    data = [book.by_address[address] for address in line[0].parents.values() if address in book.by_address]
    every = [one for one in data if not one.makes_a_model][:1] + line
    return tuple(
        (name, one.address, one.method, frozenset(fields(one).items())) for name, one in zip(names(every), every, strict=True)
    )


@lru_cache(maxsize=20_000)
def _differences(left: tuple, right: tuple) -> tuple[Difference, ...]:
    kinds = [[address.partition("/")[0] for _, address, _, _ in line] for line in (left, right)]
    found: list[Difference] = []
    for what, first, last, begin, end in SequenceMatcher(a=kinds[0], b=kinds[1], autojunk=False).get_opcodes():
        if what == "equal":
            for one, other in zip(left[first:last], right[begin:end], strict=True):
                found += _of_stage(other[0], dict(one[3]), dict(other[3])) if one[1] != other[1] else []
        else:
            found += [Difference(name, method, None) for name, _, method, _ in left[first:last]]
            found += [Difference(name, None, method) for name, _, method, _ in right[begin:end]]
    return tuple(found)


def _of_stage(name: str, left: Mapping[str, str], right: Mapping[str, str]) -> list[Difference]:
    """Fields of one stage. Where another method was chosen, what is below it goes without saying."""
    changed = [field for field in sorted({*left, *right}) if left.get(field) != right.get(field)]
    chosen = [field for field in changed if field.rpartition(".")[2] in OWN_NAMES]
    told = [field for field in changed if not any(field.startswith(f"{one}.") for one in chosen)]
    return [Difference(f"{name}.{field}", left.get(field), right.get(field)) for field in told]


def describe(found: Sequence[Difference], most: int = 6) -> str:
    """The differences as lines of a hover."""
    lines = [str(one) for one in found[:most]]
    return "\n".join([*lines, *([f"and {len(found) - most} more"] if len(found) > most else [])]) or "the same recipe"
