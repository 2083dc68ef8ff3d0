"""Promotion: the model that was chosen among those compared gets an alias in MLflow's registry, by command or deployment, and
after a run by itself where its recipe requires something and it passed; and the way back."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.options import ArtifactArgument, JsonOption, ProfileOption, console, model_of

if TYPE_CHECKING:
    from cluster.tracking import Tracking

NAMES = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")  # MLflow keeps v1, v2, ... and latest for itself
CHAMPION = "champion"


def promote(
    artifact: ArtifactArgument,
    alias: Annotated[str, typer.Argument(help="what it is to be called, such as champion")] = CHAMPION,
    name: Annotated[str | None, typer.Option(help="the registered model in MLflow; the model's recipe unless given")] = None,
    force: Annotated[bool, typer.Option("--force", help="also a model that failed the gates of its recipe")] = False,
    profile: ProfileOption = "local",
    as_json: JsonOption = False,
) -> None:
    """Give a model an alias in MLflow's registry; who had it before, loses it."""
    _here()
    _tell(register(artifact, alias, name, profile, force), as_json)


def rollback(
    name: Annotated[
        str | None, typer.Argument(help="the registered model in MLflow; may be left out where there is one")
    ] = None,
    alias: Annotated[str, typer.Argument(help="which of its aliases")] = CHAMPION,
    profile: ProfileOption = "local",
    as_json: JsonOption = False,
) -> None:
    """Give an alias in MLflow's registry back to the model that had it before."""
    from cluster import registry

    _here()
    _check("alias", alias)
    _tell(_told(registry.rollback(_tracking(profile), name, alias)), as_json)


def register(artifact: str, alias: str, name: str | None, profile: str, force: bool = False) -> dict[str, Any]:
    from cluster import registry

    _check("alias", alias)
    if name:
        _check("name", name)
    record, _ = model_of(artifact, profile)
    return _told(registry.promote(_tracking(profile), record.address, record.key, name or None, alias, force))


def best(summary: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Of the models that passed every gate of their recipe, the one that is ranked first, or comes last."""
    from flows.gates import PASSED, verdict

    passed = {
        model["stage"]: model
        for model in summary["models"]
        if verdict(model.get("gates", ())) == PASSED and all(gate["passes"] for gate in model["gates"])
    }
    ranked = [row["stage"] for row in (summary["ranking"] or {"rows": ()})["rows"] if row["stage"] in passed]
    return passed[(ranked or list(passed)[-1:])[0]] if passed else None


def crown(tracking: Tracking, uri: str, summary: Mapping[str, Any]) -> None:
    """After a run, a model that passed all that its recipe requires becomes the recipe's champion; no other ever does."""
    from cluster.registry import promote
    from cluster.store.quarantine import warn

    if (model := best(summary)) is not None:
        try:
            moved = promote(uri, model["address"], model["key"], summary["recipe"], CHAMPION)
        except ValueError as reason:  # another was quicker, or moves cannot be kept: the run itself is done
            warn(str(reason))
        else:
            tracking.tag(None, "winnow.champion", str(moved))
            if moved.version != moved.before:
                warn(str(moved))


def _here() -> None:
    from cluster.servers.services import Services

    os.environ.update(Services().environment())  # the MLflow server that is up, if one is


def _tracking(profile: str) -> str:
    from cluster.profile import load_profile
    from cluster.tracking import tracking_uri

    return tracking_uri(load_profile(profile).mlflow.tracking_uri)


def _check(what: str, given: str) -> None:
    if not NAMES.fullmatch(given) or given == "latest" or re.fullmatch(r"v\d+", given):
        raise ValueError(
            f"{what}: {given!r} is no name; use letters, digits, _ and -, beginning with a letter, not latest or v1"
        )


def _told(moved: Any) -> dict[str, Any]:
    return {**moved._asdict(), "says": str(moved)}


def _tell(made: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(made))
    else:
        console.print(made["says"], highlight=False, markup=False, soft_wrap=True)
