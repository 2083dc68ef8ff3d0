"""The one object a run comes to: its stages and its models, as ``--json`` prints it and the table shows it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from cluster.store.artifacts import Record
from flows.gates import judged
from flows.lineage import against
from flows.plan import Plan, Step
from flows.ranking import ranking


def summarise(
    plan: Plan,
    records: Mapping[str, Record],
    overheads: Mapping[str, float],
    begun: float,
    failures: Mapping[str, Exception] | None = None,
) -> dict[str, Any]:
    """``stages`` and ``models`` with their numbers, the ``evaluations`` that the recipe lists as stages, the ``ranking`` of
    branches, what ``failed`` and was spared, the verdict on each claim, those on gates with the models that they judge;
    ``overhead_seconds`` is wall time with no stage inside its own run.

    ``begun`` is when the run began, in seconds since the epoch.
    """
    stages = [_stage(step, records.get(step.id), overheads.get(step.id)) for step in plan.steps]
    models = [_model(plan, step, records) for step in plan.steps if step.node.stage.yields == "model" and step.id in records]
    judged(plan.recipe.require, models, against(plan.recipe.nodes))
    now = time.time()
    made = [records[step.id] for step in plan.steps if step.id in records and not step.cached]
    unigram = [record.metrics["unigram_perplexity"] for record in records.values() if "unigram_perplexity" in record.metrics]
    return {
        "recipe": plan.recipe.name,
        "seconds": now - begun,
        "overhead_seconds": now - begun - _busy(made, begun, now),
        "unigram_perplexity": unigram[0] if unigram else None,
        "stages": stages,
        "models": models,
        "evaluations": [_evaluation(step, records[step.id]) for step in plan.steps if _listed(step) and step.id in records],
        "ranking": ranking(plan.recipe, models),
        "failed": {id: str(error) for id, error in (failures or {}).items()},
        "claims": [claim.judge(models) for claim in plan.recipe.claims if len(models) == sum(1 for _ in plan.recipe.models())],
    }


def _busy(records: Iterable[Record], begun: float, now: float) -> float:
    """Seconds of a window in which at least one stage was inside its own run."""
    ends = [(datetime.fromisoformat(record.created).timestamp(), record.seconds) for record in records]
    busy, reached = 0.0, begun
    for start, end in sorted((end - seconds, min(end, now)) for end, seconds in ends):
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return busy


def _stage(step: Step, record: Record | None, overhead: float | None) -> dict[str, Any]:
    return {
        "id": step.id,
        "name": step.node.name,
        "method": step.node.stage.label,
        "key": step.artifact.key,
        "address": step.artifact.address,
        "cached": step.cached,
        "done": record is not None,
        "seconds": record.seconds if record else None,
        "overhead_seconds": overhead,
        "metrics": record.metrics if record else {},
    }


def _model(plan: Plan, step: Step, records: Mapping[str, Record]) -> dict[str, Any]:
    """A model with everything measured of it: its stage's own numbers, then its evaluations."""
    measured = dict(records[step.id].metrics)
    for other in plan.steps:
        if other.node.measures == step.id and other.id in records:
            measured |= records[other.id].metrics
    record = records[step.id]
    place = {"stage": step.id, "base": step.node.base, "branch": step.node.branch}
    return {**place, "address": record.address, "key": record.key, "seconds": record.seconds, **measured}


def _listed(step: Step) -> bool:
    return step.node.stage.yields == "metrics" and step.node.measures is None


def _evaluation(step: Step, record: Record) -> dict[str, Any]:
    """An evaluation that is a stage of the recipe. Its numbers stand by themselves: with other fields, or against another
    model, they mean something else than those of the recipe's own evaluators."""
    source = getattr(step.node.stage, "reference", None)
    against = step.node.parents.get("reference") or (source.describe() if source else None)
    place = {"stage": step.id, "method": step.node.stage.label, "model": step.node.came_from, "reference": against}
    return {**place, "metrics": record.metrics}
