"""Promotion: the model that was chosen among those compared gets an alias in MLflow's registry, by command or deployment."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any

import typer

from flows.options import ArtifactArgument, ProfileOption, console, store_of

NAMES = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")  # MLflow keeps v1, v2, ... and latest for itself


def promote(
    artifact: ArtifactArgument,
    alias: Annotated[str, typer.Argument(help="what it is to be called, such as champion")] = "champion",
    name: Annotated[str, typer.Option(help="the registered model in MLflow")] = "winnow",
    profile: ProfileOption = "local",
) -> None:
    """Give a model an alias in MLflow's registry; who had it before, loses it."""
    from cluster.servers.services import Services

    os.environ.update(Services().environment())  # the MLflow server that is up, if one is
    made = register(artifact, alias, name, profile)
    console.print(f"{made['address']} is version {made['version']} of {name}, alias {alias}", highlight=False)


def register(artifact: str, alias: str, name: str, profile: str) -> dict[str, Any]:
    from cluster import registry
    from cluster.profile import load_profile
    from cluster.tracking import tracking_uri
    from tasks.stage import STAGES, stage_class

    for what, given in (("alias", alias), ("name", name)):
        if not NAMES.fullmatch(given) or given == "latest" or re.fullmatch(r"v\d+", given):
            raise ValueError(
                f"{what}: {given!r} is no name; use letters, digits, _ and -, beginning with a letter, not latest or v1"
            )
    record = store_of(profile).find(artifact)
    if stage_class(record.stage).yields != "model":
        models = ", ".join(stage for stage in STAGES if stage_class(stage).yields == "model")
        raise ValueError(f"{record.address} is no model; choose what one of {models} made")
    uri = load_profile(profile).mlflow.tracking_uri or tracking_uri()
    version = registry.promote(uri, record.address, record.key, name, alias)
    return {"address": record.address, "version": version}
