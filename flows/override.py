"""``--set prune.sparsity=0.6``: one field of a recipe, changed without editing the file.

A setting is a dotted path and a value, and changes the document before anything is read off it: what comes out has the keys of
a recipe edited by hand. The command line, the form of a deployment and a deployment's own settings are all such settings.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from cluster.documents import parse_yaml
from flows.sweep import CASE, NAMED, RESERVED, step
from tasks.methods import SHELF, names
from tasks.stage import STAGES, stage_class

EDITABLE = ("seed", "model", "evaluate", "require", "search")  # of a recipe's header


class Setting(NamedTuple):
    path: str
    value: Any


def parse_settings(texts: Iterable[str]) -> list[Setting]:
    """``STAGE.FIELD=VALUE`` each, the value as YAML."""
    return [_parse(text) for text in texts]


def _parse(text: str) -> Setting:
    path, equals, value = text.partition("=")
    parts = path.strip().split(".")
    if not equals or not all(parts):
        raise ValueError(f"--set {text}: STAGE.FIELD=VALUE is needed, such as prune.sparsity=0.6")
    document = parse_yaml(f"value: {value}", f"--set {path}")
    if document.keys() != {"value"}:
        raise ValueError(f"--set {path}: one value is needed, as it would stand in a recipe")
    return Setting(path.strip(), document["value"])


def changed(document: dict[str, Any], settings: Sequence[Setting]) -> dict[str, Any]:
    """The document with these fields set, the last word counting. Raises ValueError where a path leads nowhere; whether a value
    is right is for whoever reads the document."""
    made = copy.deepcopy(document)
    for setting in settings:
        _set(made, setting)
    return made


def _set(document: dict[str, Any], setting: Setting) -> None:
    first, *way = setting.path.split(".")
    if (entry := _entry(document, first)) is not None:
        kind = stage_of(entry)
        if not way:
            raise ValueError(f"--set {first}: name a field of it; choose one of {', '.join(stage_class(kind).model_fields)}")
        _check_grid(entry, setting, ".".join(way))
        entry[kind] = place = {} if entry[kind] is None else entry[kind]
        if not isinstance(place, dict):
            raise ValueError(f"--set {setting.path}: {first} has no fields, got {place!r}")
        _put(place, way, setting.value, stage_class(kind).model_json_schema()["properties"])
    elif first in EDITABLE:
        if first == "evaluate" and isinstance(listed := document.get(first), list):
            document[first] = {name: fields for one in listed for name, fields in _named(one)}
        _put(document, [first, *way], setting.value, {})
    else:
        known = [base_of(entry) for entry in stages_of(document)]
        raise ValueError(f"--set {setting.path}: no stage or field {first!r}; choose one of {', '.join([*known, *EDITABLE])}")


def _put(place: dict[str, Any], way: list[str], value: Any, fields: dict[str, Any]) -> None:
    """Walk the path and set the value. ``method.FIELD`` is a field of whichever method it is (``objective.FIELD`` and the like
    too); ``method.NAME.FIELD`` makes it that method."""
    kind = fields.get(way[0], {})
    shelf = next((one[SHELF] for one in (kind, *kind.get("anyOf", ())) if SHELF in one), None)
    if shelf and len(way) > 2 and way[1] in names(shelf) and way[1] not in step(place, way[0]):
        place[way[0]].clear()
    *before, last = way
    for part, following in zip(before, way[1:], strict=True):
        place = step(place, part)
        if (
            part in NAMED
            and following not in place
            and len(place) == 1
            and isinstance(inner := next(iter(place.values())), dict)
        ):
            place = inner
    place[last] = copy.deepcopy(value)


def stages_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries under ``stages`` that name a stage; what else may be wrong with them is told by who reads the recipe."""
    listed = document.get("stages")
    return [one for one in listed if isinstance(one, dict) and stage_of(one)] if isinstance(listed, list) else []


def stage_of(entry: dict[str, Any]) -> str:
    found = [key for key in entry if key not in RESERVED]
    return found[0] if len(found) == 1 and found[0] in STAGES else ""


def base_of(entry: dict[str, Any]) -> str:
    return str(entry.get("id", stage_of(entry)))


def _entry(document: dict[str, Any], name: str) -> dict[str, Any] | None:
    """The entry of this id, or else the only one of this kind."""
    entries = stages_of(document)
    if found := [entry for entry in entries if base_of(entry) == name]:
        return found[0]
    found = [entry for entry in entries if stage_of(entry) == name]
    if len(found) > 1:
        ids = ", ".join(base_of(entry) for entry in found)
        raise ValueError(f"--set {name}: the kind of several stages; choose one of {ids}")
    return found[0] if found else None


def _check_grid(entry: dict[str, Any], setting: Setting, field: str) -> None:
    """What a grid or a search sets would overwrite the setting, unsaid."""
    grid = entry.get("grid")
    axes = grid if isinstance(grid, dict) else {}
    cases = axes.get(CASE)
    inner = [path for case in cases.values() if isinstance(case, dict) for path in case] if isinstance(cases, dict) else []
    drawn = search if isinstance(search := entry.get("search"), dict) else {}
    for axis in [*axes, *inner, *drawn]:
        if axis == field or axis.startswith(f"{field}.") or field.startswith(f"{axis}."):
            which = "search" if axis in drawn else "grid"
            raise ValueError(f"--set {setting.path}: the recipe's {which} sets {axis} of {base_of(entry)}; change it there")


def _named(one: Any) -> Iterable[tuple[str, Any]]:
    return one.items() if isinstance(one, dict) else [(str(one), {})]
