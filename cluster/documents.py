"""Read YAML as plain data: no tags, no anchors, no duplicate keys.

YAML can also construct Python objects, expand aliases from a kilobyte into gigabytes, and silently keep the last of two
equal keys. All three are refused with file and line.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

LARGEST = 1_000_000  # bytes: the longest recipe anyone wrote has 200 lines


class DocumentError(ValueError):
    """One line, `file:line: what`."""


_NUMBERS = {  # as in YAML 1.2, with underscores: 2:4 is no number in base 60, and 1e-3 is one
    "tag:yaml.org,2002:int": re.compile(r"[-+]?(0|[1-9][0-9_]*)$"),
    "tag:yaml.org,2002:float": re.compile(
        r"([-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9][0-9_]*(?=[eE]))([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan)$", re.IGNORECASE
    ),
}


class _Loader(yaml.SafeLoader):
    """SafeLoader without tags, anchors, aliases, merges, duplicate keys and numbers in base 60."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise yaml.MarkedYAMLError(problem="anchors and aliases are not allowed", problem_mark=event.start_mark)
        if getattr(event, "tag", None):
            raise yaml.MarkedYAMLError(problem=f"tag {event.tag!r} is not allowed", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            mark = key_node.start_mark
            if not isinstance(key, str):
                raise yaml.MarkedYAMLError(problem=f"key {key!r} is not a string; quote it", problem_mark=mark)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"key '{key}' is given twice", problem_mark=mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, _NUMBERS.get(tag, pattern)) for tag, pattern in resolvers if not tag.endswith((":merge", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def load_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in the file, an empty file being an empty mapping."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST + 1)
    except OSError as error:
        raise DocumentError(f"{path}: {error.strerror or error}") from None
    if len(raw) > LARGEST:
        raise DocumentError(f"{path}: larger than {LARGEST:,} bytes")
    return parse_yaml(raw, str(path))


def parse_yaml(raw: bytes | str, name: str) -> dict[str, Any]:
    """The same for text already read; `name` stands in the errors."""
    try:
        document = yaml.load(raw, _Loader)  # noqa: S506 - a subclass of SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise DocumentError(f"{name}:{line}: {' '.join((error.problem or 'not YAML').split())}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise DocumentError(f"{name}:1: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise DocumentError(f"{name}:1: nested too deeply") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise DocumentError(f"{name}:1: expected `field: value` lines, found a {type(document).__name__}")
    return document


def one_line(error: ValidationError, name: str, model: type[BaseModel] | None = None) -> DocumentError:
    """Pydantic's report as one line: the fields at fault, what was given, what may be given. What fields say together has no
    place of its own; its message names them."""
    complaints = []
    for detail in error.errors(include_url=False):
        field = ".".join(str(part) for part in detail["loc"])
        given = detail.get("input")
        if detail["type"] == "extra_forbidden":
            choices = _fields(model, detail["loc"][:-1])
            complaints.append(f"no field '{field}'" + (f"; choose one of {', '.join(choices)}" if choices else ""))
        elif detail["type"] == "missing":
            complaints.append(f"{field} is missing")
        else:
            message = detail["msg"].removeprefix("Value error, ").replace("Input should", "should")
            shown = "" if isinstance(given, dict) else f", got {given!r:.60}"
            complaints.append(f"{field}: {message}{shown}" if field else message)
    return DocumentError(" ".join(f"{name}: {'; '.join(complaints)}".split()))


def _fields(model: type[BaseModel] | None, location: tuple) -> list[str]:
    """Names that the model at `location` knows; empty where it cannot be told."""
    for part in location:
        field = model.model_fields.get(part) if model else None
        annotation = field.annotation if field else None
        model = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
    return sorted(model.model_fields) if model else []
