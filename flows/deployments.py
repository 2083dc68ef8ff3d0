"""Keeps the deployments of recipes on a Prefect server, and works their pool: the serving process of ``winnow up``.

A deployment is an ordinary one of a work pool, here and on a remote server alike; what differs is who runs the worker. Only
what Winnow made is changed or removed: deployments that carry their own name in a tag, and schedules of the slug ``winnow``.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import threading
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Any

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate, WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.logging import get_logger
from prefect.settings import PREFECT_WORKER_PREFETCH_SECONDS, PREFECT_WORKER_QUERY_SECONDS, temporary_settings
from prefect.workers.process import ProcessWorker

from cluster.profile import CHECKOUT, home
from cluster.warm.asking import alone
from flows.registration import (
    OWNED,
    POOL,
    RECIPE_TAG,
    SET,
    Entry,
    Registration,
    everything,
    home_file,
    listed,
    registration,
)
from flows.schedules import MADE, Keeper, skip_missed, tagged

LOG = get_logger(__name__)
SECONDS = 1.0  # between looks at the server: from a click to the run, and from a lost parameter to the word about it
MOST = 16  # runs with a process of their own; whose turn it is among them is decided in cluster/turn.py


def main() -> None:
    """Bring the server to what this home's file says, and run what is asked for, until stopped. ``winnow up`` starts this."""
    file = home_file()
    listing = listed(file)
    with get_client(sync_client=True) as client:
        make_pool(client)
        apply(client, everything(file), listing.pool, listing.pull, prune=True)
        skip_missed(client, datetime.now(UTC))
    threading.Thread(target=Keeper(home() / "schedules.json").watch, args=(SECONDS,), daemon=True).start()
    with temporary_settings({PREFECT_WORKER_QUERY_SECONDS: SECONDS, PREFECT_WORKER_PREFETCH_SECONDS: 0}):
        worker = ProcessWorker(work_pool_name=POOL, name=f"winnow-{os.uname().nodename}", limit=MOST)
        asyncio.run(worker.start(printer=LOG.info))


def make_pool(client: SyncPrefectClient) -> None:
    """The pool of this home: its runs are processes of this interpreter, in this checkout."""
    template = ProcessWorker.get_default_base_job_template()
    variables = template["variables"]["properties"]
    # What a run prints goes to a file: in a pipe to this process it would die of the first word after this process does.
    engine = f"exec {shlex.join([*alone(), '-m', 'flows.engine'])} >>{shlex.quote(str(home() / 'logs' / 'runs.log'))} 2>&1"
    variables["command"]["default"] = shlex.join(["/bin/sh", "-c", engine])
    variables["working_dir"]["default"] = str(CHECKOUT)
    try:
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template))
    except ObjectAlreadyExists:  # somebody may have paused or limited it meanwhile
        client.update_work_pool(POOL, WorkPoolUpdate(base_job_template=template))


def kept(client: SyncPrefectClient, entry: Entry, said: Collection[str]) -> Entry:
    """The entry of a command, with what an earlier command said of this deployment and this one does not: a recipe that is
    deployed again goes on by its schedule."""
    new = registration(entry)
    found = next((one for one in ours(client) if one.name == new.name), None)
    if found is None:
        return entry
    if (tag := next(tag for tag in new.tags if tag.startswith(RECIPE_TAG))) not in found.tags:
        raise ValueError(
            f"deployment {new.name} runs another recipe than {tag.removeprefix(RECIPE_TAG)}, and what counts on it would not "
            "know; give this one another --name, or --remove that one first"
        )
    options: dict[str, Any] = {name: found.parameters.get(name) for name in ("profile", "only", "until")}
    options["set"] = tuple(tag.removeprefix(SET) for tag in found.tags if tag.startswith(SET))
    if mine := [one.schedule for one in found.schedules if one.slug == MADE]:
        options |= {"schedule": mine[0].cron, "timezone": mine[0].timezone}
    parts = {"only", "until"}  # one excludes the other
    known = said | parts if parts & set(said) else said
    made = entry.model_copy(update={name: value for name, value in options.items() if value and name not in known})
    if "timezone" in said and not made.schedule:
        raise ValueError(f"deploy: --timezone is of a schedule, and {new.name} has none; give --schedule")
    return made


