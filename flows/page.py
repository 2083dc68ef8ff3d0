"""The page of a run in Prefect: of each stage its progress, its numbers and its job's lines, and at the end the whole.

A watcher as the terminal's display and MLflow's chronicle are; what it says goes by :mod:`flows.messenger`, so that nothing
here can fail a run or hold it up.
"""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

from cluster.ray.events import Event, Metrics, Note, Progress
from cluster.redaction import Redaction
from cluster.store.artifacts import Record
from flows.conductor import Watcher, without
from flows.gates import failures
from flows.markdown import run_page, stage_page
from flows.messenger import CLAIM_FAILED, GATE_FAILED, Messenger
from flows.plan import Plan, Step

LOG = logging.getLogger(__name__)
EVERY = 5.0  # seconds between two looks of a progress artifact
LINES = 30  # of a stage that are passed on in such a time; the rest is counted
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
WORKER = re.compile(r"\((?:rank (?P<rank>\d+)|[^()]*?)(?: pid=\d+)?(?:, ip=[^)]*)?\)\s?(?P<text>.*)")  # as Ray marks a line
RAYS_OWN = re.compile(
    r".*INFO job_manager\.py.*|Running entrypoint for job .*"
)  # which say where this machine keeps its Python
CURVES = ("loss", "tokens_per_second")
Links = Callable[[Step], Mapping[str, str]]


def telling(tell: Callable[..., None]) -> Callable[..., None]:
    """What goes wrong here is one line in the log: no page is worth a run."""

    @wraps(tell)
    def told(page: Page, *given: Any) -> None:
        try:
            tell(page, *given)
        except Exception as error:
            LOG.warning("the page of this run lacks something: %s: %s", type(error).__name__, str(error).partition("\n")[0])

    return told


@dataclass
class Running:
    """A stage under way, by its own clock."""

    task_run: str | None
    first: Progress | None = None
    curves: dict[str, float] = field(default_factory=dict)
    shown: float = 0.0
    lines: Counter[int] = field(default_factory=Counter)


class Page(Watcher):
    """Of one flow run. ``links`` names the places where a step can be looked at, ``task_run`` the task that is calling."""

    def __init__(self, plan: Plan, messenger: Messenger, links: Links, task_run: Callable[[], str | None]) -> None:
        self.plan, self.messenger, self.links, self.task_run = plan, messenger, links, task_run
        self.running: dict[str, Running] = {}
        self.records: dict[str, Record] = {}
        self.hide = Redaction()

    @telling
    def started(self, step: Step) -> None:
        if not step.cached:
            self.running.setdefault(step.id, Running(self.task_run()))

    @telling
    def event(self, step: Step, event: Event) -> None:
        running = self.running.get(step.id)
        if isinstance(event, Note):
            self._log(step, event.text)
        elif running is None:
            return
        elif isinstance(event, Metrics):
            running.curves |= {name: event.metrics[name] for name in CURVES if name in event.metrics}
        elif isinstance(event, Progress) and not step.node.measures:
            running.first = running.first or (event if event.total or event.done else None)  # else it has not begun
            if time.monotonic() - running.shown > EVERY:
                running.shown = time.monotonic()
                self._progress(step, 100 * event.done / event.total if event.total else 0, pace(running, event))

    @telling
    def line(self, step: Step, text: str) -> None:
        """A line of a step's job, as Ray wrote it; as many as a reader may take in."""
        text = COLOUR.sub("", text).strip()
        running = self.running.get(step.id)
        if running is None or not text or RAYS_OWN.fullmatch(text):
            return
        slot = int(time.monotonic() / EVERY)
        running.lines[slot] += 1
        if running.lines[slot] <= LINES:
            found = WORKER.fullmatch(text)
            rank = f"rank {found['rank'] or 0}" if found else "job"
            self._log(step, f"{rank} | {found['text'] if found else text}")
        elif running.lines[slot] == LINES + 1:
            self._log(step, "job | more lines than a page takes; all are in the job's log")

    @telling
    def finished(self, step: Step, record: Record, overhead: float) -> None:
        self.records[step.id] = record
        running = self.running.get(step.id)
        if running is not None:
            text = f"done in {record.seconds:.1f} s (+ {overhead:.1f} s around it)"
            self._log(step, text)
            if running.shown:
                self._progress(step, 100, text)
        owner = self.plan.by_id.get(step.node.measures or step.id)
        if owner and owner.id in self.records and owner.id in self.running:  # cached ones stand in the summary
            self._result(owner)

    @telling
    def failed(self, step: Step, error: Exception) -> None:
        self._log(step, without(step, error))

    @telling
    def close(self, summary: Mapping[str, Any], of_run: Mapping[str, str], failure: str = "") -> None:
        places = {step.id: self.links(step) for step in self.plan.steps if not step.node.measures}
        text = run_page(summary, places, of_run, self.hide(failure))
        self.messenger.show(self._key("summary"), "markdown", text, "the whole run")
        if failed := [f"{claim['says']}: {claim['verdict']}" for claim in summary["claims"] if not claim["holds"]]:
            self.messenger.emit(CLAIM_FAILED, "; ".join(failed))
        if not failure and (failing := failures(summary["models"])):
            self.messenger.emit(GATE_FAILED, "; ".join(failing))
        self.messenger.close()

    def _result(self, step: Step) -> None:
        """The stage's own numbers and what its evaluations measured so far, beside the model it came from."""
        before = self.plan.by_id.get(step.node.came_from or "")
        earlier = self._numbers(before) if before else {}
        name = f"{before.id} (before)" if before and earlier else ""
        text = stage_page(step.id, self._numbers(step), name, earlier, step.artifact.address, self.links(step))
        title = f"{step.id}: {step.node.stage.label}"
        self.messenger.show(self._key(step.id), "markdown", text, title, self.running[step.id].task_run)

    def _numbers(self, step: Step) -> dict[str, float]:
        if step.id not in self.records:
            return {}
        numbers = {**self.records[step.id].metrics, "seconds": self.records[step.id].seconds}
        for other in self.plan.steps:
            if other.node.measures == step.id and other.id in self.records:
                numbers |= self.records[other.id].metrics
        return numbers

    def _progress(self, step: Step, percent: float, text: str) -> None:
        key = self._key(f"{step.id}-progress")
        self.messenger.show(key, "progress", round(percent, 1), f"**{step.id}** {text}", self.running[step.id].task_run)

    def _log(self, step: Step, text: str) -> None:
        running = self.running.get(step.id)
        self.messenger.log(self.hide(f"{step.id} | {text}"), logging.INFO, running.task_run if running else None)

    def _key(self, name: str) -> str:
        """Lower-case letters, digits and dashes, and one series per recipe: Prefect keeps the versions of a key."""
        return re.sub(r"[^a-z0-9]+", "-", f"{self.plan.recipe.name}-{name}".lower()).strip("-")


def pace(running: Running, event: Progress) -> str:
    """How far a stage is, how fast, how long it will take, and where its curves are."""
    first = running.first or event
    parts = [f"{event.done:,} of {event.total:,} {event.unit}" if event.total else f"{event.done:,} {event.unit}"]
    parts += event.speed(first.timestamp, first.done)
    names = {"loss": "loss {:.3f}", "tokens_per_second": "{:,.0f} tokens/s"}
    parts += [names[name].format(value) for name, value in running.curves.items() if event.unit != "tokens" or name == "loss"]
    return " · ".join(dict.fromkeys(filter(None, [*parts, event.note])))  # the note may be the loss
