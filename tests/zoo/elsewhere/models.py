"""What is seen of an export when plain transformers loads and runs it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from case import Case, few, stem
from torch import nn
from transformers.pytorch_utils import Conv1D


def loads_strictly(case: Case, export: str) -> str:
    """Nothing missing, nothing of another shape, and nothing unexpected but what the source has that is unexpected."""
    info, known = case.info(export), case.info("source")
    reasons = [f"{kind.removesuffix('_keys')}: {few(info[kind])}" for kind in ("missing_keys", "mismatched_keys") if info[kind]]
    if odd := set(info["unexpected_keys"]) - set(known["unexpected_keys"]):
        reasons.append(f"unexpected: {few(odd)}")
    if (dtype := case.model(export).dtype) != torch.bfloat16:
        reasons.append(f"its dtype is {dtype}")
    return "; ".join(reasons)


def logits_equal(case: Case, export: str) -> str:
    """The export says what the artifact says."""
    with torch.no_grad():
        said = case.model(export, exact=export != "quantized")(case.tokens, use_cache=False).logits.float()
    difference = float((said - case.logits[export]).abs().max())
    bound = 1e-5 * float(case.logits[export].abs().max())
    return "" if difference <= bound else f"differ from the artifact's by up to {difference:.3g}"


def perplexity_equal(case: Case, export: str) -> str:
    """The perplexity that was recorded is the one computed here from the held-out tokens. Products of bfloat16 matrices
    that lie otherwise in memory may be rounded otherwise, which shows in the seventh digit."""
    if export not in case.facts["perplexity"]:
        return "was not measured"
    computed, recorded = _perplexity(case, export), case.facts["perplexity"][export]
    return "" if abs(computed / recorded - 1) < 1e-5 else f"{recorded:.5f} recorded, {computed:.5f} computed"


def _perplexity(case: Case, export: str) -> float:
    length, most, batch = (case.facts["windows"][key] for key in ("length", "tokens", "batch"))
    files = sorted(case.home.__class__(case.facts["data"]).glob("heldout-*.npy"))
    rows = [np.load(file) for file in files]
    windows = np.concatenate([row[: len(row) // length * length].reshape(-1, length) for row in rows])[: most // length]
    total = 0.0
    for first in range(0, len(windows), batch):
        tokens = torch.from_numpy(windows[first : first + batch].astype(np.int64))
        with torch.no_grad():
            logits = case.model(export)(tokens, use_cache=False).logits.double()
        chosen = logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None])
        total -= float(chosen.sum())
    return math.exp(total / (len(windows) * (length - 1)))


def ties_kept(case: Case, export: str) -> str:
    """Head and embedding are one tensor where they were one in the source, and two where they were two."""
    source, made = case.model("source"), case.model(export)
    before, after = (model.get_output_embeddings().weight is model.get_input_embeddings().weight for model in (source, made))
    return "" if before == after else f"head and embedding were {'one' if before else 'two'} and are not now"


def groups_hold(case: Case, export: str) -> str:
    """In every matrix that pruning touched, every row lost exactly half, and by 2:4 every group of four lost two or more."""
    wide = export == "half"
    broken = []
    for name, matrix in (_codes(case) if export == "quantized" else _pruned(case, export)).items():
        units = matrix.reshape(-1, matrix.shape[-1] if wide else 4)
        live = (units != 0).sum(-1)
        if (live > units.shape[-1] // 2).any():
            broken.append(name)
    return f"too many weights live: {few(broken)}" if broken else ""


def _pruned(case: Case, export: str) -> dict[str, torch.Tensor]:
    """The matrices that the pruning of this line of models touched, with their inputs last."""
    touched = export if export == "half" else "pruned"
    before, pruned = dict(matrices(case.model("source"))), dict(matrices(case.model(touched)))
    after = dict(matrices(case.model(export)))
    return {name: after[name] for name in before if not torch.equal(before[name], pruned[name])}


def matrices(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Everything a matrix product may be made with, inputs last: linears, GPT-2's transposed ones, stacks of experts."""
    for path, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            if isinstance(module, nn.Linear) and key == "weight":
                yield f"{path}.{key}", parameter.detach()
            elif isinstance(module, Conv1D) and key == "weight":
                yield f"{path}.{key}", parameter.detach().T
            elif parameter.ndim == 3 and hasattr(module, "is_transposed"):
                yield f"{path}.{key}", parameter.detach().mT if module.is_transposed else parameter.detach()


def _codes(case: Case) -> dict[str, torch.Tensor]:
    """The packed integers, taken apart: eight signed four-bit codes to an int32, the lowest bits first."""
    weights, pruned = case.weights("quantized"), case.weights("pruned")
    codes = {}
    for name, packed in weights.items():
        if name.endswith("weight_packed"):
            nibbles = packed[..., None] >> torch.arange(0, 32, 4, dtype=torch.int32) & 0xF
            rows, columns = weights[f"{stem(name)}_shape"].tolist()
            codes[stem(name)] = nibbles.reshape(rows, -1)[:, :columns] - 8
    source = {name: weight for name, weight in case.weights("source").items() if weight.ndim >= 2 and name in pruned}
    touched = {name for name, weight in source.items() if not torch.equal(weight, pruned[name])}
    if odd := touched ^ codes.keys():
        raise ValueError(f"packed and pruned are not the same matrices: {few(odd)}")
    return codes
