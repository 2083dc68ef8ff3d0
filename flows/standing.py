"""``winnow up``, ``down``, ``status`` and ``doctor``: the servers of a home, and whether a machine has what a run needs."""

from __future__ import annotations

import json
from typing import Any

import typer
from rich.table import Table

from flows.options import JsonOption, ProfileOption, console, errors


def up() -> None:
    """Start Ray, Prefect and MLflow on loopback, and serve the pipeline: runs can be triggered from the Prefect UI."""
    from cluster.servers.services import Services
    from flows.registration import everything, home_file

    everything(home_file())  # what is wrong there is told before anything starts
    with errors.status("starting servers"):
        services = Services().start(mode="up")
    _show_status(services)
    console.print(f"Prefect asks for the line in {services.home / 'secrets' / 'prefect.auth'}; MLflow is open to this machine.")


def down() -> None:
    """Stop the servers of this home."""
    from cluster.servers.services import Services

    Services().stop()
    console.print("stopped")


def status(as_json: JsonOption = False) -> None:
    """Say which servers run, and where."""
    from cluster.servers.services import Services

    services = Services()
    if as_json:
        print(json.dumps({kind: health.model_dump() for kind, health in services.status().items()}))
    else:
        _show_status(services)
        _show_queue()


def _show_queue() -> None:
    """Whose turn it is on each cluster, and who waits: the first first."""
    from cluster.turn import Queue

    for queue in Queue.all():
        if tickets := queue.tickets():
            console.print(f"on {queue.directory.name}: {', '.join(map(str, tickets))}", highlight=False)


def _show_status(services: Any) -> None:
    table = Table()
    for title in ("server", "url", "pid", "state"):
        table.add_column(title)
    found = services.status()
    for kind, health in found.items():
        state = "healthy" if health.healthy else "alive, does not answer" if health.alive else "dead"
        table.add_row(kind, health.url, str(health.pid), state)
    console.print(table if found else "no servers run; start them with winnow up")


def doctor(profile: ProfileOption = "local", as_json: JsonOption = False) -> None:
    """Check versions, servers, accelerators and known bad pairs of versions; exit code 1 if something is wrong."""
    from flows.doctor import examine

    findings = examine(profile)
    if as_json:
        print(json.dumps([finding._asdict() for finding in findings]))
    else:
        table = Table()
        for title in ("check", "state", "finding"):
            table.add_column(title, overflow="fold")
        for finding in findings:
            table.add_row(finding.check, "ok" if finding.ok else "[red]wrong[/red]", finding.text)
        console.print(table)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)
