"""Tells MLflow what the conductor does: a child run per stage with its curves and figures, the summary on the parent.

What is measured of a model stands in the model's own run, so that whoever compares models finds their numbers side by side.
A cached stage is told from its artifact (record and history), so a rerun that computes nothing fills MLflow the same way.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from cluster.profile import Profile, home
from cluster.ray.events import Event, Metrics
from cluster.runs import needing
from cluster.store.artifacts import Record
from cluster.store.local import Store
from cluster.tracking import Tracking
from flows.plan import Plan, Step
from tasks.history import HISTORY, read_history
from tasks.stage import REPORT

ROOT = Path(__file__).resolve().parent.parent
LOCK_FILE = ROOT / "infra" / "requirements.lock"


class Chronicle:
    """The MLflow side of one flow run."""

    def __init__(self, plan: Plan, store: Store, tracking: Tracking) -> None:
        self.plan, self.store, self.tracking = plan, store, tracking
        self.records: dict[str, Record] = {}

    @classmethod
    def open(cls, plan: Plan, store: Store, profile: Profile, tags: dict[str, str]) -> Chronicle:
        """Start telling, to the profile's MLflow, or to this home's (its server if one is up, else its file)."""
        uri = profile.mlflow.tracking_uri or tracking_uri()
        params = {step.id: step.artifact.params for step in plan.steps if not step.node.measures}
        keys = [step.artifact.key for step in plan.steps]
        tags = {**provenance(plan), **tags, **needing(keys), "winnow.process": this_process()}
        tracking = Tracking.start(uri, plan.recipe.name, tags, params)
        tracking.close_abandoned(process_is_alive)
        tracking.text(None, plan.recipe.text, "recipe.yaml")
        chronicle = cls(plan, store, tracking)
        for data in chronicle.data:
            tracking.dataset(None, data.id, data.artifact.key, data.artifact.address)
        return chronicle

    def stand_on(self, plan: Plan) -> None:
        """The run goes on by a longer plan. What it made before stays in the plan as it was then, and not as cached."""
        known = {**plan.by_id, **self.plan.by_id}
        self.plan = replace(plan, steps=tuple(known[node.id] for node in plan.recipe.nodes if node.id in known))

    def name_needed(self) -> None:
        """Tell which artifacts the run stands on."""
        for name, value in needing(step.artifact.key for step in self.plan.steps).items():
            self.tracking.tag(None, name, value)

    @property
    def data(self) -> list[Step]:
        return [step for step in self.plan.steps if step.node.stage.yields == "tokens"]

    def started(self, step: Step) -> None:
        if step.node.measures:
            self._open(self.plan.by_id[step.node.measures])  # which was discarded where only the evaluation is there
            self._measured(step, step.node.measures)
        else:
            self._open(step)

    def _open(self, step: Step) -> None:
        """A run for what a step makes."""
        if step.id in self.tracking.children:  # a second attempt goes on in the same run
            return
        tags = {
            "winnow.stage": step.node.name,
            "winnow.key": step.artifact.key,
            "winnow.address": step.artifact.address,
            "winnow.cached": str(step.cached).lower(),
            **{f"winnow.parent.{role}": address for role, address in step.parent_addresses.items()},
        }
        self.tracking.child(step.id, tags, step.artifact.params)
        for data in self.data:
            if data.artifact.address in step.parent_addresses.values():
                self.tracking.dataset(step.id, data.id, data.artifact.key, data.artifact.address)

    def _measured(self, step: Step, model: str) -> None:
        """In the model's run: which evaluation of it there is, how it is done, and against what."""
        name = step.node.stage.label
        self.tracking.tag(model, f"winnow.evaluate.{name}", step.artifact.address)
        if "reference" in step.parent_addresses:
            self.tracking.tag(model, f"winnow.evaluate.{name}.reference", step.parent_addresses["reference"])
        self.tracking.params(model, {"evaluate": step.artifact.params["method"]})

    def event(self, step: Step, event: Event) -> None:
        if isinstance(event, Metrics):
            self.tracking.point(_owner(step), event.metrics, event.step, event.timestamp)

    def finished(self, step: Step, record: Record, overhead: float) -> None:
        self.records[step.id] = record
        history = self._history(record)
        for event in history:
            self.event(step, event)
        if step.node.measures:
            seconds = {f"evaluate.{step.node.stage.label}.seconds": record.seconds}
            self.tracking.scalars(step.node.measures, {**record.metrics, **seconds})
            return
        self.tracking.scalars(step.id, {**record.metrics, "seconds": record.seconds, "overhead_seconds": overhead})
        self.tracking.figures(step.id, self._figures(step, record, history))
        self.tracking.end(step.id, "FINISHED")

    def close(self, models: list[dict[str, Any]], claims: list[dict[str, Any]], status: str) -> None:
        """The parent gets every stage's scalars, the last model's by their plain names, and the verdicts on claims."""
        from dashboards.claims import write
        from dashboards.figures import groups_figure, quality_against_bytes
        from flows.claims import groups_of

        for step, record in self._finished():
            self.tracking.scalars(None, record.metrics, f"{_owner(step)}.")
        if models:
            last = {name: value for name, value in models[-1].items() if isinstance(value, (int, float))}
            self.tracking.scalars(None, last)
            self.tracking.figures(None, [("quality_against_bytes", quality_against_bytes(models))])
        if groups := groups_of(models):
            self.tracking.figures(None, [("sweep", groups_figure(groups, "perplexity"))])
        for model in models:
            numbers = {name: value for name, value in model.items() if isinstance(value, (int, float))}
            tags = {"winnow.address": model["address"], "winnow.key": model["key"]}
            self.tracking.model(model["stage"], model["address"].replace("/", "-"), tags, numbers)
        if claims:
            write(self.tracking, claims)
        missing = {_owner(step) for step in self.plan.steps if step.id not in self.records}
        for id in missing & self.tracking.children.keys():  # of a model that was made, an evaluation is missing
            self.tracking.end(id, status)
        self.tracking.end(None, status)

    def _finished(self) -> Iterator[tuple[Step, Record]]:
        return ((step, self.records[step.id]) for step in self.plan.steps if step.id in self.records)

    def _history(self, record: Record) -> list[Metrics]:
        return read_history(self._read(record, f"{REPORT}/{HISTORY}"))

    def _read(self, record: Record, name: str) -> str:
        return (self.store.take(record) / name).read_text() if name in record.files else ""

    def _figures(self, step: Step, record: Record, history: list[Metrics]) -> Iterator[tuple[str, Any]]:
        from dashboards.figures import sparsity_heat_map, training_curves

        rows = [event.metrics for event in history if "loss" in event.metrics]
        if rows:
            yield "training_curves", training_curves(rows, step.id)
        if sparsities := json.loads(self._read(record, "report/sparsity.json") or "{}"):
            yield "sparsity_by_layer", sparsity_heat_map(sparsities, step.id)


