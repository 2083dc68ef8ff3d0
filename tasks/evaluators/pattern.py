"""Whether the stored weights keep the promised pattern: counted on the files' tensors, not on the masks.

A quantized file is decompressed first, since that is what a model that loads it computes with.
"""

from __future__ import annotations

from typing import ClassVar

from tasks.evaluators import Candidate, Evaluator


class Pattern(Evaluator):
    """Share of stored zeros in the prunable matrices, and the share of N:M groups (or of matrices) that keep the pattern."""

    paper: ClassVar[str] = "counted on the files"
    metrics: ClassVar[tuple[str, ...]] = ("zero_weights", "pattern_holds")

    def measure(self, candidate: Candidate) -> dict[str, float]:
        from tasks.formats.mask import load_masks
        from tasks.formats.pattern import NM, parse_pattern
        from tasks.models.files.layout import MASKS
        from tasks.models.files.quantized import StoredWeights
        from tasks.models.find.linears import find_linears

        weights = StoredWeights(candidate.directory)
        masks = load_masks(candidate.directory / MASKS)
        zeros = numel = kept = units = 0
        for name, linear in find_linears(weights.skeleton).items():
            alive = linear.matrix(weights.read(name)) != 0
            zeros, numel = zeros + int((~alive).sum()), numel + alive.numel()
            if name not in masks:
                continue
            pattern, matrices = parse_pattern(masks[name].pattern), masks[name].promised(alive)
            if isinstance(pattern, NM):
                live = matrices.reshape(-1, pattern.m).sum(-1)
                kept, units = kept + int((live <= pattern.n).sum()), units + len(live)
            else:
                kept += sum(pattern.holds(matrix, masks[name].sparsity) for matrix in matrices)
                units += len(matrices)
        found = {"zero_weights": zeros / numel}
        return {**found, "pattern_holds": kept / units} if units else found
