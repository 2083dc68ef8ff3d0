"""``winnow deployments``: what a Prefect server has of Winnow's, when it runs by itself, and how its last run ended."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rich.table import Table

from flows.connection import prefect_server
from flows.options import JsonOption, ProfileOption, console

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import DeploymentSchedule, FlowRun
    from prefect.client.schemas.responses import DeploymentResponse

PAGE = 200  # runs in an answer of Prefect's, at most


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

    found = sorted(tagged(client), key=lambda one: one.name)
    last = _last_runs(client, [one.id for one in found])
    return [_row(one, last.get(one.id)) for one in found]


def _row(one: DeploymentResponse, last: FlowRun | None) -> dict[str, Any]:
    from flows.registration import OWNED, RECIPE_TAG, SET

    return {
        "name": one.name,
        "recipe": next((tag.removeprefix(RECIPE_TAG) for tag in one.tags if tag.startswith(RECIPE_TAG)), None),
        "set": [tag.removeprefix(SET) for tag in one.tags if tag.startswith(SET)],
        "profile": one.parameters.get("profile"),
        "copy": f"{OWNED}{one.name}" not in one.tags,
        "schedules": [_when(schedule) for schedule in one.schedules],
        "paused": one.paused or (bool(one.schedules) and not any(schedule.active for schedule in one.schedules)),
        "last_run": _ran(last) if last else None,
    }


def _when(schedule: DeploymentSchedule) -> dict[str, Any]:
    """A cron line as the command that made it said it, or an interval in seconds or a rule that came of the UI."""
    told = schedule.schedule
    when = getattr(told, "cron", None) or getattr(told, "rrule", None) or f"every {told.interval.total_seconds():g} s"
    return {"when": when, "timezone": told.timezone or "UTC", "paused": not schedule.active}


def _last_runs(client: SyncPrefectClient, ids: Sequence[UUID]) -> dict[UUID, FlowRun]:
    """The last run of each deployment that ever ran. One question is enough unless one of them has not run for long: the answer
    holds the last ``PAGE`` runs of those that are asked for, and who is not among them is asked for again."""
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
    last: dict[UUID, FlowRun] = {}
    asked, full = list(ids), True
    while asked and full:
        runs = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=begun))),
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=asked)),
            sort=FlowRunSort.EXPECTED_START_TIME_DESC,
            limit=PAGE,
        )
        for run in runs:
            last.setdefault(run.deployment_id, run)
        asked, full = [id for id in asked if id not in last], len(runs) == PAGE
    return last


def _ran(run: FlowRun) -> dict[str, Any]:
    started = run.start_time or run.expected_start_time
    state = (run.state_name or "").lower()
    return {"name": run.name, "state": state, "started": started.isoformat(timespec="seconds") if started else None}


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
