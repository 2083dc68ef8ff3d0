"""``winnow schema``: the JSON schema of recipes, stages and profiles, for editors, forms and checks.

It is read off the classes that check a recipe, so a new method or field is in it with its bounds, default and help text. What
only the whole recipe shows (a pattern against a model's widths, a stage against its parents) is left to ``winnow plan``.
"""

from __future__ import annotations

import inspect
import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pydantic import BaseModel

Schema = dict[str, Any]
DIALECT = "https://json-schema.org/draft/2020-12/schema"
DEFS = "#/$defs/"
WORDS = {("regimes", "sparsity"): "iso"}  # a word for a number, which a stage settles before the field is read
ID = "Name of the stage, of its model and of its metrics; the kind of stage unless given."
FROM = "The stages it comes from: an id, a list of ids, or {role: id}; the stage before it unless given."
GATHER = "Which axes of a grid before it the stage takes together: true for all, or a list of FIELDs."
SEARCH = "Fields that each trial draws: {FIELD: [values]}, {FIELD: {uniform: [low, high]}} or {FIELD: {log: [low, high]}}."
GRID = "A stage per combination of these values: {FIELD: [values]} or {FIELD: {label: value}}, FIELD by its dotted path."


def schema(
    stage: Annotated[str | None, typer.Argument(help="one kind of stage, for its fields alone")] = None,
    profile: Annotated[bool, typer.Option("--profile", help="the schema of profiles")] = False,
) -> None:
    """Print the JSON schema of recipes: every stage, method and field with bounds, defaults and help text."""
    if profile and stage:
        raise ValueError(f"schema: name a stage or --profile, not both, got {stage!r}")
    print(json.dumps(profile_schema() if profile else stage_schema(stage) if stage else recipe_schema(), indent=2))


def profile_schema() -> Schema:
    from cluster.profile import Profile

    found = _Definitions()
    return found.complete(found.of(Profile))


def stage_schema(name: str) -> Schema:
    """The fields of one stage, as they stand under its name in a recipe."""
    from tasks.stage import stage_class

    found = _Definitions()
    return found.complete(found.of(stage_class(name)))


def method_schema(kind: type[BaseModel]) -> Schema:
    """The fields of one method."""
    found = _Definitions()
    return found.complete(found.of(kind))


def recipe_schema() -> Schema:
    from flows.recipe import Header

    found = _Definitions()
    header = found.of(Header)
    header["properties"]["stages"]["items"] = _entry(found)
    return found.complete({**header, "title": "A recipe of winnow"})


def _entry(found: _Definitions) -> Schema:
    """One entry of ``stages``. What its grid or search sets, or the recipe's header, need not stand in the stage."""
    from flows.recipe import NAME
    from tasks.stage import STAGES, stage_class

    required = {}
    for name in STAGES:
        stage = found.of(stage_class(name))
        required[name] = [field for field in stage.pop("required", []) if field != "model"]
        found.defs[f"stages.{name}"] = {**stage, "type": ["object", "null"]}
    text = {"type": "string"}
    listed = {"type": "array", "items": text}
    ids = [text, listed, {"type": "object", "additionalProperties": {"anyOf": [text, listed]}}]
    values = [{"type": "array", "minItems": 1}, {"type": "object", "minProperties": 1}]
    bounds = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
    kinds = {"uniform": "Evenly from low to high.", "log": "Evenly in orders of magnitude from low to high."}
    ranges = {"type": "object", "properties": {kind: {**bounds, "description": help} for kind, help in kinds.items()}}
    drawn = [values[0], {**ranges, "minProperties": 1, "maxProperties": 1, "additionalProperties": False}]
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "id": {"type": "string", "pattern": NAME, "description": ID},
            "from": {"anyOf": ids, "description": FROM},
            "grid": {"type": "object", "minProperties": 1, "additionalProperties": {"anyOf": values}, "description": GRID},
            "search": {"type": "object", "minProperties": 1, "additionalProperties": {"anyOf": drawn}, "description": SEARCH},
            "gather": {"anyOf": [{"type": "boolean"}, {"type": "array", "items": text, "minItems": 1}], "description": GATHER},
            **{name: {"$ref": f"{DEFS}stages.{name}", "description": _about(stage_class(name))} for name in STAGES},
        },
        "oneOf": [{"required": [name]} for name in STAGES],
        "if": {"anyOf": [{"required": ["grid"]}, {"required": ["search"]}]},
        "else": {"properties": {name: {"type": "object", "required": fields} for name, fields in required.items() if fields}},
    }


