"""Find methods: a method is one file on a shelf, and the file's name is its name in a recipe.

A shelf is a folder of ``tasks``; each of its files holds one public pydantic class whose fields are the method's
hyper-parameters. Listing the folder lists the methods: nothing is registered.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args, overload

from annotated_types import GroupedMetadata
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    SerializationInfo,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic.fields import FieldInfo

Model = TypeVar("Model", bound=BaseModel)
Root = TypeVar("Root", bound="Method")
SHELF = "shelf"  # in a JSON schema: stands for the methods of that shelf
SHELVES = ("transforms", "surgeries", "regimes", "objectives", "pruners", "allocators", "mergers", "quantizers", "evaluators")


class Method(BaseModel):
    """Root of every method: frozen hyper-parameters. ``paper`` is where the algorithm comes from; ``version`` is counted up
    when the same fields come to another result, and is part of the key from 2 on. The string below a field is its help text,
    in ``winnow methods`` and in the schema of recipes."""

    paper: ClassVar[str] = ""
    version: ClassVar[int] = 1

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @property
    def name(self) -> str:
        return type(self).__module__.rpartition(".")[2]


def names(shelf: str) -> list[str]:
    """The methods on a shelf, sorted."""
    folders = map(Path, import_module(f"tasks.{shelf}").__path__)
    return sorted(file.stem for folder in folders for file in folder.glob("*.py") if not file.stem.startswith("_"))


@cache
def load(shelf: str, name: str) -> type[Method]:
    """The class of one method."""
    if name not in names(shelf):
        raise ValueError(f"no method {name!r} in tasks.{shelf}; choose one of {', '.join(names(shelf))}")
    module = import_module(f"tasks.{shelf}.{name}")
    classes = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Method) and value.__module__ == module.__name__
    ]
    assert len(classes) == 1, f"{module.__file__} must hold exactly one method class"
    return classes[0]


@overload
def build(shelf: str, spec: object, *, context: Any = None) -> Method: ...


@overload
def build(shelf: str, spec: object, root: type[Root], context: Any = None) -> Root: ...


def build(shelf: str, spec: object, root: type[Method] = Method, context: Any = None) -> Method:
    """A method from ``name`` or ``{name: {field: value}}``; ``root`` is the root class of the shelf, ``context`` for the
    validators of its fields."""
    method = spec if isinstance(spec, Method) else _read(shelf, {spec: {}} if isinstance(spec, str) else spec, context)
    if not isinstance(method, root):
        raise ValueError(f"{method.name} is no {root.__name__.lower()}; choose one of {', '.join(names(shelf))}")
    return method


def _read(shelf: str, spec: object, context: Any) -> Method:
    if not (isinstance(spec, dict) and len(spec) == 1):
        raise ValueError(f"a method is written NAME or {{NAME: {{field: value}}}}; choose one of {', '.join(names(shelf))}")
    ((name, fields),) = spec.items()
    method = load(shelf, str(name))
    if method.version > 1 and isinstance(fields, dict) and "version" in fields:  # as ``dump`` wrote it
        fields = dict(fields)
        if (given := fields.pop("version")) != method.version:
            raise ValueError(f"{name}.version: this is version {method.version} of it, got {given!r}; leave it out")
    return validate(method, fields, str(name), context)


def validate(model: type[Model], fields: Any, where: str, context: Any = None) -> Model:
    """An instance of a pydantic class, or a ValueError of one line that names the field and the choices. ``fields`` is None
    where a recipe gives none: so YAML reads ``NAME:``. ``context`` is for its validators."""
    try:
        made = model.model_validate({} if fields is None else fields, context=context)
    except ValidationError as error:
        raise ValueError(explain(error, model, where)) from None
    _refuse_switches(fields, made, where)
    return made


def _refuse_switches(given: Any, made: Any, where: str) -> None:
    """Raise ValueError where ``true`` was given and became the number 1: a slip that would train at a learning rate of 1."""
    if isinstance(given, bool) and isinstance(made, int | float) and not isinstance(made, bool):
        raise ValueError(f"{where}: input should be a number, got {given}")
    if isinstance(given, dict):
        for name, own in given.items():
            _refuse_switches(own, made.get(name) if isinstance(made, dict) else getattr(made, name, None), f"{where}.{name}")
    elif isinstance(given, list) and isinstance(made, list | tuple) and len(given) == len(made):
        for place, (own, became) in enumerate(zip(given, made, strict=True)):
            _refuse_switches(own, became, f"{where}[{place}]")


def explain(error: ValidationError, model: type[BaseModel], where: str) -> str:
    """The first complaint of a validation error as one line: ``where.field: what (got value)``."""
    # A misspelt field comes before the one that is missing for it.
    first = min(error.errors(), key=lambda complaint: complaint["type"] != "extra_forbidden")
    path = where + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
    if first["type"] == "extra_forbidden":
        owner: Any = model
        for part in first["loc"][:-1]:
            known = getattr(owner, "model_fields", {})
            owner = _owner(known[part]) if part in known else owner  # of a list or mapping its members
        fields = getattr(owner, "model_fields", {})
        return f"{path}: no such field; " + (f"choose one of {', '.join(fields)}" if fields else "there are none")
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] in ("missing", "value_error"):
        return f"{path}: {message[0].lower() + message[1:] if first['type'] == 'missing' else message}"
    if message.startswith("Input should be a valid dictionary"):
        message = "fields by name are needed, {FIELD: value}"
    if first["type"] in ("tuple_type", "list_type"):
        message = "a list is needed, [value, ...]"
    if first["type"] == "too_short":
        return f"{path}: at least {first['ctx']['min_length']} needed, got {first['ctx']['actual_length']}"
    return f"{path}: {message[0].lower() + message[1:]}, got {first['input']!r}"


def _owner(field: FieldInfo) -> Any:
    """The class of a field's value, where it has fields of its own."""
    kinds = [field.annotation, *get_args(field.annotation)]
    return next((kind for kind in kinds if hasattr(kind, "model_fields")), None)


