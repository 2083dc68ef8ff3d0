"""``winnow deployments``: what a Prefect server has of Winnow's, when it runs by itself, and how its last run ended."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rich.table import Table

from flows.connection import prefect_server
from flows.options import JsonOption, ProfileOption, console

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import DeploymentSchedule
    from prefect.client.schemas.responses import DeploymentResponse


def deployments(profile: ProfileOption = "local", as_json: JsonOption = False) -> None:
    """List the deployments on a Prefect server: recipe, schedule, what is paused, and the last run."""
    with prefect_server(profile) as client:
        rows = listing(client)
    if as_json:
        print(json.dumps(rows))
    elif not rows:
        console.print("no deployments; winnow deploy RECIPE makes one")
    else:
        console.print(_table(rows))


def listing(client: SyncPrefectClient) -> list[dict[str, Any]]:
    """By name, those that Winnow made and the copies that somebody made of them. ``recipe`` is null of the one that promotes,
    ``last_run`` of one that never ran; times are in UTC. ``paused`` is one that does not run by itself though a schedule
    says so."""
    from flows.schedules import tagged

    return [_row(client, one) for one in sorted(tagged(client), key=lambda one: one.name)]


def _row(client: SyncPrefectClient, one: DeploymentResponse) -> dict[str, Any]:
    from flows.registration import OWNED, RECIPE_TAG, SET

    return {
        "name": one.name,
        "recipe": next((tag.removeprefix(RECIPE_TAG) for tag in one.tags if tag.startswith(RECIPE_TAG)), None),
        "set": [tag.removeprefix(SET) for tag in one.tags if tag.startswith(SET)],
        "profile": one.parameters.get("profile"),
        "copy": f"{OWNED}{one.name}" not in one.tags,
        "schedules": [_when(schedule) for schedule in one.schedules],
        "paused": one.paused or (bool(one.schedules) and not any(schedule.active for schedule in one.schedules)),
        "last_run": _last_run(client, one),
    }


def _when(schedule: DeploymentSchedule) -> dict[str, Any]:
    """A cron line as the command that made it said it, or an interval in seconds or a rule that came of the UI."""
    told = schedule.schedule
    when = getattr(told, "cron", None) or getattr(told, "rrule", None) or f"every {told.interval.total_seconds():g} s"
    return {"when": when, "timezone": told.timezone or "UTC", "paused": not schedule.active}


def _last_run(client: SyncPrefectClient, one: DeploymentResponse) -> dict[str, Any] | None:
    from prefect.client.schemas.filters import (
        DeploymentFilter,
        DeploymentFilterId,
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType
    from prefect.client.schemas.sorting import FlowRunSort

    begun = [state for state in StateType if state != StateType.SCHEDULED]
    runs = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=begun))),
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[one.id])),
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        limit=1,
    )
    if not runs:
        return None
    started = runs[0].start_time or runs[0].expected_start_time
    state = (runs[0].state_name or "").lower()
    return {"name": runs[0].name, "state": state, "started": started.isoformat(timespec="seconds") if started else None}


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table()
    for title in ("deployment", "recipe", "schedule", "last run"):
        table.add_column(title, overflow="fold")
    for row in rows:
        recipe = "\n".join([row["recipe"] or "gives a model an alias", *row["set"]])
        when = "\n".join(map(_said, row["schedules"])) or "by hand"
        last = row["last_run"]
        ran = f"{last['state']}, {last['started']}\n{last['name']}" if last else "never"
        whole = row["paused"] and not any(one["paused"] for one in row["schedules"])
        table.add_row(row["name"] + (" (a copy)" if row["copy"] else ""), recipe, when + (", paused" if whole else ""), ran)
    return table


def _said(schedule: dict[str, Any]) -> str:
    return f"{schedule['when']} {schedule['timezone']}" + (", paused" if schedule["paused"] else "")
