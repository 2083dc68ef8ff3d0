"""Deployments of recipes: what a file or a command asks for, checked, and made into what a Prefect server is told.

One deployment runs one recipe. Its text is part of the deployment, so a schedule needs no file and nothing else can be run by
it; what a run may change is in the deployment's form. ``flows.deployments`` talks to the server.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from cluster.documents import load_yaml, one_line
from cluster.profile import CHECKOUT, PROFILES, home, load_profile
from cluster.servers.state import POOL as POOL
from flows.form import fields_schema
from flows.override import base_of, changed, parse_settings, stages_of
from flows.part import Part, chosen
from flows.recipe import NAME, parse_recipe, read_recipe

SHIPPED = CHECKOUT / "infra" / "deployments.yaml"
TAG, RECIPE_TAG = "winnow", "recipe:"  # on every deployment; which recipe it may run
OWNED = "deployed:"  # and its name: a copy that someone makes of it in the UI has another one, and is theirs
SET = "set:"  # and a field of the recipe that the deployment changes
PIPELINE, PROMOTION = "flows.pipeline.pipeline", "flows.served.promotion"
HOW = (
    "Press **Run**, change what should differ, and submit: a form left alone runs the recipe as it is. `overrides` take any "
    "field of the recipe, one `stage.field=value` each. What is done already is not done again."
)


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Entry(_Section):
    """One deployment."""

    recipe: str
    """Name of a shipped recipe, or path of one."""
    name: str | None = Field(None, pattern=NAME)
    """Name of the deployment; the recipe's unless given."""
    profile: str = "local"
    """Where its runs go unless the form says otherwise: name or path of a profile."""
    schedule: str | None = None
    """When it runs by itself, as a cron line; never unless given."""
    timezone: str = "UTC"
    """Time zone of the schedule."""
    set: tuple[str, ...] = ()
    """Fields of the recipe that this deployment changes, as STAGE.FIELD=VALUE."""
    only: str | None = None
    """The stage that is made alone, with its evaluations."""
    until: str | None = None
    """The stage after which its runs end."""

    @field_validator("schedule")
    @classmethod
    def _cron(cls, value: str | None) -> str | None:
        if value is not None and (len(value.split()) != 5 or not _fires(value)):
            raise ValueError("should be a cron line of five fields that comes due at some time, such as '0 3 * * *'")
        return value

    @field_validator("timezone")
    @classmethod
    def _zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (KeyError, ValueError, OSError):
            raise ValueError("should be a time zone, such as UTC or Europe/Berlin") from None
        return value


def _fires(cron: str) -> bool:
    """Whether a cron line ever does, by the server's own reckoning."""
    from prefect.server.schemas.schedules import CronSchedule

    try:
        return bool(asyncio.run(CronSchedule(cron=cron, timezone="UTC").get_dates(1)))
    except ValueError:  # no cron line, or one of a day that never comes
        return False


class Listing(_Section):
    """The file: every deployment that Winnow keeps on a server."""

    pool: str = POOL
    """The work pool whose workers run them; ``winnow up`` makes ``winnow`` and works it."""
    pull: tuple[dict[str, Any], ...] = ()
    """Steps of Prefect by which a worker gets the code, where it is not installed beside the worker."""
    deployments: tuple[Entry, ...] = ()
    """The deployments."""
    promote: str | None = "local"
    """Profile of the deployment that gives a model an alias in MLflow's registry; null for none."""


class Registration(NamedTuple):
    """What a server is told of one deployment."""

    name: str
    description: str
    parameters: dict[str, Any]
    form: dict[str, Any]
    tags: list[str]
    version: str
    schedule: str | None = None
    timezone: str = "UTC"
    flow: str = "winnow"
    entrypoint: str = PIPELINE


def listed(file: Path) -> Listing:
    """The file's contents. Raises ValueError, one line."""
    document = load_yaml(file)
    try:
        return Listing.model_validate(document)
    except ValidationError as error:
        raise one_line(error, file.name, Listing) from None


def home_file() -> Path:
    """The file that the servers of this home keep to: its own, or the one that comes with Winnow."""
    own = home() / "deployments.yaml"
    return own if own.is_file() else SHIPPED


def everything(file: Path) -> list[Registration]:
    """All that a file lists, checked."""
    listing = listed(file)
    made = registrations(listing.deployments, file.parent)
    return made if listing.promote is None else [*made, promotion(_placed(listing.promote, file.parent))]