class _Definitions:
    """The schemas that others refer to: classes within classes, and every method of every shelf that is asked for."""

    def __init__(self) -> None:
        self.defs: dict[str, Schema] = {}

    def of(self, kind: type[BaseModel]) -> Schema:
        """The schema of a class, and in ``defs`` what it refers to."""
        made = kind.model_json_schema()
        self.defs |= {name: self.resolved(inner) for name, inner in made.pop("$defs", {}).items()}
        return self.resolved(made)

    def complete(self, made: Schema) -> Schema:
        return {"$schema": DIALECT, **made, "$defs": dict(sorted(self.defs.items()))}

    def resolved(self, part: Any) -> Any:
        """The same with references to shelves in the place of their names."""
        from tasks.methods import SHELF

        if isinstance(part, list):
            return [self.resolved(inner) for inner in part]
        if not isinstance(part, dict):
            return part
        if isinstance(shelf := part.get(SHELF), str):
            self._add(shelf.partition(".")[0])
            part = {"$ref": DEFS + shelf, **{key: value for key, value in part.items() if key != SHELF}}
        return {
            key: unwrapped(inner) if key == "description" and isinstance(inner, str) else self.resolved(inner)
            for key, inner in part.items()
        }

    def _add(self, shelf: str) -> None:
        """``NAME``, or ``{NAME: {field: value}}``, of one shelf; ``SHELF.fields`` is any number of the latter."""
        from tasks.data.corpora import CORPORA, Roles
        from tasks.methods import load, names

        if shelf in self.defs:
            return
        one: list[Schema] = []
        self.defs[shelf] = {"anyOf": one}  # there before its methods, which may refer to it
        kinds = CORPORA if shelf == "corpora" else {name: load(shelf, name) for name in names(shelf)}
        bare = [name for name, kind in kinds.items() if not any(info.is_required() for info in kind.model_fields.values())]
        one += [{"enum": bare}, {"$ref": f"{DEFS}{shelf}.fields", "minProperties": 1, "maxProperties": 1}]
        fields = {}
        for name, kind in kinds.items():
            self.defs[f"{shelf}.{name}"] = {**self._method(shelf, kind), "type": ["object", "null"]}
            fields[name] = {"$ref": f"{DEFS}{shelf}.{name}", "description": _about(kind)}
        self.defs[f"{shelf}.fields"] = {"type": "object", "properties": fields, "additionalProperties": False}
        if shelf == "corpora":
            self.defs["corpora.roles"] = self.of(Roles)
            one += [{"type": "string", "pattern": r"[/.]", "description": "A path or glob."}, {"$ref": f"{DEFS}corpora.roles"}]

    def _method(self, shelf: str, kind: type[BaseModel]) -> Schema:
        made = self.of(kind)
        for name, field in made.get("properties", {}).items():
            if word := WORDS.get((shelf, name)):
                number = {key: field.pop(key) for key in list(field) if key not in ("description", "default", "title")}
                field["anyOf"] = [number, {"const": word}]
        if (version := getattr(kind, "version", 1)) != 1:
            told = "How often it has come to mean something else, as records say it."
            made.setdefault("properties", {})["version"] = {"const": version, "description": told}
        return made


def unwrapped(text: str) -> str:
    """Paragraphs as lines."""
    return "\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _about(kind: type) -> str:
    """The first paragraph of what is said of a class, or else of its file, and where a method comes from."""
    text = inspect.cleandoc(kind.__dict__.get("__doc__") or sys.modules[kind.__module__].__doc__ or "")
    paper = getattr(kind, "paper", "")
    return unwrapped(text.partition("\n\n")[0]) + (f" [{paper}]" if paper else "")
