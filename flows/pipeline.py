"""The Prefect flow: one task per stage that must run, in the order the recipe's graph allows.

Prefect decides whether and when; its own caches stay off, since the store already knows what is done. Retries happen
here, for stages that died, and not for stages whose input is at fault.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.context import refresh_global_settings_context
from prefect.runtime import deployment, flow_run

from cluster.profile import load_profile
from cluster.ray.events import Event
from cluster.store.artifacts import CorruptArtifact, Record
from cluster.store.quarantine import warn
from flows.chronicle import Chronicle, Status
from flows.conductor import Conductor, StageFailed, Watcher, heal
from flows.here import make_here
from flows.override import Setting, parse_settings
from flows.part import WHOLE, Part
from flows.plan import Plan, Step, prepare
from flows.recipe import read_recipe
from flows.served import asked, plainly
from flows.submit import Submitter
from flows.summary import summarise

__all__ = ["WATCHERS", "pipeline", "refresh_global_settings_context", "run"]
LOG = logging.getLogger(__name__)
WATCHERS: ContextVar[Sequence[Watcher]] = ContextVar("watchers", default=())


def run_name() -> str:
    """The recipe's own name, however it was given. A recipe that cannot be read is told of by the run itself."""
    try:
        return str(read_recipe(flow_run.parameters.get("recipe") or "")[0].get("name") or flow_run.name)
    except ValueError:
        return flow_run.name


@flow(name="winnow", flow_run_name=run_name, validate_parameters=False, persist_result=False)
def pipeline(
    recipe: str = "",
    profile: str = "local",
    only: str | None = None,
    until: str | None = None,
    fields: dict[str, Any] | None = None,
    overrides: list[str] | None = None,
) -> dict[str, Any]:
    """Run a recipe. ``recipe`` is a path, the name of a shipped recipe, or YAML text; ``profile`` a path or a name. ``only``
    names a stage to make alone, ``until`` one to stop after. ``fields`` is what a deployment's form says, ``overrides`` are
    settings of single fields. A deployment has its own recipe, as text; paths of corpora and models in it must be absolute,
    since the server has no directory of the user's."""
    part = Part(only, until)
    if deployment.id is None:
        return heal(lambda: run(recipe, profile, part=part, settings=parse_settings(overrides or [])))
    return plainly(
        lambda: heal(
            lambda: run(recipe, profile, served=True, part=part, settings=asked(recipe, fields or {}, overrides or []))
        )
    )


def run(
    recipe: str,
    profile: str,
    here: bool = False,
    served: bool = False,
    part: Part = WHOLE,
    settings: Sequence[Setting] = (),
) -> dict[str, Any]:
    """The flow's body: plan, make what is missing, on the cluster or ``here`` in this process, tell MLflow, summarise."""
    begun = time.time()
    where = load_profile(profile)
    plan, store = prepare(recipe, where, served, part, settings)
    for step in plan.steps:
        if step.damaged and (line := store.quarantine(step.artifact)):
            warn(line)
    chronicle = Chronicle.open(plan, store, where, {"prefect.flow_run_id": flow_run.id or "none"})
    watcher = Watchers([chronicle, *WATCHERS.get()])
    conductor = Conductor(plan, store, Submitter(where), watcher, where.jobs)

    def close(status: Status) -> dict[str, Any]:
        summary = summarise(plan, chronicle.records, watcher.overheads, begun)
        chronicle.close(summary, status)
        return summary

    try:
        for step in plan.steps:
            if step.cached:
                watcher.started(step)
                watcher.finished(step, step.record, 0.0)
        if here:
            make_here(plan, store, where, watcher)
        else:
            run_tasks(plan, conductor, where.retries)
    except BaseException as interruption:
        conductor.stop()
        try:
            close("KILLED" if isinstance(interruption, KeyboardInterrupt) else "FAILED")
        except OSError as error:  # what went wrong first is what is raised
            LOG.error("%s", error)
        raise
    return close("FINISHED")


def run_tasks(plan: Plan, conductor: Conductor, retries: int) -> None:
    """Submit the steps that are due as Prefect tasks and wait for all, then those that want the machine for themselves;
    the first failure is raised at the end."""

    def may_help(task: Any, run: Any, state: Any) -> bool:
        failure = state.result(raise_on_failure=False)
        return not (
            isinstance(failure, (CorruptArtifact, PermissionError)) or isinstance(failure, StageFailed) and failure.final
        )

    futures: dict[str, Any] = {}
    for exclusive in (False, True):
        for name, steps in _tasks(plan, exclusive).items():
            stage = task(
                _make(conductor, steps),
                name=name,
                task_run_name=name if steps[0].node.measures else steps[0].artifact.address,
                cache_policy=NO_CACHE,
                persist_result=False,
                retries=retries,
                retry_delay_seconds=1,
                retry_condition_fn=may_help,
            )
            upstream = {id: futures[id] for step in steps for id in step.node.parents.values() if id in futures}
            futures[name] = stage.submit(wait_for=list(upstream.values()))
        for future in futures.values():
            future.wait()
    for future in futures.values():
        future.result()


def _tasks(plan: Plan, exclusive: bool) -> dict[str, list[Step]]:
    """What is one task of Prefect's, by its name: a stage, or the evaluations of a model."""
    tasks: dict[str, list[Step]] = {}
    for step in plan.due:
        if step.exclusive == exclusive:
            suffix = "speed" if exclusive else "evaluate"
            tasks.setdefault(f"{step.node.measures}.{suffix}" if step.node.measures else step.id, []).append(step)
    return tasks


def _make(conductor: Conductor, steps: list[Step]) -> Callable[[], None]:
    """Makes steps one after the other, each once however often it is tried; the first failure is raised at the end."""
    left = list(steps)

    def attempt() -> None:
        failures = []
        for step in list(left):
            try:
                conductor.make(step)
                left.remove(step)
            except (StageFailed, CorruptArtifact) as failure:
                failures.append(failure)
        if failures:
            raise failures[0]

    return attempt


class Watchers:
    """Passes what happens on to each watcher, and remembers each step's overhead in seconds."""

    def __init__(self, watchers: Sequence[Watcher]) -> None:
        self.watchers = watchers
        self.overheads: dict[str, float] = {}

    def started(self, step: Step) -> None:
        for watcher in self.watchers:
            watcher.started(step)

    def event(self, step: Step, event: Event) -> None:
        for watcher in self.watchers:
            watcher.event(step, event)

    def finished(self, step: Step, record: Record, overhead: float) -> None:
        self.overheads[step.id] = overhead
        for watcher in self.watchers:
            watcher.finished(step, record, overhead)
