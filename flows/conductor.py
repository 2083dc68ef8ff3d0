"""Gets the steps of a plan made: one Ray job per group of steps, one follower per job, events to whoever watches.

A group is a stage and the evaluations of its model; they share a job so that the evaluations need no job of their own
and run beside the next stage. What measures time is made in the end, by a job for all of it. What counts as done is the
store alone: a job that ends without an artifact has failed, an artifact that is there needs no job.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from cluster.ray.events import Event, Failed, Published, parse_event
from cluster.ray.follower import Away
from cluster.store.artifacts import CorruptArtifact, Record
from cluster.store.local import Store
from cluster.store.quarantine import warn
from flows.ending import ranks
from flows.plan import Plan, Step
from flows.submit import Submitter


class StageFailed(RuntimeError):
    """A job ended without its artifact. ``final`` is set where trying again cannot help: the input is at fault. ``aside``
    is the address of an input that was damaged and is kept aside: a plan made anew makes it again. ``shared`` is set where what
    failed is needed by other stages as well: the store, a disk, the cluster."""

    def __init__(self, message: str, final: bool = False, aside: str = "", shared: bool = False) -> None:
        super().__init__(message)
        self.final, self.aside, self.shared = final, aside, shared


Made = TypeVar("Made")


def heal(attempt: Callable[[], Made]) -> Made:
    """Plan and run again when a run met a damaged artifact, each one once: what is damaged again has another cause."""
    healed: set[str] = set()
    while True:
        try:
            return attempt()
        except (StageFailed, CorruptArtifact) as failure:
            if not failure.aside or failure.aside in healed or ranks() > 1:  # those of torchrun end, and are started, as one
                raise
            healed.add(failure.aside)
            warn(f"{failure}; it is made again now")


class Watcher:
    """Whoever is told what happens. Each overrides what it cares for."""

    def started(self, step: Step) -> None:
        """A step is begun, or found."""

    def event(self, step: Step, event: Event) -> None:
        """A step's job tells something."""

    def line(self, step: Step, text: str) -> None:
        """Another line of a step's job."""

    def finished(self, step: Step, record: Record, overhead: float) -> None:
        """A step's artifact is there; ``overhead`` are the seconds outside its own run."""

    def failed(self, step: Step, error: Exception) -> None:
        """A step failed, which costs its trial or its soup a member, and not the run."""


def without(step: Step, error: Exception) -> str:
    """What people are told of such a failure."""
    return f"failed; the run goes on without it: {str(error).removeprefix(f'{step.id}: ')}"


@dataclass
class Group:
    """A job in flight. Guarded by the conductor's condition."""

    steps: list[Step]
    job: str | None = None
    running: bool = False
    final: bool = False
    message: str = ""
    aside: str = ""
    shared: bool = False
    published: set[str] = field(default_factory=set)


class Conductor:
    """Starts jobs through the submitter, follows them, and says when an artifact is there."""

    def __init__(self, plan: Plan, store: Store, submitter: Submitter, watcher: Watcher, most: int) -> None:
        """``most`` jobs are in flight at once; the steps of further ones wait here, where they cost nothing."""
        self.plan, self.store, self.submitter, self.watcher, self.most = plan, store, submitter, watcher, most
        self.groups = {step.id: group for steps in plan.jobs() for group in [Group(steps)] for step in steps}
        self.by_address = {step.artifact.address: step for step in plan.steps}
        self.changed = threading.Condition()
        self.stopped = False

    def make(self, step: Step) -> Record:
        """Return when the step's artifact is published. Raises StageFailed; calling again tries again."""
        group, begun = self.groups[step.id], None
        while (record := self.store.done(step.artifact)) is None:
            with self.changed:
                self.changed.wait_for(lambda: self.stopped or group.running or self._in_flight() < self.most)
                if self.stopped:
                    raise StageFailed(f"{step.id}: stopped", final=True)
                if begun is None:
                    begun = self._begin(step)
                if not group.running:
                    self._start(group)
                self.changed.wait_for(
                    lambda: self.stopped or step.artifact.address in group.published or not group.running
                )  # what is stopped is not waited for: a cluster may take its time, or be gone
                if self.stopped and step.artifact.address not in group.published:
                    raise StageFailed(f"{step.id}: stopped", final=True)
                failed = not group.running and step.artifact.address not in group.published
                told = group.message, group.final, group.aside, group.shared
            if failed and (record := self.store.done(step.artifact)) is None:
                message, *kind = told
                raise StageFailed(f"{step.id}: {message}", *kind)
        begun = begun or self._begin(step)
        # An evaluation may have begun in its job before its turn came here.
        self.watcher.finished(step, record, max(0.0, time.monotonic() - begun - record.seconds))
        try:
            self.plan.require_enough(step, record)
        except ValueError as error:
            raise StageFailed(str(error), final=True) from None
        return record

    def _begin(self, step: Step) -> float:
        self.watcher.started(step)
        return time.monotonic()

    def job_page(self, step: Step) -> str:
        """Where Ray shows the job that made a step in this run; empty where none did."""
        job = self.groups[step.id].job if step.id in self.groups else None
        return f"{self.submitter.jobs.address}/#/jobs/{job}" if job else ""

    def _in_flight(self) -> int:
        return len({id(group) for group in self.groups.values() if group.running})

    def stop(self) -> None:
        """Stop every job in flight, and start no other; what they had checkpointed stays."""
        self.stopped = True  # before the lock, which whoever submits a job just now holds
        with self.changed:
            self.changed.notify_all()
        for group in {id(group): group for group in self.groups.values()}.values():
            if group.running and group.job:
                try:
                    self.submitter.jobs.stop(group.job)
                except OSError:  # a cluster that is away has no job of ours to stop
                    continue

    def _start(self, group: Group) -> None:
        missing = [step for step in group.steps if self.store.done(step.artifact) is None]
        group.final, group.message, group.aside, group.shared, group.running = False, "", "", False, True
        group.published.clear()
        try:
            group.job = self.submitter.submit(missing)
        except OSError as error:
            group.running = False
            raise StageFailed(f"{missing[0].id}: {error}", final=not isinstance(error, Away), shared=True) from error
        except BaseException:
            group.running = False
            raise
        threading.Thread(target=self._follow, args=(group,), daemon=True).start()

    def _follow(self, group: Group) -> None:
        message = "the job could not be followed"
        try:
            result = self.submitter.jobs.follow(group.job, lambda line: self._line(group, line))
            message = "its job ended without publishing it" if result.ok else result.message
        except Exception as error:  # whatever ends the following is the message of the failed stage
            message, group.shared = f"{type(error).__name__}: {error}", isinstance(error, OSError)
        finally:
            with self.changed:
                group.running = False
                group.message = group.message or message
                self.changed.notify_all()

    def _line(self, group: Group, line: str) -> None:
        if (event := parse_event(line)) is None:
            left = (step for step in group.steps if step.artifact.address not in group.published)
            self.watcher.line(next(left, group.steps[-1]), line)
            return
        if isinstance(event, Failed):
            group.aside, group.shared = group.aside or event.aside, group.shared or event.shared
            if not group.final:  # the stage's own words count more than what its job says of them
                group.message, group.final = event.message.partition("\n")[0], event.final
        elif step := self.by_address.get(event.address):
            self.watcher.event(step, event)
            if isinstance(event, Published):
                with self.changed:
                    group.published.add(event.address)
                    self.changed.notify_all()
