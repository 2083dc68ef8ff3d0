"""Where a scale of inputs can be folded away: into what makes them, so that the block computes what it did before.

The inputs of some matrices are divided, feature by feature, and the matrices' columns multiplied by the same. That changes
nothing, provided that whatever makes the inputs can make them smaller: a norm by its weights, a matrix by its rows if all
that follows it up to there is linear in them. Which is so is not told by names: a candidate is scaled by powers of two, which
no floating point rounds, and the block has to compute on a batch of calibration text what it did. A norm that a router or a
residual reads too, or a matrix before an activation, fails that.

Shapes: B = batch, T = tokens, D = hidden features, O = output features, I = input features.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from tasks.calibrate.method import BlockView

LEFT = 1e-2  # what a true fold may leave of the change that scaling the columns alone makes


@dataclass(frozen=True)
class Fold:
    """``consumers`` are the matrices that read the same inputs, and ``source`` what makes those: a norm of the block, or a
    matrix, by parameter name. ``offset`` tells norms that multiply by one more than their weights; a bias is what it is."""

    consumers: tuple[str, ...]
    source: str
    norm: bool
    offset: bool = False

    def apart(self, view: BlockView, scale_I: torch.Tensor) -> dict[str, torch.Tensor]:
        """The values of ``source``, and of a bias beside it, that give inputs divided by a scale each."""
        module = self.source.removesuffix(".weight")
        own = view.module.get_submodule(module.removeprefix(view.prefix)).named_parameters(recurse=False)
        values = {f"{module}.{key}": value.data for key, value in own}
        values |= {name: view.matrices[name] for name in values if name in view.matrices}
        offset = f"{module}.weight" if self.offset else None
        return {name: _divided(value, scale_I.to(value.device), float(name == offset)) for name, value in values.items()}


def _divided(value: torch.Tensor, scale_I: torch.Tensor, shift: float) -> torch.Tensor:
    """Weights or a bias that give outputs divided by a scale each, where ``shift`` is added to them before they are used."""
    scale = scale_I[:, None] if value.ndim == 2 else scale_I
    return ((value.float() + shift) / scale - shift).to(value.dtype)


def find_folds(view: BlockView, sources: Literal["norms", "any"] = "any") -> list[Fold]:
    """Those of a block, at most one for the inputs of each matrix, no source twice; there is calibration text."""
    base_BTD, found = next(iter(view.run(1))).float(), list[Fold]()
    for consumers in readers_of_one_input(view):
        width = view.matrices[consumers[0]].shape[1]
        choices_I = torch.randint(3, (width,), generator=torch.Generator().manual_seed(width))
        scale_I = torch.tensor([0.5, 1.0, 2.0])[choices_I].to(base_BTD.device)
        columns = {name: view.matrices[name] * scale_I.to(view.matrices[name].dtype) for name in consumers}
        alone = _change(view, columns, base_BTD)
        for fold in _candidates(view, consumers, {fold.source for fold in found}):
            if (fold.norm or sources == "any") and _change(view, columns | fold.apart(view, scale_I), base_BTD) <= LEFT * alone:
                found.append(fold)
                break
    return found


def readers_of_one_input(view: BlockView) -> list[tuple[str, ...]]:
    """The matrices of a block by what they read, experts left out: which of them a token reaches differs."""
    groups: dict[int, list[str]] = {}
    for name in view.matrices:
        if name in view.statistics:
            groups.setdefault(id(view.statistics[name]), []).append(name)
    return [tuple(names) for names in groups.values() if not any("[" in name for name in names)]


def _candidates(view: BlockView, consumers: tuple[str, ...], used: Collection[str]) -> Iterator[Fold]:
    """Norms of the right width, and matrices beside the consumers that make as many features."""
    width = view.matrices[consumers[0]].shape[1]
    for path, module in view.module.named_modules():
        own, name = dict(module.named_parameters()), f"{view.prefix}{path}.weight"
        vectors = "weight" in own and all(value.ndim == 1 and value.numel() == width for value in own.values())
        if vectors and name not in used:
            yield from (Fold(consumers, name, True, offset) for offset in (False, True))
    around = {_around(name) for name in consumers}
    for name, weight_OI in view.matrices.items():
        if len(weight_OI) == width and name not in consumers and name not in used and _around(name) in around:
            yield Fold(consumers, name, False)


def _around(name: str) -> str:
    """The module around that of a parameter."""
    return name.rsplit(".", 2)[0]


def _change(view: BlockView, values: Mapping[str, torch.Tensor], base_BTD: torch.Tensor) -> float:
    """How far the block's output on the first batch would move with other values of some parameters; they are put back."""
    parameters = {view.prefix + name: parameter.data for name, parameter in view.module.named_parameters()}
    places = {name: view.matrices[name] if name in view.matrices else parameters[name] for name in values}
    before = {name: place.clone() for name, place in places.items()}
    try:
        for name, place in places.items():
            place.copy_(values[name])
        return float(torch.linalg.vector_norm(next(iter(view.run(1))).float() - base_BTD))
    finally:
        for name, place in places.items():
            place.copy_(before[name])
