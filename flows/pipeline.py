"""The Prefect flow: one task per stage that must run, in the order the recipe's graph allows.

Prefect decides whether and when; its own caches stay off, since the store already knows what is done. Retries happen
here, for stages that died, and not for stages whose input is at fault.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.context import refresh_global_settings_context
from prefect.exceptions import TerminationSignal
from prefect.runtime import deployment, flow_run
from prefect.settings import get_current_settings
from prefect.states import Cancelled

from cluster.profile import Profile, load_profile
from cluster.ray.events import Event, Note
from cluster.servers.settle import LABEL
from cluster.store.artifacts import CorruptArtifact, Record
from cluster.store.leftovers import tidy
from cluster.store.quarantine import warn
from flows.chronicle import Chronicle, this_process, tracking_uri
from flows.conductor import Conductor, StageFailed, Watcher, heal
from flows.ending import OUTCOME, Outcome, Terminated
from flows.held import Held
from flows.here import make_here
from flows.needed import undisturbed
from flows.override import Setting, parse_settings
from flows.part import WHOLE, Part
from flows.plan import Plan, Step, prepare
from flows.recipe import read_recipe
from flows.search import explore
from flows.served import asked, plainly
from flows.submit import Submitter
from flows.summary import summarise
from flows.trials import Values
from flows.triggers import Announcer

__all__ = ["WATCHERS", "pipeline", "refresh_global_settings_context", "run"]
PATIENCE, SERVED_PATIENCE = 30.0, 600.0  # seconds the end of a flow waits for its Prefect; nobody waits for a served one
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
) -> Any:
    """Run a recipe. ``recipe`` is a path, the name of a shipped recipe, or YAML text; ``profile`` a path or a name. ``only``
    names a stage to make alone, ``until`` one to stop after. ``fields`` is what a deployment's form says, ``overrides`` are
    settings of single fields. A deployment has its own recipe, as text; paths of corpora and models in it must be absolute,
    since the server has no directory of the user's."""
    part, outcome = Part(only, until), OUTCOME.get(Outcome())
    if deployment.id is not None:
        made = plainly(
            lambda: heal(
                lambda: run(recipe, profile, served=True, part=part, settings=asked(recipe, fields or {}, overrides or []))
            )
        )
        _wait_for_prefect(outcome)
        return made
    try:
        outcome.summary = heal(lambda: run(recipe, profile, part=part, settings=parse_settings(overrides or [])))
        _wait_for_prefect(outcome)
        return outcome.summary
    except (KeyboardInterrupt, Terminated, TerminationSignal) as interruption:
        outcome.interruption = interruption
        return Cancelled(message="stopped; the same command goes on")


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
    if flow_run.id:
        _sign(flow_run.id)
    where = load_profile(profile)
    with undisturbed():  # until MLflow knows what this run stands on
        plan, store = prepare(recipe, where, served, part, settings)
        tidy(store, Path(where.scratch))
        for step in plan.steps:
            if step.damaged and (line := store.quarantine(step.artifact)):
                warn(line)
        chronicle = Chronicle.open(plan, store, where, {"prefect.flow_run_id": flow_run.id or "none"})
    held = Held(chronicle, where.mlflow.tracking_uri or tracking_uri())
    announcer = [] if here else [Announcer(plan.recipe.name)]
    watcher, submitter = Watchers([held, *announcer, *WATCHERS.get()]), Submitter(where, flow_run.id or "")

    def make(plan: Plan) -> None:
        make_all(plan, Conductor(plan, store, submitter, watcher, where.jobs), watcher, where, here)

    def replan(trials: list[Values]) -> Plan:
        with undisturbed():
            more, _ = prepare(recipe, where, served, part, settings, trials)
            held.stand_on(more)
        return more

    def close(status: str) -> dict[str, Any]:
        summary = summarise(chronicle.plan, watcher.records, watcher.overheads, begun)
        held.close(summary["models"], summary["claims"], status)
        return summary

    try:
        if (search := plan.recipe.search) and search.decides:
            explore(plan, replan, make, watcher.records)
        else:
            make(plan)
    except BaseException as interruption:
        close("FAILED" if isinstance(interruption, Exception) else "KILLED")
        raise
    return close("FINISHED")


