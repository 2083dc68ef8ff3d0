"""The card of an exported model: how good and how large it is, how it was made, how to load it, and what not to expect."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.store.artifacts import Record
from cluster.store.local import Store
from tasks.methods import load, names
from tasks.metrics import METRICS
from tasks.models.files.layout import MASKS

if TYPE_CHECKING:
    from tasks.models.files.bits import Bits

ZEROS = (
    "Zeros in a matrix take as long to multiply as other numbers, and vLLM has no kernels for sparse weights any more: they "
    "make this model "
)
CODED = "smaller, not faster."
STORED = "no faster, and no smaller either, stored as other numbers are: `winnow export --compact` codes them."
CODES = (
    "Quantized weights decode faster where a runtime multiplies them as they are stored, which transformers does not: it "
    "unpacks them first."
)
MEASURED = "A speed above, where there is one, was measured in transformers."
VLLM = "vLLM reads the same directory: `vllm serve DIR`."
UNTRIED = (
    "vLLM reads the form of this directory, and has kernels for weights of 4 and 8 bits, and for 8 bits whose inputs are "
    "rounded too. Whether yours has them for {} depends on its version and its device: try `vllm serve DIR`."
)


def model_card(store: Store, record: Record, directory: Path, bits: Bits, notes: Iterable[str]) -> str:
    """Of the model in ``directory``: front matter, everything measured of it, bytes, lineage back to the data, and use."""
    chain = _lineage(store, record)
    config = json.loads((directory / "config.json").read_text())
    tags = ["winnow", *(["sparse"] if record.metrics.get("sparsity") else []), *(["quantized"] if _groups(config) else [])]
    remarks = [*dict.fromkeys(notes), *filter(None, map(_blind, chain.values()))]
    return f"""---
library_name: transformers
tags: [{", ".join(tags)}]
---
# {record.address}

A language model made by Winnow.{_masks(directory)}{"".join(f" {remark}" for remark in remarks)}

## Measured

{_measured(store, record)}

## Size

{_size(bits, directory)}

## Use

{_use(config, directory)}

{" ".join([_zeros(directory)] * ("sparse" in tags) + [CODES] * ("quantized" in tags) + [MEASURED])}

## Lineage

{_steps(chain)}

## Parameters of the last stage

```json
{json.dumps(_params(record), indent=2)}
```
"""


def _params(record: Record) -> dict[str, Any]:
    """Of what made the model. What a regime says of its own objective counts for nothing where the stage was given another."""
    if not record.params.get("objective"):
        return record.params
    ((name, fields),) = record.params["method"].items()
    unread = load("regimes", name).objective_fields if name in names("regimes") else ()
    return {**record.params, "method": {name: {field: value for field, value in fields.items() if field not in unread}}}


def _measured(store: Store, record: Record) -> str:
    """All that was measured of the model, and the same of the model that its last stage began from."""
    parent = record.parents.get("model", "")
    records = list(store.records("evaluate"))
    own, before = ({**_of(key, records)} for key in (record.key, parent))
    made = store.sound(record.parent_addresses["model"]) if parent else None
    own, before = {**record.metrics, **own}, {**(made.metrics if made else {}), **before}
    lines = [
        f"| {name} | {_number(value)} | {_number(before[name]) if name in before else ''} | {_meaning(name)} |"
        for name, value in sorted(own.items())
    ]
    origin = f" `{record.parent_addresses['model']}` |" if parent else " the model before |"
    return "\n".join(["| metric | value |" + origin + " what it is |", "|---|---|---|---|", *lines])


def _number(value: float) -> str:
    """Counts and bytes in full, whatever was measured to six digits."""
    return f"{value:,.0f}" if abs(value) >= 1000 and value == round(value) else f"{value:.6g}"


def _of(key: str, evaluations: Iterable[Record]) -> dict[str, float]:
    return {name: value for each in evaluations if each.parents.get("model") == key for name, value in each.metrics.items()}


def _meaning(name: str) -> str:
    """Of a metric, or of one of the parts that its name is followed by."""
    found = METRICS.get(name) or METRICS.get(name.partition(".")[0])
    return f"{found.meaning} ({found.unit})" if found else ""


def _size(bits: Bits, directory: Path) -> str:
    parts = {"values": "values", "index": "which of them live", "scales": "scales"}
    split = ", ".join(f"{bits.each(kind):.3f} {what}" for kind, what in parts.items() if bits.bytes[kind])
    lines = [
        ("weight and mask files", f"{bits.total:,} bytes"),
        ("bits per prunable weight", f"{bits.each():.3f}: {split}"),
        ("bits per parameter, all counted", f"{8 * bits.total / bits.parameters:.3f}"),
        ("prunable weights, of all parameters", f"{bits.weights:,} of {bits.parameters:,}"),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in lines)])


def _zeros(directory: Path) -> str:
    return ZEROS + (CODED if (directory / "sparse").exists() else STORED)


def _masks(directory: Path) -> str:
    if not (directory / MASKS).exists():
        return ""
    return f" `{MASKS}` holds the sparsity masks, one bit per weight; transformers does not need it."


def _use(config: Mapping[str, Any], directory: Path) -> str:
    method = config.get("quantization_config", {}).get("quant_method")
    needs = f", with `{method}` installed (`pip install {method}`): its weights are quantized" if method else ""
    first = (
        "The weights are in the compact form of Winnow. `python read_sparse.py` in this directory, which needs torch and "
        "safetensors, writes them as `model.safetensors`, bit for bit those that were coded; so does `winnow export --rebuild` "
        "in another directory, with the masks. Then load it as any model.\n\n"
        if (directory / "sparse").exists()
        else ""
    )
    return f"""{first}Load it with `AutoModelForCausalLM.from_pretrained`{needs}.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = AutoModelForCausalLM.from_pretrained("DIR", dtype="auto"), AutoTokenizer.from_pretrained("DIR")
```

{UNTRIED.format(odd) if (odd := _odd(config)) else VLLM}"""


def _groups(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list((config.get("quantization_config") or {}).get("config_groups", {}).values())


def _odd(config: Mapping[str, Any]) -> str:
    """What of a quantized model not every runtime of its form has kernels for; empty where there is nothing."""
    weights = [group["weights"] for group in _groups(config)]
    usual = [8] if any(group.get("input_activations") for group in _groups(config)) else [4, 8]
    odd = [f"{bits}-bit weights" for bits in sorted({each["num_bits"] for each in weights} - {*usual})]
    odd += ["zero points"] if any(not each["symmetric"] for each in weights) else []
    cache = (config.get("quantization_config") or {}).get("kv_cache_scheme")
    return " and ".join(odd + (["a cache of integers"] if cache and cache["type"] == "int" else []))


def _steps(chain: Mapping[str, Record | None]) -> str:
    lost = " (its record cannot be read any more)"
    steps = [f"`{address}`" + (f", key `{step.key}`" if step else lost) for address, step in chain.items()]
    return "\n".join(f"{number}. {step}" for number, step in enumerate(steps, 1))


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
