"""A recipe for tests, edited in place, and artifacts published without the work."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

from cluster.store.artifacts import Record
from cluster.store.local import LocalStore
from flows.plan import Plan, Step, make_plan
from flows.recipe import Recipe, parse_recipe

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
HUB = {"hub": {"dataset": "a/b", "revision": 40 * "c", "documents_at_most": 5}}  # fingerprinted without reading anything
BASE: dict[str, Any] = {
    "name": "tiny",
    "model": {"architecture": {"model_type": "llama", **SIZES}},
    "evaluate": {"size": {}, "speed": {}},
    "stages": [
        {"prepare": {"corpus": HUB, "tokenizer": {"train": 300}}},
        {"pretrain": {"method": "dense", "tokens": 10_000}},
        {"prune": {"method": "wanda", "pattern": "2:4"}},
        {"recover": {"tokens": 10_000}},
        {"quantize": {"method": {"gptq": {"group_size": 64}}}},
    ],
}


def recipe(*stages: dict[str, Any], **header: Any) -> Recipe:
    """BASE with other stages (its own where none are given) and other header fields."""
    document = {**copy.deepcopy(BASE), **header, **({"stages": list(stages)} if stages else {})}
    return parse_recipe(document, yaml.safe_dump(document))


def plan(store: LocalStore, *stages: dict[str, Any], **header: Any) -> Plan:
    return make_plan(recipe(*stages, **header), store)


def publish(store: LocalStore, step: Step, source: Path, seconds: float = 1.0, **metrics: float) -> Record:
    """The artifact of a step, with one file in it and nothing computed."""
    source.mkdir(parents=True, exist_ok=True)
    (source / "file").write_text(step.id)
    return store.publish(step.artifact, source, metrics, seconds, step.parent_addresses, {})