def make_all(plan: Plan, conductor: Conductor, watcher: Watchers, profile: Profile, here: bool) -> None:
    """Tell of what a plan has, once, and make what it lacks."""
    try:
        for step in plan.steps:
            if step.cached and step.id not in watcher.records:
                watcher.started(step)
                watcher.finished(step, step.record, 0.0)
        if here:
            make_here(plan, conductor.store, profile, watcher)
        else:
            run_tasks(plan, conductor, profile.retries)
    except BaseException:
        conductor.stop()
        raise


def _sign(id: str) -> None:
    """Say in Prefect which process runs this flow: when it is gone, whoever looks after the servers closes the run."""
    with get_client(sync_client=True) as client:
        client.update_flow_run_labels(UUID(id), {LABEL: this_process()})


def _wait_for_prefect(outcome: Outcome) -> None:
    """A Prefect that died is back in a moment, and then hears how the flow ended. One that stays away is not asked again:
    its client would ask for five minutes, while whoever started the run waits for a result that is there."""
    deadline = time.monotonic() + (SERVED_PATIENCE if deployment.id else PATIENCE)
    while True:
        with get_client(sync_client=True) as client:
            if client.api_healthcheck() is None:
                return
        if time.monotonic() > deadline:
            outcome.untold, get_current_settings().client.max_retries = True, 0
            return
        time.sleep(1)


def run_tasks(plan: Plan, conductor: Conductor, retries: int) -> None:
    """Submit the steps that are due as Prefect tasks and wait for all, then those that want the machine for themselves;
    the first failure is raised at the end."""
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
                retry_condition_fn=_may_help(conductor, steps[0], retries),
            )
            upstream = {id: futures[id] for step in steps for id in step.node.parents.values() if id in futures}
            futures[name] = stage.submit(wait_for=list(upstream.values()))
        for future in futures.values():
            future.wait()
    for future in futures.values():
        future.result()


def _may_help(conductor: Conductor, step: Step, retries: int) -> Callable[[Any, Any, Any], bool]:
    """Whether a task is tried again, which is told."""

    def may_help(task: Any, run: Any, state: Any) -> bool:
        failure = state.result(raise_on_failure=False)
        if isinstance(failure, (CorruptArtifact, PermissionError)) or isinstance(failure, StageFailed) and failure.final:
            return False
        if run.run_count <= retries:
            text = str(failure).removeprefix(f"{step.id}: ").partition("\n")[0][:300]
            conductor.watcher.event(step, Note(f"{text}; it is tried again"))
        return True

    return may_help


def _tasks(plan: Plan, exclusive: bool) -> dict[str, list[Step]]:
    """What is one task of Prefect's, by its name: a stage, or the evaluations of a model."""
    tasks: dict[str, list[Step]] = {}
    for step in plan.due:
        if step.exclusive == exclusive:
            suffix = "speed" if exclusive else "evaluate"
            tasks.setdefault(f"{step.node.measures}.{suffix}" if step.node.measures else step.id, []).append(step)
    return tasks


def _make(conductor: Conductor, steps: list[Step]) -> Callable[[], Any]:
    """Makes steps one after the other, each once however often it is tried; the first failure is raised at the end."""
    left = list(steps)

    def attempt() -> Any:
        failures = []
        for step in list(left):
            try:
                conductor.make(step)
                left.remove(step)
            except (StageFailed, CorruptArtifact) as failure:
                if conductor.stopped:  # it did not fail: the run was told to end
                    return Cancelled(message="the run was stopped")
                failures.append(failure)
        if failures:
            raise failures[0]
        return None

    return attempt


class Watchers:
    """Passes what happens on to each watcher, and remembers each step's record, and its overhead in seconds."""

    def __init__(self, watchers: Sequence[Watcher]) -> None:
        self.watchers = watchers
        self.overheads: dict[str, float] = {}
        self.records: dict[str, Record] = {}

    def started(self, step: Step) -> None:
        for watcher in self.watchers:
            watcher.started(step)

    def event(self, step: Step, event: Event) -> None:
        for watcher in self.watchers:
            watcher.event(step, event)

    def finished(self, step: Step, record: Record, overhead: float) -> None:
        self.overheads[step.id], self.records[step.id] = overhead, record
        for watcher in self.watchers:
            watcher.finished(step, record, overhead)
