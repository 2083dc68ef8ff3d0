"""Pipelines told to a real MLflow as a run tells them, with numbers instead of work: finished, cached, failed, running."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.profile import Profile
from cluster.ray.events import Metrics, to_json
from cluster.store.artifacts import Record
from cluster.store.local import LocalStore
from flows.chronicle import Chronicle
from flows.plan import Plan, Step
from flows.summary import summarise
from tests.flows.recipes import BASE, plan

STAGES = {  # what each comes to: perplexity, bytes, sparsity, seconds
    "prepare": (0.0, 0, 0.0, 2.0),
    "pretrain": (64.0, 8_000_000, 0.0, 120.0),
    "prune": (70.0, 8_000_000, 0.5, 6.0),
    "recover": (62.0, 8_000_000, 0.5, 40.0),
    "quantize": (63.0, 2_500_000, 0.5, 9.0),
}
EVALUATE = {"perplexity": {}, "size": {}, "speed": {}}
BLOCKS = 4


class Teller:
    """Tells one MLflow of runs. ``shift`` makes a run's models other than the last ones'."""

    def __init__(self, uri: str, directory: Path) -> None:
        self.store, self.directory = LocalStore(directory / "store"), directory
        self.profile = Profile(mlflow={"tracking_uri": uri})

    def plan(self, name: str = "tiny", require: tuple[str, ...] = (), **changes: Mapping[str, Any]) -> Plan:
        """BASE with fields of some stages changed."""
        stages = copy.deepcopy(BASE["stages"])
        for stage in stages:
            for kind, fields in stage.items():
                fields.update(changes.get(kind, {}))
        return plan(self.store, *stages, name=name, evaluate=EVALUATE, require=list(require))

    def run(self, made: Plan, shift: float = 1.0, ends: str = "FINISHED", until: str = "", flow: str = "none") -> Chronicle:
        """Tell of a plan; up to a stage, which is then left running where ``ends`` is empty."""
        chronicle = Chronicle.open(made, self.store, self.profile, {"prefect.flow_run_id": flow})
        for step in made.steps:
            chronicle.started(step)
            if (step.node.measures or step.id) == until:
                self._curve(chronicle, step)
                if ends == "FAILED" and not step.node.measures:
                    chronicle.failed(step, RuntimeError(f"{step.id}: out of memory"))
                break
            record = step.record or self._publish(step, shift)
            chronicle.finished(step, record, 1.0)
        if ends:
            chronicle.close(summarise(made, chronicle.records, {}, 0.0), ends)
        return chronicle

    def _curve(self, chronicle: Chronicle, step: Step) -> None:
        for event in curve(1.0, 5):
            chronicle.event(step, event)
        chronicle.tracking.flush()

    def _publish(self, step: Step, shift: float) -> Record:
        source = self.directory / "made" / step.artifact.key
        (source / "report").mkdir(parents=True)
        (source / "file").write_text(step.id)
        owner = step.node.measures or step.id
        perplexity, size, sparsity, seconds = STAGES[owner]
        metrics: dict[str, float] = {}
        if step.node.measures:
            if step.id.endswith("size"):
                metrics = {"bytes": size * shift, "parameters": 2e6}
            elif step.id.endswith("perplexity"):
                value = perplexity * (1.0 if owner == "pretrain" else 2 - shift)
                metrics = {"perplexity": value, "perplexity_low": value - 1, "perplexity_high": value + 1}
            else:
                metrics = {"decode_tokens_per_second": 900.0 / shift, "prefill_tokens_per_second": 9000.0}
        elif step.node.stage.yields == "model":
            metrics = {"sparsity": sparsity}
            self._report(source / "report", sparsity, owner)
        if owner in ("pretrain", "recover") and not step.node.measures:
            metrics |= {"training_flops": 1e12 * shift, "training_tokens": 20_480.0, "training_loss": math.log(perplexity)}
            events = "".join(json.dumps(to_json(event)) + "\n" for event in curve(shift, 20))
            (source / "report" / "history.jsonl").write_text(events)
        return self.store.publish(step.artifact, source, metrics, seconds * shift, step.parent_addresses, {})

    def _report(self, report: Path, sparsity: float, owner: str) -> None:
        names = [
            f"model.layers.{block}.{kind}.weight" for block in range(BLOCKS) for kind in ("self_attn.q_proj", "mlp.up_proj")
        ]
        if sparsity:
            (report / "sparsity.json").write_text(json.dumps(dict.fromkeys(names, sparsity)))
        if owner in ("prune", "quantize"):
            rows = [{"index": block, "error": 0.01 * (block + 1)} for block in range(BLOCKS)]
            (report / "walk.json").write_text(json.dumps(rows))


def curve(shift: float, points: int) -> list[Metrics]:
    """A loss that falls."""
    return [
        Metrics(step, {"loss": 4.0 + 3.0 * shift / step, "tokens": 1024.0 * step}, timestamp=1_700_000_000_000 + 1000 * step)
        for step in range(1, points + 1)
    ]
