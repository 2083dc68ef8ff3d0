"""``winnow methods``: what is on the shelves, and of one method what it does and what can be set."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer
from rich.table import Table

from flows.options import JsonOption, console

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from tasks.methods import Method


def methods(
    name: Annotated[str | None, typer.Argument(help="one method, to see its fields and what it does")] = None,
    as_json: JsonOption = False,
) -> None:
    """List every method of every shelf with its paper; of one method, what it does and what can be set."""
    from tasks.methods import SHELVES, names

    found = [_describe(shelf, method) for shelf in SHELVES for method in names(shelf) if name in (None, method)]
    if not found:
        known = sorted({method for shelf in SHELVES for method in names(shelf)})
        raise ValueError(f"no method {name!r}; choose one of {', '.join(known)}")
    if as_json:
        print(json.dumps(found))
    elif name:
        for method in found:
            _show(method)
    else:
        table = Table()
        for title in ("shelf", "method", "paper", "fields"):
            table.add_column(title, overflow="fold")
        for method in found:
            table.add_row(method["shelf"], method["method"], method["paper"], ", ".join(method["fields"]))
        console.print(table)


def _describe(shelf: str, name: str) -> dict[str, Any]:
    from tasks.methods import load

    kind = load(shelf, name)
    about = [inspect.cleandoc(text) for text in (sys.modules[kind.__module__].__doc__, kind.__doc__) if text]
    return {
        "shelf": shelf,
        "method": name,
        "paper": kind.paper,
        "about": about,
        **dict(_told(kind)),
        "fields": {
            field: {
                "takes": _takes(info),
                "required": info.is_required(),
                "default": _default(info),
                "help": info.description,
            }
            for field, info in kind.model_fields.items()
        },
    }


def _told(kind: type[Method]) -> Iterator[tuple[str, list[str]]]:
    """The patterns of sparsity that a pruner can keep, the metrics that an evaluator measures."""
    for name in ("patterns", "metrics"):
        if hasattr(kind, name):
            yield name, list(getattr(kind, name))


def _takes(info: FieldInfo) -> str:
    if get_origin(info.annotation) is Literal:
        return " | ".join(map(str, get_args(info.annotation)))
    parts = get_args(info.annotation) if isinstance(info.annotation, UnionType) else [info.annotation]
    kind = " | ".join(getattr(part, "__name__", str(part)).lower().replace("nonetype", "none") for part in parts)
    bounds = [
        f"{sign} {value}"
        for limit in info.metadata
        for bound, sign in _SIGNS.items()
        if (value := getattr(limit, bound, None)) is not None
    ]
    return ", ".join([kind, *bounds])


_SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


def _default(info: FieldInfo) -> Any:
    """None where there is no default, or it is none."""
    return None if info.is_required() else json.loads(json.dumps(info.get_default(call_default_factory=True), default=str))


def _show(method: dict[str, Any]) -> None:
    console.print(f"[bold]{method['method']}[/bold] ({method['shelf']}): {method['paper']}", highlight=False)
    for text in method["about"]:
        console.print(f"\n{text}", markup=False, highlight=False)
    for name in ("patterns", "metrics"):
        if name in method:
            console.print(f"\n{name}: {', '.join(method[name]) or 'none'}", highlight=False)
    table = Table("field", "takes", "default", "help")
    for field, told in method["fields"].items():
        table.add_row(
            field,
            told["takes"],
            "required" if told["required"] else str(told["default"]),
            " ".join((told["help"] or "").split()),
        )
    console.print(table if method["fields"] else "\nno fields")
