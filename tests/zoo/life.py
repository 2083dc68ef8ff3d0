"""The life of one member: its checkpoint through the stages of a recipe, what comes out exported, and all that a process
which knows nothing of Winnow needs to judge the exports."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from cluster.profile import Profile, Resources
from cluster.store.artifacts import Record
from cluster.store.local import Store
from flows.export import export_model
from flows.plan import Plan, prepare
from flows.submit import Submitter
from tasks.data.tokenizer import load_tokenizer, train_tokenizer
from tasks.data.tokens import calibration_batches
from tasks.formats.mask import load_masks
from tasks.job import produce
from tasks.models.files.checkpoint import load_model
from tasks.models.files.layout import MASKS
from tests.tasks import data_zoo
from tests.zoo.members import VOCABULARY, Member, build

CALIBRATION = {"sequences": 16, "length": 32, "batch": 8}
TRAINING = {"tokens": 1_536, "length": 32, "batch": 8}  # six steps
PERPLEXITY = {"length": 32, "tokens": 1_024, "batch": 16}
PRUNED = ("pruned", "half")
MODELS = (*PRUNED, "recovered", "quantized")
TOKENS = torch.arange(64).view(2, 32) * 37 % VOCABULARY


@dataclass(frozen=True)
class Zoo:
    """A home for the members: one store, one corpus, one tokenizer."""

    root: Path

    @property
    def profile(self) -> Profile:
        place = {"store": str(self.root / "store"), "scratch": str(self.root / "scratch")}
        return Profile(name="zoo", engine="torch", device="cpu", stages={"default": Resources(cpus=1)}, **place)

    @property
    def corpus(self) -> dict[str, Any]:
        texts = {"files": {"paths": [str(self.root / "texts" / "*.txt")]}}
        return {"corpus": texts, "tokenizer": {"checkpoint": str(self.root / "tokenizer")}}

    def open(self) -> None:
        """Text, its tokenizer and its tokens, made once for all members."""
        data_zoo.write_texts(self.root / "texts", 60)
        texts = (path.read_text() for path in sorted((self.root / "texts").iterdir()))
        train_tokenizer(texts, VOCABULARY).save_pretrained(self.root / "tokenizer")
        plan, _ = prepare(yaml.safe_dump({"name": "zoo", "stages": [{"prepare": self.corpus}]}), self.profile)
        for step in plan.due:
            produce(Submitter(self.profile).payload(step), lambda event: None)


@dataclass
class Life:
    """One member on its way. ``failures`` says of a stage why it did not make its artifact."""

    zoo: Zoo
    member: Member
    failures: dict[str, str] = field(default_factory=dict)
    refusal: str = ""  # of quantization, before anything ran

    @property
    def home(self) -> Path:
        return self.zoo.root / "members" / self.member.name

    @cached_property
    def source(self) -> Path:
        directory = self.home / "source"
        build(self.member, directory, load_tokenizer(self.zoo.root / "tokenizer"))
        return directory

    def recipe(self, quantize: bool) -> str:
        prune = {"method": "wanda", **CALIBRATION}
        stages: list[dict[str, Any]] = [
            {"prepare": self.zoo.corpus},
            {"id": "half", "from": "prepare", "prune": {**prune, "sparsity": 0.5}},
            {"id": "pruned", "from": "prepare", "prune": {**prune, "pattern": "2:4"}},
            {"id": "recovered", "recover": TRAINING},
        ]
        if quantize:
            stages.append({"id": "quantized", "quantize": {"method": {"gptq": {"group_size": 16}}, **CALIBRATION}})
        evaluate = {"perplexity": PERPLEXITY}
        return yaml.safe_dump(
            {"name": "zoo", "model": {"checkpoint": str(self.source)}, "evaluate": evaluate, "stages": stages}
        )

    def plan(self) -> tuple[Plan, Store]:
        """With quantization, or without it where that is refused."""
        try:
            return prepare(self.recipe(quantize=True), self.zoo.profile)
        except ValueError as error:
            if "quantized" not in str(error):
                raise
            self.refusal = str(error)
            return prepare(self.recipe(quantize=False), self.zoo.profile)

    def run(self) -> Path:
        """All stages, all exports; the directory that holds what is to be judged."""
        plan, store = self.plan()
        for step in plan.due:
            if any(parent in self.failures for parent in step.node.parents.values()):
                self.failures[step.id] = ""
                continue
            try:
                produce(Submitter(self.zoo.profile).payload(step), lambda event: None)
            except Exception as error:  # of one stage of one member: it is told in the table
                self.failures[step.id] = said(error)
        records = {step.id: record for step in plan.steps if (record := store.record(step.artifact))}
        self._write_case(store, records)
        return self.home

    def _write_case(self, store: Store, records: dict[str, Record]) -> None:
        """Exports, and in case.json and two files of tensors what Winnow knows of them."""
        logits: dict[str, torch.Tensor] = {}
        exports = []
        for name in (name for name in MODELS if name in records):
            try:
                logits[name] = self._logits(store.fetch(records[name]), exact=name != "quantized")
                export_model(store, records[name], self.home / "exports" / name)
                exports.append(name)
            except Exception as error:  # as above
                self.failures[f"{name}.export"] = said(error)
        save_file(logits, self.home / "logits.safetensors")
        measured = {
            name: records[f"{name}.perplexity"].metrics["perplexity"] for name in exports if f"{name}.perplexity" in records
        }
        data = store.fetch(records["prepare"])
        case = {
            "exports": exports,
            "perplexity": measured,
            "windows": PERPLEXITY,
            "data": str(data),
            "further": self.member.further,
            "tokens": TOKENS.tolist(),
            "masked": self._write_masks({name: store.fetch(records[name]) for name in PRUNED if name in records}),
            "calibration": [batch.tokens.tolist() for batch in calibration_batches(data, *CALIBRATION.values(), seed=0)],
        }
        (self.home / "case.json").write_text(json.dumps(case))

    def _logits(self, artifact: Path, exact: bool) -> torch.Tensor:
        """What the artifact says of some tokens; in float32, where a rounded weight shows, unless it is quantized."""
        model = load_model(artifact, dtype=torch.float32 if exact else None)
        for parameter in model.parameters():  # products of unaligned matrices differ in the last bit
            parameter.data = parameter.data.clone()
        with torch.no_grad():
            return model(TOKENS, use_cache=False).logits.float().contiguous()

    def _write_masks(self, artifacts: dict[str, Path]) -> dict[str, int]:
        """The masks as plain tensors, 1 where a weight lives; how many weights they cover."""
        tensors, covered = {}, {}
        for name, artifact in artifacts.items():
            masks = load_masks(artifact / MASKS)
            covered[name] = sum(mask.numel for mask in masks.values())
            tensors |= {f"{name}:{linear}": mask.keep.to(torch.uint8) for linear, mask in masks.items()}
        save_file(tensors, self.home / "masks.safetensors")
        return covered


def said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
