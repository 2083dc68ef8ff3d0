"""Steps as Prefect tasks: one for each that must be made, one that says where for each that is there.

Retries happen here, for stages that died, and not for stages whose input is at fault.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Cancelled, Completed

from cluster.ray.events import Note
from cluster.store.artifacts import CorruptArtifact
from flows.conductor import Conductor, StageFailed
from flows.plan import Step
from flows.spared import Spared


def run_tasks(spared: Spared, found: Collection[Step], conductor: Conductor, retries: int, page: Callable[[str], str]) -> None:
    """Submit every step that is due, and those that were ``found``, as tasks and wait for all, those that want the machine
    for themselves last; the first failure is raised at the end, unless it is ``spared``. ``page`` is where MLflow shows the
    run of a stage."""
    futures: dict[str, Any] = {}
    steps = [step for step in spared.plan.steps if not spared.lost(step)]  # to what failed in an earlier round
    for exclusive in (False, True):
        for step in steps:
            if step.exclusive == exclusive and (not step.cached or step in found):
                work = _find(step, page(step.node.measures or step.id)) if step.cached else _make(conductor, step)
                upstream = [futures[id] for id in step.node.parents.values() if id in futures]
                futures[step.id] = _task(conductor, step, work, retries).submit(wait_for=upstream)
        for future in futures.values():
            future.wait()
    for step in steps:  # in the order of the plan: what failed comes before what lacks it
        if step.id in futures and not spared.lost(step):
            try:
                futures[step.id].result()
            except StageFailed as failure:
                spared.failed(step, failure)


def _task(conductor: Conductor, step: Step, work: Callable[[], Any], retries: int) -> Task[Any, Any]:
    return task(
        work,
        name=step.id,
        task_run_name=step.id,
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=retries,
        retry_delay_seconds=1,
        retry_condition_fn=_may_help(conductor, step, retries),
    )


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


def _make(conductor: Conductor, step: Step) -> Callable[[], Any]:
    def make() -> Any:
        try:
            conductor.make(step)
        except (StageFailed, CorruptArtifact):
            if conductor.stopped:  # it did not fail: the run was told to end
                return Cancelled(message="the run was stopped")
            raise
        return None

    return make


def _find(step: Step, page: str) -> Callable[[], Any]:
    """What a cached step's task ends with: Prefect shows where it was made."""

    def find() -> Any:
        return Completed(name="Cached", message=" ".join(filter(None, [page, step.artifact.address])))

    return find
