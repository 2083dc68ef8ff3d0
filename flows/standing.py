"""``winnow up``, ``down``, ``status`` and ``doctor``: the servers of a home, and whether a machine has what a run needs."""

from __future__ import annotations

import json
import time
from functools import partial
from typing import Annotated, Any

import typer
from rich.table import Table

from flows.options import JsonOption, ProfileOption, console, errors


def up() -> None:
    """Start Ray, Prefect, MLflow and the dashboard on loopback, and serve the pipeline to Prefect's UI."""
    from cluster.servers.services import Services
    from flows.registration import everything, home_file

    everything(home_file())  # what is wrong there is told before anything starts
    with errors.status("starting servers"):
        services = Services().start(mode="up")
    _show_status(services)
    login = services.home / "secrets" / "prefect.auth"
    console.print(f"Prefect asks for the line in {login}; MLflow and the dashboard are open to this machine.")


def down(
    wait: Annotated[bool, typer.Option("--wait", help="begin nothing new, and let what runs come to its end first")] = False,
) -> None:
    """Stop the servers of this home, and what runs on them: flow runs end as cancelled, and go on when they are run again."""
    from cluster.servers.closing import close, drain
    from cluster.servers.services import Services

    services = Services()
    if services.state is None:
        console.print("no servers run")
        return
    say = partial(console.print, highlight=False, markup=False, soft_wrap=True)
    if wait:
        try:
            drain(services, say)
        except KeyboardInterrupt:
            say("what runs goes on, and nothing new begins, by no schedule either; winnow up takes that back")
            raise typer.Exit(130) from None
    close(services, say)
    services.stop()
    console.print("stopped")


def status(as_json: JsonOption = False) -> None:
    """Say which servers run, and where; and what runs on them."""
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
    from cluster.overview import page
    from cluster.servers.closing import work
    from cluster.tracking import EXPERIMENT

    table = Table()
    for title in ("server", "address", "pid", "state"):
        table.add_column(title, overflow="fold")
    found = services.status()
    for kind, health in found.items():
        state = "healthy" if health.healthy else "alive, does not answer" if health.alive else f"dead; log: {health.log}"
        if health.restarts:
            state += f"; died and was started again {health.restarts} x"
        table.add_row(kind, health.url.removesuffix("/api"), str(health.pid), state)  # a browser wants the page, not the API
    console.print(table if found else "no servers run; start them with winnow up")
    if "mlflow" in found and (view := page(found["mlflow"].url, EXPERIMENT)):
        console.print(f"models in MLflow: {view}", highlight=False, soft_wrap=True)
    flows, jobs = work(services.state)
    for run in flows:
        since = time.strftime("%H:%M:%S", time.localtime(run.since))
        who = f"process {run.process.pid}" if run.process and not run.dead else "no living process"
        line = f"flow run {run.name}: {run.state.lower()} since {since}, {who}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if jobs:
        console.print(f"jobs of Ray: {', '.join(jobs)}", highlight=False, soft_wrap=True)


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
