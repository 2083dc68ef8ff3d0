"""Bytes on disk and parameters, counted on the checkpoint's files."""

from __future__ import annotations

from typing import ClassVar

from tasks.evaluators import Candidate, Evaluator


class Size(Evaluator):
    """Bytes of the weight files and of the masks, parameters (live and in all), average bits per parameter."""

    paper: ClassVar[str] = "counted on the files"
    metrics: ClassVar[tuple[str, ...]] = ("bytes", "mask_bytes", "parameters", "live_parameters", "bits_per_parameter")

    def measure(self, candidate: Candidate) -> dict[str, float]:
        from tasks.formats.mask import load_masks
        from tasks.models.files.checkpoint import skeleton
        from tasks.models.files.layout import MASKS

        masks_file = candidate.directory / MASKS
        weight_bytes = sum(file.stat().st_size for file in candidate.directory.glob("model*.safetensors"))
        # a loaded quantized model counts its scales as parameters; the architecture does not
        parameters = sum(parameter.numel() for parameter in skeleton(candidate.directory).parameters())
        dead = sum(mask.numel - mask.live for mask in load_masks(masks_file).values())
        return {
            "bytes": weight_bytes,
            "mask_bytes": masks_file.stat().st_size if masks_file.exists() else 0,
            "parameters": parameters,
            "live_parameters": parameters - dead,
            "bits_per_parameter": 8 * weight_bytes / parameters,
        }
