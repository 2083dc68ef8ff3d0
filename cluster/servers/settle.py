"""Settles what nobody owns any more: flow runs, their tasks and MLflow runs whose process is gone.

Prefect's own heartbeats are 30 s apart at best, three have to be missed, and they miss runs while the server is away. Here
the process itself is looked at: every flow run is labelled with the one that runs it. Jobs of a flow that crashed go on,
for whoever runs the recipe again to join; those of a cancelled one are stopped.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from cluster.servers.ask import UNREACHED, Api
from cluster.servers.processes import Process
from cluster.servers.state import POOL, State

OPEN = ("RUNNING", "PENDING", "CANCELLING")
ACTIVE = ("PENDING", "RUNNING")
LABEL = "winnow.process"  # of a flow run in Prefect, and of a run in MLflow
YOUNG = 20.0  # seconds a triggered run may take to have a process
THEIRS = 20.0  # seconds the server of deployments may take to cancel a run of its own
KILL = 40.0  # seconds after which a run that is to be cancelled is killed
GONE = "the process that ran it is gone; what it made is kept, run it again to go on"


class FlowRun(NamedTuple):
    """An open flow run, and the process it lives in as far as that can be known from here."""

    id: str
    name: str
    state: str
    since: float
    process: Process | None
    dead: bool


class Settler:
    """Looks twice before it judges: who has just ended has told so itself."""

    def __init__(self, home: Path, say: Callable[[str], None]) -> None:
        self.home, self.say = home, say
        self.suspects: set[str] = set()
        self.cancelling: dict[str, float] = {}
        self.sure = False

    def settle(self, state: State, sure: bool = False) -> None:
        """``sure``: whoever is gone now is gone; no second look."""
        before, self.suspects = self.suspects, set()
        self.sure = sure
        for look in (self._flows, self._tasks, self._mlflow):
            try:
                look(state, before)
            except UNREACHED:  # a server that is away is the supervisor's matter
                continue

    def _flows(self, state: State, before: set[str]) -> None:
        if "prefect" not in state.servers:
            return
        api = Api("prefect", state.servers["prefect"])
        for run in open_flow_runs(api):
            if run.state == "CANCELLING":
                self.cancelling.setdefault(run.id, time.time())
            if run.dead:
                self.suspects.add(run.id)
            if run.dead and self._judged(run.id, before):
                self._close(state, api, run)
            elif run.state == "CANCELLING" and run.process is not None:
                self._cancel(state, run.id, run.process)
        for id in [id for id in self.cancelling if id not in self.suspects]:
            found = api.ask("GET", f"/flow_runs/{id}")
            if found["state_type"] not in OPEN:
                del self.cancelling[id]
                if found["state_type"] == "CRASHED":  # it was cancelled, and died of that
                    set_state(api, f"/flow_runs/{id}", "CANCELLED", "cancelled")

    def _judged(self, id: str, before: set[str]) -> bool:
        return self.sure or id in before

    def _close(self, state: State, api: Api, run: FlowRun) -> None:
        cancelled = self.cancelling.pop(run.id, None) is not None
        if cancelled:
            stop_jobs(state, {run.id})
        set_state(api, f"/flow_runs/{run.id}", "CANCELLED" if cancelled else "CRASHED", "cancelled" if cancelled else GONE)
        self.say(f"flow run {run.name} is {'cancelled' if cancelled else 'marked as crashed'}: its process is gone")

    def _cancel(self, state: State, id: str, process: Process) -> None:
        """What the server of deployments does for the flows it began; nobody does it for others, or once it has died."""
        server, found = state.servers.get("deployments"), process.find()
        if found is None:
            return
        theirs = server is not None and server.process.pid in [parent.pid for parent in found.parents()]
        waited = time.time() - self.cancelling[id]
        if not theirs or waited > THEIRS:
            found.kill() if waited > KILL else found.terminate()

    def _tasks(self, state: State, before: set[str]) -> None:
        """Tasks still open in a flow run that is over."""
        if "prefect" not in state.servers:
            return
        api = Api("prefect", state.servers["prefect"])
        for ending in ("CANCELLED", "CRASHED"):
            of_runs = {"state": {"type": {"any_": [ending]}}}
            wanted = {"task_runs": {"state": {"type": {"any_": list(OPEN)}}}, "flow_runs": of_runs, "limit": 200}
            for task in api.ask("POST", "/task_runs/filter", wanted):
                self.suspects.add(task["id"])
                if self._judged(task["id"], before):
                    set_state(api, f"/task_runs/{task['id']}", ending, "its flow run is over")

    def _mlflow(self, state: State, before: set[str]) -> None:
        if "mlflow" not in state.servers:
            return
        api = Api("mlflow", state.servers["mlflow"])
        experiments = api.ask("POST", "/api/2.0/mlflow/experiments/search", {"max_results": 1000}).get("experiments", [])
        ids = [experiment["experiment_id"] for experiment in experiments]
        for run in _runs(api, ids, f"tags.`{LABEL}` != ''"):
            names = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
            id, process = run["info"]["run_id"], Process.named(names[LABEL])
            if process is None or process.alive:
                continue
            self.suspects.add(id)
            if self._judged(id, before):
                for child in [*_runs(api, ids, f"tags.`mlflow.parentRunId` = '{id}'"), run]:
                    ended = {"run_id": child["info"]["run_id"], "status": "KILLED", "end_time": int(time.time() * 1000)}
                    api.ask("POST", "/api/2.0/mlflow/runs/update", ended)


def open_flow_runs(api: Api) -> Iterator[FlowRun]:
    """What Prefect holds for running, pending or being cancelled."""
    wanted = {"flow_runs": {"state": {"type": {"any_": list(OPEN)}}}, "limit": 200}
    engines: dict[str, Process] | None = None
    for run in api.ask("POST", "/flow_runs/filter", wanted):
        since = datetime.fromisoformat(run["state"]["timestamp"].replace("Z", "+00:00")).timestamp()
        process, dead = None, False
        if name := (run.get("labels") or {}).get(LABEL):
            process = Process.named(name)
            dead = process is not None and not process.alive
        elif run.get("deployment_id") and run.get("work_pool_name") == POOL:  # begun by the server of deployments, here
            engines = _engines() if engines is None else engines
            process = engines.get(run["id"])
            dead = process is None and time.time() - since > YOUNG
        yield FlowRun(run["id"], run["name"], run["state_type"], since, process, dead)


def set_state(api: Api, what: str, kind: str, message: str) -> None:
    state = {"type": kind, "name": kind.capitalize(), "message": message}
    api.ask("POST", f"{what}/set_state", {"state": state, "force": True})


def active_jobs(state: State) -> list[dict[str, Any]]:
    """Ray's jobs that have not ended."""
    if "ray" not in state.servers:
        return []
    return [job for job in Api("ray", state.servers["ray"]).ask("GET", "/api/jobs/") if job["status"] in ACTIVE]


def stop_jobs(state: State, flows: set[str]) -> None:
    """Stop the jobs that these flow runs began."""
    for job in active_jobs(state):
        if (job.get("metadata") or {}).get("flow_run") in flows:
            Api("ray", state.servers["ray"]).ask("POST", f"/api/jobs/{job['submission_id']}/stop")


def _runs(api: Api, experiments: list[str], which: str) -> list[dict[str, Any]]:
    wanted = {"experiment_ids": experiments, "filter": f"attributes.status = 'RUNNING' and {which}", "max_results": 200}
    return api.ask("POST", "/api/2.0/mlflow/runs/search", wanted).get("runs", [])


def _engines() -> dict[str, Process]:
    """The processes in which Prefect runs a flow, by the id of its run."""
    found = {}
    for process in psutil.process_iter():
        try:
            if process.uids().real == os.getuid() and (id := process.environ().get("PREFECT__FLOW_RUN_ID")):
                found.setdefault(id, Process.of(process.pid))
        except (psutil.Error, OSError):
            continue
    return found
