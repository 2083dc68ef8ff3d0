"""The figures in the run of a stage: its curves, and what a report says of its matrices one by one; the numbers behind them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

from cluster.ray.events import Metrics
from cluster.store.artifacts import Record
from flows.plan import Step
from tasks.evaluators.atlas import TABLE as ATLAS
from tasks.stage import REPORT

SPARSITY, WALK = f"{REPORT}/sparsity.json", "walk.json"
Read = Callable[[Record, str], str]  # a file of an artifact, empty where there is none


def of_stage(step: Step, record: Record, history: list[Metrics], read: Read) -> Iterator[tuple[str, Any]]:
    from dashboards.figures import heat_map, training_curves

    rows = [event.metrics for event in history if "loss" in event.metrics]
    if rows:
        yield "training_curves", training_curves(rows, step.id)
    if sparsities := json.loads(read(record, SPARSITY) or "{}"):
        yield "sparsity_by_layer", heat_map(sparsities, f"{step.id}: sparsity (%)")


def layers(record: Record, read: Read) -> str:
    """What is known of a model's matrices and blocks, as the dashboard reads it from MLflow; empty where nothing is."""
    blocks = json.loads(read(record, f"{REPORT}/{WALK}") or "[]")
    errors = {f"block.{block['index']}": block["error"] for block in blocks if block.get("error") is not None}
    known = {"sparsity": json.loads(read(record, SPARSITY) or "{}"), "error": errors}
    return json.dumps({name: values for name, values in known.items() if values}) if any(known.values()) else ""


def of_model(model: str, record: Record, read: Read) -> Iterator[tuple[str, Any]]:
    """Of a model that the evaluator atlas measured, matrix by matrix; the experts of a stack are too many to draw."""
    from dashboards.figures import heat_map

    table = csv.DictReader(io.StringIO(read(record, f"{REPORT}/{ATLAS}")))
    rows = [row for row in table if "[" not in row["matrix"]]
    for column, title in (("zeros", "zeros"), ("effective_rank", "effective rank")) if rows else ():
        yield f"{column}_by_layer", heat_map({row["matrix"]: float(row[column]) for row in rows}, f"{model}: {title} (%)")
