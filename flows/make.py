"""Makes what a plan lacks, and tells of it and of the rest: MLflow, the run's page in Prefect, the terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.profile import Profile
from cluster.ray.events import Event, Note
from cluster.store.artifacts import Record
from cluster.store.leftovers import tidy
from cluster.store.local import Store
from cluster.store.quarantine import warn
from flows.announcer import Announcer
from flows.chronicle import Chronicle, Status
from flows.conductor import Conductor, Watcher
from flows.current import flow_run, task_run
from flows.held import Held
from flows.here import make_here
from flows.lazy import hidden
from flows.messenger import Messenger
from flows.needed import undisturbed
from flows.page import Page
from flows.plan import Plan, Step, make_plan
from flows.search import explore, survivors
from flows.spared import Spared, of_what_is_left
from flows.submit import Submitter
from flows.summary import summarise
from flows.trials import Values

WATCHERS: ContextVar[Sequence[Watcher]] = ContextVar("watchers", default=())


class Making:
    """One run of a plan. ``plan_anew`` plans the recipe again, with further trials where it searches."""

    def __init__(self, plan: Plan, store: Store, where: Profile, here: bool, plan_anew: Callable[..., Any]) -> None:
        self.store, self.where, self.here, self.plan_anew = store, where, here, plan_anew
        self.begun = time.time()
        with undisturbed():  # until MLflow knows what this run stands on
            if any(step.cached and store.done(step.artifact) is None for step in plan.steps):  # collected since
                plan, _ = plan_anew()
            tidy(store, Path(where.scratch))
            for step in plan.steps:
                if step.damaged and (line := store.quarantine(step.artifact)):
                    warn(line)
            self.chronicle = Chronicle.open(plan, store, where, {"prefect.flow_run_id": flow_run() or "none"})
        self.plan = plan
        self.held = Held(self.chronicle, self.chronicle.uri)
        self.submitter = Submitter(where, flow_run())
        self.conductor: Conductor | None = None
        self.page = Page(plan, Messenger(flow_run()), self._places, task_run) if flow_run() else None
        announcer = [] if here else [Announcer(plan.recipe.name)]
        self.told: dict[str, str] = {}  # of soups of fewer members, what was said
        self.watcher = Watchers([self.held, *announcer, *([self.page] if self.page else []), *WATCHERS.get()])

    def run(self) -> dict[str, Any]:
        """The summary. Whatever interrupts is told before it is raised."""
        try:
            if self.plan.recipe.decides:
                explore(self.plan, self._replan, self._make, self.watcher.records, self.watcher.failures)
            else:
                self._make(self.plan)
            if self.plan.recipe.trials and self.watcher.failures and not survivors(self.chronicle.plan, self.watcher.failures):
                raise next(iter(self.watcher.failures.values()))
        except BaseException as interruption:
            failure = " ".join(f"{type(interruption).__name__}: {interruption}".split())
            self._close("FAILED" if isinstance(interruption, Exception) else "KILLED", failure)
            raise
        return self._close("FINISHED")

    def _make(self, plan: Plan) -> None:
        """Make what a plan lacks; where a soup lost members, that of those that are left by another round."""
        waiting = True
        while waiting:
            spared = Spared(self._of_what_is_left(plan), self.watcher, self.watcher.failures)
            self._make_round(spared)
            waiting = bool(spared.waiting)

    def _make_round(self, spared: Spared) -> None:
        """Tell of what a plan has, once, and make what it lacks."""
        plan = spared.plan
        self.conductor = Conductor(plan, self.store, self.submitter, self.watcher, self.where.jobs)
        try:
            found = [step for step in plan.steps if step.cached and step.id not in self.watcher.records]
            for step in found:
                self.watcher.started(step)
                self.watcher.finished(step, step.record, 0.0)
            if self.here:
                make_here(spared, self.store, self.where)
            elif plan.due or flow_run():
                from flows.steps import run_tasks

                run_tasks(spared, found, self.conductor, self.where.retries, self.chronicle.page)
        except BaseException:
            self.conductor.stop()
            raise

    def _of_what_is_left(self, plan: Plan) -> Plan:
        """The plan with soups of the members that are left: other artifacts, which this run stands on too. Each is told
        once."""
        failures = self.watcher.failures
        recipe, lines = of_what_is_left(plan.recipe, failures)
        if not lines:
            return plan
        with undisturbed():
            known = self.chronicle.plan
            whole = make_plan(of_what_is_left(known.recipe, failures)[0], self.store)
            self._stand_on(replace(whole, steps=tuple(step for step in whole.steps if step.id in known.by_id)))
        for id, line in lines.items():
            if self.told.get(id) != line:
                self.told[id] = line
                self.watcher.event(whole.by_id[id], Note(line))
        return replace(plan, recipe=recipe, steps=tuple(whole.by_id[step.id] for step in plan.steps))

    def _replan(self, trials: list[Values]) -> Plan:
        with undisturbed():
            more, _ = self.plan_anew(trials)
            self._stand_on(more)
        return more

    def _stand_on(self, plan: Plan) -> None:
        self.held.stand_on(plan)
        if self.page:
            self.page.plan = self.chronicle.plan

    def _places(self, step: Step) -> dict[str, str]:
        """Where else a step can be looked at."""
        return {"MLflow": self.chronicle.page(step.id), "Ray job": self.conductor.job_page(step) if self.conductor else ""}

    def _close(self, status: Status, failure: str = "") -> dict[str, Any]:
        watcher = self.watcher
        summary = summarise(self.chronicle.plan, watcher.records, watcher.overheads, self.begun, watcher.failures)
        if self.page:
            self.page.close(summary, {"MLflow": self.chronicle.page(None)}, failure)
        self.held.close(summary, status)
        if self.plan.due and status != "KILLED" and not self.held.kept:  # else an earlier run has it, or MLflow is away
            self._keep_page()
        return {**summary, "champion": self.chronicle.champion}

    def _keep_page(self) -> None:
        """The dashboard's pages of this run, in its run in MLflow. All else is told: no page is worth a run."""
        try:
            with hidden("torch"):
                from dashboards.static import write

                write(self.chronicle.tracking, self.chronicle.uri)
        except Exception as error:
            warn(f"MLflow has no page of this run: {type(error).__name__}: {str(error).partition(chr(10))[0]}")


class Watchers(Watcher):
    """Passes what happens on to each watcher, and remembers each step's record, and its overhead in seconds."""

    def __init__(self, watchers: Sequence[Watcher]) -> None:
        self.watchers = watchers
        self.overheads: dict[str, float] = {}
        self.records: dict[str, Record] = {}
        self.failures: dict[str, Exception] = {}

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
        self.overheads[step.id], self.records[step.id] = overhead, record
        for watcher in self.watchers:
            watcher.finished(step, record, overhead)

    def failed(self, step: Step, error: Exception) -> None:
        self.failures[step.id] = error
        for watcher in self.watchers:
            watcher.failed(step, error)