def _owner(step: Step) -> str:
    """The id of the run that tells of a step."""
    return step.node.measures or step.id


def tracking_uri() -> str:
    """Where a profile that names no MLflow tracks: the server that is up, else this home's file."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home()}/mlflow.db"


def provenance(plan: Plan) -> dict[str, str]:
    """What a run was made from: recipe, data set, lock file, commit."""
    data = [step for step in plan.steps if step.node.stage.yields == "tokens"]
    return {
        "winnow.recipe": plan.recipe.name,
        "winnow.recipe_sha256": hashlib.sha256(plan.recipe.text.encode()).hexdigest(),
        "winnow.lock_sha256": hashlib.sha256(LOCK_FILE.read_bytes()).hexdigest() if LOCK_FILE.exists() else "none",
        "winnow.git_commit": git_commit(),
        "winnow.dataset": ", ".join(step.artifact.address for step in data),
    }


def git_commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else "none"


def this_process() -> str:
    """host:pid:start, by which a later run tells whether this one still lives."""
    return f"{os.uname().nodename}:{os.getpid()}:{psutil.Process().create_time():.2f}"


def process_is_alive(name: str) -> bool:
    """False only for a process of this host that is gone; another host's cannot be judged from here."""
    host, pid, created = name.rsplit(":", 2)
    if host != os.uname().nodename:
        return True
    return psutil.pid_exists(int(pid)) and f"{psutil.Process(int(pid)).create_time():.2f}" == created
