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
from typing import TYPE_CHECKING

import torch

from tasks.formats.grid import Grid
from tasks.models.checkpoint import load_model, save_weights, skeleton
from tasks.models.layout import MASKS, copy_companions
from tasks.models.linears import find_linears
from tasks.models.packable import require_packable
from tasks.models.shards import TensorFiles

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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
    _write(model, dtype, untouched, directory, output)
    if (directory / MASKS).exists():
        (output / MASKS).parent.mkdir(exist_ok=True)
        shutil.copyfile(directory / MASKS, output / MASKS)
    return {"logits_difference": _read_back(tokens_BT, before, output)}


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


def _write(model: PreTrainedModel, dtype: torch.dtype, untouched: list[str], directory: Path, output: Path) -> None:
    """Codes and scales (in ``dtype``) as compressed-tensors packs them, all else as it is stored in ``directory``."""
    from compressed_tensors.compressors import ModelCompressor

    compressor = ModelCompressor.from_pretrained_model(model)
    # It leaves out what is no module of a packed one's very class: a plain head beside layers of a class of their own, or a
    # layer of such a class beside plain ones. Readers match subclasses too, and would look for packed weights there.
    files, tied, known = TensorFiles(directory), model.all_tied_weights_keys, model.state_dict().keys()
    unknown = [name.removesuffix(".weight") for name in files if name.endswith(".weight") and name not in known]
    scheme = compressor.quantization_config
    scheme.ignore = list(dict.fromkeys([*scheme.ignore, *untouched, *unknown]))
    compressor.compress_model(model)
    made = {name: value for name, value in model.state_dict().items() if name not in files and name not in tied}
    made = {name: value.to(dtype) if value.is_floating_point() else value for name, value in made.items()}
    packed = {name.removesuffix("_packed") for name in made if name.endswith("_packed")}
    output.mkdir(parents=True, exist_ok=True)
    save_weights(made | files.read(name for name in files if name not in packed), output)
    copy_companions(directory, output)
    compressor.update_config(str(output))


def _read_back(tokens_BT: torch.Tensor, before: torch.Tensor, output: Path) -> float:
    """The largest difference of a logit after reading; ValueError where it is more than rounding."""
    model = load_model(output)
    with torch.no_grad():
        after = model(tokens_BT, use_cache=False).logits
    difference = float((after.double() - before.double()).abs().max())
    if not difference <= 1e-6 * max(1.0, float(before.abs().max())):
        raise ValueError(f"the export in {output} does not read back: its logits differ by up to {difference:g}")
    return difference


class StoredWeights:
    """The weights of a model directory as a loaded model would have them, one at a time, quantized or not."""

    def __init__(self, directory: Path) -> None:
        self.files = TensorFiles(directory)
        self.skeleton = skeleton(directory)
        self.scheme = _scheme(json.loads((directory / "config.json").read_text()))

    def names(self) -> set[str]:
        """What is stored, by the names it would have if nothing were quantized."""
        beside = ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point") if self.scheme else ()
        split = (name.rpartition(".") for name in self.files)
        return {f"{module}.weight" if leaf in beside else f"{module}{dot}{leaf}" for module, dot, leaf in split}

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
