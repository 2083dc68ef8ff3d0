"""What a stored weight costs, nothing left out: its value, which of them live, and the scales they share.

Counted on the files themselves, plain or compact, from what their headers say.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tasks.models.files.checkpoint import skeleton
from tasks.models.files.layout import MASKS
from tasks.models.files.names import Naming
from tasks.models.files.shards import TensorFiles, header
from tasks.models.find.linears import find_linears

_BESIDE = ("packed", "scale", "zero_point", "shape", "global_scale", "g_idx")  # stored as weight_PART


@dataclass(frozen=True)
class Bits:
    """Bytes of the prunable matrices by what they are for (``values``, ``index``, ``scales``), of all else and of headers, for
    ``weights`` prunable weights of ``parameters``."""

    weights: int
    parameters: int
    bytes: Counter[str]

    def each(self, *kinds: str) -> float:
        """Bits per prunable weight."""
        return 8 * sum(self.bytes[kind] for kind in kinds or ("values", "index", "scales")) / self.weights

    @property
    def total(self) -> int:
        return self.bytes.total()


def bits_of(plain: Path, compact: Path | None = None) -> Bits:
    """Those of a plain model directory, or of the compact artifact made from it."""
    model, files = skeleton(plain), TensorFiles(plain)
    linears = find_linears(model)
    weights = {name: _weight(name) for name in files}
    naming = Naming.of(model, set(weights.values()))
    own = {**naming.own, **{hub: name for name, sources in naming.converted.items() for hub, _ in sources}}
    paths = sorted(compact.glob("sparse/*.safetensors")) if compact else [*files.files(), *plain.glob(MASKS)]
    counted: Counter[str] = Counter()
    for path in paths:
        entries, _, start = header(path)
        counted["headers"] += start
        for stored, entry in entries.items():
            name, _, part = stored.partition(":")
            size = entry["data_offsets"][1] - entry["data_offsets"][0]
            counted[_kind(name, part, own.get(weights.get(name, ""), "") in linears)] += size
    prunable = sum(math.prod(linear.shape) for linear in linears.values())
    return Bits(prunable, sum(parameter.numel() for parameter in model.parameters()), counted)


def _weight(name: str) -> str:
    """The weight that a stored tensor belongs to."""
    module, _, leaf = name.rpartition(".")
    return f"{module}.weight" if leaf.removeprefix("weight_") in _BESIDE else name


def _kind(name: str, part: str, prunable: bool) -> str:
    if part in ("index", "keep"):
        return "index"
    if not prunable:
        return "rest"
    return "values" if name.endswith((".weight", ".weight_packed")) or "weight_" not in name.rpartition(".")[2] else "scales"