def apply(
    client: SyncPrefectClient,
    wanted: Sequence[Registration],
    pool: str,
    pull: Sequence[dict[str, Any]],
    prune: bool = False,
) -> list[str]:
    """Make or update these deployments. With ``prune`` they are all that a file lists: those that an earlier file had are
    removed, and what a command made meanwhile under one of their names is left to it. Returns what was removed."""
    try:
        client.read_work_pool(pool)
    except ObjectNotFound:
        raise ValueError(
            f"no work pool {pool!r} on this server; make it with prefect work-pool create, or name another"
        ) from None
    there = ours(client) if prune else []
    commanded = {found.name for found in there if LISTED not in found.tags}
    for one in wanted:
        if one.name in commanded:
            LOG.warning(
                "deployment %s: winnow deploy made it, so the file's is not; winnow deploy --remove gives it up", one.name
            )
        else:
            _apply(client, one, pool, pull, listed=prune)
    gone = [found for found in there if LISTED in found.tags and found.name not in {one.name for one in wanted}]
    for found in gone:
        client.delete_deployment(found.id)
    return [found.name for found in gone]


LISTED = "listed"  # the tag of what a file has; what a command made stays until it is removed by one


def ours(client: SyncPrefectClient) -> list[DeploymentResponse]:
    """The deployments that Winnow made."""
    return [found for found in tagged(client) if f"{OWNED}{found.name}" in found.tags]


def remove(client: SyncPrefectClient, name: str) -> None:
    known = {found.name: found for found in ours(client)}
    if name not in known:
        choices = f"choose one of {', '.join(sorted(known))}" if known else "it has none"
        raise ValueError(f"no deployment {name!r} of Winnow's on this server; {choices}")
    client.delete_deployment(known[name].id)


def _apply(client: SyncPrefectClient, one: Registration, pool: str, pull: Sequence[dict[str, Any]], listed: bool) -> None:
    told = {
        "version": one.version,
        "description": one.description,
        "parameters": one.parameters,
        "tags": [*one.tags, *([LISTED] if listed else [])],
        "work_pool_name": pool,
        "entrypoint": one.entrypoint,
        "parameter_openapi_schema": one.form,
        "enforce_parameter_schema": True,
        "pull_steps": list(pull),
    }
    try:
        found = client.read_deployment_by_name(f"{one.flow}/{one.name}")
    except ObjectNotFound:
        made = client.create_deployment(client.create_flow_from_name(one.flow), one.name, **told)
        _schedule(client, made, [], one)
    else:
        if f"{OWNED}{one.name}" not in found.tags:
            raise ValueError(f"deployment {one.name}: somebody else made one of this name; give this one another name")
        client.update_deployment(found.id, DeploymentUpdate(**told))
        _schedule(client, found.id, found.schedules, one)


def _schedule(client: SyncPrefectClient, id: Any, found: Sequence[DeploymentSchedule], one: Registration) -> None:
    """Our schedule as it is wanted. One that is as it should be is left alone, paused or not."""
    mine = [schedule for schedule in found if schedule.slug == MADE]
    wanted = CronSchedule(cron=one.schedule, timezone=one.timezone) if one.schedule else None
    for schedule in mine:
        if wanted is None:
            client.delete_deployment_schedule(id, schedule.id)
        elif (schedule.schedule.cron, schedule.schedule.timezone) != (wanted.cron, wanted.timezone):
            client.update_deployment_schedule(id, schedule.id, active=schedule.active, schedule=wanted)
    if wanted and not mine:
        client.create_deployment_schedules(id, [DeploymentScheduleCreate(schedule=wanted, active=True, slug=MADE)])


if __name__ == "__main__":
    main()
