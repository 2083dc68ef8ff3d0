"""What finished runs say about the scaling law: which runs are meant, what they measured, and the file the law is kept in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.store.artifacts import Record
from cluster.store.canonical import canonical_json
from cluster.store.local import Store
from flows.plan import make_plan
from flows.recipe import load_recipe
from tasks.methods import explain
from tasks.stage import STAGES
from tasks.train.scaling.law import COUNTS, Quality, ScalingLaw, TrainingRun, assess, check_runs, chosen, resample, verdict

ARTIFACT = re.compile(rf"({'|'.join(STAGES)})/.*|[0-9a-f]{{8,64}}")  # anything else names a recipe


class LawFile(BaseModel):
    """A law with all that stands behind it: how each count of weights did, in which share of resamples
    it did best, laws of resampled runs for the bands, and the runs by address."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    law: ScalingLaw
    verdict: str
    counts: dict[str, Quality]
    chosen: dict[str, float]
    resampled: list[ScalingLaw] = Field(min_length=1)
    runs: dict[str, TrainingRun] = Field(min_length=1)

    def beyond(self, average_parameters: float, tokens: float) -> list[str]:
        """What lies outside the fitted runs, so that its loss is extrapolated."""
        wanted = {"average": average_parameters, "tokens": tokens}
        known = {name: [getattr(run, name) for run in self.runs.values()] for name in wanted}
        return [
            f"{wanted[name]:.3g} {what}, the runs had {min(known[name]):.3g} to {max(known[name]):.3g}"
            for name, what in (("average", "average parameters"), ("tokens", "tokens"))
            if not min(known[name]) <= wanted[name] <= max(known[name])
        ]


def study(runs: Mapping[str, TrainingRun], resamples: int) -> LawFile:
    """Fit the law and what it is compared to."""
    measured = list(runs.values())
    check_runs(measured)
    counts = {count: assess(measured, count) for count in COUNTS}
    resampled = resample(measured, counts, resamples)
    shares, laws = chosen(resampled), [fitted["average"][0] for fitted in resampled]
    return LawFile(
        law=counts["average"].law,
        verdict=verdict(counts, shares),
        counts=counts,
        chosen=shares,
        resampled=laws,
        runs=dict(runs),
    )


def read_law(path: Path) -> LawFile:
    if not path.is_file():
        raise ValueError(f"law {path}: no such file; make it with winnow law fit RUNS --output {path}")
    try:
        return LawFile.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ValueError(explain(error, LawFile, f"law {path}")) from None


def gather(names: Sequence[str], store: Store) -> dict[str, TrainingRun]:
    """The runs that addresses and recipes name, with what they measured."""
    records = _records(names, store)
    losses = _measured(records, store, "heldout_loss", "perplexity")
    return {record.address: _run(record, losses[record.key]) for record in records.values()}


def activation(names: Sequence[str], store: Store) -> dict[str, tuple[float, float]]:
    """Tokens seen, and the share of neurons in use, of the runs that addresses and recipes name."""
    records = _records(names, store)
    silent = _measured(records, store, "activation_sparsity", "activation_sparsity")
    return {record.address: (_of(record, "training_tokens"), 1 - silent[record.key]) for record in records.values()}


def _records(names: Sequence[str], store: Store) -> dict[str, Record]:
    return {record.key: record for name in names for record in _finished(name, store)}


def _finished(name: str, store: Store) -> Iterable[Record]:
    if ARTIFACT.fullmatch(name) and not Path(name).is_file():
        record = store.find(name)
        if record.stage != "pretrain":
            raise ValueError(f"{record.address} is no run of pretrain; a law is fitted to pretraining alone")
        return [record]
    steps = [step for step in make_plan(load_recipe(name), store).steps if step.node.name == "pretrain"]
    if due := [step.id for step in steps if not step.cached]:
        raise ValueError(f"recipe {name}: {due[0]} is not finished ({len(due)} of {len(steps)}); winnow run {name} first")
    return [step.record for step in steps]


def _measured(records: Mapping[str, Record], store: Store, metric: str, evaluator: str) -> dict[str, float]:
    """A metric by the key of the model, all by one measurement: the same evaluator on the same text."""
    measurements: dict[str, dict[str, float]] = {}
    for evaluation in store.records("evaluate"):
        model, method = evaluation.parents.get("model"), evaluation.params.get("method")  # an older Winnow wrote none
        if model in records and method and metric in evaluation.metrics:
            how = canonical_json([method, evaluation.parents["data"]])
            measurements.setdefault(how, {})[model] = evaluation.metrics[metric]
    for key, record in records.items():
        if not any(key in measured for measured in measurements.values()):
            raise ValueError(f"{record.address} has no {metric}; put {evaluator} into evaluate of its recipe")
    shared = [how for how, measured in measurements.items() if len(measured) == len(records)]
    if records and not shared:
        raise ValueError(f"the runs were measured differently; evaluate them all with one {evaluator} on one prepared corpus")
    return measurements[min(shared)] if shared else {}


def _of(record: Record, metric: str) -> float:
    if metric not in record.metrics:
        raise ValueError(f"{record.address} does not tell its {metric}: an older Winnow made it; run it anew")
    return record.metrics[metric]


def _run(record: Record, loss: float) -> TrainingRun:
    initial = _of(record, "prunable_parameters")
    final = initial * (1 - _of(record, "sparsity"))
    return TrainingRun(initial, _of(record, "average_parameters"), final, _of(record, "training_tokens"), loss)
