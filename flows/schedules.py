"""Sees that a schedule keeps the parameters it was given, and that no run goes by others.

Prefect's UI pauses and resumes a schedule with a request that names nothing but ``active``, and the server takes what is not
named for empty: the parameters that somebody gave the schedule are gone, and its runs go by the deployment's defaults. So the
recipe is no parameter of a schedule at all; a schedule that has parameters is marked by its slug, which survives; the serving
process remembers what they were and gives them back; and a run of a marked schedule that comes without any is refused.
"""

from __future__ import annotations

import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    DeploymentFilterTags,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.logging import get_logger
from prefect.states import Cancelled

from cluster.servers.private import write_private
from flows.recipe import read_recipe
from flows.registration import RECIPE_TAG, TAG, version_of

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
        for deployment in tagged(client):
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
    """Raise ValueError unless this run is one that its deployment may make: its recipe, as it is or as it was when the server
    made the run, and what its schedule was given."""
    own, text = deployment.parameters.get("recipe"), run.parameters.get("recipe")
    if not own or not text:
        raise ValueError(f"deployment {deployment.name} has no recipe: its parameters were edited; winnow deploy makes it anew")
    scheduled = run.created_by is not None and run.created_by.type == "SCHEDULE"
    allowed = next((tag.removeprefix(RECIPE_TAG) for tag in deployment.tags if tag.startswith(RECIPE_TAG)), None)
    name = read_recipe(text)[0].get("name")
    if name != allowed:
        raise ValueError(
            f"recipe {name}: deployment {deployment.name} runs {allowed} and nothing else; deploy a recipe by itself"
        )
    if scheduled and text != own and version_of(text) != run.deployment_version:
        raise ValueError(
            f"deployment {deployment.name}: its schedule was given a recipe of its own; set fields by overrides, or deploy "
            f"that recipe under another --name"
        )
    if scheduled and str(run.created_by.display_value).startswith(MARKED) and run.parameters == deployment.parameters:
        raise ValueError(
            f"deployment {deployment.name}: its schedule lost its parameters (pausing in the UI does that); set them again"
        )


class Skipped(Exception):
    """A run that is not wanted any more."""


def check_alone(client: SyncPrefectClient, run: FlowRun) -> None:
    """Raise Skipped where an earlier run of the deployment's schedules goes on: runs that take longer would pile up."""
    if not run.auto_scheduled:
        return
    for other in _runs(client, [StateType.RUNNING, StateType.PENDING], run.deployment_id):
        if other.auto_scheduled and other.id != run.id and _due(other) < _due(run):
            raise Skipped(f"skipped: the run before, {other.name}, goes on")


def skip_missed(client: SyncPrefectClient, now: datetime) -> None:
    """Of the runs that schedules wanted while nobody served them, make up for the last of each deployment alone."""
    for deployment in tagged(client):
        missed = [run for run in _runs(client, [StateType.SCHEDULED], deployment.id) if run.auto_scheduled and _due(run) < now]
        for run in sorted(missed, key=_due)[:-1]:
            skipped = Cancelled(name="Skipped", message="skipped: it came due while nobody served it")
            client.set_flow_run_state(run.id, skipped, force=True)


def _due(run: FlowRun) -> datetime:
    return run.expected_start_time or run.created


def _runs(client: SyncPrefectClient, states: list[StateType], deployment: UUID | None) -> list[FlowRun]:
    found: list[FlowRun] = []
    of_deployment = DeploymentFilter(id=DeploymentFilterId(any_=[deployment]))
    in_state = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=states)))
    while page := client.read_flow_runs(
        flow_run_filter=in_state, deployment_filter=of_deployment, limit=PAGE, offset=len(found)
    ):
        found += page
    return found


def tagged(client: SyncPrefectClient) -> list[DeploymentResponse]:
    """The deployments that have our tag, copies that somebody made in the UI among them."""
    ours, found = DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG])), []
    while page := client.read_deployments(deployment_filter=ours, limit=PAGE, offset=len(found)):
        found += page
    return found
