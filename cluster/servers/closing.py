"""Closes what runs in a home before its servers go, or waits for it; servers that just went would leave it Running for ever."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

import psutil

from cluster.servers.ask import UNREACHED, Api
from cluster.servers.services import Services
from cluster.servers.settle import FlowRun, Settler, active_jobs, open_flow_runs
from cluster.servers.state import State

GRACE = 25.0  # seconds a flow may take to stop its jobs and tell MLflow
LOOK = 1.0


def work(state: State | None) -> tuple[list[FlowRun], list[str]]:
    """The flow runs that are open, and the ids of Ray's jobs that have not ended; nothing where a server does not answer."""
    flows: list[FlowRun] = []
    jobs: list[str] = []
    if state and "prefect" in state.servers:
        with suppress(*UNREACHED):
            flows = list(open_flow_runs(Api("prefect", state.servers["prefect"])))
    if state:
        with suppress(*UNREACHED):
            jobs = [job["submission_id"] for job in active_jobs(state) if job.get("submission_id")]
    return flows, jobs


def drain(services: Services, say: Callable[[str], None]) -> None:
    """Begin nothing new, and return when all that runs has ended."""
    _begin_nothing(services)
    told: list[str] = []
    while any(_works(services.load())):
        flows, jobs = _works(services.load())
        names = [*flows, *(f"job {job}" for job in jobs)]
        if names != told:
            told = names
            say(f"waiting for {', '.join(names)}, since {time.strftime('%H:%M:%S')}")
        time.sleep(LOOK)


def close(services: Services, say: Callable[[str], None]) -> None:
    """Stop what runs: flows end as cancelled, with their jobs; whoever runs the same recipe again goes on."""
    state = services.load()
    flows, _ = work(state)
    if not flows or state is None:
        return
    say(f"stopping {', '.join(run.name for run in flows)}")
    _begin_nothing(services)
    settler = Settler(services.home, lambda line: None)
    for run in flows:
        settler.cancelling[run.id] = time.time()
        if run.process and (process := run.process.find()):
            with suppress(psutil.Error):
                process.terminate()
    deadline = time.monotonic() + GRACE
    while time.monotonic() < deadline and any(run.process and run.process.alive for run in flows):
        time.sleep(0.1)
    for run in flows:
        if run.process and (process := run.process.find()):
            with suppress(psutil.Error):
                process.kill()
    if state := services.load():  # servers of a run end with it
        settler.settle(state, sure=True)


def _works(state: State | None) -> tuple[list[str], list[str]]:
    flows, jobs = work(state)
    return [run.name for run in flows if not run.dead], jobs


def _begin_nothing(services: Services) -> None:
    """Without the two that start things. The flows that the deployments' server began are processes of their own."""
    with services.locked():
        state = services.state = services.load()
        for kind in ("supervisor", "deployments"):
            if state and kind in state.servers:
                services.clear(kind)