def registrations(entries: Sequence[Entry], folder: Path | None = None) -> list[Registration]:
    """Each entry checked as a run of it would be, with paths beginning in ``folder``."""
    made = [registration(entry, folder) for entry in entries]
    names = [one.name for one in made]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"deployment {twice[0]} is there twice; give one of them a name of its own")
    return made


def version_of(text: str) -> str:
    """The version of a deployment of this recipe, which every run remembers that the server made of it."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def registration(entry: Entry, folder: Path | None = None) -> Registration:
    document, text = read_recipe(_placed(entry.recipe, folder))
    if entry.set:
        document = changed(document, parse_settings(entry.set))
        text = yaml.safe_dump(document, sort_keys=False)
    recipe = parse_recipe(document, text)
    part = Part(entry.only, entry.until)
    chosen(recipe, part)
    profile = _placed(entry.profile, folder)
    load_profile(profile)
    name = entry.name or recipe.name
    fixed = {key: value for key, value in part._asdict().items() if value}
    stages = ", ".join(base_of(stage) for stage in stages_of(document))
    end = "".join(f" {key.capitalize()} `{value}`." for key, value in fixed.items())
    about = f"{recipe.description}\n\nStages: {stages}.{end}\n\n{HOW}".strip()
    return Registration(
        name,
        about,
        {"recipe": text, "profile": profile, "overrides": [], **fixed},
        form(document, profile, fixed),
        [TAG, f"{RECIPE_TAG}{recipe.name}", f"{OWNED}{name}", *(f"{SET}{setting}" for setting in entry.set)],
        version_of(text),
        entry.schedule,
        entry.timezone,
    )


def promotion(profile: str) -> Registration:
    """The deployment that promotes a model somebody chose."""
    load_profile(profile)
    text = {"type": "string", "minLength": 1}
    about = "Its address, or the beginning of it, as MLflow's tag winnow.address and the table of a run show it."
    asked = {
        "model": {**text, "title": "model", "description": about, "position": 0},
        "alias": {**text, "title": "alias", "description": "What it is to be called.", "default": "champion", "position": 1},
        "name": {
            "type": "string",
            "title": "name",
            "description": "The registered model; empty: the model's recipe.",
            "position": 2,
        },
        "force": {
            "type": "boolean",
            "title": "force",
            "description": "Also a model that failed the gates of its recipe.",
            "default": False,
            "position": 3,
        },
    }
    schema = {"title": "Parameters", "type": "object", "properties": asked, "required": ["model", "alias"], "definitions": {}}
    about = "Gives a model an alias in MLflow's registry; who had it before, loses it."
    tags = [TAG, f"{OWNED}promote"]
    return Registration("promote", about, {"profile": profile}, schema, tags, "1", flow="winnow-promote", entrypoint=PROMOTION)


def form(document: dict[str, Any], profile: str, fixed: dict[str, str]) -> dict[str, Any]:
    """The schema of a deployment's parameters. The recipe is none of them: it is the deployment's own."""
    ids = [base_of(entry) for entry in stages_of(document)]
    profiles = sorted({profile, *(path.stem for path in PROFILES.glob("*.yaml"))})
    text = {"type": "string"}
    asked = {
        "profile": {**text, "enum": profiles, "title": "profile", "description": "Where it runs.", "default": profile},
        "until": {**text, "enum": ids, "title": "until", "description": "Stop after this stage; empty runs all."},
        "fields": fields_schema(document) | {"title": "recipe", "description": "Fields by stage, with this recipe's values."},
        "overrides": {
            "type": "array",
            "items": {**text, "pattern": r"^[^=\s]+\s*=[\s\S]*$"},
            "title": "overrides",
            "description": "Any other field, one stage.field=value each, such as prune.method.sparsegpt.percent_damp=0.1",
            "default": [],
        },
    }
    if fixed:
        del asked["until"]
    placed = {name: {**field, "position": position} for position, (name, field) in enumerate(asked.items())}
    return {"title": "Parameters", "type": "object", "properties": placed, "required": [], "definitions": {}}


def _placed(name: str, folder: Path | None) -> str:
    """A path that a file names begins where the file is."""
    inside = folder / name if folder else Path(name)
    return str(inside.resolve()) if inside.is_file() else name
