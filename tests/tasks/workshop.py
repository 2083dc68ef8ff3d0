"""Makes artifacts in this process, as a Ray job would, without one: for tests of stages and of what reads artifacts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.store.artifacts import Artifact, Record
from cluster.store.local import LocalStore
from tasks.job import payload, produce
from tasks.stage import Stage, stage_class
from tests.tasks import data_zoo

EXECUTION = {"device": "cpu", "engine": "torch", "precision": "float32", "micro_batch": 8}
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
LLAMA = {"architecture": {"model_type": "llama", "max_position_embeddings": 128, **SIZES}}
TRAINING = {"tokens": 5_120, "length": 32, "batch": 8}  # twenty dense steps
CALIBRATION = {"sequences": 8, "length": 32, "batch": 4}


@dataclass
class Workshop:
    """A store and a scratch of its own below ``root``."""

    root: Path

    @property
    def store(self) -> LocalStore:
        return LocalStore(self.root / "store")

    def artifact(self, stage: Stage, parents: dict[str, Record]) -> Artifact:
        params = stage.parameters()
        if fingerprints := stage.fingerprints():
            params["fingerprints"] = fingerprints
        keys = {role: record.key for role, record in parents.items()}
        return Artifact(stage.stage_name(), stage.version, stage.label, params, keys)

    def make(self, name: str, fields: dict[str, Any], **parents: Record) -> Record:
        """Produce one artifact; what is there already is not made again."""
        stage = stage_class(name).model_validate(fields)
        artifact = self.artifact(stage, parents)
        addresses = {role: record.address for role, record in parents.items()}
        produce(payload(stage, artifact, addresses, EXECUTION, str(self.root / "store"), str(self.root / "scratch")))
        return self.store.require(artifact)

    def measure(self, evaluators: dict[str, Any], **parents: Record) -> dict[str, float]:
        """All numbers of some evaluators, each an artifact of its own."""
        made = [self.make("evaluate", {"method": {name: fields}}, **parents) for name, fields in evaluators.items()]
        return {name: value for record in made for name, value in record.metrics.items()}

    def data(self, **fields: Any) -> Record:
        pattern = data_zoo.write_texts(self.root / "texts", 40)
        return self.make("prepare", {"corpus": {"files": {"paths": [pattern]}}, "tokenizer": {"train": 300}, **fields})

    def path(self, record: Record) -> Path:
        return self.store.fetch(record)
