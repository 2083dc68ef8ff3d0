"""What a deployment asks for: the form that Prefect's UI draws of a recipe, and what a filled-in form says.

The form has the fields of this very recipe, stage by stage, with its values as defaults: choices as menus, numbers with their
bounds, the help text of each. It is read off the typed schema (``flows.schema``). What a form cannot say well (a corpus, a
list, a second method's own fields) is left to ``overrides``, which take any field. A field left as it is changes nothing, so a
form that nobody touched runs the recipe as it stands.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from flows.override import Setting, base_of, stage_of, stages_of
from flows.schema import DEFS, Schema, method_schema, stage_schema, unwrapped
from tasks.methods import SHELF, load, names
from tasks.stage import stage_class

SIMPLE = ("integer", "number", "boolean", "string")
KEPT = ("type", "enum", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "pattern", "examples")
BOUNDS = {
    "minimum": "at least {:g}",
    "exclusiveMinimum": "above {:g}",
    "maximum": "at most {:g}",
    "exclusiveMaximum": "below {:g}",
}
SKIPPED = ("model", "seed")  # one for the whole recipe; of a stage by overrides
SEED = "Seed of every stage that has none of its own."


def fields_schema(document: dict[str, Any]) -> Schema:
    """The schema of ``fields``: the recipe's seed, and a group for each of its stages."""
    seed = {"type": "integer", "minimum": 0, "title": "seed", "description": SEED, "default": document.get("seed", 0)}
    groups = {"seed": seed, **{base_of(entry): _group(entry) for entry in stages_of(document)}}
    return _object({name: group for name, group in groups.items() if group.get("properties", name == "seed")})


def changes(document: dict[str, Any], fields: Mapping[str, Any]) -> Iterator[Setting]:
    """The settings that a filled-in form stands for: what differs from what the form of this recipe showed. Raises ValueError
    where it names what the form does not have."""
    yield from _differences(fields_schema(document)["properties"], fields, "fields", ())


def _differences(known: Mapping[str, Schema], given: Any, where: str, way: tuple[str, ...]) -> Iterator[Setting]:
    if not isinstance(given, Mapping):
        raise ValueError(f"{where}: fields by name are needed, got {given!r}; choose some of {', '.join(known)}")
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"{where}.{name}: no such field; choose one of {', '.join(known)}")
        field = known[name]
        if "properties" not in field:
            if value is not None and value != field.get("default"):
                yield Setting(".".join((*way, name)), value)
        elif SHELF not in field:
            yield from _differences(field["properties"], value, f"{where}.{name}", (*way, name))
        else:
            yield from _of_method(name, field, value, given, where, way)


def _of_method(name: str, field: Schema, value: Any, given: Any, where: str, way: tuple[str, ...]) -> Iterator[Setting]:
    """The fields of the recipe's own method. Of another one that was chosen in its place they say nothing."""
    found = list(_differences(field["properties"], value, f"{where}.{name}", (*way, "method")))
    chosen = given.get("method") or field[SHELF]
    if found and chosen != field[SHELF]:
        odd = found[0].path.rpartition(".")[2]
        stage = ".".join(way)
        raise ValueError(
            f"{where}.{name}.{odd}: the method chosen is {chosen}; "
            f"set its fields by overrides: {stage}.method.{chosen}.FIELD=VALUE"
        )
    yield from found


def _group(entry: dict[str, Any]) -> Schema:
    """The form of one stage: its plain fields, its method, and the fields of the method it has."""
    kind = stage_of(entry)
    own, schema = entry[kind] or {}, stage_schema(kind)
    axes = [*(entry.get("grid") or {}), *(entry.get("search") or {})]
    found: dict[str, Schema] = {}
    for name, field in schema["properties"].items():
        if name in SKIPPED or name in axes or "case" in axes:
            continue
        shelf = field.get("$ref", "").removeprefix(DEFS)
        if name == "method" and shelf:
            found |= _method(shelf, field, own.get("method"), axes)
        elif made := _plain(field, own.get(name)):
            found[name] = {**made, "title": name}
    about = inspect.getdoc(sys.modules[stage_class(kind).__module__]) or ""
    return _object(found) | {"title": base_of(entry), "description": unwrapped(about.partition("\n\n")[0]).replace("``", "")}


def _method(shelf: str, field: Schema, own: Any, axes: list[str]) -> dict[str, Schema]:
    name, fields = next(iter(own.items())) if isinstance(own, dict) and own else (own or field.get("default"), {})
    if name not in names(shelf):
        return {}
    choices = {"type": "string", "enum": names(shelf), "default": name}
    made: dict[str, Schema] = {"method": {**choices, "title": "method", "description": field.get("description", "")}}
    inner = {
        key: {**plain, "title": key}
        for key, prop in method_schema(load(shelf, name))["properties"].items()
        if f"method.{key}" not in axes and (plain := _plain(prop, (fields or {}).get(key)))
    }
    if inner:
        group = _object(inner) | {"title": f"{name}: its own fields", SHELF: name}
        made[name] = group | {"description": f"Only for the method {name}; of another one by overrides."}
    return made


def _plain(field: Schema, value: Any) -> Schema | None:
    """A field as one input of a form, with the value it has: None where no single input can hold it."""
    kinds = [one for one in field.get("anyOf", [field]) if one.get("type") != "null"]
    words = [one["const"] for one in kinds if isinstance(one.get("const"), str)]
    kinds = [one for one in kinds if one.get("type") in SIMPLE or "enum" in one]
    if isinstance(value, str):
        texts = [one for one in kinds if one.get("type") == "string" or "enum" in one]
        kinds = texts or ([{"type": "string", "enum": words}] if words else [])
    if not kinds or isinstance(value, (dict, list)) or "$ref" in field:
        return None
    made = {key: kinds[0][key] for key in KEPT if key in kinds[0]}
    made.setdefault("type", "string")
    limits = [text.format(made[key]) for key, text in BOUNDS.items() if key in made]
    default = field.get("default") if value is None else value
    notes = [field.get("description", ""), f"({', '.join(limits)})" if limits else ""]
    made["description"] = " ".join(filter(None, notes)).replace("``", "")  # the UI shows it as it is
    return made if default is None else {**made, "default": default}


def _object(properties: dict[str, Schema]) -> Schema:
    placed = {name: {**field, "position": position} for position, (name, field) in enumerate(properties.items())}
    return {"type": "object", "properties": placed, "additionalProperties": False}
