"""The plan: which stages are done already, which will run and why, and what that will cost. Pure; starts nothing."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from cluster.profile import Profile, home
from cluster.reach import check_s3
from cluster.store.artifacts import Artifact, CorruptArtifact, Record, nearest
from cluster.store.local import Store
from cluster.store.url import open_store
from flows.enough import require_enough
from flows.facts import examine
from flows.forecast import check_ranks, check_room, forecast
from flows.lineage import source_of, upstream
from flows.nodes import Node, Recipe, as_written, naming, vocabulary
from flows.override import Setting
from flows.part import WHOLE, Part, chosen, up_to
from flows.recipe import load_recipe
from flows.trials import Values
from tasks.data.digests import DIGESTS, Digests
from tasks.stage import STAGES, Facts, members

RESOURCED = ("default", *STAGES, "speed")  # what a profile may name resources for; speed is measured apart
TOGETHER = 32  # steps of one job at most: what it is told has to fit a variable of its environment


@dataclass(frozen=True)
class Step:
    """A node with its address. ``record`` is there when the artifact is; ``reason`` says why it is not. What is
    ``damaged`` counts as not there: a run keeps it aside and makes it again."""

    node: Node
    artifact: Artifact
    parent_addresses: dict[str, str]
    record: Record | None
    reason: str
    damaged: bool = False

    @property
    def id(self) -> str:
        return self.node.id

    @property
    def exclusive(self) -> bool:
        return self.node.stage.exclusive

    @property
    def cached(self) -> bool:
        return self.record is not None


@dataclass(frozen=True)
class Plan:
    recipe: Recipe
    steps: tuple[Step, ...]

    @cached_property
    def by_id(self) -> dict[str, Step]:
        return {step.id: step for step in self.steps}

    @cached_property
    def _lines(self) -> dict[str, frozenset[str]]:
        """By id, a step and all that it comes from."""
        found: dict[str, frozenset[str]] = {}
        for step in self.steps:  # parents come before what they feed
            found[step.id] = frozenset({step.id}).union(*(found.get(id, ()) for id in step.node.parents.values()))
        return found

    @property
    def due(self) -> list[Step]:
        return [step for step in self.steps if not step.cached]

    @cached_property
    def on_trials(self) -> frozenset[str]:
        """Steps that belong to a search's trials alone: where one fails, its trials do, and not the run."""
        stages = {id for trial in self.recipe.trials for id in trial.nodes}
        return frozenset(step.id for step in self.steps if (step.node.measures or step.id) in stages)

    @cached_property
    def on_members(self) -> frozenset[str]:
        """Stages that feed some members of a merge and not all of them: where one fails, it goes on without those."""
        found: set[str] = set()
        for step in self.steps:
            if step.node.stage.plural:
                lines = [self._lines.get(id, frozenset({id})) for id in members(step.node.parents, step.node.stage.plural)]
                found |= frozenset().union(*lines) - frozenset.intersection(*lines)
        return frozenset(id for id in found if id in self.by_id and not self.by_id[id].node.measures)

    def require_enough(self, step: Step, record: Record) -> None:
        """Raise ValueError where a stage that must run needs more of the tokens of ``step`` than there are."""
        require_enough(step.node, record.metrics, (due.node for due in self.due))

    def jobs(self) -> list[list[Step]]:
        """Steps that share a Ray job: a stage that must run, then the missing evaluations of its model. An evaluation that also
        needs what may not be there yet when that job begins, text that is prepared meanwhile or how a reference did, has
        one of its own. Those that want the machine for themselves share jobs of their own, which come last."""
        groups: dict[tuple[str, frozenset[str]], list[Step]] = {}
        for step in self.due:
            if not step.exclusive:
                owner = step.node.measures or step.id
                groups.setdefault((owner, self._awaited(step, owner)), []).append(step)
        alone = [step for step in self.due if step.exclusive]
        return [*groups.values(), *(alone[first : first + TOGETHER] for first in range(0, len(alone), TOGETHER))]

    def _awaited(self, step: Step, owner: str) -> frozenset[str]:
        """What an evaluation of a model stands on that need not be there when the model's own job begins; none where all of it
        is, or comes of that job."""
        due = {id for id in step.node.parents.values() if id in self.by_id and not self.by_id[id].cached}
        awaited = due - self._lines[owner]
        return frozenset(awaited) if any(self.by_id[id].node.measures != owner for id in awaited) else frozenset()


