"""A dequantized model directory becomes codes and scales on disk, one matrix in memory at a time.

compressed-tensors decides everything: which module gets which scheme, how its codes are packed, what the config says. It hangs
its schemes on a model without memory, which has the places of all scales; the values come from files, matrix by matrix, and
what is not quantized goes from file to file as bytes.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tasks.models.files.checkpoint import skeleton
from tasks.models.files.layout import copy_companions
from tasks.models.files.schemes import compressor_of, config_groups, unpacked_at_once
from tasks.models.files.shards import Place, TensorFiles, write_shards

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
    from transformers import PreTrainedModel

Extras = Mapping[str, Mapping[str, torch.Tensor]]
Schemes = Mapping[str, "QuantizationScheme"]


def write_packed(directory: Path, extras: Extras, schemes: Schemes, cache: QuantizationArgs | None, output: Path) -> None:
    """Codes and scales (in the model's dtype) as compressed-tensors stores them, all else as it lies in ``directory``.

    ``schemes`` are by parameter, ``extras`` by parameter and, of what is no weight's, by module; ``cache`` is what keys and
    values are rounded to.
    """
    from compressed_tensors.compressors import ModelCompressor

    model, files = skeleton(directory), TensorFiles(directory)
    untouched = _attach(model, schemes, cache)
    compressor = ModelCompressor.from_pretrained_model(model)
    _settle(compressor.quantization_config, model, files, untouched)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output, prefix=".packing-") as folder:
        made = _written(model, files, extras, schemes, Path(folder))
        write_shards(files.renamed({name: files.places[name] for name in files if name not in schemes} | made), output)
    copy_companions(directory, output)
    compressor.update_config(str(output))
    if any(map(unpacked_at_once, schemes.values())):
        _dequantized_at_once(output / "config.json")


def _attach(model: PreTrainedModel, schemes: Schemes, cache: QuantizationArgs | None) -> list[str]:
    """Hang the schemes on the model's linears, the way compressed-tensors expects them; the names of those that are left as
    they are."""
    from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus, apply_quantization_config

    linears = {name.removesuffix(".weight"): scheme for name, scheme in schemes.items()}
    ignored = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and name not in linears]
    config = QuantizationConfig(
        config_groups=config_groups(linears),
        ignore=ignored,
        quantization_status=QuantizationStatus.FROZEN,
        kv_cache_scheme=cache,
    )
    apply_quantization_config(model, config, show_progress=False)
    return ignored


def _settle(config: QuantizationConfig, model: PreTrainedModel, files: TensorFiles, untouched: Iterable[str]) -> None:
    """What readers need of the library's config, and it does not say by itself."""
    from compressed_tensors.quantization import QuantizationStatus

    # It leaves out what is no module of a packed one's very class: a plain head beside layers of a class of their own, or a
    # layer of such a class beside plain ones. Readers match subclasses too, and would look for packed weights there.
    known = model.state_dict().keys()
    unknown = [name.removesuffix(".weight") for name in files if name.endswith(".weight") and name not in known]
    config.ignore = list(dict.fromkeys([*(config.ignore or ()), *untouched, *unknown]))
    # They take a module's first target, so that of every Linear comes last.
    groups = sorted(config.config_groups.values(), key=lambda group: group.targets == ["Linear"])
    config.config_groups = {f"group_{number}": group for number, group in enumerate(groups)}
    config.quantization_status = QuantizationStatus.COMPRESSED


def _written(model: PreTrainedModel, files: TensorFiles, extras: Extras, schemes: Schemes, folder: Path) -> dict[str, Place]:
    """Where in ``folder`` what is made of each scheme lies, by the names it is stored under."""
    from safetensors.torch import save_file

    owners = [name.removesuffix(".weight") for name in schemes]
    others = [owner for owner in extras if owner not in schemes and owner not in owners]
    places: dict[str, Place] = {}
    for number, owner in enumerate([*owners, *others]):
        weight, module = f"{owner}.weight", model.get_submodule(owner)
        given = {f"weight_{key}": value for key, value in extras.get(weight, {}).items()} | dict(extras.get(owner, {}))
        if weight in schemes:
            given["weight"] = files.read([weight])[weight]
        if odd := [key for key in given if getattr(module, key, None) is None]:
            raise ValueError(f"no scheme has a place for {odd[0]} of {owner}")
        made = {f"{owner}.{key}": value for key, value in _stored(module, given, model.dtype).items()}
        made = {name: value for name, value in made.items() if name in schemes or name not in files}
        path = folder / f"{number:06d}"
        save_file(made, path)
        places |= {name: Place(path, name) for name in made}
    return places


def _stored(module: torch.nn.Module, given: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """What a module's own tensors, named as in it, are stored as; those that are not ``given`` are zero."""
    state = {name: torch.zeros_like(place, device="cpu") for name, place in module.named_parameters(recurse=False)}
    for name, value in given.items():
        state[name].copy_(value.view_as(state[name]))
    if "weight" in given:
        # Codes are recovered in float32: dividing a bfloat16 weight by its bfloat16 scale may round to a neighbour.
        state = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
        state = compressor_of(module.quantization_scheme).compress(state, module.quantization_scheme)
    # Packed zero points of a scale per row are a slice of a larger storage, which no file takes.
    return {name: value.to(dtype if value.dtype == torch.float32 else None, copy=True) for name, value in state.items()}


def _dequantized_at_once(path: Path) -> None:
    """Ask readers for it in the config."""
    config = json.loads(path.read_text())
    config["quantization_config"]["dequantize"] = True
    path.write_text(json.dumps(config, indent=2, sort_keys=True))
