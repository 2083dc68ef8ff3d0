"""A model artifact as a plain Hugging Face directory: what a user hands on."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from cluster.store.artifacts import Record
from cluster.store.local import Store
from tasks.models.build.surgery import surgeries_of
from tasks.models.files.layout import MASKS


def export_model(store: Store, record: Record, directory: Path) -> None:
    """Write the model's weights by the names and in the shards the hub has, copy its companions and masks (which no loader
    takes for weights), and write a card that says how it was made. Surgeries, which plain transformers does not know, are
    undone, the last first."""
    if "config.json" not in record.files:
        raise ValueError(
            f"{record.address} is no model; choose one of the artifacts of pretrain, prune, recover, merge, quantize"
        )
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ValueError(f"{directory} is there already; choose a new directory")
    source = store.fetch(record)
    surgeries = surgeries_of(json.loads((source / "config.json").read_text()))
    if lasting := [surgery.name for surgery in surgeries if not surgery.undone]:
        raise ValueError(
            f"{record.address} has the surgery {lasting[0]}, which plain transformers does not load and which "
            "cannot be undone; choose a model without it"
        )
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".undone-") as scratch:
        _write(_undone(source, len(surgeries), Path(scratch)), directory)
    (directory / "README.md").write_text(model_card(store, record, directory, [surgery.undone for surgery in surgeries]))


def _undone(model: Path, surgeries: int, scratch: Path) -> Path:
    """The model directory without its last ``surgeries``."""
    from tasks.models.files.resizing import undo_last  # brings torch, so after what is refused

    for number in range(surgeries):
        before = scratch / str(number)
        undo_last(model, before)
        model = before
    return model


def _write(model: Path, directory: Path) -> None:
    from tasks.models.files.layout import NAMES, copy_companions
    from tasks.models.files.names import write_as_on_hub

    write_as_on_hub(model, directory)
    copy_companions(model, directory, skip={NAMES})
    if (model / MASKS).exists():
        (directory / MASKS).parent.mkdir()
        shutil.copyfile(model / MASKS, directory / MASKS)


def model_card(store: Store, record: Record, directory: Path, notes: list[str]) -> str:
    """Of the model in ``directory``: front matter, lineage from this model back to the data, and everything measured of it."""
    measured = dict(record.metrics)
    for other in store.records("evaluate"):
        if other.parents.get("model") == record.key:
            measured |= other.metrics
    rows = "\n".join(f"| {name} | {value:.6g} |" for name, value in sorted(measured.items()))
    chain = _lineage(store, record)
    steps = [f"`{address}`" + ("" if step else " (its record cannot be read any more)") for address, step in chain.items()]
    lineage = "\n".join(f"{number}. {step}" for number, step in enumerate(steps, 1))
    config = json.loads((directory / "config.json").read_text())
    masks = (
        f"\n`{MASKS}` holds the sparsity masks, one bit per weight; transformers does not need it."
        * (directory / MASKS).exists()
    )
    params = json.dumps(record.params, indent=2)
    note = "".join(f"\n{line}" for line in dict.fromkeys(notes)) + "".join(map(_blind, chain.values()))
    return f"""---
library_name: transformers
tags: [winnow, sparse]
---
# {record.address}

A language model made by Winnow. Load it with `AutoModelForCausalLM.from_pretrained`{_needs(config)}.{masks}{note}

## Measured

| metric | value |
|---|---|
{rows}

## Lineage

{lineage}

## Parameters of the last stage

```json
{params}
```
"""


def _needs(config: dict[str, Any]) -> str:
    """What has to be installed beside transformers, for weights that are codes."""
    method = config.get("quantization_config", {}).get("quant_method")
    return f", with `{method}` installed (`pip install {method}`): its weights are quantized" if method else ""


def _blind(step: Record | None) -> str:
    """A warning where a stage of the lineage decided without data."""
    if not (step and (count := step.metrics.get("unseen_matrices"))):
        return ""
    return f"\n\nNo calibration token reached {count:.0f} matrices (experts) in `{step.address}`; nothing was measured of them."


def _lineage(store: Store, record: Record) -> dict[str, Record | None]:
    """The chain of artifacts from the data to this model by address, each once. One that was discarded or damaged since ends
    it, with no record."""
    chain: dict[str, Record | None] = {}
    for address in record.parent_addresses.values():
        parent = store.sound(address)
        chain |= _lineage(store, parent) if parent else {address: None}
    return chain | {record.address: record}