def prepare(
    recipe: str,
    profile: Profile,
    served: bool = False,
    part: Part = WHOLE,
    settings: Sequence[Setting] = (),
    trials: list[Values] | None = None,
    only_plan: bool = False,
) -> tuple[Plan, Store]:
    """The plan of a recipe with these ``settings``, or of a ``part`` of it, after everything that can be wrong before anything
    starts: store, device, fields, widths. ``trials`` are those of its search, where they were chosen already. ``only_plan``
    looks for no card that the profile names, which another machine has, and writes to no store."""
    check_s3(profile.store)
    store = open_store(profile.store, Path(profile.scratch) / "cache")
    if not only_plan:
        store.writable()
    profile.check_stages(RESOURCED)
    if not (only_plan and profile.card):
        profile.check_device()
    checked = load_recipe(recipe, served, settings, trials)
    named = chosen(checked, part)
    checked = up_to(checked, named)
    check_s3("s3://" if "s3://" in checked.text else "")
    inspect(checked)
    plan = make_plan(checked, store)
    if part.only is not None:
        plan = alone(plan, named)
    for step in plan.steps:
        if step.record:
            plan.require_enough(step, step.record)
    if plan.due:
        check(plan.recipe)
        examine(plan.recipe)
        due = [step.node for step in plan.due]
        check_ranks(plan.recipe, due, profile)
        check_room(plan.recipe, due, profile)
    return plan, store


def inspect(recipe: Recipe) -> None:
    """What the files that a recipe names show at once, before any is read whole."""
    for node in recipe.nodes:
        with naming(node):
            node.stage.inspect()


def make_plan(recipe: Recipe, store: Store) -> Plan:
    """Address every node and look it up."""
    steps: dict[str, Step] = {}
    digests = Digests(home() / DIGESTS)
    for node in recipe.nodes:
        params = node.stage.parameters()
        with naming(node):
            fingerprints = node.stage.fingerprints(digests)
        if fingerprints:
            params["fingerprints"] = fingerprints
        parents = {role: steps[parent].artifact for role, parent in node.parents.items()}
        artifact = Artifact(
            node.name, node.stage.version, node.stage.label, params, {role: parent.key for role, parent in parents.items()}
        )
        try:
            record, damage = store.record(artifact), ""
        except CorruptArtifact as error:
            record, damage = None, f"damaged: {error}"
        reason = "" if record else damage or _reason(artifact, node, steps, store)
        addresses = {role: parent.address for role, parent in parents.items()}
        steps[node.id] = Step(node, artifact, addresses, record, reason, bool(damage))
    return Plan(recipe, tuple(steps.values()))


def alone(plan: Plan, ids: Set[str]) -> Plan:
    """The plan of these steps alone, beside what is there of those before them. Raises ValueError where a parent is missing."""
    for step in plan.steps:
        for role, id in step.node.parents.items():
            parent = plan.by_id[id]
            if step.id in ids and not step.cached and id not in ids and not parent.cached:
                state = "is damaged" if parent.damaged else "is not made yet"
                raise ValueError(f"--only: {role} of {step.id}, {id}, {state}; run --only {id} first, or --until {step.id}")
    kept = {step.id for step in plan.steps if step.cached or step.id in ids}
    return replace(plan, steps=tuple(step for step in plan.steps if {step.id, step.node.measures or step.id} <= kept))


def _reason(artifact: Artifact, node: Node, steps: dict[str, Step], store: Store) -> str:
    upstream = [parent for parent in node.parents.values() if not steps[parent].cached]
    if upstream:
        return f"after {', '.join(dict.fromkeys(upstream))}"
    alike = (
        record for record in store.records(artifact.stage) if node.stage.yields != "metrics" or record.label == artifact.label
    )
    found = nearest(artifact, alike)  # another evaluator's record says nothing of this one
    if not found:
        return "never run"
    record, fields = found
    return f"{', '.join(map(as_written, fields))} {'differs' if len(fields) == 1 else 'differ'} from {record.address}"


def check(recipe: Recipe) -> None:
    """What the fields alone do not show: patterns and groups against the model's widths, tokenizer against vocabulary."""
    for node in recipe.nodes:
        if facts := _facts(recipe, node):
            with naming(node):
                node.stage.check(facts)


def doubts(plan: Plan) -> list[str]:
    """Of what will run that which is allowed and hardly meant, a line each."""
    every = [(step.node, facts) for step in plan.due if (facts := _facts(plan.recipe, step.node))]
    return [f"recipe.{node.id}: {doubt}" for node, facts in every for doubt in node.stage.doubts(facts)]


def _facts(recipe: Recipe, node: Node) -> Facts | None:
    """What is known of a node that makes a model or its logits; None of others, and where its model is not known."""
    source = source_of(recipe.nodes, node)
    if node.measures or node.stage.yields not in ("model", "logits") or source is None:
        return None
    before, data = tuple(upstream(recipe.nodes, node)), node.parents.get("data")
    tasks = len(recipe.node(data).stage.corpus.parts()) if data else 0
    resized = any(getattr(stage, "resizes", False) for stage in before)  # then its sizes are asked when it is there
    sizes = ({}, None) if resized else (source.widths(), source.heads())
    return Facts(vocabulary(recipe.nodes, data), source.positions(), sizes[0], tasks, before, sizes[1])


def describe(plan: Plan, step: Step, profile: Profile | None = None) -> dict[str, Any]:
    """One step for people and scripts: where it is, whether it runs and why, what it costs where the profile runs it."""
    return {
        "id": step.id,
        "address": step.artifact.address,
        "key": step.artifact.key,
        "cached": step.cached,
        "reason": step.reason,
        **forecast(plan.recipe, step.node, profile),
    }
