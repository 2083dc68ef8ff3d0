"""Tells MLflow what the conductor does: a child run per stage with its curves and figures, the summary on the parent.

What is measured of a model stands in the model's own run, so that whoever compares models finds their numbers side by side.
A cached stage is not told again: the parent names the run that made it. Where this MLflow has none (another MLflow, a run
that was deleted), the stage is told from its artifact (record and history).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

from cluster.logged import NOTE
from cluster.origins import CACHED, EVALUATE, KEY
from cluster.profile import Profile
from cluster.ray.events import Event, Metrics
from cluster.runs import needing
from cluster.store.artifacts import Record
from cluster.store.local import Store
from cluster.tracking import Tracking, tracker, tracking_uri
from dashboards.layers import LAYERS
from flows import gates, note
from flows.catalogue import GATES, PART, Catalogue, numbers_of, ordered
from flows.lazy import hidden
from flows.pictures import SPARSITY, layers, of_model, of_stage
from flows.plan import Plan, Step
from flows.promotion import crown
from flows.provenance import process_is_alive, provenance, source, this_process
from tasks.history import HISTORY, read_history
from tasks.stage import REPORT

# Of a stage's own work, not of the model that came out: on the parent under a plain name they would pass for the whole run's.
OF_THE_WORK = frozenset(
    {
        "overhead_seconds",
        "reconstruction_error",
        "seconds",
        "tokens_per_second",
        "training_flops",
        "training_loss",
        "training_tokens",
        "unseen_matrices",
    }
)
Status = Literal["FINISHED", "FAILED", "KILLED"]


class Chronicle:
    """The MLflow side of one flow run."""

    def __init__(self, plan: Plan, store: Store, tracking: Tracking, uri: str = "") -> None:
        self.plan, self.store, self.tracking, self.uri = plan, store, tracking, uri
        self.records: dict[str, Record] = {}
        self.failures: set[str] = set()
        self.champion: dict[str, Any] | None = None  # of the recipe, once the run has ended
        self.linked: dict[str, Mapping[str, str]] = {}  # stages told by an earlier run: the tags of that run as it was found

    @classmethod
    def open(cls, plan: Plan, store: Store, profile: Profile, tags: dict[str, str]) -> Chronicle:
        """Start telling, to the profile's MLflow, or to this home's (its server if one is up, else its file)."""
        uri = tracking_uri(profile.mlflow.tracking_uri)
        params = {step.id: step.artifact.params for step in plan.steps if not step.node.measures}
        needs = needing(step.artifact.key for step in plan.steps)
        cached = {CACHED: str(not plan.due).lower()}
        tags = {**provenance(plan), **tags, **needs, **cached, "winnow.process": this_process()}
        store.note_tracker(tracker(uri))
        tracking = Tracking.start(uri, plan.recipe.name, tags, params)
        tracking.close_abandoned(process_is_alive)
        tracking.text(None, plan.recipe.text, "recipe.yaml")
        chronicle = cls(plan, store, tracking, uri)
        for data in chronicle.data:
            tracking.dataset(None, data.id, data.artifact.key, data.artifact.address)
        return chronicle

    def stand_on(self, plan: Plan) -> None:
        """The run goes on by another plan. What it made before stays in the plan as it was then, and not as cached."""
        same = {id: step for id, step in self.plan.by_id.items() if plan.by_id.get(id, step).artifact == step.artifact}
        known = {**plan.by_id, **same}
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
        """A run for what a step makes, or the one that tells of it already."""
        if step.id in self.tracking.children or (step.cached and self._link(step)):  # a second attempt goes on in the same run
            return
        tags = {
            "winnow.stage": step.node.name,
            KEY: step.artifact.key,
            "winnow.address": step.artifact.address,
            CACHED: str(step.cached).lower(),
            **source(self.plan.recipe.name),
            **{f"winnow.parent.{role}": address for role, address in step.parent_addresses.items()},
        }
        self.tracking.child(step.id, tags, step.artifact.params)
        for data in self.data:
            if data.artifact.address in step.parent_addresses.values():
                self.tracking.dataset(step.id, data.id, data.artifact.key, data.artifact.address)

    def _link(self, step: Step) -> bool:
        """Whether this MLflow has the run that made a step's artifact; what is new of it is told there."""
        evaluations: dict[str, str] = {}
        for other in self.plan.steps:
            if other.node.measures == step.id:
                evaluations |= evaluation_tags(other)
        run = self.tracking.origins.run(step.artifact.key, evaluations)
        if run is not None:
            self.tracking.link(step.id, run.info.run_id)
            self.tracking.tag(None, f"{CACHED}.{step.id}", run.info.run_id)
            self.linked[step.id] = dict(run.data.tags)
        return run is not None

    def _measured(self, step: Step, model: str) -> None:
        """In the model's run: which evaluation of it there is, how it is done, and against what."""
        if not self._known(step):
            for name, address in evaluation_tags(step).items():
                self.tracking.tag(model, name, address)
            self.tracking.params(model, {"evaluate": step.artifact.params["method"]})

    def _known(self, step: Step) -> bool:
        """Whether the run that tells of a step told it before this flow run."""
        tags = self.linked.get(_owner(step))
        return tags is not None and (not step.node.measures or evaluation_tags(step).items() <= tags.items())

    def event(self, step: Step, event: Event) -> None:
        if isinstance(event, Metrics):
            self.tracking.point(_owner(step), event.metrics, event.step, event.timestamp)

    def finished(self, step: Step, record: Record, overhead: float) -> None:
        self.records[step.id] = record
        history = self._history(record)
        if self._known(step):
            self._read(record, SPARSITY)  # as of what is told anew: what is read is verified, and damage heals
            return
        for event in history:
            self.event(step, event)
        if step.node.measures:
            seconds = {f"evaluate{PART}{step.node.stage.label}.seconds": record.seconds}
            self.tracking.scalars(step.node.measures, {**record.metrics, **seconds})
            self.tracking.figures(step.node.measures, of_model(step.node.measures, record, self._read))
            return
        self.tracking.scalars(step.id, {**record.metrics, "seconds": record.seconds, "overhead_seconds": overhead})
        self.tracking.figures(step.id, of_stage(step, record, history, self._read))
        if known := layers(record, self._read):
            self.tracking.text(step.id, known, LAYERS)
        self.tracking.end(step.id, "FINISHED")

    def failed(self, step: Step, error: Exception) -> None:
        self.failures.add(_owner(step))
        self.tracking.tag(_owner(step), NOTE, str(error))

    def close(self, summary: Mapping[str, Any], status: Status) -> None:
        """The parent gets every stage's scalars, the last model's by their plain names, the whole run's seconds and
        memory, and the verdicts on claims and gates."""
        from dashboards.claims import write
        from dashboards.figures import groups_figure, quality_against_bytes
        from flows.claims import groups_of

        models = summary["models"]
        scalars = {name: summary[name] for name in ("seconds", "overhead_seconds")}
        for step, record in self._finished():
            scalars |= {f"{_owner(step)}{PART}{name}": value for name, value in record.metrics.items()}
            scalars |= {} if step.node.measures else {f"{step.id}{PART}seconds": record.seconds}
        if models:
            scalars |= {name: value for name, value in numbers_of(models[-1]).items() if name not in OF_THE_WORK}
            if held := [model["peak_memory_bytes"] for model in models if "peak_memory_bytes" in model]:
                scalars["peak_memory_bytes"] = max(held)
            with hidden("torch"):
                self.tracking.figures(None, [("quality_against_bytes", quality_against_bytes(models))])
        self.tracking.scalars(None, ordered(scalars))
        if groups := groups_of(models):
            self.tracking.figures(None, [("sweep", groups_figure(groups, "perplexity"))])
        catalogue = Catalogue(self.plan, summary, self.tracking, self._place, self._file)
        catalogue.list_models()
        if summary["claims"]:
            write(self.tracking, summary["claims"])
        for id, verdict in gates.tags(models):
            self.tracking.tag(None, ".".join(filter(None, (GATES, id))), verdict)
            if id and id not in self.linked:  # that run's own recipe may require something else
                self.tracking.tag(id, GATES, verdict)
        self._end_stages(status, catalogue)
        self.tracking.tag(None, NOTE, note.note(summary, self._place))
        if status == "FINISHED" and self.uri:
            self.champion = crown(self.tracking, self.uri, summary)
        self.tracking.end(None, status)

    def page(self, id: str | None) -> str:
        """Where MLflow shows the run of a stage, or the parent; empty where no server shows it."""
        told = id is None or id in self.tracking.children
        return f"{self.uri.rstrip('/')}/{self.tracking.page(id)}" if told and self.uri.startswith("http") else ""

    def _place(self, id: str) -> str:
        return self.tracking.page(id) if id in self.tracking.children else ""

    def _end_stages(self, status: Status, catalogue: Catalogue) -> None:
        """What has all says what it did. Of a model that was made, an evaluation may be missing: its run says how the flow
        ended. One that lacked an evaluation and got it has all now."""
        missing = {_owner(step) for step in self.plan.steps if step.id not in self.records}
        got = {step.node.measures for step, _ in self._finished() if step.node.measures and not self._known(step)}
        for id in self.tracking.children:
            if id in missing and id not in self.linked:
                self.tracking.end(id, "FAILED" if id in self.failures else status)
            elif id in got - missing and id in self.linked:
                self.tracking.end(id, "FINISHED")
            if id not in missing and (id in got or id not in self.linked):
                catalogue.describe_stage(self.plan.by_id[id], self.linked.get(id, {}).get(NOTE, ""))

    def _finished(self) -> Iterator[tuple[Step, Record]]:
        return ((step, self.records[step.id]) for step in self.plan.steps if step.id in self.records)

    def _history(self, record: Record) -> list[Metrics]:
        return read_history(self._read(record, f"{REPORT}/{HISTORY}"))

    def _file(self, id: str, name: str) -> str:
        return self._read(self.records[id], name)

    def _read(self, record: Record, name: str) -> str:
        return (self.store.take(record) / name).read_text() if name in record.files else ""


def evaluation_tags(step: Step) -> dict[str, str]:
    """What the run of a model says of an evaluation: its address, and that of the reference."""
    tags = {EVALUATE + step.node.stage.label: step.artifact.address}
    if "reference" in step.parent_addresses:
        tags[f"{EVALUATE}{step.node.stage.label}.reference"] = step.parent_addresses["reference"]
    return tags


def _owner(step: Step) -> str:
    """The id of the run that tells of a step."""
    return step.node.measures or step.id
