"""Masks: bit-packed, named, with the pattern they promise, in a file of their own beside the weights.

A mask cannot be recovered from the weights (a weight that was just grown is zero and alive), so it is stored by itself. One
safetensors file holds one packed uint8 tensor per weight; shape, pattern and sparsity of each stand in its metadata.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from tasks.formats.pattern import Pattern, parse_pattern


class BrokenMask(ValueError):
    """A mask's promise is broken: names the linear and says what broke."""

    def __init__(self, linear: str, reason: str) -> None:
        super().__init__(f"mask of {linear} is broken: {reason}")
        self.linear, self.reason = linear, reason


KEY = ":keep"  # behind a weight's name, so that no loader takes its mask for it
_POWERS = (1, 2, 4, 8, 16, 32, 64, 128)


def pack(keep: torch.Tensor) -> torch.Tensor:
    """bool of any shape -> uint8 [ceil(numel / 8)], least significant bit first, padded with 0."""
    if keep.device.type == "cpu":
        return torch.from_numpy(np.packbits(keep.flatten().numpy(), bitorder="little"))
    bits = keep.flatten().to(torch.uint8)
    bits = torch.nn.functional.pad(bits, (0, -bits.numel() % 8)).view(-1, 8)
    return (bits * torch.tensor(_POWERS, dtype=torch.uint8, device=keep.device)).sum(1, dtype=torch.uint8)


def unpack(packed: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Inverse of :func:`pack`."""
    if packed.device.type == "cpu":
        unpacked = np.unpackbits(packed.numpy(), count=torch.Size(shape).numel(), bitorder="little")
        return torch.from_numpy(unpacked).view(torch.bool).view(shape)
    powers = torch.tensor(_POWERS, dtype=torch.uint8, device=packed.device)
    bits = (packed[:, None] & powers) != 0
    return bits.flatten()[: torch.Size(shape).numel()].view(shape)


@dataclass(frozen=True)
class Mask:
    """One weight's mask in the weight's [out, in] view: packed bits, and the promise (pattern, sparsity) they keep.

    A fused stack of expert matrices has shape [experts, out, in]; each matrix keeps the promise by itself, but for those
    in ``exempt``, of which none is made: experts that were left dense.
    """

    packed: torch.Tensor
    shape: tuple[int, ...]
    pattern: str
    sparsity: float
    exempt: tuple[int, ...] = ()

    @classmethod
    def of(cls, keep: torch.Tensor, pattern: Pattern | str, sparsity: float, exempt: Collection[int] = ()) -> Mask:
        return cls(pack(keep).cpu(), tuple(keep.shape), str(pattern), float(sparsity), tuple(exempt))

    @property
    def keep(self) -> torch.Tensor:
        return unpack(self.packed, self.shape)

    def on(self, device: torch.device) -> torch.Tensor:
        """:attr:`keep` there: bits travel, and are unpacked where they arrive."""
        return unpack(self.packed.to(device), self.shape)

    @cached_property
    def live(self) -> int:
        return int(np.bitwise_count(self.packed.cpu().numpy()).sum(dtype=np.int64))

    @property
    def numel(self) -> int:
        return torch.Size(self.shape).numel()

    def promised(self, values: torch.Tensor) -> torch.Tensor:
        """[matrices, out, in]: those matrices of ``values``, which has the mask's shape, that keep the promise."""
        matrices = values.reshape(-1, *self.shape[-2:])
        kept = [index for index in range(len(matrices)) if index not in self.exempt]
        return matrices[kept] if self.exempt else matrices

    def broken(self) -> str | None:
        """Why the mask breaks its own promise, or None."""
        pattern = parse_pattern(self.pattern)
        if all(pattern.holds(matrix, self.sparsity) for matrix in self.promised(self.keep)):
            return None
        return f"pattern {self.pattern} at sparsity {self.sparsity:g} does not hold"


Masks = Mapping[str, Mask]


def save_masks(masks: Masks, path: Path) -> None:
    from safetensors.torch import save_file

    promises = {
        name: {"shape": list(mask.shape), "pattern": mask.pattern, "sparsity": mask.sparsity}
        | ({"exempt": list(mask.exempt)} if mask.exempt else {})
        for name, mask in sorted(masks.items())
    }
    path.parent.mkdir(exist_ok=True)
    save_file({name + KEY: masks[name].packed.cpu() for name in promises}, path, {"masks": json.dumps(promises)})


def load_masks(path: Path, names: Collection[str] | None = None) -> dict[str, Mask]:
    """The masks in a file, or those of ``names`` it has; none when the file is absent (a dense model has none)."""
    from safetensors import safe_open

    if not path.exists():
        return {}
    with safe_open(path, "pt") as file:
        promises = json.loads((file.metadata() or {})["masks"])
        return {
            name: Mask(
                file.get_tensor(name + KEY),
                tuple(promise["shape"]),
                promise["pattern"],
                promise["sparsity"],
                tuple(promise.get("exempt", ())),
            )
            for name, promise in promises.items()
            if names is None or name in names
        }
