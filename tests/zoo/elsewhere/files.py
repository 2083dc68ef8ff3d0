"""What is seen of an export without loading it: its files, its names, its bytes, and what lies beside the weights."""

from __future__ import annotations

import json
from collections import Counter

import torch
from case import Case, by_glob, few, stem

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
BUFFERS = ("e_score_correction_bias", "layer_scalar")  # stored, never trained
OWN = {"transformers_version", "quantization_config"}  # fields a config gets where it is written


def files_named(case: Case, export: str) -> str:
    """By glob, an export has the names of its source, each once, and no others, in no more files, with an index where it
    has several."""
    directory = case.directory(export)
    files, known = by_glob(directory), by_glob(case.directory("source"))
    given = Counter(name for names in files.values() for name in names)
    found, expected = {stem(name) for name in given}, {name for names in known.values() for name in names}
    placed = {(name, file) for file, names in files.items() for name in names}
    index = directory / "model.safetensors.index.json"
    indexed = placed if len(files) == 1 else set()
    if index.exists():
        indexed = set(json.loads(index.read_text())["weight_map"].items())
    reasons = {
        "lost": few(expected - found),
        "no names of the source": few(found - expected),
        "in two files": few(name for name, count in given.items() if count > 1),
        "more files than the source has": few(files) if len(files) > len(known) else "",
        "not as the index says": few(f"{name} in {file}" for name, file in placed ^ indexed),
    }
    return "; ".join(f"{what}: {which}" for what, which in reasons.items() if which)


def bytes_kept(case: Case, export: str) -> str:
    """Pruning changes nothing but what its masks cover; training keeps dtypes and buffers; quantization only packs."""
    if export == "quantized":
        return _same(case.weights("recovered"), case.weights(export), {stem(name) for name in _packed(case)})
    source, made = case.weights("source"), case.weights(export)
    if odd := [name for name in source.keys() & made.keys() if not _alike(source[name], made[name])]:
        return f"another dtype or shape: {few(f'{name} {made[name].dtype}' for name in odd)}"
    if export == "recovered":
        fixed = {name for name in source if name.rpartition(".")[2] in BUFFERS or name == case.facts["further"]}
        return _same(source, made, source.keys() - fixed)
    changed = [name for name in source if name in made and not _equal(source[name], made[name])]
    if odd := [name for name in changed if not ((made[name] == 0) | (made[name] == source[name])).all()]:
        return f"neither zero nor as it was: {few(odd)}"
    covered = sum(made[name].numel() for name in changed)
    return "" if covered == case.masked[export] else f"{covered} weights changed, the masks cover {case.masked[export]}"


def _packed(case: Case) -> list[str]:
    return [name for name in case.weights("quantized") if stem(name) != name]


def _alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return _alike(one, other) and torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def _same(source: dict[str, torch.Tensor], made: dict[str, torch.Tensor], apart: set[str]) -> str:
    odd = [name for name in source.keys() - apart if name not in made or not _equal(source[name], made[name])]
    return f"not the bytes they were: {few(odd)}" if odd else ""


def companions_kept(case: Case, export: str) -> str:
    """Whatever else lies beside the source's weights lies beside the export's: both stop tokens, template, processor."""
    source, made = case.directory("source"), case.directory(export)
    weights = {path for pattern in WEIGHTS for path in source.glob(pattern)}
    reasons = []
    for path in sorted(set(source.iterdir()) - weights):
        other = made / path.name
        if not other.exists():
            reasons.append(f"no {path.name}")
        elif path.name in ("config.json", "generation_config.json"):
            before, after = json.loads(path.read_text()), json.loads(other.read_text())
            odd = sorted(key for key in (before.keys() | after.keys()) - OWN if before.get(key) != after.get(key))
            reasons += [f"{path.name}: {key} {before.get(key)!r} became {after.get(key)!r}" for key in odd[:2]]
        elif path.read_bytes() != other.read_bytes():
            reasons.append(f"{path.name} differs")
    return "; ".join(reasons)
