"""The checks of every model artifact, on its files: exactly the tensors its config asks for, and masks that hold.

The seam between stages holds every stage to it before anything is published, and ``winnow verify`` asks it again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from tasks.formats.mask import BrokenMask, Mask, Masks, load_masks
from tasks.models.files.layout import MASKS
from tasks.models.files.names import Naming, check_fits, hub_names
from tasks.models.files.quantized import StoredWeights
from tasks.models.find.linears import Linear, find_linears


@dataclass(frozen=True)
class Checked:
    """A model directory that keeps its promises: its masks, and how many weights masks could take."""

    masks: dict[str, Mask]
    prunable: int

    @property
    def sparsity(self) -> float:
        """Dead share of all prunable weights, masked or not."""
        return sum(mask.numel - mask.live for mask in self.masks.values()) / self.prunable


def check_model(directory: Path) -> Checked:
    """Raise ValueError where a tensor is missing, unknown or of another shape, or a mask's promise is broken."""
    weights = StoredWeights(Path(directory))
    linears = find_linears(weights.skeleton)
    check_tensors(weights)
    return Checked(_check_masks(weights, linears), sum(math.prod(linear.shape) for linear in linears.values()))


def check_tensors(weights: StoredWeights) -> None:
    """The stored tensors are those of the model and what its source had beside them: a strict load, without the loading."""
    directory, names = weights.files.directory, weights.names()
    shapes = {name: weights.files.shape(name) if name in weights.files else None for name in names}
    check_fits(directory, shapes, weights.skeleton)
    known = {*weights.skeleton.state_dict(), *weights.cache_scales, *Naming.of(weights.skeleton, hub_names(directory)).extra}
    if unknown := sorted(names - known):
        raise ValueError(
            f"{directory} does not fit its config: it stores {unknown[0]}, which neither the architecture nor its "
            f"source has ({len(unknown)} such names)"
        )


def check_masks(directory: Path) -> dict[str, Mask]:
    """Verify every promise of a directory's masks against its stored weights, tensor by tensor; return the masks."""
    weights = StoredWeights(Path(directory))
    return _check_masks(weights, find_linears(weights.skeleton))


def _check_masks(weights: StoredWeights, linears: dict[str, Linear]) -> dict[str, Mask]:
    masks = load_masks(weights.files.directory / MASKS)
    for name, mask in masks.items():
        if name not in linears or name not in weights:
            raise BrokenMask(name, f"{weights.files.directory} has no such weight")
        matrix = linears[name].matrix(weights.read(name))
        if tuple(matrix.shape) != mask.shape:
            raise BrokenMask(name, f"its shape is {list(mask.shape)}, the weight's is {list(matrix.shape)}")
        if reason := mask.broken():
            raise BrokenMask(name, reason)
        if alive := int((matrix[~mask.keep] != 0).sum()):
            raise BrokenMask(name, f"{alive} dead weights are not zero")
    return masks


def require_subset(child: Masks, parent: Masks) -> None:
    """No mask bit may come back to life: what is dead in ``parent`` is dead in ``child``."""
    for name, mask in parent.items():
        if name not in child:
            raise BrokenMask(name, "the mask was lost")
        if child[name].shape != mask.shape:
            raise BrokenMask(name, f"its shape changed from {list(mask.shape)} to {list(child[name].shape)}")
        if revived := int((child[name].keep & ~mask.keep).sum()):
            raise BrokenMask(name, f"{revived} dead weights were revived")