def seeded(method: Root, seed: int) -> Root:
    """The same method in which a field ``seed`` that was not given, its own or that of a method within, is this one."""
    changes: dict[str, Any] = {name: seeded(value, seed) for name, value in method if isinstance(value, Method)}
    if "seed" in type(method).model_fields and "seed" not in method.model_fields_set:
        changes["seed"] = seed
    return method.model_copy(update=changes) if changes else method


def dump(method: Method, context: Any = None) -> dict[str, Any]:
    """``{name: fields}``: two methods with equal fields still differ, and so do two versions of one."""
    version = {"version": method.version} if method.version > 1 else {}
    return {method.name: method.model_dump(mode="json", context=context) | version}


@dataclass(frozen=True)
class of(GroupedMetadata):
    """Makes a field one that holds a method of a shelf: ``Annotated[Pruner, of("pruners")]``. With ``optional`` it may hold
    none."""

    shelf: str
    optional: bool = False

    def __iter__(self) -> Iterator[object]:
        shelf = named(self.shelf)
        schema = {"anyOf": [shelf, {"type": "null"}]} if self.optional else shelf
        return iter((BeforeValidator(self._read), PlainSerializer(self._write), WithJsonSchema(schema)))

    def _read(self, spec: object, info: ValidationInfo) -> Method | None:
        return None if spec is None and self.optional else build(self.shelf, spec, context=info.context)

    def _write(self, method: Method | None, info: SerializationInfo) -> dict[str, Any] | None:
        return None if method is None else dump(method, info.context)


@dataclass(frozen=True)
class list_of(GroupedMetadata):
    """Makes a field one that holds methods of a shelf, each once: ``Annotated[tuple[Evaluator, ...], list_of("evaluators")]``
    is written as a list of them, or ``{NAME: {field: value}}``."""

    shelf: str

    def __iter__(self) -> Iterator[object]:
        return iter((BeforeValidator(self._read), WithJsonSchema(several(self.shelf))))

    def _read(self, specs: object, info: ValidationInfo) -> tuple[Method, ...]:
        if isinstance(specs, dict):
            specs = [{name: fields} for name, fields in specs.items()]
        if not isinstance(specs, (list, tuple)):
            raise ValueError(f"a list of names, or of {{NAME: {{field: value}}}}, is needed, got {specs!r}")
        methods = tuple(build(self.shelf, spec, context=info.context) for spec in specs)
        listed = [method.name for method in methods]
        if twice := [name for name in listed if listed.count(name) > 1]:
            raise ValueError(f"{twice[0]} is listed twice; list each of tasks.{self.shelf} once")
        return methods


def named(shelf: str) -> dict[str, Any]:
    """The JSON schema of ``NAME`` or ``{NAME: {field: value}}``: a reference that ``flows.schema`` resolves, so that a field
    can be declared before the methods that fill it are imported."""
    return {SHELF: shelf}


def several(shelf: str) -> dict[str, Any]:
    """The JSON schema of a list of methods, or of one mapping of their fields by name."""
    return {"anyOf": [{"type": "array", "items": named(shelf)}, named(f"{shelf}.fields")]}


def short(form: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    """For ``json_schema_extra`` of a class that is also written in a short form, of this JSON schema."""

    def extend(schema: dict[str, Any]) -> None:
        whole = dict(schema)
        schema.clear()
        schema["anyOf"] = [form, whole]

    return extend
