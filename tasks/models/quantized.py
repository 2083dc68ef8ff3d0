"""Quantized checkpoints: written through compressed-tensors, so that they load in a process that never heard of us.

The walker leaves a dequantized model and, beside it, the grid of every matrix. Here the two become a packed
checkpoint of integers. Every export is read back through plain transformers and must give the same logits, and the
masks are counted on the packed weights: a format is believed after it was read, not after it was written.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from tasks.formats.grid import Grid
from tasks.models.checkpoint import check_masks, load_model, skeleton
from tasks.models.linears import find_linears
from tasks.models.packable import require_packable
from tasks.models.shards import MASKS, TensorFiles, copy_companions

Scales = Mapping[str, Mapping[str, torch.Tensor]]


def export_compressed(directory: Path, scales: Scales, grid: Grid, output: Path) -> dict[str, float]:
    """Write the dequantized model in ``directory`` as integers on their ``scales``; returns what the read-back found.

    ``scales`` gives per parameter a "scale" and, on an asymmetric grid, a "zero_point", as ``load_extras`` reads them.
    """
    directory, output = Path(directory), Path(output)
    _refuse_unsupported(directory, scales, grid)
    model = load_model(directory)
    dtype = model.dtype
    tokens_BT = torch.arange(32).remainder(model.config.get_text_config(decoder=True).vocab_size)[None]
    with torch.no_grad():
        before = model(tokens_BT, use_cache=False).logits
    # Codes are recovered in float32: dividing a bfloat16 weight by its bfloat16 scale may round to a neighbour.
    untouched = _attach(model.float(), scales, grid)
    _write(model, dtype, untouched, output)
    copy_companions(directory, output, skip={"config.json"})
    if (directory / MASKS).exists():
        shutil.copyfile(directory / MASKS, output / MASKS)
    return _read_back(tokens_BT, before, output)


def _refuse_unsupported(directory: Path, scales: Scales, grid: Grid) -> None:
    model = skeleton(directory)
    require_packable(model)
    if not grid.symmetric:
        raise ValueError("unsupported: compressed-tensors 0.20 does not read its packed asymmetric weights back; "
                         "choose symmetric")  # fmt: skip
    if odd := sorted(find_linears(model).keys() ^ scales.keys()):
        raise ValueError(f"a scale is needed for every linear and only those; {odd[0]} differs ({len(odd)} in all)")


def _attach(model: torch.nn.Module, scales: Scales, grid: Grid) -> list[str]:
    """Hang the quantization scheme and its scales on the model's linears, the way compressed-tensors expects them; the
    names of those that are left as they are."""
    from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus, apply_quantization_config

    weights = {"num_bits": grid.bits, "type": "int", "symmetric": grid.symmetric, "dynamic": False}
    weights |= {"strategy": "group", "group_size": grid.group_size} if grid.group_size else {"strategy": "channel"}
    linears = {name.removesuffix(".weight") for name in scales}
    ignored = [name for name, module in model.named_modules()
               if isinstance(module, torch.nn.Linear) and name not in linears]  # fmt: skip
    config = QuantizationConfig(
        config_groups={"group_0": {"targets": ["Linear"], "weights": weights}},
        ignore=ignored,
        quantization_status=QuantizationStatus.FROZEN,
    )
    apply_quantization_config(model, config, show_progress=False)
    for name in linears:
        module, given = model.get_submodule(name), scales[f"{name}.weight"]
        module.weight_scale.data.copy_(given["scale"])
        if hasattr(module, "weight_zero_point"):
            module.weight_zero_point.data.copy_(given.get("zero_point", torch.zeros(())))
    return ignored


def _write(model: torch.nn.Module, dtype: torch.dtype, untouched: list[str], output: Path) -> None:
    from compressed_tensors.compressors import ModelCompressor

    compressor = ModelCompressor.from_pretrained_model(model)
    # It leaves out what is no module of a packed one's very class: a plain head beside layers of a class of their own, or a
    # layer of such a class beside plain ones. Readers match subclasses too, and would look for packed weights there.
    scheme = compressor.quantization_config
    scheme.ignore = list(dict.fromkeys([*scheme.ignore, *untouched]))
    compressor.compress_model(model)
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for value in tensors.values():
                if value is not None and value.is_floating_point():
                    value.data = value.data.to(dtype)
    model.config.dtype = dtype
    model.save_pretrained(output)
    compressor.update_config(str(output))


def _read_back(tokens_BT: torch.Tensor, before: torch.Tensor, output: Path) -> dict[str, float]:
    model = load_model(output)
    with torch.no_grad():
        after = model(tokens_BT, use_cache=False).logits
    difference = float((after.double() - before.double()).abs().max())
    if not difference <= 1e-6 * max(1.0, float(before.abs().max())):
        raise ValueError(f"the export in {output} does not read back: its logits differ by up to {difference:g}")
    masks = check_masks(output)
    return {"logits_difference": difference, "masks_checked": float(len(masks))}


class StoredWeights:
    """The weights of a model directory as a loaded model would have them, one at a time, quantized or not."""

    def __init__(self, directory: Path) -> None:
        self.files = TensorFiles(directory)
        self.skeleton = skeleton(directory)
        self.scheme = _scheme(json.loads((directory / "config.json").read_text()))

    def __contains__(self, name: str) -> bool:
        return name in self.files or (self.scheme is not None and f"{name}_packed" in self.files)

    def read(self, name: str) -> torch.Tensor:
        if name in self.files:
            return self.files.read([name])[name]
        from compressed_tensors.compressors import BaseCompressor

        stem = name.removesuffix("weight")
        stored = self.files.read(other for other in self.files if other.startswith(f"{name}_"))
        compressor = BaseCompressor.get_value_from_registry("pack-quantized")
        local = {other.removeprefix(stem): value for other, value in stored.items()}
        return compressor.decompress(local, self.scheme)["weight"]


def _scheme(config: dict):
    """The one quantization scheme of a checkpoint's config, or None when it is not quantized."""
    if not (quantization := config.get("quantization_config")):
        return None
    from compressed_tensors.quantization import QuantizationConfig

    groups = QuantizationConfig.model_validate(quantization).config_groups
    if len(groups) != 1 or quantization.get("format") != "pack-quantized":
        raise ValueError(f"unsupported: a quantized checkpoint of format {quantization.get('format')} with "
                         f"{len(groups)} schemes; choose pack-quantized with one")  # fmt: skip
    return next(iter(groups.values()))
