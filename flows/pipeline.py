"""The Prefect flow: one task per stage and evaluation, in the order the recipe's graph allows.

Prefect decides whether and when; its own caches stay off, since the store already knows what is done, and a task of what is
done says Cached. Retries happen here, for stages that died, and not for stages whose input is at fault.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

from prefect import Task, flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.context import refresh_global_settings_context
from prefect.runtime import deployment, flow_run, task_run
from prefect.states import Completed

from cluster.profile import Profile, load_profile
from cluster.ray.events import Event
from cluster.store.artifacts import CorruptArtifact, Record
from cluster.store.local import Store
from cluster.store.quarantine import warn
from cluster.turn import Queue
from flows.chronicle import Chronicle, Status
from flows.conductor import Conductor, StageFailed, Watcher, heal
from flows.here import make_here
from flows.lazy import make_lazy
from flows.messenger import Messenger, set_state
from flows.override import Setting, parse_settings
from flows.page import Page
from flows.part import WHOLE, Part
from flows.plan import Plan, Step, prepare
from flows.recipe import read_recipe
from flows.served import asked, plainly
from flows.submit import Submitter
from flows.summary import summarise
from flows.title import title

__all__ = ["SAY", "WATCHERS", "pipeline", "refresh_global_settings_context", "run"]
make_lazy("torch")  # a run that the server starts comes by this module first
LOG = logging.getLogger(__name__)
SAY: ContextVar[Callable[[str], None]] = ContextVar("say", default=LOG.info)
WATCHERS: ContextVar[Sequence[Watcher]] = ContextVar("watchers", default=())


def run_name() -> str:
    """What the user typed, else the recipe's own name, however it was given. A recipe that cannot be read is told of by the
    run itself."""
    try:
        return title(flow_run.name, str(read_recipe(flow_run.parameters.get("recipe") or "")[0].get("name") or ""))
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
    """The flow's body: plan, make what is missing, on the cluster or ``here`` in this process, tell MLflow, summarise. What
    needs the cluster waits for its turn."""
    where = load_profile(profile)
    plan, store = prepare(recipe, where, served, part, settings)
    if here or not plan.due:
        return make(plan, store, where, here)
    with Queue.of(where).turn(plan.recipe.name, where.runs, waits) as waited:
        if waited:  # who was ahead may have made some of it
            plan, store = prepare(recipe, where, served, part, settings)
            if flow_run.id:
                set_state(flow_run.id, "Running")
        return make(plan, store, where, here)


def waits(text: str) -> None:
    """Tell whoever started the run, on the terminal, the run's page and in its log, that it waits and for whom."""
    SAY.get()(text)
    if flow_run.id:
        get_run_logger().info(text)
        set_state(flow_run.id, "Waiting", text)


def make(plan: Plan, store: Store, where: Profile, here: bool) -> dict[str, Any]:
    """Make what a plan lacks, and tell of it and of the rest."""
    begun = time.time()
    for step in plan.steps:
        if step.damaged and (line := store.quarantine(step.artifact)):
            warn(line)
    chronicle = Chronicle.open(plan, store, where, {"prefect.flow_run_id": flow_run.id or "none"})
    watcher = Watchers([chronicle, *WATCHERS.get()])
    conductor = Conductor(plan, store, Submitter(where), watcher, where.jobs)
    page = open_page(plan, chronicle, conductor) if flow_run.id else None
    watcher.watchers += [page] if page else []

    def close(status: Status, failure: str = "") -> dict[str, Any]:
        summary = summarise(plan, chronicle.records, watcher.overheads, begun)
        if page:
            page.close(summary, {"MLflow": chronicle.page(None)}, failure)
        chronicle.close(summary, status)
        return summary

    try:
        for step in plan.steps:
            if step.cached:
                watcher.started(step)
                watcher.finished(step, step.record, 0.0)
        if here:
            make_here(plan, store, where, watcher)
        elif plan.due or flow_run.id:
            run_tasks(plan, conductor, where.retries, chronicle.page)
    except BaseException as interruption:
        conductor.stop()
        try:
            close("KILLED" if isinstance(interruption, KeyboardInterrupt) else "FAILED", one_line(interruption))
        except OSError as error:  # what went wrong first is what is raised
            LOG.error("%s", error)
        raise
    return close("FINISHED")


def open_page(plan: Plan, chronicle: Chronicle, conductor: Conductor) -> Page:
    """The page of this flow run, with links to where else its stages can be looked at."""

    def places(step: Step) -> dict[str, str]:
        return {"MLflow": chronicle.page(step.id), "Ray job": conductor.job_page(step)}

    return Page(plan, Messenger(flow_run.id), places, lambda: task_run.id)


def one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def run_tasks(plan: Plan, conductor: Conductor, retries: int, page: Callable[[str], str]) -> None:
    """Submit every step as a Prefect task and wait for all, those that want the machine for themselves last; the first
    failure is raised at the end."""
    futures: dict[str, Any] = {}
    for exclusive in (False, True):
        for step in plan.steps:
            if step.exclusive == exclusive:
                work = _found(step, page(step.node.measures or step.id)) if step.cached else _make(conductor, step)
                upstream = [futures[id] for id in step.node.parents.values() if id in futures]
                futures[step.id] = _task(step, work, retries).submit(wait_for=upstream)
        for future in futures.values():
            future.wait()
    for future in futures.values():
        future.result()


def _task(step: Step, work: Callable[[], Any], retries: int) -> Task:
    return task(
        work,
        name=step.id,
        task_run_name=step.id,
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=retries,
        retry_delay_seconds=1,
        retry_condition_fn=_may_help,
    )


def _may_help(task: Any, run: Any, state: Any) -> bool:
    failure = state.result(raise_on_failure=False)
    return not (isinstance(failure, (CorruptArtifact, PermissionError)) or isinstance(failure, StageFailed) and failure.final)


def _make(conductor: Conductor, step: Step) -> Callable[[], None]:
    def due() -> None:
        conductor.make(step)

    return due


def _found(step: Step, page: str) -> Callable[[], Any]:
    """What a cached step's task ends with: Prefect shows where it was made."""

    def find() -> Any:
        return Completed(name="Cached", message=" ".join(filter(None, [page, step.artifact.address])))

    return find


class Watchers:
    """Passes what happens on to each watcher, and remembers each step's overhead in seconds."""

    def __init__(self, watchers: Sequence[Watcher]) -> None:
        self.watchers = list(watchers)
        self.overheads: dict[str, float] = {}

    def started(self, step: Step) -> None:
        for watcher in self.watchers:
            watcher.started(step)

    def event(self, step: Step, event: Event) -> None:
        for watcher in self.watchers:
            watcher.event(step, event)

    def line(self, step: Step, text: str) -> None:
        for watcher in self.watchers:
            watcher.line(step, text)

    def finished(self, step: Step, record: Record, overhead: float) -> None:
        self.overheads[step.id] = overhead
        for watcher in self.watchers:
            watcher.finished(step, record, overhead)
