"""Sweeps: one entry of a recipe with a ``grid`` stands for a stage per combination of its values.

    - pretrain:
        method: static
        tokens: 600_000
      grid:
        seed: [0, 1, 2]
        method: [static, {rigl: {interval: 50}}]
        method.sparsity: {half: 0.5, most: 0.9}
        case: {wide: {length: 256, batch: 16}, narrow: {length: 64, batch: 64}}

An axis is a field of the stage by its dotted path, with a list of values or values by label; ``method.FIELD`` means the
field of whichever method it is (``objective.FIELD``, ``method.allocator.FIELD`` likewise), and ``model...`` edits the
recipe's model for this stage. The axis ``case`` sets several fields at once. A later entry follows every branch of what it
comes from, and may split further. One that gathers takes branches together, all of them or those that differ in some axes
only (``search``, beside ``grid``: ``flows/trials.py``):

    - merge: {}
      gather: [seed]

Pure text work: what comes out is an ordinary list of stages.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from flows.trials import Search, Trials

CASE = "case"
Branch = dict[str, str]  # axis -> label
RESERVED = ("id", "from", "grid", "search", "gather")
# fields written NAME or {NAME: {FIELD: ...}}
NAMED = ("method", "objective", "allocator", "initial", "rounding", "pruner", "over", "transform", "fake_quantize")


@dataclass(frozen=True)
class Entry:
    """One stage to be: its document (stage name, ``id``, ``from``), where it stands in the recipe, its branch."""

    document: dict[str, Any]
    where: str
    branch: Branch = field(default_factory=dict)
    base: str = ""  # the id before any branch was added to it


class Sweep:
    """Expands entries in order, and remembers the branches of each."""

    def __init__(self, model: Any, search: Search | None = None) -> None:
        self.model, self.trials = model, Trials(search)
        self.branches: dict[str, list[tuple[str, Branch]]] = {}  # base id -> (id, branch) of what it became
        self.previous = ""

    def expand(self, document: dict[str, Any], where: str) -> Iterator[Entry]:
        names = [key for key in document if key not in RESERVED]
        base = str(document.get("id", names[0] if len(names) == 1 else ""))
        check_origin(document.get("from", self.previous), where)
        combinations = list(self._combinations(document.get("grid"), f"recipe.{where}.grid"))
        origins = [str(id) for id in _ids(document.get("from", self.previous))]
        self.trials.read(document.get("search"), base, origins, f"recipe.{where}.search")
        plain = {key: value for key, value in document.items() if key not in ("grid", "search")}
        made = []
        gathers = document.get("gather", False) is not False
        for origin, before in self._gathered(document, where) if gathers else self._origins(document):
            for (branch, drawn), chosen in product(self.trials.split(base, before), combinations):
                whole = {**branch, **{axis: label for axis, label, _ in chosen}}
                id = "-".join([base, *whole.values()])
                made.append((self.trials.same(base, whole, id), whole))
                if made[-1][0] != id:
                    continue
                entry = copy.deepcopy(plain)
                fields = [*((axis, value) for axis, _, value in chosen), *drawn.items()]
                for axis, value in _fields(fields, f"recipe.{where}.grid"):
                    self._set(entry, names, axis, value, f"recipe.{where}.grid")
                entry |= {"id": id} if whole else {}
                entry |= {"from": origin} if (whole or gathers) and origin else {}
                yield Entry(entry, where, whole, base)
        self.branches[base], self.previous = made, base

    def _combinations(self, grid: Any, where: str) -> Iterator[tuple[tuple[str, str, Any], ...]]:
        """Every choice of one (axis, label, value) per axis."""
        if grid is None:
            return iter([()])
        if not isinstance(grid, dict) or not grid:
            raise ValueError(f"{where}: {{field: [values]}} is needed, got {grid!r}")
        return product(
            *(
                [(axis, label, value) for label, value in _labelled(str(axis), values, f"{where}.{axis}")]
                for axis, values in grid.items()
            )
        )

    def _origins(self, document: dict[str, Any]) -> list[tuple[Any, Branch]]:
        """(what ``from`` becomes, the branch it stands on) for every branch of what an entry comes from."""
        stated = document.get("from", self.previous)
        ids = list(_ids(stated))
        splits = [self.branches.get(str(id)) or [(str(id), {})] for id in ids]
        leading = max(splits, key=len, default=[("", {})])
        found = []
        for _, branch in leading:
            here = {str(id): _along(branch, split) for id, split in zip(ids, splits, strict=True)}
            if isinstance(stated, str):
                origin: Any = here[stated]
            elif isinstance(stated, dict):
                origin = {
                    role: [here[str(one)] for one in id] if isinstance(id, list) else here[str(id)]
                    for role, id in stated.items()
                }
            else:
                origin = [here[str(id)] for id in stated]
            found.append((origin, branch))
        return found

    def _gathered(self, document: dict[str, Any], where: str) -> list[tuple[list[str], Branch]]:
        """(ids to take together, the branch they share) for every branch that is left without the gathered axes."""
        stated, axes = document.get("from", self.previous), document["gather"]
        ids = [stated] if isinstance(stated, str) else stated
        if not isinstance(ids, list):
            raise ValueError(f"recipe.{where}.from: what is gathered is an id or a list of ids, got {stated!r}")
        splits = [self.branches.get(str(id)) or [(str(id), {})] for id in ids]
        known = list(dict.fromkeys(axis for split in splits for _, branch in split for axis in branch))
        if not known:
            raise ValueError(f"recipe.{where}.gather: no grid comes before it; name what it takes with from: [ID, ID]")
        axes = known if axes is True else axes
        if not isinstance(axes, list) or not axes or not set(map(str, axes)) <= set(known):
            raise ValueError(f"recipe.{where}.gather: true, or some axes out of [{', '.join(known)}], is needed, got {axes!r}")
        left = [
            [(id, {axis: label for axis, label in branch.items() if axis not in axes}) for id, branch in split]
            for split in splits
        ]
        shared: list[Branch] = []
        for _, branch in max(left, key=len):
            if branch not in shared:
                shared.append(branch)
        return [(list(dict.fromkeys(id for split in left for id in _all_along(branch, split))), branch) for branch in shared]

    def _set(self, entry: dict[str, Any], names: list[str], axis: str, value: Any, where: str) -> None:
        if not isinstance(axis, str) or not all(axis.split(".")):
            raise ValueError(f"{where}: {axis!r} is no field; an axis is a field of the stage, as seed or method.sparsity")
        place = entry[names[0]] if len(names) == 1 else None
        if not isinstance(place, dict):
            return  # for the graph to refuse
        if axis.startswith("model.") and "model" not in place and self.model is not None:
            place["model"] = copy.deepcopy(self.model)
        *way, last = axis.split(".")
        for part, following in zip(way, axis.split(".")[1:], strict=True):
            place = step(place, part)
            if part in NAMED and following not in place:
                if not place and following == last:
                    raise ValueError(f"{where}.{axis}: name the {part} first, as in {names[0]}: {{{part}: NAME}}")
                place = next(iter(place.values()), place)
            if not isinstance(place, dict):
                raise ValueError(f"{where}.{axis}: {part} has no fields, got {place!r}")
        place[last] = copy.deepcopy(value)


def _fields(axes: Iterable[tuple[str, Any]], where: str) -> list[tuple[str, Any]]:
    """What axes set, field by field: a method before its fields, whichever the recipe names first."""
    fields: list[tuple[str, Any]] = []
    for axis, value in axes:
        if axis == CASE and not isinstance(value, dict):
            raise ValueError(f"{where}.{CASE}: {{label: {{field: value}}}} is needed, got {value!r}")
        fields += value.items() if axis == CASE else [(axis, value)]
    return sorted(fields, key=lambda field: str(field[0]).count("."))


def check_origin(stated: Any, where: str) -> None:
    """Raise ValueError unless a ``from`` is an id, a list of ids, or ``{role: id}``, where a role may take a list."""
    listed = stated.values() if isinstance(stated, dict) else stated if isinstance(stated, list) else [stated]
    ids = [id for one in listed for id in (one if isinstance(stated, dict) and isinstance(one, list) else [one])]
    if not isinstance(stated, (str, list, dict)) or any(isinstance(id, (list, dict)) for id in ids):
        raise ValueError(f"recipe.{where}.from: an id, a list of ids, or {{role: id}} is needed, got {stated!r}")


def _ids(stated: Any) -> Iterator[Any]:
    """The ids in an id, a list of them, or those by role."""
    if isinstance(stated, (list, dict)):
        for one in stated.values() if isinstance(stated, dict) else stated:
            yield from _ids(one)
    else:
        yield stated


def step(place: dict[str, Any], part: str) -> dict[str, Any]:
    """One step along a dotted path, making room where there is none; a method given by name gets room for fields."""
    inner = place.get(part)
    if isinstance(inner, str):
        inner = {inner: {}}
    elif isinstance(inner, dict) and part in NAMED:
        inner = {name: {} if fields is None else fields for name, fields in inner.items()}
    place[part] = inner if isinstance(inner, dict) else {}
    return place[part]


def _along(branch: Branch, split: list[tuple[str, Branch]]) -> str:
    """The id, among those that one stage became, that stands on this branch."""
    return _all_along(branch, split)[0]


def _all_along(branch: Branch, split: list[tuple[str, Branch]]) -> list[str]:
    """All such ids."""
    if found := [id for id, other in split if other.items() <= branch.items()]:
        return found
    raise ValueError(f"recipe: the branches {', '.join(id for id, _ in split)} have nothing in common with {branch}")


def _labelled(axis: str, values: Any, where: str) -> list[tuple[str, Any]]:
    """(label, value) of each value of an axis."""
    if isinstance(values, Mapping) and values:
        pairs = list(values.items())
    elif isinstance(values, list) and values:
        pairs = [(_label(axis, value), value) for value in values]
    else:
        raise ValueError(f"{where}: a list of values, or values by label, is needed, got {values!r}")
    labels = [label for label, _ in pairs]
    for label in labels:
        if not re.fullmatch(r"[a-z0-9_]+", str(label)):
            raise ValueError(f"{where}: {label!r} is no label; give values by label: lower-case letters, digits and _")
        if labels.count(label) > 1:
            raise ValueError(f"{where}: {label!r} stands for two values; give them by label")
    return [(str(label), value) for label, value in pairs]


def _label(axis: str, value: Any) -> str:
    if isinstance(value, dict) and len(value) == 1:
        return str(next(iter(value)))
    plain = str(value).lower().replace(".", "_").replace(":", "_").replace("-", "m")
    return plain if isinstance(value, str) else f"{axis.rpartition('.')[2]}{plain}"
