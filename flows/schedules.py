"""Sees that a schedule keeps the parameters it was given, and that no run goes by others.

Prefect's UI pauses and resumes a schedule with a request that names nothing but ``active``, and the server takes what is not
named for empty: the parameters that somebody gave the schedule are gone, and its runs go by the deployment's defaults. So the
recipe is no parameter of a schedule at all; a schedule that has parameters is marked by its slug, which survives; the serving
process remembers what they were and gives them back; and a run of a marked schedule that comes without any is refused.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.logging import get_logger

from cluster.servers.embedded import write_private
from flows.recipe import read_recipe
from flows.registration import RECIPE_TAG, TAG

LOG = get_logger(__name__)  # by Prefect's logging: this is told where its worker tells its own
MADE = "winnow"  # the slug of a schedule that a file or a command asked for: it has no parameters of its own
MARKED = "with-parameters-"  # that of one that has some
PAGE = 200


class Keeper:
    """Remembers the parameters of every schedule, and gives back what was lost."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.known: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}

    def watch(self, seconds: float) -> None:
        """Look every few seconds, for ever. A server that does not answer is asked again."""
        while True:
            try:
                with get_client(sync_client=True) as client:
                    while True:
                        self.look(client)
                        time.sleep(seconds)
            except Exception as error:  # transport errors of several libraries; the worker beside this has its own patience
                LOG.warning("the schedules could not be read, trying again: %s", error)
                time.sleep(seconds)

    def look(self, client: SyncPrefectClient) -> None:
        """One look at the schedules of all deployments."""
        seen: dict[str, dict[str, Any]] = {}
        for deployment in _deployments(client):
            for schedule in deployment.schedules:
                id, own = str(schedule.id), schedule.parameters
                if not own and (lost := self.known.get(id)):
                    client.update_deployment_schedule(deployment.id, schedule.id, schedule.active, parameters=lost)
                    LOG.info("%s: a schedule lost its parameters (pausing in the UI does that); they are back", deployment.name)
                    own = lost
                elif own and schedule.slug is None:
                    slug = f"{MARKED}{id[:8]}"
                    client.update_deployment_schedule(deployment.id, schedule.id, schedule.active, parameters=own, slug=slug)
                if own:
                    seen[id] = own
        if seen != self.known:
            self.known = seen
            write_private(self.file, json.dumps(seen))


def check_run(deployment: DeploymentResponse, run: FlowRun) -> None:
    """Raise ValueError unless this run is one that its deployment may make: its recipe, and what its schedule was given."""
    own, text = deployment.parameters.get("recipe"), run.parameters.get("recipe")
    if not own or not text:
        raise ValueError(f"deployment {deployment.name} has no recipe: its parameters were edited; winnow deploy makes it anew")
    scheduled = run.created_by is not None and run.created_by.type == "SCHEDULE"
    allowed = next((tag.removeprefix(RECIPE_TAG) for tag in deployment.tags if tag.startswith(RECIPE_TAG)), None)
    name = read_recipe(text)[0].get("name")
    if name != allowed or (scheduled and text != own):
        raise ValueError(
            f"recipe {name}: deployment {deployment.name} runs {allowed} and nothing else; deploy a recipe by itself"
        )
    if scheduled and str(run.created_by.display_value).startswith(MARKED) and run.parameters == deployment.parameters:
        raise ValueError(
            f"deployment {deployment.name}: its schedule lost its parameters (pausing in the UI does that); set them again"
        )


def _deployments(client: SyncPrefectClient) -> list[DeploymentResponse]:
    tagged, found = DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG])), []
    while page := client.read_deployments(deployment_filter=tagged, limit=PAGE, offset=len(found)):
        found += page
    return found
